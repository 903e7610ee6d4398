"""Training in spite of samples that cannot be read: `config.on_bad_sample='skip'`.

Another record takes the place of a bad one. Which one follows from the run's seed and the place in
the endless sequence of samples alone, and whether a record is bad follows from its files alone. So
a run that is resumed, on any number of processes, with either back end and any cache on the host,
sees the same batches.

    <workdir>/bad_samples-PROCESS.jsonl   {"split", "id", "files", "reason"}: a line per bad sample

Every process notes those that it meets. Evaluation knows nothing of this: its figures are of a
whole split, or of none.
"""

import dataclasses
import itertools
import json
import pathlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from absl import logging

from jaxseg.data import plan, reading
from jaxseg.data.base import Record
from jaxseg.data.samples import Sample
from jaxseg.errors import UserError
from jaxseg.writer import write_atomically

_STREAM = 2  # of random words, see `plan.words`
_SHOWN = 20  # so many samples are listed in a message

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Skip:
    """How many samples may be bad, and where they are noted.

    Attributes:
      cap: `config.bad_sample_cap`, a share of the split's records; one record is always allowed.
      folder: the run's workdir; None notes them nowhere.
      process: the number of this process.
    """

    cap: float
    folder: pathlib.Path | None = None
    process: int = 0

    def allowed(self, num_records: int) -> int:
        """How many of so many records may be bad."""
        return min(max(1, int(self.cap * num_records + 1e-9)), num_records - 1)


def substitutes(seed: int, position: int, num_records: int) -> np.ndarray:
    """All records in the order in which they are tried for the place of a bad one: int64 [n]."""
    return np.argsort(plan.words(seed, _STREAM, position, num_records), kind="stable")


def substituting(
    skip: Skip | None,
    split: str,
    records: Sequence[Record],
    read: Callable[[int], Sample],
    seed: int,
) -> Callable[[Callable[[plan.Row], Result], plan.Row, int], Result]:
    """The function `(use, row, position) -> use(row)` that calls `use` with another row's record
    where the row's own is bad, which is to say that `read`, decoding, or `use` raise `UserError`.

    Back ends decode but the part of an image that they need, each a part of its own. So that they
    agree, a record is decoded once as a whole, when this process meets it first. A record that was
    found bad is not read again.

    Args:
      skip: None calls `use` with the row as it is.
      split: its name, for messages.
      records: of the split.
      read: index -> sample, see `samples.source`.
      seed: of the run.

    Raises (the function):
      UserError: more records are bad than `skip` allows. It lists them.
    """
    if skip is None:
        return lambda use, row, position: use(row)
    noted = _Noted(skip, split, records)
    whole: set[int] = set()

    def run(use: Callable[[plan.Row], Result], row: plan.Row, position: int) -> Result:
        others = map(int, _lazily(substitutes, seed, position, len(records)))
        for index in itertools.chain([row.index], others):
            if index in noted.bad:
                continue
            try:
                if index not in whole:
                    sample = read(index)
                    reading.decode_image(sample.image, sample.what)
                    whole.add(index)
                return use(dataclasses.replace(row, index=index))
            except UserError as error:
                noted.add(index, str(error))
        raise noted.too_many()

    return run


def _lazily(function: Callable, *arguments: Any) -> Iterator:
    yield from function(*arguments)


class _Noted:
    """The bad samples that this process has met, by their index. Threads share it."""

    def __init__(self, skip: Skip, split: str, records: Sequence[Record]):
        self.bad: dict[int, str] = {}
        self._skip, self._split, self._records = skip, split, records
        self._lock = threading.Lock()

    def add(self, index: int, reason: str) -> None:
        with self._lock:
            if index not in self.bad:  # another thread may have met it at the same time
                self.bad[index] = reason
                self._tell(self._records[index], reason)
            if len(self.bad) > self._skip.allowed(len(self._records)):
                raise self.too_many()

    def _tell(self, record: Record, reason: str) -> None:
        logging.warning("another sample takes the place of %r: %s", record.id, reason)
        if self._skip.folder is None:
            return
        paths = [path for path in (record.image, record.label) if isinstance(path, str)]
        entry = {
            "split": self._split,
            "id": record.id,
            "files": [path for path in paths if path in reason],
            "reason": reason,
        }
        path = self._skip.folder / f"bad_samples-{self._skip.process}.jsonl"
        try:
            entries = _lines(path)
            if entry not in entries:  # in an earlier start of the run
                text = "".join(json.dumps(line) + "\n" for line in [*entries, entry])
                write_atomically(path, text)
        except OSError as error:  # the list is not worth the run
            logging.warning("%s: cannot be written (%s)", path, error.strerror)

    def too_many(self) -> UserError:
        number, allowed = len(self._records), self._skip.allowed(len(self._records))
        lines = [f"\n  {reason}" for reason in sorted(self.bad.values())]
        more = f"\n  and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
        return UserError(
            f"{len(lines)} of the {number} samples of split {self._split!r} cannot be used, and "
            f"config.bad_sample_cap={self._skip.cap:g} allows {allowed}. Mend them (`python -m "
            "jaxseg.main check` finds all that are bad), or raise the cap:"
            + "".join(lines[:_SHOWN])
            + more
        )


def listed(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The bad samples that any process has met in any start of a run; each once, sorted by id."""
    found = [line for path in folder.glob("bad_samples-*.jsonl") for line in _lines(path)]
    return sorted({json.dumps(line): line for line in found}.values(), key=lambda line: line["id"])


def _lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """What `_tell` wrote."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
