"""Calibration: whether pixels are right as often as the model says that they are.

Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599, section 2: pixels are
put into bins by their confidence, the probability of the class that was predicted; a model is
calibrated where the accuracy of each bin is its mean confidence.

What is accumulated are counts in `FINE` narrow bins, each of which lies within one of the `BINS`
wide ones. So a pixel's wide bin and its being right are exact (but for float32's rounding, 1e-7, at
the bins' edges); its confidence is taken to be the middle of its narrow bin and is off by at most
1 / (2 * FINE) = 0.00028. The expected calibration error and the mean confidence are off by no more.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.metrics.confusion import number, ratio
from jaxseg.metrics.images import confusion_matrices

BINS = 15  # of the error and of the diagram, as in the paper's section 4
FINE = 1800  # bins that are counted: a multiple of BINS, and 2 * FINE is the square of _SIDE
_SIDE = 60
_UNIT = 2 * FINE  # of confidences, to 1: the middles of narrow bins are whole numbers


def counts(
    confidence: jax.Array,
    predictions: jax.Array,
    labels: jax.Array,
    num_classes: int,
    ignore_label: int,
) -> jax.Array:
    """How many pixels of each image are in each narrow bin of confidence, wrong and right ones.

    Bin i holds the confidences in (i / FINE, (i + 1) / FINE]; those outside (0, 1] go to the
    nearest bin. A pixel counts when its label is in 0..C-1 and is not `ignore_label`.

    Args:
      confidence: float [b, h, w], the probability of the predicted class.
      predictions: int [b, h, w].
      labels: int [b, h, w].
      num_classes: C.
      ignore_label: label of pixels that do not count.

    Returns:
      int32 [b, 2, FINE]: of wrong pixels, of right ones.
    """
    valid = (labels != ignore_label) & (labels >= 0) & (labels < num_classes)
    fine = jnp.clip(jnp.ceil(confidence.astype(jnp.float32) * FINE).astype(jnp.int32) - 1, 0)
    cell = jnp.minimum(fine, FINE - 1) + FINE * (predictions == labels)
    # A histogram is a confusion matrix of the two digits of the cell's number, and is as fast.
    high = jnp.where(valid, cell // _SIDE, -1)
    cells = confusion_matrices(cell % _SIDE, high, _SIDE, -1)
    return cells.reshape(-1, 2, FINE)


def wide(totals: np.ndarray) -> np.ndarray:
    """What the figures need of the counts: int64 [2, FINE] -> int64 [3, BINS].

    Of each wide bin the pixels, the right ones, and the sum of confidences in units of half a
    narrow bin, which is a whole number as well.
    """
    wrong, right = np.asarray(totals, np.int64).reshape(2, BINS, -1)
    middles = (2 * np.arange(FINE) + 1).reshape(BINS, -1)
    return np.stack([(wrong + right).sum(1), right.sum(1), ((wrong + right) * middles).sum(1)])


def error(bins: np.ndarray) -> np.ndarray:
    """Expected calibration error: sums of `wide` [..., 3, BINS] -> float64 [...], NaN for none.

    With n_m pixels in bin m, N in all: sum_m n_m / N * |accuracy_m - confidence_m| (equation 3).
    """
    pixels, right, confidence = np.moveaxis(bins, -2, 0)
    with np.errstate(invalid="ignore"):
        return np.abs(_UNIT * right - confidence).sum(-1) / (_UNIT * pixels.sum(-1))


def summarize(totals: np.ndarray) -> dict[str, Any]:
    """The figures that follow from the counts, as fractions of 1.

    Overconfidence is mean confidence minus accuracy: above 0 the model is surer than it is right.
    It can be 0 where the calibration error, ECE, is not, when bins make up for each other.

    Args:
      totals: int64 [2, FINE], the sum of what `counts` returns.

    Returns:
      A dict fit for JSON: 'ECE', 'mean_confidence', 'accuracy', 'overconfidence', 'bound' (how far
      ECE, confidences and overconfidence may be off), 'pixels', and 'bins', a list of BINS times
      {'above', 'to', 'pixels', 'confidence', 'accuracy'}. What would be 0 / 0 is None.
    """
    bins = wide(totals)
    pixels, right, confidence = bins.sum(1)
    return {
        "ECE": number(error(bins)),
        "mean_confidence": number(ratio(confidence, _UNIT * pixels)),
        "accuracy": number(ratio(right, pixels)),
        "overconfidence": number(ratio(confidence - _UNIT * right, _UNIT * pixels)),
        "bound": 1 / _UNIT,
        "pixels": int(pixels),
        "bins": [
            {
                "above": m / BINS,
                "to": (m + 1) / BINS,
                "pixels": int(n),
                "confidence": number(ratio(total, _UNIT * n)),
                "accuracy": number(ratio(correct, n)),
            }
            for m, (n, correct, total) in enumerate(bins.T)
        ],
    }
