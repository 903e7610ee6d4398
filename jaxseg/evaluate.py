"""Evaluation: one confusion matrix of integer counts over a split, every figure from it.

Each image counts exactly once, whatever the batch size and the number of devices: ragged batches
are padded and masked, logits are resized to the label's own size before the argmax by the chain of
config.predict, and the counts are summed in int64.
"""

import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxseg import checkpoint, data, metrics, models, predict, visualize
from jaxseg import state as states
from jaxseg.console import duration, say
from jaxseg.data.base import Description
from jaxseg.errors import UserError
from jaxseg.sharding import local_rows, make_mesh, over_batch, replicated, shard_batch

OVERLAYS = 8  # evaluated samples shown as pictures in the workdir


def make_eval_step(model, config: ConfigDict, description: Description, mesh: Mesh) -> Callable:
    """Returns the jitted `(variables, batch) -> (counts int32 [C, C], labels [b, H, W])`."""
    scores = predict.make_scores(model, config.predict, dtype=config.dtype)

    def eval_step(variables, batch):
        size = batch["label"].shape[1:3]
        labels = predict.to_labels(scores(variables, batch["image"], size))
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
        config.eval,
        batch_size=batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def evaluate_checkpoint(
    config: ConfigDict, workdir: str, split: str | None = None, step: int | None = None
) -> dict[str, Any]:
    """Evaluates a run's checkpoint on a split; prints the table and leaves figures and pictures.

    Writes `results-SPLIT.json` (protocol, figures, confusion matrix) and `predictions/` (overlays
    of the first images) into the workdir.

    Args:
      config: the run's config; `eval`, `predict` and `data` may differ from those of training.
      workdir: a trained run.
      split: `config.eval.split` when None.
      step: the checkpoint to take; the best when None.

    Returns:
      The summary of `metrics.summarize`.

    Raises:
      UserError: no such checkpoint, or it does not fit the config's model; no such split.
    """
    split = split or config.eval.split
    description = data.get(config.data)
    mesh = make_mesh(config.devices)
    model = models.get(config.model, num_classes=description.num_classes)
    abstract = states.abstract_variables(model, tuple(config.augment.crop))
    variables, meta = checkpoint.load_model(workdir, abstract, step=step)
    variables = jax.device_put(variables, replicated(mesh))
    number = len(description.records(split))
    say(f"\nevaluating step {meta['step']} on {number} images of {description.name}/{split}")

    began = told = time.monotonic()

    def progress(images: int) -> None:
        nonlocal told
        if time.monotonic() - told > 10:
            told = time.monotonic()
            left = duration((told - began) * (number - images) / max(images, 1))
            say(f"{images}/{number} images, {left} left")

    counts, kept = run(
        make_eval_step(model, config, description, mesh),
        variables,
        batches(config, description, split, mesh),
        description.num_classes,
        mesh,
        progress,
        keep=OVERLAYS,
    )
    seconds = time.monotonic() - began
    summary = summarize(counts, description, split)
    say(metrics.table(summary))
    if jax.process_index() == 0:
        folder = pathlib.Path(workdir)
        result = {
            "dataset": description.name,
            "split": split,
            "images": number,
            "step": meta["step"],
            "protocol": {"eval": config.eval.to_dict(), "predict": config.predict.to_dict()},
            "images_per_s": round(number / seconds, 3),
            **summary,
            "confusion": counts.tolist(),
        }
        (folder / f"results-{split}.json").write_text(json.dumps(result, indent=1))
        save_overlays(folder / "predictions", kept, description)
    return summary


def summarize(counts: np.ndarray, description: Description, split: str) -> dict[str, Any]:
    """`metrics.summarize`; raises `UserError` where no pixel of the split has a label."""
    if not counts.any():
        raise UserError(f"{description.name}/{split} has no labelled pixel to evaluate on")
    return metrics.summarize(counts, description.classes)


def save_overlays(folder: pathlib.Path, kept: list, description: Description) -> None:
    """Writes for each sample that `run` kept the overlay of the prediction, beside the truth's."""
    for name, image, truth, labels in kept:
        path = folder / f"{name}_overlay.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = visualize.nearest(image, truth.shape)
        palette, classes = description.palette, description.classes
        visualize.save_png(path, visualize.overlay(image, labels, palette, classes))
        visualize.save_png(
            folder / f"{name}_compared.png",
            visualize.side_by_side(image, truth, labels, palette),
        )
