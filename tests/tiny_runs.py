"""Training runs of `tests/tiny_config.py` in this process, which share what they compile."""

import contextlib
import os
import pathlib
import signal
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxseg import checkpoint, evaluate, loop, main, train
from jaxseg.writer import read_metrics

CONFIG = pathlib.Path(__file__).parent / "tiny_config.py"
STEPS = 12
BAD = 7  # the grey of images that the loss is not finite for; the data has none


def command(workdir, *overrides: str) -> int:
    """The exit status of training in this process."""
    return main.main(["jaxseg", f"--config={CONFIG}", f"--workdir={workdir}", *overrides])


class _Once:
    """A jitted function that is lowered and compiled once, however many runs there are."""

    def __init__(self, jitted):
        self._jitted, self._lowered, self._compiled = jitted, None, None

    def lower(self, state, batch):
        self._lowered = self._lowered or self._jitted.lower(state, batch)
        return self

    def compile(self):
        self._compiled = self._compiled or self._lowered.compile()
        return self._compiled


def _once(function: Callable) -> Callable:
    found = []

    def first(*arguments):
        if not found:
            found.append(function(*arguments))
        return found[0]

    return first


_total = train.losses.total


def _loss(outputs, batch, *arguments, **settings):
    value, parts = _total(outputs, batch, *arguments, **settings)
    return jnp.where(jnp.all(batch["image"] == BAD), jnp.nan, value), parts


_jitted = train.jitted
_created = _once(train.states.create)
_initial = _once(jax.device_get)
_PATCHES = (
    (train.losses, "total", _loss),
    (train.states, "abstract_variables", _once(train.states.abstract_variables)),
    (train, "jitted", _once(lambda *arguments: _Once(_jitted(*arguments)))),
    (evaluate, "make_eval_step", _once(evaluate.make_eval_step)),
    (train, "_finish", lambda config, folder: {}),
    (train.results, "in_short", lambda result: result),
)


def _create(*arguments):
    state, abstract = _created(*arguments)
    layout = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.device_put(_initial(state), layout), abstract


@contextlib.contextmanager
def compiled_once() -> Iterator[None]:
    """While this lasts every run shares one compiled step, and the last evaluation is left out."""
    with pytest.MonkeyPatch.context() as patch:
        for where, name, value in _PATCHES:
            patch.setattr(where, name, value)
        patch.setattr(train.states, "create", _create)
        yield


def after_step(patch: pytest.MonkeyPatch, hooks: Mapping[int, Callable]) -> None:
    """Calls `hooks[step](loop)` once this step of training is enqueued."""
    take = loop.Loop._take_step

    def hooked(self, step, batch):
        take(self, step, batch)
        if step in hooks:
            hooks[step](self)

    patch.setattr(loop.Loop, "_take_step", hooked)


def terminate(*_) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def losses_of(workdir) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_metrics(workdir) if "loss" in row}


def figures_of(workdir) -> list[dict]:
    """The rows of evaluations in the log, in order."""
    rows = [row for row in read_metrics(workdir) if "val/mIoU" in row]
    return [{k: v for k, v in row.items() if k != "time"} for row in rows]


def arrays_of(workdir, step) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint's model."""
    variables, _ = checkpoint.load_model(workdir, step=step)
    return flatten_dict(variables, sep="/")


def assert_same(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def assert_equals_uninterrupted(workdir, whole) -> None:
    """Bit for bit: JSON holds a float's digits, and `losses_of` what was read of them."""
    assert losses_of(workdir) == losses_of(whole)
    assert figures_of(workdir) == figures_of(whole)
    for step in ("latest", "best"):
        assert_same(arrays_of(workdir, step), arrays_of(whole, step))
