"""IoU by the size of what is to be segmented: small, medium and large connected components.

mIoU counts pixels, so large regions decide it. As COCO does for detections, figures are given apart
for small, medium and large objects. Semantic labels tell no instances; the connected components of
a class stand for them, as in SegmentMeIfYouCan (Chan et al. 2021, arXiv:2104.14812) and CC-Metrics
(Jaus et al. 2025, arXiv:2410.18684). Size is relative to the image, so that it does not depend on
the resolution: COCO's limits, 32^2 and 96^2 pixels, are 1/300 and 3/100 of an image of 640 x 480.

Pixels are connected to all 8 neighbours: poles, wires and lane markings that are a pixel wide and
lean would otherwise fall into single pixels, all of them small.

Which pixels of a class belong to which size:

- true pixels go to the size of their component, and with them those that were predicted right;
- false positives go to the size of the true component that their predicted component overlaps most
  (of equals, to the larger one); where it overlaps none, to the predicted component's own size.

So every pixel has one size as truth and one as prediction, and the counts of the three sizes sum to
those of the confusion matrix. Ignored pixels (`ignore_label`, or a label outside 0..C-1) count
nowhere and are part of no component, in truth and prediction alike: what a model says there changes
no figure.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from jaxseg.metrics.confusion import mean, number, ratio
from jaxseg.metrics.images import class_iou

SIZES = ("small", "medium", "large")
LIMITS = (Fraction(1, 300), Fraction(3, 100))  # shares of the image: where medium and large begin


def counts(
    prediction: np.ndarray, label: np.ndarray, num_classes: int, ignore_label: int
) -> np.ndarray:
    """Pixels of each size and class in one image.

    Args:
      prediction: int [h, w], each in 0..C-1.
      label: int [h, w].
      num_classes: C.
      ignore_label: label of pixels that do not count.

    Returns:
      int64 [3, C, 3]: for each of SIZES and each class the pixels on which truth and prediction
      agree, the true ones, the predicted ones.
    """
    from scipy import ndimage

    valid = (label != ignore_label) & (label >= 0) & (label < num_classes)
    # Classes count from 1 here, as `find_objects` has it, and 0 is no class.
    truth, predicted = (
        np.where(valid, np.asarray(x, np.int32) + 1, 0) for x in (label, prediction)
    )
    boxes = (ndimage.find_objects(x, num_classes) for x in (truth, predicted))
    totals = np.zeros((len(SIZES), num_classes, 3), np.int64)
    for c, found in enumerate(zip(*boxes, strict=True)):
        found = [box for box in found if box is not None]
        if found:
            box = tuple(
                slice(min(s.start for s in axis), max(s.stop for s in axis))
                for axis in zip(*found, strict=True)
            )
            totals[:, c] = _count_class(truth[box] == c + 1, predicted[box] == c + 1, label.size)
    return totals


def _count_class(truth: np.ndarray, predicted: np.ndarray, pixels: int) -> np.ndarray:
    """Agreeing, true and predicted pixels of one class in an image of so many pixels: [3, 3]."""
    true_of, true_area = _components(truth)
    predicted_of, predicted_area = _components(predicted)
    true_size, predicted_size = _size(true_area, pixels), _size(predicted_area, pixels)

    both = truth & predicted
    pairs = predicted_of[both].astype(np.int64) * len(true_area) + true_of[both]
    pairs, overlap = np.unique(pairs, return_counts=True)
    at_predicted, at_true = np.divmod(pairs, len(true_area))
    # Of the values that are assigned to one component the last one stays: the greatest overlap's.
    order = np.lexsort((true_area[at_true], overlap))
    predicted_size[at_predicted[order]] = true_size[at_true[order]]

    totals = np.zeros((len(SIZES), 3), np.int64)
    agree, true, guessed = totals.T
    np.add.at(agree, true_size[at_true], overlap)
    np.add.at(true, true_size, true_area)
    np.add.at(guessed, predicted_size[predicted_of[predicted & ~truth]], 1)
    guessed += agree
    return totals


def _components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 8-connected component of each pixel, from 1 on, 0 outside; and their areas, 0 for 0."""
    from scipy import ndimage

    of, last = ndimage.label(mask, np.ones((3, 3), bool))
    return of, np.bincount(of[mask], minlength=last + 1)


def _size(area: np.ndarray, pixels: int) -> np.ndarray:
    """Which of SIZES areas are in an image of so many pixels."""
    return sum((area * x.denominator >= x.numerator * pixels).astype(np.int64) for x in LIMITS)


def summarize(totals: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Figures for each size, as fractions of 1.

    With T true, P predicted and I agreeing pixels of a class and size: IoU = I / (T + P - I),
    recall = I / T. As in `confusion.summarize`, 0 / 0 is None and left out of the mean, and a class
    that has only false positives in a size has IoU 0 there, which counts.

    Args:
      totals: int64 [3, C, 3], the sum over images of what `counts` returns.
      classes: the C class names.

    Returns:
      A dict fit for JSON, for each of SIZES {'mIoU', 'mean_recall', 'pixels', 'classes'}; 'classes'
      is a list of {'name', 'IoU', 'recall', 'pixels' (T), 'predicted_pixels' (P)}.
    """
    totals = np.asarray(totals, np.int64)
    if totals.shape != (len(SIZES), len(classes), 3):
        raise ValueError(f"counts by size {totals.shape} for {len(classes)} classes")
    summary = {}
    for name, of_size in zip(SIZES, totals, strict=True):
        agree, true, predicted = of_size.T
        iou, recall = class_iou(of_size.T), ratio(agree, true)
        summary[name] = {
            "mIoU": mean(iou),
            "mean_recall": mean(recall),
            "pixels": int(true.sum()),
            "classes": [
                {
                    "name": class_name,
                    "IoU": number(iou[i]),
                    "recall": number(recall[i]),
                    "pixels": int(true[i]),
                    "predicted_pixels": int(predicted[i]),
                }
                for i, class_name in enumerate(classes)
            ],
        }
    return summary
