"""Metrics from counts: a confusion matrix per batch in JAX, every figure from its int64 sum.

Nothing but integers is accumulated, so a figure does not depend on the batch size, the order of
the pictures or the number of devices.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Pixels per picture and step of the matrix-product form: bounds its one-hot operands to
# 2 * b * 2^16 * C values, and keeps every float32 partial count below 2^24, where they are exact.
_CHUNK = 2**16


def confusion_matrix(
    predictions: jax.Array,
    labels: jax.Array,
    num_classes: int,
    ignore_label: int,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Counts of (true class, predicted class) over the pixels of a batch.

    A pixel counts when its label is in 0..C-1 and is not `ignore_label`; any other label is
    ignored on both sides, in the truth's and in the prediction's counts (values that a dataset
    should not have are refused where they are read, see `jaxseg.data`).

    Args:
      predictions: int [b, h, w], each in 0..C-1, as an argmax gives them.
      labels: int [b, h, w].
      num_classes: C.
      ignore_label: label of pixels that do not count.
      mask: bool [b]; rows that are False (padding) count nowhere. None: all count.

    Returns:
      int32 [C, C], rows the truth, columns the prediction; exact up to 2^31 - 1 pixels a batch.
    """
    valid = (labels != ignore_label) & (labels >= 0) & (labels < num_classes)
    if mask is not None:
        valid &= mask[:, None, None]
    # A scatter into C * C cells is the fastest form on a CPU, by far; on an accelerator nearly all
    # of its updates collide on the diagonal, and a product of one-hot matrices does it instead.
    return jax.lax.platform_dependent(
        predictions.astype(jnp.int32),
        jnp.where(valid, labels, num_classes).astype(jnp.int32),
        cpu=lambda p, t: _by_scatter(p, t, num_classes),
        default=lambda p, t: _by_product(p, t, num_classes),
    )


def _by_scatter(predictions: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
    """Labels are 0..C; those of class C fall off the end."""
    cells = labels * num_classes + predictions
    counts = jnp.zeros(num_classes * num_classes, jnp.int32)
    return counts.at[cells].add(1, mode="drop").reshape(num_classes, num_classes)


def _by_product(
    predictions: jax.Array, labels: jax.Array, num_classes: int, chunk: int = _CHUNK
) -> jax.Array:
    """Labels are 0..C; the one-hot vector of class C is zero. Works through bands of rows."""
    b, h, w = labels.shape
    rows = max(1, chunk // w)
    bands = -(-h // rows)
    pad = ((0, 0), (0, bands * rows - h), (0, 0))
    labels = jnp.pad(labels, pad, constant_values=num_classes)
    predictions = jnp.pad(predictions, pad)

    def add(band, counts):
        start = band * rows
        truth, predicted = (
            jax.nn.one_hot(
                jax.lax.dynamic_slice_in_dim(x, start, rows, axis=1),
                num_classes,
                dtype=jnp.bfloat16,
            )
            for x in (labels, predictions)
        )  # [b, rows, w, C], 0 and 1 are exact
        product = jnp.einsum("bhwt,bhwp->btp", truth, predicted, preferred_element_type=jnp.float32)
        return counts + product.astype(jnp.int32)

    # One matrix per picture until the end: a batch sharded over devices is summed once.
    counts = jnp.zeros((b, num_classes, num_classes), jnp.int32)
    return jnp.sum(jax.lax.fori_loop(0, bands, add, counts), axis=0)


def accumulate(counts: Iterable[jax.Array], num_classes: int) -> np.ndarray:
    """The int64 [C, C] sum of the batches' int32 confusion matrices.

    A matrix is fetched when the next one has been asked for, so that the device computes one
    while the host adds the other.
    """
    total = np.zeros((num_classes, num_classes), np.int64)
    waiting = None
    for current in counts:
        if waiting is not None:
            total += np.asarray(waiting, np.int64)
        waiting = current
    return total if waiting is None else total + np.asarray(waiting, np.int64)


def summarize(confusion: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Every figure that follows from a confusion matrix, as fractions of 1.

    With T true, P predicted and I agreeing pixels of a class: IoU = I / (T + P - I), accuracy =
    I / T, Dice = 2 I / (T + P). A figure that would be 0 / 0 is undefined: it is None and left
    out of the mean. So a class absent from truth and prediction has no figure at all; one absent
    from the truth but predicted has IoU 0 and Dice 0, which count, and no accuracy
    (MMSegmentation's convention). Frequency-weighted IoU weighs each IoU by T (Long et al.,
    arXiv:1411.4038, section 5).

    Args:
      confusion: int64 [C, C], rows the truth, columns the prediction.
      classes: the C class names.

    Returns:
      A dict fit for JSON: 'mIoU', 'pixel_accuracy', 'mean_accuracy', 'frequency_weighted_IoU',
      'mean_Dice', 'pixels', and 'classes', a list of {'name', 'IoU', 'accuracy', 'Dice',
      'pixels' (T), 'predicted_pixels' (P)}.
    """
    confusion = np.asarray(confusion, np.int64)
    if confusion.shape != (len(classes), len(classes)):
        raise ValueError(f"confusion matrix {confusion.shape} for {len(classes)} classes")
    agree, true, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    pixels = true.sum()
    iou = ratio(agree, true + predicted - agree)
    accuracy = ratio(agree, true)
    dice = ratio(2 * agree, true + predicted)
    return {
        "mIoU": mean(iou),
        "pixel_accuracy": number(ratio(agree.sum(), pixels)),
        "mean_accuracy": mean(accuracy),
        "frequency_weighted_IoU": number(ratio(np.sum(true * np.nan_to_num(iou)), pixels)),
        "mean_Dice": mean(dice),
        "pixels": int(pixels),
        "classes": [
            {
                "name": name,
                "IoU": number(iou[i]),
                "accuracy": number(accuracy[i]),
                "Dice": number(dice[i]),
                "pixels": int(true[i]),
                "predicted_pixels": int(predicted[i]),
            }
            for i, name in enumerate(classes)
        ],
    }


def scalars(summary: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a summary to plot: the means, and 'IoU/<class>'; undefined ones left out."""
    flat = {k: v for k, v in summary.items() if k not in ("classes", "pixels")}
    flat |= {f"IoU/{c['name']}": c["IoU"] for c in summary["classes"]}
    return {name: value for name, value in flat.items() if value is not None}


def table(summary: Mapping[str, Any]) -> str:
    """A summary as plain text: a line per class, in percent, and the means; '-' for undefined."""
    header = ("class", "IoU", "accuracy", "Dice", "pixels")
    means = ("mean", *(summary[k] for k in ("mIoU", "mean_accuracy", "mean_Dice", "pixels")))
    rows = [tuple(c[k] for k in ("name", *header[1:])) for c in summary["classes"]]
    cells = [header, *((row[0], *map(percent, row[1:4]), str(row[4])) for row in (*rows, means))]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join((line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])))
        for line in cells
    ]
    rule = "-" * len(lines[0])
    last = (
        f"mIoU {percent(summary['mIoU'])}, pixel accuracy {percent(summary['pixel_accuracy'])}, "
        f"frequency-weighted IoU {percent(summary['frequency_weighted_IoU'])}"
    )
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], last])


def ratio(numerator: Any, denominator: Any) -> np.ndarray:
    """Element-wise quotient in float64, NaN for 0 / 0."""
    with np.errstate(invalid="ignore"):
        return np.true_divide(numerator, denominator)


def mean(values: np.ndarray) -> float | None:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else None


def number(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
