"""Evaluation: integer counts over a split, every figure from them.

Each image counts exactly once, whatever the batch size and the number of devices: ragged batches
are padded and masked, scores are resized to the label's own size before the argmax by the chain of
config.predict, and the counts are summed in int64. While a run trains, `run` counts a confusion
matrix and nothing else; `evaluate_checkpoint` has every figure, by `jaxseg.measure`.
"""

import dataclasses
import json
import pathlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxseg import checkpoint, data, figures, measure, metrics, models, plots, predict, visualize
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
    """The split's batches, the batch size rounded up to a multiple of the devices."""
    devices = mesh.devices.size
    batch_size = -(-config.eval.batch_size // devices) * devices
    return data.eval_batches(
        description,
        split,
        batch_size=batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


@dataclasses.dataclass(frozen=True)
class Task:
    """A model with weights, and the split to evaluate it on.

    Attributes:
      config: the run's config, or that of a released model.
      description, split: the data, of which `records` are evaluated.
      mesh: the devices.
      variables: of the model.
      weights: which they are, for results: {'step': 4000}, or {'model': a released model's name}.
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
        for done, sample in enumerate(found, 1):
            yield sample
            if done == 1:
                began = time.monotonic()  # what came before was mostly compilation
            elif time.monotonic() - told > 10:
                told = time.monotonic()
                left = duration((told - began) * (self.number - done) / (done - 1))
                say(f"{done}/{self.number} images, {left} left")


def prepare(config: ConfigDict, workdir: str, split: str | None, step: int | None) -> Task:
    """Loads what `evaluate_checkpoint` describes."""
    split = split or config.eval.split
    description = data.get(config.data)
    mesh = make_mesh(config.devices)
    model = models.get(config.model, num_classes=description.num_classes)
    abstract = states.abstract_variables(model)
    variables, meta = checkpoint.load_model(workdir, abstract, step=step)
    records = description.records(split)
    say(f"\nevaluating step {meta['step']} on {len(records)} images of {description.name}/{split}")
    return Task(config, description, split, records, mesh, variables, {"step": meta["step"]})


def evaluate_checkpoint(
    config: ConfigDict, workdir: str, split: str | None = None, step: int | None = None
) -> dict[str, Any]:
    """Evaluates a run's checkpoint on a split; prints the figures and leaves them and pictures.

    Writes into the workdir `results-SPLIT.json` (protocol, figures, confusion matrix),
    `reliability-SPLIT.png`, and `predictions/`: overlays of the first images and comparisons with
    the truth, and in `SPLIT-worst/` and `SPLIT-best/` those of the lowest and highest mIoU.

    Args:
      config: the run's config; `eval`, `predict` and `data` may differ from those of training.
      workdir: a trained run.
      split: `config.eval.split` when None.
      step: the checkpoint to take; the best when None.

    Returns:
      The figures, see `figures.compute`.

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
    pictures = {
        "first": measure.Shortlist(OVERLAYS),
        "worst": measure.Shortlist(OVERLAYS),
        "best": measure.Shortlist(OVERLAYS),
    }
    began = time.monotonic()
    for place, sample in enumerate(task.samples(steps)):
        total.add(sample.id, sample.counts[one])
        miou = images.image_miou(total.images[sample.id]["classes"][None])[0]
        arrays = (sample.image, sample.truth, sample.labels[one])
        pictures["first"].offer(-place, sample.id, arrays)
        if not np.isnan(miou):
            pictures["worst"].offer(-miou, sample.id, arrays)
            pictures["best"].offer(miou, sample.id, arrays)
    seconds = time.monotonic() - began

    result = {
        "dataset": task.description.name,
        "split": task.split,
        "images": task.number,
        **task.weights,
        "protocol": {"eval": config.eval.to_dict(), "predict": config.predict.to_dict()},
        "images_per_s": round(task.number / seconds, 3),
        **figures.compute(total.of_all_hosts(), task.description, task.split),
    }
    say(figures.report(result))
    if workdir is not None:
        _save(task, pathlib.Path(workdir), result, pictures)
    return result


def _save(task: Task, folder: pathlib.Path, result: Mapping[str, Any], pictures: Mapping) -> None:
    """Leaves what `evaluate_checkpoint` says."""
    predictions = folder / "predictions"
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"results-{task.split}.json").write_text(json.dumps(result, indent=1))
        title = f"{task.name}, {task.of}"
        diagram = plots.reliability_diagram(result["calibration"], title)
        visualize.save_png(folder / f"reliability-{task.split}.png", diagram)
        save_overlays(predictions, pictures["first"], task.description)
    for kind in ("worst", "best"):
        save_extremes(predictions / f"{task.split}-{kind}", pictures[kind], result, kind, task)


def save_extremes(
    folder: pathlib.Path, kept: Iterable, result: Mapping[str, Any], kind: str, task: Task
) -> None:
    """The pictures of those images that are the 'worst' or 'best' ones of all hosts', no others."""
    fresh_folder(folder)
    chosen = {row["id"] for row in result["per_image"][kind]}
    save_compared(folder, (item for item in kept if item[0] in chosen), task.description)


def fresh_folder(folder: pathlib.Path) -> None:
    """Removes pictures of an earlier evaluation, of which others would be worst; on one process."""
    if jax.process_index() == 0:
        shutil.rmtree(folder, ignore_errors=True)
    measure.gathered(None)  # no process writes before


def save_overlays(folder: pathlib.Path, kept: Iterable, description: Description) -> None:
    """Writes for each (id, image, truth, labels) `ID_overlay.png` and `ID_compared.png`."""
    for name, image, truth, labels in kept:
        save_compared(folder, [(name, image, truth, labels)], description)
        image = visualize.nearest(image, truth.shape)
        picture = visualize.overlay(image, labels, description.palette, description.classes)
        visualize.save_png(folder / f"{name}_overlay.png", picture)


def save_compared(folder: pathlib.Path, kept: Iterable, description: Description) -> None:
    """Writes for each (id, image, truth, labels) `ID_compared.png`: the three side by side."""
    for name, image, truth, labels in kept:
        path = folder / f"{name}_compared.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = visualize.side_by_side(image, truth, labels, description.palette)
        visualize.save_png(path, picture)
