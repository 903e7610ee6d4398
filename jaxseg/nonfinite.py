"""Steps whose loss or gradient was not finite: told, counted, and left to be looked at.

<workdir>/nonfinite.jsonl       a line for each: its samples and scalars
<workdir>/nonfinite/step_N.npz  the batch of one, as the step got it: image uint8 [b, h, w, 3],
                                label [b, h, w], mask bool [b], id, and the scalars. Of several
                                processes each writes its rows, to step_N-process_I.npz
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from jaxseg.console import say
from jaxseg.errors import UserError
from jaxseg.sharding import local_rows

FILES = 5  # batches that a run leaves at the most


class Diverged(UserError):
    """The loss was not finite for too many steps in a row: those from `first` to `last`."""

    def __init__(self, first: int, last: int, log: pathlib.Path):
        super().__init__(
            f"the loss was not finite for {last - first + 1} steps in a row, up to step {last}; "
            f"the samples are in {log}, batches in {log.with_suffix('')}/. Lower "
            "config.optimizer.lr, add config.optimizer.clip_norm, compute in float32 "
            "(config.dtype), or set config.nonfinite.rollbacks. The parameters of the last good "
            "step are in the newest checkpoint."
        )
        self.first, self.last = first, last


class Watch:
    """Sees every step in order.

    Args:
      folder: the workdir.
      stop_after: how many in a row are too many.
      in_a_row: how many there were just before the first step that it will see.

    Attributes:
      in_a_row: how many there are up to the step seen last.
    """

    def __init__(self, folder: pathlib.Path, stop_after: int, in_a_row: int = 0):
        self._log = pathlib.Path(folder) / "nonfinite.jsonl"
        self._stop_after = stop_after
        self._diverged: Diverged | None = None
        self.in_a_row = in_a_row

    def see(self, step: int, scalars: Mapping[str, Any], batch: Mapping[str, Any]) -> None:
        """Takes note of a step that is done.

        Args:
          step: its number.
          scalars: what the step returned.
          batch: what it got, as global arrays, and the 'id' of this process's rows.
        """
        if scalars["finite"]:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        if self.in_a_row == self._stop_after:
            self._diverged = Diverged(step - self.in_a_row + 1, step, self._log)
        say(f"step {step}: the loss or a gradient is not finite; the step was left out")
        scalars = {name: float(value) for name, value in jax.device_get(scalars).items()}
        try:
            self._write(step, scalars, batch)
        except OSError as error:
            logging.error("could not write %s: %s", error.filename or self._log, error.strerror)

    def _write(self, step: int, scalars: Mapping[str, float], batch: Mapping[str, Any]) -> None:
        if jax.process_index() == 0:
            values = {name: str(value) for name, value in scalars.items() if name != "finite"}
            with open(self._log, "a") as file:
                row = {"step": step, "ids": list(batch["id"]), "scalars": values}
                file.write(json.dumps(row) + "\n")
        folder = self._log.with_suffix("")
        mine = f"-process_{jax.process_index()}" if jax.process_count() > 1 else ""
        if len(list(folder.glob(f"step_*{mine}.npz"))) >= FILES:
            return
        arrays = {k: local_rows(v) for k, v in batch.items() if k != "id"}
        folder.mkdir(exist_ok=True)
        path = folder / f"step_{step}{mine}.npz"
        try:
            np.savez_compressed(path, **arrays, id=np.array(batch["id"]), **scalars)
        except OSError:
            path.unlink(missing_ok=True)
            raise

    def check(self) -> None:
        """Raises `Diverged` when too many in a row were seen, now or some steps ago."""
        if self._diverged is not None:
            raise self._diverged
