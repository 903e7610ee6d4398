"""Checkpoints of a run: written by Orbax, checked by us.

    <workdir>/checkpoints/<step>/...       see `jaxseg.stored` for what is in one
    <workdir>/checkpoints/<step>.damaged   a step that failed its check, out of the way
    <workdir>/checkpoints/<step>.abandoned   a step that training went back from, see `jaxseg.loop`

A save is asynchronous, and atomic by a rename at its end. The newest `keep` steps stay, and
besides them the one with the best score; it is a checkpoint like the others, so that nothing is
written twice and training can go on from any of them.
"""

import os
import pathlib
import shutil
import time
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from jaxseg import manager, stored
from jaxseg.distributed import gathered
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
        self._manager = manager.make(self.folder, self._keep, self._scores)

    def _remove_leftovers(self) -> None:
        """Removes what a killed or failed save left behind; call it when no save is under way."""
        if jax.process_index() == 0:
            for leftover in self.folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(leftover, ignore_errors=True)

    def latest_step(self) -> int | None:
        """The newest step on disk or on its way there, whole or not."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """All steps on disk or on their way there, whole or not, oldest first."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step with the highest score, the earliest of equals; None when none was scored."""
        return manager.best(self._scores)

    def save(
        self, step: int, state: Any, meta: Mapping[str, Any], score: float | None = None
    ) -> None:
        """Starts to save a state and returns once it is safe to donate its buffers.

        Waits for the save before it. A save that fails is logged, and training can go on: see
        `wait`. Of several processes one that cannot even begin raises, as the others wait for it.
        A step that is already there stays as it is.

        Args:
          step: the number of steps taken.
          state: a `TrainState`.
          meta: JSON values: config, metrics, classes. NaN becomes null.
          score: what 'best' means, higher is better, e.g. the validation mIoU of this state.
        """
        self._settle()
        if step in self._manager.all_steps():
            return
        self._remove_leftovers()  # again: some threads of a failed save end late
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
            if jax.process_count() > 1:  # the others wait for this one
                raise
            self._failed(manager.reason(error))
            self._open()

    def save_best(self, step: int, state: Any, meta: Mapping[str, Any], score: float) -> bool:
        """Saves the state if its score is higher than all before it; says whether it is.

        Call it before a `save` of the same step, which then does nothing. Where the step was saved
        before its score was known, that checkpoint gets this `meta`, and the score if it is higher.
        """
        self._settle()
        best = self.best_step()
        is_best = score > (float("-inf") if best is None else self._scores[best])
        if step in self._manager.all_steps():
            if jax.process_index() == 0:
                try:
                    stored.replace_meta(self.folder / str(step), meta, score if is_best else None)
                except OSError as error:
                    logging.error("could not note the score of step %d: %s", step, error.strerror)
            if is_best:
                self._scores[step] = score
        elif is_best:
            self.save(step, state, meta, score)
        return is_best

    def wait(self, final: bool = False) -> None:
        """Waits until the save under way is on disk.

        Raises:
          UserError: with `final`, when the newest save failed.
        """
        self._settle()
        if final and self._failure:
            raise UserError(f"{self._failure}; the run's last state is not on disk")

    def close(self) -> None:
        """Waits and ends Orbax's threads. Raises `UserError` when the newest save failed.

        A process that fails may call it while the others go on.
        """
        reason = self._finished()
        if reason:
            self._failed(reason)
        else:
            if self._saving is not None:
                self._saving = self._failure = None
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
            damage = None
            try:
                state, meta = stored.read_state(self.folder / str(step), abstract)
            except stored.Damage as found:
                damage = str(found)
            damage = next(filter(None, gathered(damage)), None)  # all go on from the same step
            if damage:
                logging.warning(
                    "checkpoint of step %d is damaged (%s): falling back to the one before it",
                    step,
                    damage,
                )
                damaged[step] = damage
                continue
            for bad in damaged:
                self._set_aside(bad, "damaged")
            return state, meta
        if damaged:
            reasons = "; ".join(f"step {step}: {damage}" for step, damage in damaged.items())
            raise UserError(
                f"{self.folder}: every checkpoint is damaged ({reasons}); "
                "move the folder away to train from the beginning"
            )
        return None

    def abandon(self, after: int) -> None:
        """Sets every newer step than `after` aside as `<step>.abandoned`."""
        self._settle()
        for step in self.steps():
            if step > after:
                self._set_aside(step, "abandoned")

    def _set_aside(self, step: int, reason: str) -> None:
        """Out of Orbax's sight, which otherwise takes a damaged step for the latest."""
        folder = self.folder / str(step)
        if jax.process_index() == 0:
            target = folder.with_name(f"{step}.{reason}")
            shutil.rmtree(target, ignore_errors=True)
            folder.rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"set aside {step}")
        self._scores.pop(step, None)
        self._manager.reload()

    def _settle(self) -> None:
        """Waits for the save under way. All processes take note of how it ended, together."""
        if self._saving is None:
            return
        reasons = [reason for reason in gathered(self._finished()) if reason]
        if reasons:
            self._failed(min(reasons, key=lambda reason: reason == manager.ELSEWHERE))
            self._open()
        else:
            self._saving = self._failure = None

    def _finished(self) -> str | None:
        """Waits for the save under way, if there is one; says why it failed, if it did."""
        if self._saving is None:
            return None
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # Orbax wraps what the file system says in several types
            return manager.reason(error)
        return None

    def _failed(self, reason: str) -> None:
        """Tells, and clears away what there is of the step. The manager is closed after it."""
        self._failure = (
            f"could not save the checkpoint of step {self._saving} in {self.folder}: {reason}"
        )
        logging.error("%s (training goes on; the next save tries again)", self._failure)
        self._scores.pop(self._saving, None)
        self._saving = None
        try:
            self._manager.close()
        except Exception as second:  # may repeat the failure
            logging.debug("while closing after a failed save: %s", second)
        for _ in range(5):  # its threads may outlive it, and would write into the step's next try
            time.sleep(0.2)
            self._remove_leftovers()


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
    best = manager.best(scores)
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
