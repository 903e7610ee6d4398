"""What Cityscapes' benchmark reports beside mIoU: category IoU, and iIoU (arXiv:1604.01685, 4.1).

IoU of street scenes is dominated by what is near and large. iIoU = iTP / (iTP + FP + iFN) gives
instances of a class equal weight: true positives and false negatives are pixels weighted by the
class's average instance size over the size of their instance; false positives belong to no
instance and are not weighted. The figures are those of cityscapesscripts'
evalPixelLevelSemanticLabeling, whose label table and average sizes are below.
"""

import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxseg.console import say
from jaxseg.data import reading
from jaxseg.data.base import Record
from jaxseg.data.cityscapes import LABEL_MAP, LABELS
from jaxseg.errors import UserError
from jaxseg.metrics.confusion import summarize as summarize_confusion

CATEGORIES = {
    "flat": ("road", "sidewalk"),
    "construction": ("building", "wall", "fence"),
    "object": ("pole", "traffic light", "traffic sign"),
    "nature": ("vegetation", "terrain"),
    "sky": ("sky",),
    "human": ("person", "rider"),
    "vehicle": ("car", "truck", "bus", "train", "motorcycle", "bicycle"),
}
# Pixels of an average instance; caravans and trailers, which have one too, are not evaluated.
SIZES = {
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}

_CLASSES = tuple(name for _, name, _ in LABELS)
_CATEGORY = np.array(
    [next(i for i, names in enumerate(CATEGORIES.values()) if c in names) for c in _CLASSES]
)
_PER_LABEL = 1000  # an instance's id is 1000 * label id + its number
_HAS_SIZE = np.append([name in SIZES for name in _CLASSES], False)  # by train id; last: ignored


def instance_mask(record: Record) -> str | None:
    """The file of instance ids that lies beside a record's labelIds, or None."""
    if not isinstance(record.label, str) or "_gtFine_labelIds" not in record.label:
        return None
    path = record.label.replace("_gtFine_labelIds", "_gtFine_instanceIds")
    return path if os.path.exists(path) else None


def find_instances(records: Sequence[Record]) -> dict[str, str]:
    """id -> `instance_mask` of every record; empty unless all have one, as iIoU needs."""
    paths = {record.id: instance_mask(record) for record in records}
    missing = [id for id, path in paths.items() if path is None]
    if missing and len(missing) < len(paths):
        say(f"no iIoU: {len(missing)} of {len(paths)} images have no instanceIds, as {missing[0]}")
    return {} if missing else paths


def read_instances(id: str, path: str, size: tuple[int, int]) -> np.ndarray:
    """Instance ids as stored: integers [h, w], the bare label id where a pixel has no instance.

    Args:
      id: of the image, for messages.
      path: what `instance_mask` returns.
      size: (height, width) that the mask must have.

    Raises:
      UserError: a broken file, another size, or values that are no instance ids.
    """
    what = f"instances of {id!r} ({path})"
    picture = reading.open_image(reading.load(Record(id, path, path), "label"), what)
    try:
        instances = np.asarray(picture)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{what}: not a complete image file ({error}); fetch it again") from error
    limit = 34 * _PER_LABEL
    if instances.shape != tuple(size) or instances.dtype.kind not in "iu":
        raise UserError(
            f"{what}: pixels are {instances.dtype} {list(instances.shape)}; expected integers "
            f"{list(size)}, as its label"
        )
    if instances.min() < 0 or instances.max() >= limit:
        raise UserError(
            f"{what}: values {instances.min()}..{instances.max()}; expected 0..{limit - 1}, label "
            "ids and 1000 * label id + number; fetch gtFine_trainvaltest.zip again"
        )
    return instances


def instance_counts(predictions: np.ndarray, instances: np.ndarray) -> np.ndarray:
    """Pixels of each instance of the evaluated classes, and how many of them were found.

    Args:
      predictions: integers [h, w], train ids 0..18.
      instances: integers [h, w], as `read_instances` returns them.

    Returns:
      int64 [k, 4], a row for each instance: its class (train id), its pixels, those predicted as
      this class, and those predicted as any class of its category.
    """
    belongs = instances > _PER_LABEL
    ids, predicted = instances[belongs].astype(np.int64), predictions[belongs]
    train_id = np.minimum(LABEL_MAP, len(_CLASSES))[ids // _PER_LABEL]
    counted = _HAS_SIZE[train_id]
    ids, predicted, train_id = ids[counted], predicted[counted], train_id[counted]
    length = 34 * _PER_LABEL
    size = np.bincount(ids, minlength=length)
    same = np.bincount(ids[predicted == train_id], minlength=length)
    kin = np.bincount(ids[_CATEGORY[predicted] == _CATEGORY[train_id]], minlength=length)
    found = np.flatnonzero(size)
    rows = (LABEL_MAP[found // _PER_LABEL], size[found], same[found], kin[found])
    return np.stack(rows, axis=1).astype(np.int64)


def summarize(
    confusion: np.ndarray, instances: Iterable[np.ndarray] | None = None
) -> dict[str, Any]:
    """Category IoU, and iIoU of classes and categories where there are instances.

    Everything is counted in integers, of the pixels of single instances too. Their shares become
    float64 only here, and `math.fsum` adds these without rounding: the order of images is nothing.

    Args:
      confusion: int64 [19, 19], rows the truth.
      instances: of each image what `instance_counts` returns; None where there are no masks.

    Returns:
      A dict fit for JSON: 'category_mIoU', 'categories' (a list of {'name', 'IoU', 'iIoU'}), 'iIoU'
      and 'category_iIoU' (means), 'classes' (a list of {'name', 'iIoU'}, those that have
      instances), 'instances' (their number). iIoU and its like are missing without instances, and
      None where they would be 0 / 0; such are in no mean.
    """
    confusion = np.asarray(confusion, np.int64)
    member = (_CATEGORY == np.arange(len(CATEGORIES))[:, None]).astype(np.int64)
    groups = member @ confusion @ member.T
    by_category = summarize_confusion(groups, tuple(CATEGORIES))
    categories = [{"name": c["name"], "IoU": c["IoU"]} for c in by_category["classes"]]
    summary = {"category_mIoU": by_category["mIoU"], "categories": categories}
    if instances is None:
        return summary

    rows = np.concatenate([np.zeros((0, 4), np.int64), *instances])
    sizes = np.array([SIZES.get(name, 0.0) for name in _CLASSES])
    weight = sizes[rows[:, 0]] / rows[:, 1]

    def score(members: Sequence[int], hits: int, false_positives: int) -> float | None:
        chosen = np.isin(rows[:, 0], members)
        found = math.fsum(rows[chosen, hits] * weight[chosen])
        whole = math.fsum(rows[chosen, 1] * weight[chosen]) + int(false_positives)
        return found / whole if whole else None

    false = confusion.sum(0) - np.diag(confusion)
    classes = [
        {"name": name, "iIoU": score([i], 2, false[i])}
        for i, name in enumerate(_CLASSES)
        if name in SIZES
    ]
    group_false = groups.sum(0) - np.diag(groups)
    for i, category in enumerate(categories):
        members = np.flatnonzero(_CATEGORY == i)
        if all(_CLASSES[m] in SIZES for m in members):
            category["iIoU"] = score(members, 3, group_false[i])
    return summary | {
        "iIoU": mean(classes),
        "category_iIoU": mean(categories),
        "classes": classes,
        "instances": len(rows),
    }


def mean(scores: Sequence[dict[str, Any]]) -> float | None:
    defined = [s["iIoU"] for s in scores if s.get("iIoU") is not None]
    return math.fsum(defined) / len(defined) if defined else None
