"""Checkpoints of a run: written by Orbax, checked by us.

    <workdir>/checkpoints/<step>/...       see `jaxseg.stored` for what is in one
    <workdir>/checkpoints/<step>.damaged   a step that failed its check, out of the way

A save is asynchronous, and atomic by a rename at its end. The newest `keep` steps stay, and
besides them the one with the best score; it is a checkpoint like the others, so that nothing is
written twice and training can go on from any of them.
"""

import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from jaxseg import stored
from jaxseg.errors import UserError
from jaxseg.trees import named_leaves, nested


class Checkpointer:
    """Saves and restores the states of one run, under `<workdir>/checkpoints`.

    Args:
      workdir: the run's folder.
      keep: how many of the newest steps stay, besides the best one.
    """

    def __init__(self, workdir: str | os.PathLike, keep: int = 2):
        if keep < 1:
            raise UserError(f"checkpoints to keep: {keep}; expected 1 or more")
        self.folder = (pathlib.Path(workdir) / "checkpoints").absolute()
        self._keep = keep
        self._saving: int | None = None
        self._failure: str | None = None
        self._scores: dict[int, float] = {}
        self._open()
        for step in self._manager.all_steps():
            self._scores |= stored.score(self.folder / str(step))

    def _open(self) -> None:
        """Starts Orbax's manager, which reads what steps there are."""
        stored.quiet_orbax()
        self._remove_leftovers()
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        for item in stored.ITEMS:
            registry.add(item, ocp.args.StandardSave, ocp.StandardCheckpointHandler())
        registry.add("meta", ocp.args.JsonSave, ocp.JsonCheckpointHandler())
        self._manager = ocp.CheckpointManager(
            self.folder,
            handler_registry=registry,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_LatestAndBest(self._keep, self._scores)
            ),
        )

    def _remove_leftovers(self) -> None:
        """Removes what a killed or failed save left behind; call it when no save is under way."""
        if jax.process_index() == 0:
            for leftover in self.folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(leftover, ignore_errors=True)

    def latest_step(self) -> int | None:
        """The newest step on disk or on its way there, whole or not."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step with the highest score, the earliest of equals; None when none was scored."""
        return _best(self._scores)

    def save(
        self, step: int, state: Any, meta: Mapping[str, Any], score: float | None = None
    ) -> None:
        """Starts to save a state and returns once it is safe to donate its buffers.

        Waits for the save before it. A save that fails is logged, and training can go on: see
        `wait`. A step that is already there stays as it is.

        Args:
          step: the number of steps taken.
          state: a `TrainState`.
          meta: JSON values: config, metrics, classes. NaN becomes null.
          score: what 'best' means, higher is better, e.g. the validation mIoU of this state.
        """
        self._settle()
        if step in self._manager.all_steps():
            return
        self._remove_leftovers()  # again: the threads of a failed save may have outlived it
        named = {item: named_leaves(tree) for item, tree in stored.items(state).items()}
        envelope = stored.envelope(step, named, meta, score)
        args = {item: ocp.args.StandardSave(nested(leaves)) for item, leaves in named.items()}
        args["meta"] = ocp.args.JsonSave(envelope)
        self._saving = step
        if envelope["score"] is not None:
            self._scores[step] = envelope["score"]
        try:
            self._manager.save(step, args=ocp.args.Composite(**args), force=True)
        except Exception as error:  # whatever the file system does
            self._failed(error)

    def save_best(self, step: int, state: Any, meta: Mapping[str, Any], score: float) -> bool:
        """Saves the state if its score is higher than all before it; says whether it is.

        Call it before a `save` of the same step, which then does nothing.
        """
        self._settle()
        best = self.best_step()
        if not score > (float("-inf") if best is None else self._scores[best]):
            return False
        if step in self._manager.all_steps():
            raise ValueError(f"step {step} was saved before its score was known")
        self.save(step, state, meta, score)
        return True

    def wait(self, final: bool = False) -> None:
        """Waits until the save under way is on disk.

        Raises:
          UserError: with `final`, when the newest save failed.
        """
        self._settle()
        if final and self._failure:
            raise UserError(f"{self._failure}; the run's last state is not on disk")

    def close(self) -> None:
        """Waits and ends Orbax's threads. Raises `UserError` when the newest save failed."""
        self._settle()
        self._manager.close()
        self.wait(final=True)

    def restore(self, abstract: Any) -> tuple[Any, dict[str, Any]] | None:
        """(state, meta) of the newest whole step, or None when nothing was saved.

        Newer steps that are damaged are logged and set aside as `<step>.damaged`.

        Args:
          abstract: a `TrainState` of `jax.ShapeDtypeStruct` with shardings, of any mesh.

        Raises:
          UserError: the checkpoint is of another model or optimizer, or all steps are damaged.
        """
        self._settle()
        damaged = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state, meta = stored.read_state(self.folder / str(step), abstract)
            except stored.Damage as damage:
                logging.warning(
                    "checkpoint of step %d is damaged (%s): falling back to the one before it",
                    step,
                    damage,
                )
                damaged[step] = damage
                continue
            for bad in damaged:
                self._set_aside(bad)
            return state, meta
        if damaged:
            reasons = "; ".join(f"step {step}: {damage}" for step, damage in damaged.items())
            raise UserError(
                f"{self.folder}: every checkpoint is damaged ({reasons}); "
                "move the folder away to train from the beginning"
            )
        return None

    def _set_aside(self, step: int) -> None:
        """Out of Orbax's sight, which otherwise takes a damaged step for the latest."""
        folder = self.folder / str(step)
        if jax.process_index() == 0:
            target = folder.with_name(f"{step}.damaged")
            shutil.rmtree(target, ignore_errors=True)
            folder.rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"set aside {step}")
        self._scores.pop(step, None)
        self._manager.reload()

    def _settle(self) -> None:
        """Waits for the save under way, and takes note of how it ended."""
        if self._saving is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # Orbax wraps what the file system says in several types
            self._failed(error)
        else:
            self._saving = self._failure = None

    def _failed(self, error: Exception) -> None:
        self._failure = (
            f"could not save the checkpoint of step {self._saving} in {self.folder}: "
            f"{stored.reason(error)}"
        )
        logging.error("%s (training goes on; the next save tries again)", self._failure)
        self._scores.pop(self._saving, None)
        self._saving = None
        try:
            self._manager.close()
        except Exception as second:  # may repeat the failure
            logging.debug("while closing after a failed save: %s", second)
        self._open()


class _LatestAndBest:
    """Orbax preservation policy: the newest `keep` steps and the one with the best score.

    Orbax removes the others after the new step is on disk, so a kill leaves one too many at worst.
    """

    def __init__(self, keep: int, scores: Mapping[int, float]):
        self.keep = keep
        self.scores = scores  # the Checkpointer's own, which grows with every save

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        stay = {*sorted(steps)[-self.keep :], _best(self.scores)}
        return [step in stay for step in steps]


def _best(scores: Mapping[int, float]) -> int | None:
    return max(scores, key=lambda step: (scores[step], -step), default=None)


def find_step(path: str | os.PathLike, step: int | str | None = None) -> pathlib.Path:
    """The step folder that a path stands for.

    Args:
      path: a workdir, a folder of checkpoints, or one step's folder.
      step: a number, 'latest' or 'best'; None takes the best where there is one, else the latest.

    Raises:
      UserError: there is no checkpoint, or not that step.
    """
    folder = pathlib.Path(path).expanduser().absolute()
    if (folder / "meta").is_dir() and (folder / "model").is_dir():
        return folder
    if (folder / "checkpoints").is_dir():
        folder = folder / "checkpoints"
    steps = sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit() and p.is_dir())
    if not steps:
        raise UserError(
            f"{path}: holds no checkpoint; expected a workdir, its checkpoints folder, "
            "or the folder of one step"
        )
    scores = {}
    for number in steps:
        scores |= stored.score(folder / str(number))
    best = _best(scores)
    if step is None:
        step = "latest" if best is None else "best"
    found = {"latest": steps[-1], "best": best}.get(step, step)
    if found is None:
        raise UserError(f"{path}: no checkpoint has a score; take 'latest' or one of {steps}")
    if found not in steps:
        raise UserError(f"{path}: has no checkpoint of step {step}; there are {steps}")
    return folder / str(found)


def load_model(
    path: str | os.PathLike, abstract: Any = None, step: int | str | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(variables, meta) to predict with: averaged parameters (EMA) where they were kept.

    Args:
      path: see `find_step`.
      abstract: variables as `jax.ShapeDtypeStruct`; where they have shardings the result lies
        there. Without it the result is NumPy arrays in nested dictionaries.
      step: see `find_step`.

    Raises:
      UserError: no such checkpoint, it is damaged, or it is of another model.
    """
    folder = find_step(path, step)
    try:
        return stored.read_variables(folder, abstract)
    except stored.Damage as damage:
        raise UserError(
            f"{folder}: the checkpoint is damaged ({damage}); choose another step of the run"
        ) from damage
