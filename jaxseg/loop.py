"""The loop of a training run: steps, evaluations and checkpoints, and how it ends early.

A batch is a function of the step alone, and what else the coming steps depend on is the state and a
few numbers, `Past`: both are in every checkpoint, so that resuming needs no iterator state.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxseg import evaluate, feed, figures, metrics, nonfinite, preemption, visualize
from jaxseg.checkpoint import Checkpointer
from jaxseg.compiling import compile_lowered
from jaxseg.console import duration, say
from jaxseg.data.base import Description
from jaxseg.errors import Preempted, UserError
from jaxseg.profiling import Tracer
from jaxseg.progress import Progress
from jaxseg.sharding import gathered
from jaxseg.state import TrainState
from jaxseg.workdir import Workdir
from jaxseg.writer import Writer

PICTURES = 4  # evaluated samples shown in TensorBoard


@dataclasses.dataclass(frozen=True)
class Past:
    """What the steps to come depend on besides the state.

    Attributes:
      bad_in_a_row: so many steps up to this one had no finite loss.
      rollbacks: how often the run went back to an earlier checkpoint.
      skipped: batches of the data that were passed over by that.
      evaluation_due: the evaluation of this step is yet to be made.
    """

    bad_in_a_row: int = 0
    rollbacks: int = 0
    skipped: int = 0
    evaluation_due: bool = False

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> "Past":
        """That of a checkpoint; runs before there was any have none."""
        return cls(**meta.get("past", {}))


@dataclasses.dataclass
class Loop:
    """Trains `state` to `config.steps`, evaluating and saving on the way.

    Attributes:
      config, description, mesh: what to train on.
      workdir: takes events.
      checkpointer: saves and restores.
      tracer: traces steps.
      train_step: of `train.jitted`, compiled at the first step.
      eval_step: of `evaluate.make_eval_step`.
      abstract_state: shapes and layout of the state.
      state: the newest; None while another is restored.
      past: as it was at the newest start of the loop.
    """

    config: ConfigDict
    description: Description
    mesh: Mesh
    workdir: Workdir
    checkpointer: Checkpointer
    tracer: Tracer
    train_step: Callable
    eval_step: Callable
    abstract_state: TrainState
    state: TrainState | None
    past: Past

    def run(self) -> None:
        """Trains to the end.

        Raises:
          UserError: a sample cannot be read, the loss diverged, or the last save failed. As for
            Preempted, the state is saved where that is possible.
          Preempted: the process was asked to end.
        """
        self.compiled, self.productive = False, 0.0
        self._open()
        try:
            while True:
                try:
                    return self._train()
                except nonfinite.Diverged as diverged:
                    if not self._roll_back(diverged):
                        raise
        except (UserError, Preempted) as reason:
            self._leave(reason)
            raise
        finally:
            self.tracer.close()
            self.writer.close()
            self.checkpointer.close()

    def _open(self) -> None:
        """Begins the log where the state is."""
        config, folder = self.config, self.workdir.path
        self.step = self.start = int(self.state.step)
        self.evaluation_due = self.past.evaluation_due
        self.writer = Writer(folder, resume_step=self.start)
        stop_after = config.nonfinite.stop_after
        self.watch = nonfinite.Watch(folder, stop_after, self.past.bad_in_a_row)
        self.progress = Progress(config.steps, config.batch_size, self.writer, self.watch)

    def _train(self) -> None:
        config, progress = self.config, self.progress
        if self.evaluation_due:
            self._evaluate()
        which = (self.start, self.workdir.path, self.past.skipped)
        rows = feed.train_batches(config, self.description, self.mesh, *which)
        with contextlib.closing(rows) as batches:
            for step, batch in enumerate(progress.timed(batches), self.start + 1):
                self._take_step(step, batch)
                last = step == config.steps
                logs = last or step % config.log_every == 0
                saves = last or step % config.checkpoint_every == 0
                stops = preemption.asked()
                if logs or saves or stops or self.evaluation_due:
                    progress.write()
                self.watch.check()
                if stops:
                    raise Preempted
                # Evaluated before it is saved: a run killed in between repeats the evaluation.
                if self.evaluation_due:
                    self._evaluate()
                    progress.restart_clock()
                if saves:
                    self.checkpointer.save(step, self.state, self._meta())
                    self._note_goodput()

    def _take_step(self, step: int, batch: dict[str, Any]) -> None:
        ids = batch.pop("id")
        first = not self.compiled
        if first:
            lowered = self.train_step.lower(self.state, batch)
            self.train_step, self.compiled = compile_lowered(lowered, "the training step"), True
            began = time.monotonic()
        with self.tracer.step(step):
            self.state, scalars = self.train_step(self.state, batch)
        self.step = step
        self.evaluation_due = step == self.config.steps or step % self.config.eval_every == 0
        self.progress.add(step, scalars, {**batch, "id": ids})
        if first or self.tracer.is_last(step):
            jax.block_until_ready(scalars)
            self.tracer.close()
            self.progress.restart_clock()
        if first:
            say(f"the first step took {time.monotonic() - began:.1f}s")

    def _evaluate(self) -> None:
        """Evaluates the state; saves it if it is the best so far."""
        config, description, step = self.config, self.description, self.step
        began = time.monotonic()
        variables = self.state.variables()
        counts, kept = evaluate.run(
            self.eval_step,
            gathered(variables, self.mesh) if config.shard.state else variables,
            evaluate.batches(config, description, config.eval.split, self.mesh),
            description.num_classes,
            self.mesh,
            keep=PICTURES,
        )
        self.evaluation_due = False
        summary = figures.summarize(counts, description, config.eval.split)
        prefix = config.eval.split
        scalars = metrics.scalars(summary)
        self.writer.write_scalars(step, {f"{prefix}/{name}": scalars[name] for name in scalars})
        pictures = {
            f"{prefix}/{name}": visualize.side_by_side(image, truth, labels, description.palette)
            for name, image, truth, labels in kept
        }
        self.writer.write_images(step, pictures)
        score = summary["mIoU"]
        best = self.checkpointer.save_best(step, self.state, self._meta(summary), score)
        say(
            f"step {step}: {prefix} mIoU {score:.4f}, pixel accuracy "
            f"{summary['pixel_accuracy']:.4f} ({duration(time.monotonic() - began)})"
            + (", the best so far" if best else "")
        )

    def _note_goodput(self) -> None:
        """Notes the time that went into steps which are saved; what was undone is lost."""
        self.productive, self.progress.productive = self.productive + self.progress.productive, 0.0
        self.workdir.note_goodput(self.productive)

    def _meta(self, summary: dict[str, Any] | None = None) -> dict[str, Any]:
        now = dict(bad_in_a_row=self.watch.in_a_row, evaluation_due=self.evaluation_due)
        return {
            "step": self.step,
            "config": json.loads(self.config.to_json_best_effort()),
            "classes": list(self.description.classes),
            "palette": [list(color) for color in self.description.palette],
            "metrics": summary,
            "past": dataclasses.asdict(self.past) | now,
        }

    def _roll_back(self, diverged: nonfinite.Diverged) -> bool:
        """Goes back to the newest state known to be good, if the config has it so and there is one.

        Good is one whose next step had a finite loss. From there the run takes the batches after
        those of the steps undone, as Chowdhery et al. 2022 (arXiv:2204.02311, section 5.1) do where
        the loss spikes: the same ones would lead to the same end.
        """
        past, limit = self.past, self.config.nonfinite.rollbacks
        good = [step for step in self.checkpointer.steps() if step <= diverged.first - 2]
        if past.rollbacks >= limit or not good:
            if limit:
                why = "it did so before" if good else "no checkpoint is older"
                say(f"step {self.step}: does not go back to an earlier checkpoint; {why}")
            return False
        self.writer.close()
        self.state = None  # its memory is needed for the other
        self.checkpointer.abandon(max(good))
        self.state, meta = self.checkpointer.restore(self.abstract_state)
        to = int(self.state.step)
        skipped, rollbacks = past.skipped + diverged.last - to, past.rollbacks + 1
        self.past = dataclasses.replace(Past.of(meta), rollbacks=rollbacks, skipped=skipped)
        told = {"step": diverged.last, "to": to, "batches_skipped": diverged.last - to}
        self.workdir.event("rolled back", **told)
        say(
            f"the loss was not finite from step {diverged.first} to {diverged.last}: back to step "
            f"{to}, and on with the batches that come next ({rollbacks} of {limit} times)"
        )
        self._open()
        return True

    def _leave(self, reason: Exception) -> None:
        """Keeps what was learnt: a sample cannot be read, the loss diverged, the machine goes."""
        self.progress.write()
        if isinstance(reason, nonfinite.Diverged):
            self.watch.in_a_row = 0  # whoever starts it again wants it tried again
        # A save is made by all processes or by none, and the others may not know of a bad sample.
        known = jax.process_count() == 1 or isinstance(reason, nonfinite.Diverged | Preempted)
        if known and self.state is not None and self.step > self.start:
            self.checkpointer.save(self.step, self.state, self._meta())
            self.checkpointer.wait(final=True)
            self._note_goodput()
            say(f"stopped; step {self.step} is saved, and the same command continues from there")
        if isinstance(reason, Preempted):
            self.workdir.event("preempted", step=self.step)
