"""Orbax's manager of a folder of checkpoints, as a run wants it."""

import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxseg import distributed, stored

ELSEWHERE = "another process could not write its part"
_made = itertools.count()  # managers, of which each process of a run makes as many


def make(folder: pathlib.Path, keep: int, scores: Mapping[int, float]) -> ocp.CheckpointManager:
    """Starts it; it reads what steps there are.

    Args:
      folder: with a folder for each step.
      keep: how many of the newest steps stay, besides the best one.
      scores: of the steps that have one. Let it grow with every save.
    """
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for item in stored.ITEMS:
        registry.add(item, ocp.args.StandardSave, ocp.StandardCheckpointHandler())
    registry.add("meta", ocp.args.JsonSave, ocp.JsonCheckpointHandler())
    policy = _LatestAndBest(keep, scores)
    options = ocp.CheckpointManagerOptions(preservation_policy=policy)
    if jax.process_count() > 1:
        options.async_options = ocp.options.AsyncOptions(barrier_sync_fn=_Lockstep(next(_made)))
    return _Manager(folder, handler_registry=registry, options=options)


def best(scores: Mapping[int, float]) -> int | None:
    """The step with the highest score, the earliest of equals; None when there is none."""
    return max(scores, key=lambda step: (scores[step], -step), default=None)


class _Manager(ocp.CheckpointManager):
    """Orbax's, which does not look for SIGTERM whenever it saves.

    It would count its looks by steps, and `jaxseg.preemption` counts in its own way: where the two
    mix, processes may agree on a point that is behind them, and none would ever stop.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class _LatestAndBest:
    """Orbax preservation policy: the newest `keep` steps and the one with the best score.

    Orbax removes the others after the new step is on disk, so a kill leaves one too many at worst.
    """

    def __init__(self, keep: int, scores: Mapping[int, float]):
        self.keep = keep
        self.scores = scores

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        stay = {*sorted(steps)[-self.keep :], best(self.scores)}
        return [step in stay for step in steps]


class _FailedElsewhere(Exception):
    """A save that came to nothing because another process could not write its part."""


def reason(error: BaseException) -> str:
    """Why a save failed, in a line; `ELSEWHERE` where another process can tell."""
    while isinstance(error, _FailedElsewhere):
        if error.__context__ is None:
            return ELSEWHERE
        error = error.__context__  # it comes while this process gives up
    return stored.reason(error)


class _Lockstep:
    """Orbax's barriers within a save, at which no process waits for one whose save has failed.

    All pass the same ones in the same order, but one that fails goes straight to the last: who is
    found at another barrier than the rest has failed, or the rest has. Orbax would wait 20 minutes.

    Args:
      name: of these among the barriers of the run; the same in all processes.
    """

    def __init__(self, name: int):
        self._name = name
        self._passed = 0
        self._failed = False

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        """Waits until all are at `key`. Raises `_FailedElsewhere` when some are at another."""
        if self._failed:
            raise _FailedElsewhere
        client, here = distributed.store(), f"jaxseg/saves/{self._name}/{self._passed}"
        client.key_value_set(f"{here}/{jax.process_index()}", key)
        if jax.process_index() == 0:
            keys = {
                client.blocking_key_value_get(f"{here}/{i}", timeout_ms)
                for i in range(jax.process_count())
            }
            client.key_value_set(f"{here}/together", json.dumps(len(keys) == 1))
            if self._passed:  # all have read what is before this
                client.key_value_delete(f"jaxseg/saves/{self._name}/{self._passed - 1}/")
        together = json.loads(client.blocking_key_value_get(f"{here}/together", timeout_ms))
        self._passed += 1
        self._failed = not together
        if self._failed:
            raise _FailedElsewhere
