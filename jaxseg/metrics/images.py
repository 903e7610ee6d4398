"""Figures of single images, and what they tell about the split: extremes, and how sure a mean is.

Of each image three rows of counts are kept, [3, C]: pixels of a class on which truth and prediction
agree, its true pixels and its predicted pixels. IoU and accuracy need no more.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxseg.metrics.confusion import confusion_matrix

QUANTILES = (0, 5, 25, 50, 75, 95, 100)  # percent
LEVEL = 95  # percent, of the intervals
RESAMPLES, SEED = 1000, 0
_BLOCK = 100  # resamples whose weights are in memory at once


def confusion_matrices(
    predictions: jax.Array, labels: jax.Array, num_classes: int, ignore_label: int
) -> jax.Array:
    """`confusion_matrix` of each image alone: int [b, h, w] twice -> int32 [b, C, C]."""
    return jax.vmap(
        lambda p, t: confusion_matrix(p[None], t[None], num_classes, ignore_label),
    )(predictions, labels)


def sides(confusion: np.ndarray) -> np.ndarray:
    """Agreeing, true and predicted pixels of each class: [C, C] -> int64 [3, C]."""
    confusion = np.asarray(confusion, np.int64)
    return np.stack([np.diag(confusion), confusion.sum(1), confusion.sum(0)])


def class_iou(counts: np.ndarray) -> np.ndarray:
    """IoU of each class, NaN for 0 / 0: integers [..., 3, C] -> float64 [..., C]."""
    agree, true, predicted = np.moveaxis(np.asarray(counts), -2, 0)
    with np.errstate(invalid="ignore"):
        return np.true_divide(agree, true + predicted - agree)


def image_miou(counts: np.ndarray) -> np.ndarray:
    """mIoU of each image over the classes that occur in its truth.

    Csurka et al. 2013, "What is a good evaluation measure for semantic segmentation?" (BMVC),
    proposed to score images one by one; over which classes to average is Wang et al.'s
    mIoU^I (2023, arXiv:2310.19252). A stray pixel of a class that is not there lowers the IoU of
    the class it was taken from, and adds no zero.

    Args:
      counts: int64 [n, 3, C].

    Returns:
      float64 [n], NaN for an image without a labelled pixel.
    """
    there = counts[:, 1] > 0
    return mean_defined(np.where(there, class_iou(counts), np.nan))


def summarize(ids: Sequence[str], counts: np.ndarray, number: int = 8) -> dict[str, Any]:
    """How mIoU is distributed over the images, and which are the worst and the best.

    Args:
      ids: n names.
      counts: int64 [n, 3, C].
      number: how many of the worst and of the best to name.

    Returns:
      A dict fit for JSON: 'images' (those with a labelled pixel; the others have no figure),
      'mean', 'quantiles' ({'5%': ...}, linear between images), 'worst' and 'best', lists of
      {'id', 'mIoU'} that begin with the most extreme image; of equal ones the first id does.
    """
    miou = image_miou(counts)
    scored = sorted((miou[i], ids[i]) for i in np.flatnonzero(~np.isnan(miou)))
    values = np.array([value for value, _ in scored])
    best = sorted(scored, key=lambda pair: (-pair[0], pair[1]))

    def named(pairs):
        return [{"id": id, "mIoU": float(value)} for value, id in pairs[:number]]

    return {
        "images": len(scored),
        "mean": float(values.mean()) if scored else None,
        "quantiles": {
            f"{q}%": float(np.percentile(values, q)) if scored else None for q in QUANTILES
        },
        "worst": named(scored),
        "best": named(best),
    }


def miou(counts: np.ndarray) -> np.ndarray:
    """mIoU as in `confusion.summarize`: integers [..., 3, C] -> float64 [...], NaN without any."""
    return mean_defined(class_iou(counts))


def pixel_accuracy(counts: np.ndarray) -> np.ndarray:
    """Agreeing over true pixels of all classes: integers [..., 3, C] -> float64 [...]."""
    with np.errstate(invalid="ignore"):
        return np.true_divide(counts[..., 0, :].sum(-1), counts[..., 1, :].sum(-1))


def mean_defined(values: np.ndarray) -> np.ndarray:
    """The mean over the last axis of what is not NaN; NaN where all is."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0).sum(-1) / defined.sum(-1)


def resample(
    counts: Mapping[str, np.ndarray], number: int = RESAMPLES, seed: int = SEED
) -> dict[str, np.ndarray]:
    """Counts of bootstrap resamples: sums over as many images, drawn with replacement.

    Efron 1979, "Bootstrap methods: another look at the jackknife". An image that is drawn twice
    counts twice, so a resample is a multinomial weight for each image, and all sums are one matrix
    product. With one seed, one number and one order of images, the resamples of two systems draw
    the same images: differences of their figures are paired.

    Args:
      counts: name -> integers [n, ...], the counts of n images.
      number: of resamples.
      seed: of the draws.

    Returns:
      name -> float64 [number, ...], whole numbers.
    """
    images = len(next(iter(counts.values())))
    rng = np.random.default_rng(seed)
    # Whole numbers below 2^53 are exact in float64, whose products are many times as fast.
    flat = np.concatenate([x.reshape(images, -1) for x in counts.values()], 1).astype(np.float64)
    sums = np.empty((number, flat.shape[1]))
    for first in range(0, number, _BLOCK):
        block = sums[first : first + _BLOCK]
        weights = rng.multinomial(images, np.full(images, 1 / images), size=len(block))
        np.matmul(weights.astype(np.float64), flat, out=block)
    parts = np.split(sums, np.cumsum([x[0].size for x in counts.values()])[:-1], axis=1)
    return {
        name: part.reshape(number, *x.shape[1:])
        for (name, x), part in zip(counts.items(), parts, strict=True)
    }


def interval(values: np.ndarray) -> list[float] | None:
    """[low, high] that leave (100 - LEVEL) / 2 percent of the resamples' values on either side."""
    values = values[~np.isnan(values)]
    if not values.size:
        return None
    tail = (100 - LEVEL) / 2
    return [float(v) for v in np.percentile(values, [tail, 100 - tail])]
