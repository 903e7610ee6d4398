"""The log of a training run: progress lines and every step's scalars."""

import collections
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax

from jaxseg.console import duration, say
from jaxseg.nonfinite import Watch
from jaxseg.writer import Writer

IN_FLIGHT = 2  # steps enqueued on the device at the most: enough to keep it busy, bounds memory


class Progress:
    """Collects the scalars of each step on the device and writes them out now and then.

    Args:
      steps: the last step of the run.
      batch_size: images per step, over all hosts.
      writer: where scalars go.
      watch: is shown every step once it is done, with its batch, which is on the devices till then.
    """

    def __init__(self, steps: int, batch_size: int, writer: Writer, watch: Watch):
        self._steps, self._batch_size = steps, batch_size
        self._writer, self._watch = writer, watch
        self._pending: list[tuple[int, Mapping[str, jax.Array]]] = []
        self._in_flight: collections.deque = collections.deque()
        self.productive = 0.0  # seconds of steps so far, without waiting for their data
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

    def add(self, step: int, scalars: Mapping[str, jax.Array], batch: Mapping[str, Any]) -> None:
        """Takes note of a step that was just enqueued; waits while too many are in flight."""
        scalars["finite"].copy_to_host_async()
        self._pending.append((step, scalars))
        self._in_flight.append((step, scalars, batch))
        self._counted += 1
        if len(self._in_flight) > IN_FLIGHT:
            self._await_oldest()

    def _await_oldest(self) -> None:
        step, scalars, batch = self._in_flight.popleft()
        self._watch.see(step, jax.block_until_ready(scalars), batch)

    def write(self) -> None:
        """Fetches and writes the scalars of all steps since the last call, and prints one line."""
        while self._in_flight:
            self._await_oldest()
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        fetched = jax.device_get([scalars for _, scalars in pending])
        elapsed = max(time.monotonic() - self._began, 1e-9)
        for (step, _), scalars in zip(pending, fetched, strict=True):
            scalars = {k: float(value) for k, value in scalars.items() if k != "finite"}
            self._writer.write_scalars(step, scalars)
        speed = {
            "images_per_s": self._counted * self._batch_size / elapsed,
            "data_wait": self._waited / elapsed,
        }
        if self._counted:
            self.productive += elapsed - self._waited
            self._writer.write_scalars(step, speed)
            left = duration((self._steps - step) * elapsed / self._counted)
            say(
                f"step {step}/{self._steps}  loss {scalars['loss']:.4f}  lr {scalars['lr']:.2e}  "
                f"{speed['images_per_s']:.1f} images/s  "
                f"waiting for data {speed['data_wait']:.0%}  left {left}"
            )
        self.restart_clock()
