"""The log of a training run: progress lines, every step's scalars, the watch for divergence."""

import json
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax

from jaxseg.console import duration, say
from jaxseg.errors import UserError
from jaxseg.writer import Writer

IN_FLIGHT = 2  # steps enqueued on the device at the most: enough to keep it busy, bounds memory
MAX_BAD_STEPS = 10  # steps in a row without a finite loss before a run gives up


class Progress:
    """Collects the scalars of each step on the device and writes them out now and then.

    Args:
      steps: the last step of the run.
      batch_size: images per step, over all hosts.
      writer: where scalars go.
      folder: the workdir, for the record of steps whose loss was not finite.
    """

    def __init__(self, steps: int, batch_size: int, writer: Writer, folder: pathlib.Path):
        self._steps, self._batch_size = steps, batch_size
        self._writer = writer
        self._bad_log = pathlib.Path(folder) / "nonfinite.jsonl"
        self._pending: list[tuple[int, Mapping[str, jax.Array], list[str]]] = []
        self._bad_in_a_row = 0
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leaves out of the speed what was not training: compilation, evaluation."""
        self._began, self._waited, self._counted = time.monotonic(), 0.0, 0

    def timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The same batches; the time spent waiting for each counts as waiting for data."""
        batches = iter(batches)
        while True:
            began = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waited += time.monotonic() - began
            yield batch

    def add(self, step: int, scalars: Mapping[str, jax.Array], ids: list[str]) -> None:
        """Takes note of a step that was just enqueued; waits while too many are in flight."""
        self._pending.append((step, scalars, ids))
        self._counted += 1
        if len(self._pending) > IN_FLIGHT:
            jax.block_until_ready(self._pending[-1 - IN_FLIGHT][1])

    def write(self) -> None:
        """Fetches and writes the scalars of all steps since the last call, and prints one line.

        Raises:
          UserError: the loss was not finite for `MAX_BAD_STEPS` steps in a row.
        """
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        fetched = jax.device_get([scalars for _, scalars, _ in pending])
        elapsed = max(time.monotonic() - self._began, 1e-9)
        for (step, _, ids), scalars in zip(pending, fetched, strict=True):
            scalars = {name: float(value) for name, value in scalars.items()}
            finite = scalars.pop("finite")
            self._writer.write_scalars(step, scalars)
            self._bad_in_a_row = 0 if finite else self._bad_in_a_row + 1
            if not finite:
                self._note_bad(step, scalars, ids)
        speed = {
            "images_per_s": self._counted * self._batch_size / elapsed,
            "data_wait": self._waited / elapsed,
        }
        if self._counted:
            self._writer.write_scalars(step, speed)
            left = duration((self._steps - step) * elapsed / self._counted)
            say(
                f"step {step}/{self._steps}  loss {scalars['loss']:.4f}  lr {scalars['lr']:.2e}  "
                f"{speed['images_per_s']:.1f} images/s  "
                f"waiting for data {speed['data_wait']:.0%}  left {left}"
            )
        self.restart_clock()

    def _note_bad(self, step: int, scalars: Mapping[str, float], ids: list[str]) -> None:
        say(f"step {step}: the loss or a gradient is not finite; the step was left out")
        if jax.process_index() == 0:
            row = {"step": step, "ids": list(ids), "scalars": {k: str(scalars[k]) for k in scalars}}
            with open(self._bad_log, "a") as file:
                file.write(json.dumps(row) + "\n")
        if self._bad_in_a_row >= MAX_BAD_STEPS:
            self._writer.flush()
            raise UserError(
                f"the loss was not finite for {MAX_BAD_STEPS} steps in a row, up to step {step}; "
                f"the samples are in {self._bad_log}. Lower config.optimizer.lr, add "
                "config.optimizer.clip_norm, or compute in float32 (config.dtype). The parameters "
                "of the last good step are in the newest checkpoint."
            )
