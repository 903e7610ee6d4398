"""Evaluation: integer counts over a split, every figure from them.

Each image counts exactly once, whatever the batch size and the number of devices: ragged batches
are padded and masked, scores are resized to the label's own size before the argmax by the chain of
config.predict, and the counts are summed in int64. While a run trains, `run` counts a confusion
matrix and nothing else; `evaluate_checkpoint` has every figure, by `jaxseg.measure`.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxseg import (
    checkpoint,
    data,
    figures,
    measure,
    metrics,
    models,
    pictures,
    plots,
    predict,
    preemption,
    results,
    visualize,
)
from jaxseg import state as states
from jaxseg.console import duration, say
from jaxseg.data.base import Description, Record
from jaxseg.metrics import cityscapes, images
from jaxseg.sharding import local_rows, make_mesh, over_batch, replicated, shard_batch

OVERLAYS = 8  # pictures in the workdir: of the first images, of the worst and of the best


def make_eval_step(model, config: ConfigDict, description: Description, mesh: Mesh) -> Callable:
    """Returns the jitted `(variables, batch) -> (counts int32 [C, C], labels [b, H, W])`."""
    labels_of = predict.make_labels(
        model, config.predict, dtype=config.dtype, base_size=config.eval.base_size
    )

    def eval_step(variables, batch):
        size = batch["label"].shape[1:3]
        labels = labels_of(variables, batch["image"], size)
        counts = metrics.confusion_matrix(
            labels,
            batch["label"],
            description.num_classes,
            description.ignore_label,
            batch["mask"],
        )
        return counts, labels

    return jax.jit(eval_step, out_shardings=(replicated(mesh), over_batch(mesh)))


def run(
    eval_step: Callable,
    variables: Any,
    batches: Iterator[Mapping[str, Any]],
    num_classes: int,
    mesh: Mesh,
    progress: Callable[[int], None] = lambda images: None,
    keep: int = 0,
) -> tuple[np.ndarray, list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]]:
    """Evaluates the batches of a split.

    Args:
      eval_step: what `make_eval_step` returns.
      variables: the model's variables.
      batches: this host's batches, of `data.eval_batches`.
      num_classes: C.
      mesh: the devices.
      progress: called with the number of images done.
      keep: how many samples to return for looking at.

    Returns:
      Counts int64 [C, C] (rows: truth, columns: prediction) over all hosts, and of the first `keep`
      samples of this host (id, image uint8 [h, w, 3], truth [H, W], prediction [H, W]).
    """
    kept = []

    def counts():
        images = 0
        for batch in batches:
            matrix, labels = eval_step(variables, shard_batch(batch, mesh))
            if len(kept) < keep:
                rows = local_rows(labels)
                kept.extend(
                    (batch["id"][i], batch["image"][i], batch["label"][i], rows[i])
                    for i in np.flatnonzero(batch["mask"])[: keep - len(kept)]
                )
            yield matrix
            images += int(batch["mask"].sum())
            progress(images)

    return metrics.accumulate(counts(), num_classes), kept


def batches(config: ConfigDict, description: Description, split: str, mesh: Mesh) -> Iterator:
    """The split's batches, the batch size rounded up to a multiple of the devices.

    Raises what `data.eval_batches` raises, and `Preempted` between two of them.
    """
    devices = mesh.shape["data"]
    batch_size = -(-config.eval.batch_size // devices) * devices
    rows = data.eval_batches(
        description,
        split,
        batch_size=batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return preemption.checked(rows)


@dataclasses.dataclass(frozen=True)
class Task:
    """A model with weights, and the split to evaluate it on.

    Attributes:
      config: the run's config, or that of a released model.
      description, split: the data, of which `records` are evaluated.
      mesh: the devices.
      variables: of the model.
      weights: which they are, for results: 'step' and the 'config' of its training, or 'model'.
    """

    config: ConfigDict
    description: Description
    split: str
    records: Sequence[Record]
    mesh: Mesh
    variables: Any
    weights: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{self.description.name}/{self.split}"

    @property
    def number(self) -> int:
        return len(self.records)

    @property
    def of(self) -> str:
        return self.weights.get("model") or f"step {self.weights['step']}"

    def samples(
        self, steps: Mapping[str, Callable], also: Callable = lambda sample: None
    ) -> Iterator[measure.Sample]:
        """`measure.samples` of the split, and a line of progress every ten seconds.

        Args:
          steps: variant -> what `measure.make_step` returns.
          also: called with every sample, in threads, when its counts are complete.
        """
        is_cityscapes = figures.is_cityscapes(self.description)
        instances = cityscapes.find_instances(self.records) if is_cityscapes else {}
        examine = measure.make_examine(self.description, instances)

        def both(sample):
            examine(sample)
            also(sample)

        rows = batches(self.config, self.description, self.split, self.mesh)
        began = told = time.monotonic()
        variables = jax.device_put(self.variables, replicated(self.mesh))
        found = measure.samples(steps, variables, rows, self.mesh, both)
        hosts = jax.process_count()  # which are about as far as this one
        for done, sample in enumerate(found, 1):
            yield sample
            if done == 1:
                began = time.monotonic()  # what came before was mostly compilation
            elif time.monotonic() - told > 10:
                told = time.monotonic()
                left = duration((told - began) * max(self.number / hosts - done, 0) / (done - 1))
                say(f"{min(done * hosts, self.number)}/{self.number} images, {left} left")


def prepare(config: ConfigDict, workdir: str, split: str | None, step: int | None) -> Task:
    """Loads what `evaluate_checkpoint` describes."""
    split = split or config.eval.split
    description = data.get(config.data)
    mesh = make_mesh(config.devices, config.shard.height)
    model = models.get(config.model, num_classes=description.num_classes)
    abstract = states.abstract_variables(model)
    variables, meta = checkpoint.load_model(workdir, abstract, step=step)
    records = description.records(split)
    at = meta.get("step")
    say(f"\nevaluating step {at} on {len(records)} images of {description.name}/{split}")
    weights = {"step": at, "config": meta.get("config")}
    return Task(config, description, split, records, mesh, variables, weights)


def evaluate_checkpoint(
    config: ConfigDict, workdir: str, split: str | None = None, step: int | None = None
) -> dict[str, Any]:
    """Evaluates a run's checkpoint on a split; prints the figures and leaves them and pictures.

    Writes into the workdir `results-SPLIT.json` (see `jaxseg.results`), `reliability-SPLIT.png` and
    `predictions/`: overlays of the first images and comparisons with the truth, and in
    `SPLIT-worst/` and `SPLIT-best/` those of the lowest and highest mIoU.

    Args:
      config: the run's config; `eval`, `predict` and `data` may differ from those of training.
      workdir: a trained run.
      split: `config.eval.split` when None.
      step: the checkpoint to take; the best when None.

    Returns:
      What is in the JSON file.

    Raises:
      UserError: no such checkpoint, or it does not fit the config's model; no such split.
    """
    return evaluate(prepare(config, workdir, split, step), workdir)


def evaluate(task: Task, workdir: str | None) -> dict[str, Any]:
    """What `evaluate_checkpoint` does, for any task; without a workdir it leaves nothing."""
    config = task.config
    model = models.get(config.model, num_classes=task.description.num_classes)
    one = "base"  # the only variant of the chain
    steps = {one: measure.make_step(model, config, task.description, task.mesh)}
    total = measure.Total()
    kept = {
        "first": measure.Shortlist(OVERLAYS),
        "worst": measure.Shortlist(OVERLAYS),
        "best": measure.Shortlist(OVERLAYS),
    }
    began = time.monotonic()
    for place, sample in enumerate(task.samples(steps)):
        total.add(sample.id, sample.counts[one])
        miou = images.image_miou(total.images[sample.id]["classes"][None])[0]
        arrays = (sample.image, sample.truth, sample.labels[one])
        kept["first"].offer(-place, sample.id, arrays)
        if not np.isnan(miou):
            kept["worst"].offer(-miou, sample.id, arrays)
            kept["best"].offer(miou, sample.id, arrays)
    seconds = time.monotonic() - began

    result = {
        **results.header(task),
        "protocol": results.protocol(task),
        "images_per_s": round(task.number / seconds, 3),
        **figures.compute(total.of_all_hosts(), task.description, task.split),
    }
    say(figures.report(result))
    if workdir is not None:
        _save(task, pathlib.Path(workdir), result, kept)
    return result


def _save(task: Task, folder: pathlib.Path, result: Mapping[str, Any], kept: Mapping) -> None:
    """Leaves what `evaluate_checkpoint` says."""
    predictions = folder / "predictions"
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        results.write(folder / f"results-{task.split}.json", result)
        title = f"{task.name}, {task.of}"
        diagram = plots.reliability_diagram(result["calibration"], title)
        visualize.save_png(folder / f"reliability-{task.split}.png", diagram)
        pictures.save_overlays(predictions, kept["first"], task.description)
    for kind in ("worst", "best"):
        place = predictions / f"{task.split}-{kind}"
        pictures.save_extremes(place, kept[kind], result, kind, task.description)
