"""A trace of some training steps by `jax.profiler`: what ran when, on the host and the devices."""

import contextlib
import pathlib
import re
from collections.abc import Iterator

import jax

from jaxseg.console import say
from jaxseg.errors import UserError

WARM_UP = 5  # steps before a trace that is asked for by its length alone


def parse(text: str | None, start: int, steps: int) -> range:
    """The steps to trace, counted from 1: 'FIRST:LAST', or how many after `WARM_UP` of this start.

    Args:
      text: --profile; None traces nothing.
      start, steps: the run makes the steps start + 1 .. steps.

    Raises:
      UserError: neither form, or not all of these steps will be made.
    """
    if text is None:
        return range(0)
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    if not match:
        raise UserError(
            f"--profile={text}: expected the first and the last step to trace, as --profile=11:15, "
            "or how many, as --profile=5"
        )
    first, last = int(match[1]), match[2]
    first, last = (first, int(last)) if last else (start + WARM_UP + 1, start + WARM_UP + first)
    if not start < first <= last <= steps:
        made = f"{start + 1} to {steps}" if start < steps else "none"
        raise UserError(
            f"--profile={text}: steps {first} to {last} are not all among those that this run has "
            f"still to make: {made}"
        )
    return range(first, last + 1)


class Tracer:
    """Traces the steps of a loop that are in `steps` into the folder `profile` of a workdir."""

    def __init__(self, steps: range, workdir: pathlib.Path):
        self._steps, self._folder = steps, pathlib.Path(workdir) / "profile"
        self._running = False

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Marks what is enqueued inside as belonging to a step."""
        if self._steps and step == self._steps[0]:
            # Several hosts write into one folder, of which jax makes no file for Perfetto.
            jax.profiler.start_trace(self._folder, create_perfetto_trace=jax.process_count() == 1)
            self._running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield

    def is_last(self, step: int) -> bool:
        """Whether the trace is to be closed after this step is done."""
        return self._running and step == self._steps[-1]

    def close(self) -> None:
        """Writes the trace, if one is being made, and says how to open it."""
        if not self._running:
            return
        self._running = False
        jax.profiler.stop_trace()
        newest = max((self._folder / "plugins" / "profile").iterdir())
        say(
            f"traced steps {self._steps[0]} to {self._steps[-1]}. To see them\n"
            f"  pip install xprof && xprof --logdir {self._folder} --port 8791"
        )
        for file in newest.glob("perfetto_trace.json.gz"):
            say(f"or open https://ui.perfetto.dev and drop {file} on it")
