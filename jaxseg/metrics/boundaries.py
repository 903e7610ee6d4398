"""Quality at boundaries: Boundary IoU, trimap mIoU by band width, and the boundary F-score.

mIoU is dominated by the interiors of large regions. Here

- Boundary IoU (Cheng et al. 2021, arXiv:2103.16562, and their code) is the IoU of two bands: the
  pixels of a class's true mask within d of its contour, and those of its predicted mask;
- trimap mIoU (Kohli et al. 2009; Kraehenbuehl and Koltun 2011; here as in DeepLab,
  arXiv:1606.00915, section 4.1, and its code) is mIoU over the pixels near true boundaries alone,
  for bands of growing width;
- the boundary F-score (Csurka et al. 2013, "What is a good evaluation measure for semantic
  segmentation?", BMVC) asks which share of a class's predicted contour is there (precision), and
  which share of its true contour was found (recall).

One notion carries all three. A pixel is within r of a boundary when the (2r+1) x (2r+1) window
around it holds another label. This is the chessboard distance, as in both public codes: r erosions
of a mask by a 3 x 3 square, and a dilation by a square of 2w+1. The contour is what is within 1.

- The edge of the image is no boundary, since nothing was drawn there that could be right or wrong.
  In Boundary IoU it is one, as in its code: a mask that the image cuts off ends at the edge.
- Ignored pixels (`ignore_label`, or a label outside 0..C-1) count nowhere. In truth and prediction
  alike they have a label of their own, so masks end where they begin. Hence what a model says there
  changes no figure, and one that is right wherever there is truth scores 1. Were they no boundary,
  VOC would have none: its objects have a rim of ignored pixels, and DeepLab's trimaps surround it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.metrics.confusion import mean, number, ratio
from jaxseg.metrics.images import class_iou, confusion_matrices

DILATION = 0.02  # of the diagonal: depth of Boundary IoU's bands, rounded, at least 1 pixel
WIDTHS = (1, 2, 4, 8, 16, 32)  # of the trimaps, pixels on each side of a boundary
TOLERANCE = Fraction(75, 10_000)  # of the diagonal: nearer contours match in the F-score

_MIXED = -1  # in place of a label: a window with several
_FAR = 2**30  # pixels
_WORD = 32  # classes whose contours are dilated at once, a bit each


def band_depth(h: int, w: int) -> int:
    """Depth of Boundary IoU's bands in an image of this size, pixels."""
    return max(1, round(DILATION * math.hypot(h, w)))


def counts(
    predictions: jax.Array, labels: jax.Array, num_classes: int, ignore_label: int
) -> dict[str, jax.Array]:
    """Pixels of each class in each image that the three figures are made of.

    Args:
      predictions: int [b, h, w], each in 0..C-1.
      labels: int [b, h, w].
      num_classes: C.
      ignore_label: label of pixels that do not count, see above.

    Returns:
      int32 counts:
      'boundary_iou' [b, 3, C]: pixels in both the true and the predicted band of the class, in the
        true, in the predicted one.
      'trimap' [b, len(WIDTHS), 3, C]: of the pixels within each width of a true boundary, those of
        the class in both truth and prediction, in truth, in the prediction.
      'contour' [b, 4, C]: pixels of the true contour, those among them that are matched, pixels of
        the predicted contour, those among them that are matched: the other contour of the same
        class has a pixel at a Euclidean distance below TOLERANCE.
    """
    _, h, w = labels.shape
    depth = band_depth(h, w)
    labels, predictions = labels.astype(jnp.int32), predictions.astype(jnp.int32)
    valid = (labels != ignore_label) & (labels >= 0) & (labels < num_classes)
    truth = jnp.where(valid, labels, num_classes)
    predicted = jnp.where(valid, predictions, num_classes)
    from_true = _to_boundary(truth, {1, depth, *WIDTHS})
    from_predicted = _to_boundary(predicted, {1, depth})

    # What costs is to count. So each side is counted once, by class and all properties jointly.
    agree = truth == predicted
    trimaps = sum((from_true <= width).astype(jnp.int32) for width in WIDTHS)  # a pixel is in
    rows, columns = (np.minimum(np.arange(n), np.arange(n)[::-1]) < depth for n in (h, w))
    edge = rows[:, None] | jnp.asarray(columns)
    true_band, predicted_band = (from_true <= depth) | edge, (from_predicted <= depth) | edge
    true_contour = jnp.where(valid & (from_true <= 1), truth, -1)
    predicted_contour = jnp.where(valid & (from_predicted <= 1), predicted, -1)
    of_truth = _joint_histogram(
        jnp.where(valid, truth, -1),
        num_classes,
        (trimaps, len(WIDTHS) + 1),
        (agree, 2),
        (true_band * (1 + (agree & predicted_band)), 3),
        (_match(true_contour, predicted_contour, num_classes), 3),
    )
    of_predicted = _joint_histogram(
        jnp.where(valid, predicted, -1),
        num_classes,
        (trimaps, len(WIDTHS) + 1),
        (predicted_band, 2),
        (_match(predicted_contour, true_contour, num_classes), 3),
    )
    bands, other_bands = of_truth.sum((2, 3, 5)), of_predicted.sum((2, 4))
    contours, other_contours = of_truth.sum((2, 3, 4)), of_predicted.sum((2, 3))
    sides = of_truth.sum((4, 5)), of_predicted.sum((3, 4))  # by the number of trimaps
    exactly = jnp.stack([sides[0][..., 1], sides[0].sum(3), sides[1]], 1)
    at_least = jnp.cumsum(exactly[..., :0:-1], -1)  # in k trimaps: in the k widest
    return {
        "boundary_iou": jnp.stack(
            [bands[..., 2], bands[..., 1:].sum(-1), other_bands[..., 1]],
            1,
        ),
        "trimap": jnp.moveaxis(at_least, -1, 1),
        "contour": jnp.stack(
            [x for c in (contours, other_contours) for x in (c[..., 1:].sum(-1), c[..., 2])],
            1,
        ),
    }


def _to_boundary(labels: jax.Array, radii: Iterable[int]) -> jax.Array:
    """Chessboard distance to the nearest pixel of another label, but rounded up to one of `radii`.

    int32 [b, h, w], 0 or more -> int32 [b, h, w], pixels; _FAR where it is above all `radii`.
    """
    grown = [0]
    for radius in sorted(radii):
        while grown[-1] < radius:
            # A window of radius r and its copies on either side make a larger one without gaps.
            grown.append(min(radius, 3 * grown[-1] + 1))
    steps = np.diff(grown)
    reach = int(steps.max())
    grown, steps = jnp.asarray(grown[1:], jnp.int32), jnp.asarray(steps, jnp.int32)

    # A loop, as XLA would fuse the steps into each other and compute the first ones many times.
    def grow(i, state):
        alone, distance = state
        for axis in (1, 2):
            alone = _join_neighbours(alone, axis, steps[i], reach)
        return alone, jnp.minimum(distance, jnp.where(alone == _MIXED, grown[i], _FAR))

    return jax.lax.fori_loop(0, len(grown), grow, (labels, jnp.full_like(labels, _FAR)))[1]


def _join_neighbours(alone: jax.Array, axis: int, step: jax.Array, reach: int) -> jax.Array:
    """The label that the windows at i - step, i and i + step hold alone, or _MIXED.

    `alone` is the same of single windows; `step` is at most `reach`.
    """
    outside = [(0, 0)] * 3
    outside[axis] = (reach, reach)
    # The window at the edge instead of one beyond: their union is cut off at the edge.
    padded = jnp.pad(alone, outside, mode="edge")
    before, after = (
        jax.lax.dynamic_slice_in_dim(padded, start, alone.shape[axis], axis)
        for start in (reach - step, reach + step)
    )
    return jnp.where((before == alone) & (alone == after), alone, _MIXED)


def _match(contour: jax.Array, other: jax.Array, num_classes: int) -> jax.Array:
    """1 for pixels of a contour without a match in the other one, 2 for those with, 0 elsewhere.

    Contours are int32 [b, h, w]: the class whose contour a pixel is on, or -1.
    """

    def look(word, matched):
        first = word * _WORD
        bit = _bit(contour - first)
        return matched | (bit & _dilate(_bit(other - first), *contour.shape[1:]) != 0)

    words = -(-num_classes // _WORD)
    matched = jax.lax.fori_loop(0, words, look, jnp.zeros(contour.shape, bool))
    return jnp.where(contour < 0, 0, 1 + matched)


def _bit(x: jax.Array) -> jax.Array:
    """2^x as uint32 for x in 0.._WORD - 1, else 0."""
    inside = (x >= 0) & (x < _WORD)
    return jnp.where(inside, jnp.uint32(1) << jnp.where(inside, x, 0).astype(jnp.uint32), 0)


def _dilate(x: jax.Array, h: int, w: int) -> jax.Array:
    """The bits that are set anywhere in the open disc of radius TOLERANCE: uint32 [b, h, w]."""
    reach = math.ceil(TOLERANCE**2 * (h**2 + w**2)) - 1  # the largest squared distance below
    radius = math.isqrt(reach)
    chords = np.array([math.isqrt(reach - dy**2) for dy in range(radius + 1)] + [-1])
    padded = jnp.pad(x, ((0, 0), (radius, radius), (radius, radius)))

    def widen(k, rows):
        for start in (radius - k, radius + k):
            rows |= jax.lax.dynamic_slice_in_dim(padded, start, w, axis=2)
        return rows

    def add_line(i, state):
        rows, disc = state
        dy = radius - i  # from the shortest chord to the longest
        rows = jax.lax.fori_loop(chord[dy + 1] + 1, chord[dy] + 1, widen, rows)
        for start in (radius - dy, radius + dy):
            disc |= jax.lax.dynamic_slice_in_dim(rows, start, h, axis=1)
        return rows, disc

    chord = jnp.asarray(chords, jnp.int32)
    state = jnp.zeros_like(padded[:, :, :w]), jnp.zeros_like(x)
    return jax.lax.fori_loop(0, radius + 1, add_line, state)[1]


def _joint_histogram(
    classes: jax.Array, num_classes: int, *properties: tuple[jax.Array, int]
) -> jax.Array:
    """Pixels of each class with each combination of properties.

    Args:
      classes: int32 [b, h, w]; those outside 0..C-1 do not count.
      num_classes: C.
      *properties: an int [b, h, w] and n: its values are 0..n-1.

    Returns:
      int32 [b, C, n of the first, n of the second, ...].
    """
    sizes = [n for _, n in properties]
    code, codes = 0, math.prod(sizes)
    for values, n in properties:
        code = code * n + values
    rows = max(codes, num_classes)
    joint = confusion_matrices(code, classes, rows, -1)[:, :num_classes, :codes]
    return joint.reshape(-1, num_classes, *sizes)


def summarize(totals: Mapping[str, np.ndarray], classes: Sequence[str]) -> dict[str, Any]:
    """Every figure that follows from the counts, as fractions of 1.

    As in `confusion.summarize`, a figure that would be 0 / 0 is None and left out of its mean; a
    class that is on one side only has IoU 0 and F 0, which count. All are figures of the data set,
    from sums over its images. Csurka et al. average F over images; `f_scores` of the counts of
    single images gives what there is to average.

    Args:
      totals: int64 sums over images of what `counts` returns, without the batch axis.
      classes: the C class names.

    Returns:
      A dict fit for JSON: 'mean_boundary_IoU', 'mean_boundary_F', 'trimap', a list of {'width',
      'mIoU', 'pixel_accuracy', 'pixels'} for each of WIDTHS, and 'classes', a list of {'name',
      'boundary_IoU', 'boundary_F', 'boundary_precision', 'boundary_recall'}.
    """
    bands, trimap, contour = (
        np.asarray(totals[k], np.int64) for k in ("boundary_iou", "trimap", "contour")
    )
    if {a.shape[-1] for a in (bands, trimap, contour)} != {len(classes)}:
        raise ValueError(f"boundary counts {bands.shape} for {len(classes)} classes")
    iou, f = class_iou(bands), f_scores(contour)
    true, found, predicted, right = contour
    precision, recall = ratio(right, predicted), ratio(found, true)
    return {
        "mean_boundary_IoU": mean(iou),
        "mean_boundary_F": mean(f),
        "trimap": [
            {
                "width": width,
                "mIoU": mean(class_iou(band)),
                "pixel_accuracy": number(ratio(band[0].sum(), band[1].sum())),
                "pixels": int(band[1].sum()),
            }
            for width, band in zip(WIDTHS, trimap, strict=True)
        ],
        "classes": [
            {
                "name": name,
                "boundary_IoU": number(iou[i]),
                "boundary_F": number(f[i]),
                "boundary_precision": number(precision[i]),
                "boundary_recall": number(recall[i]),
            }
            for i, name in enumerate(classes)
        ],
    }


def f_scores(contour: np.ndarray) -> np.ndarray:
    """The boundary F-score of each class, 2 P R / (P + R) with precision P and recall R.

    Args:
      contour: integers [..., 4, C], as 'contour' of `counts`: of images, or their sum.

    Returns:
      float64 [..., C]: NaN for a class that has neither a true nor a predicted contour, 0 for one
      that has only one of them or no match.
    """
    true, found, predicted, right = np.moveaxis(np.asarray(contour, np.float64), -2, 0)
    # P = right / predicted and R = found / true, multiplied out so as not to divide by 0.
    total = right * true + found * predicted
    f = 2 * right * found / np.where(total > 0, total, 1)
    return np.where(true + predicted > 0, f, np.nan)
