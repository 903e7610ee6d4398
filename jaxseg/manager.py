"""Orbax's manager of a folder of checkpoints, as a run wants it."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import orbax.checkpoint as ocp

from jaxseg import stored


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
