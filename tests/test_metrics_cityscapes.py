"""Cityscapes' category IoU and iIoU against loops over the definition, on made-up instances."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxseg.data import reading
from jaxseg.data.base import Record
from jaxseg.data.cityscapes import LABELS, describe
from jaxseg.errors import UserError
from jaxseg.metrics import cityscapes

NAMES = [name for _, name, _ in LABELS]
LABEL_IDS = [label_id for label_id, _, _ in LABELS]
CATEGORY_OF = {name: c for c, names in cityscapes.CATEGORIES.items() for name in names}


def scene(seed, size=(40, 60)):
    """(prediction in train ids, label ids, instance ids): patches, some of them instances.

    Among them is a caravan and a group of cars (a label id without a number), which have no
    instance that counts, instance number 0, and an instance of a class that has no average size.
    """
    rng = np.random.default_rng(seed)
    labels, instances = np.full(size, 7), np.full(size, 7)
    for number in range(12):
        top, left = rng.integers(0, size[0] - 9), rng.integers(0, size[1] - 9)
        patch = np.s_[top : top + rng.integers(2, 9), left : left + rng.integers(2, 9)]
        label = rng.choice([24, 25, 26, 27, 33, 29, 11, 0, 23])
        labels[patch], instances[patch] = label, label
        if label in (24, 25, 26, 27, 33, 29):
            instances[patch] = 1000 * label + number
    labels[:3, :5], instances[:3, :5] = 26, 26  # a group
    labels[5:8, :5], instances[5:8, :5] = 17, 17001  # a pole has no instances
    truth = reading.labels.to_classes(describe(), labels.astype(np.uint8), "scene")
    prediction = np.where(rng.random(size) < 0.7, truth, rng.integers(0, 19, size))
    prediction[prediction == 255] = 0
    return prediction.astype(np.int32), truth, instances.astype(np.int32)


def confusion_of(scenes):
    matrix = np.zeros((19, 19), np.int64)
    for prediction, truth, _ in scenes:
        np.add.at(matrix, (truth[truth != 255], prediction[truth != 255]), 1)
    return matrix


def figures_slowly(scenes):
    """Category IoU, class iIoU and category iIoU, each from the pixels."""
    iou, class_iiou, category_iiou = {}, {}, {}
    for category, members in cityscapes.CATEGORIES.items():
        ids = [NAMES.index(name) for name in members]
        both = either = 0
        for prediction, truth, _ in scenes:
            valid = truth != 255
            p, t = np.isin(prediction, ids) & valid, np.isin(truth, ids)
            both, either = both + (p & t).sum(), either + (p | t).sum()
        iou[category] = both / either if either else None
        if category in ("human", "vehicle"):
            category_iiou[category] = _iiou(scenes, ids, ids)
    for name in cityscapes.SIZES:
        index = NAMES.index(name)
        class_iiou[name] = _iiou(scenes, [index], [index])
    return iou, class_iiou, category_iiou


def _iiou(scenes, members, hits):
    found = missed = false = 0.0
    for prediction, truth, instances in scenes:
        for number in np.unique(instances[instances > 1000]):
            label = number // 1000
            if label not in LABEL_IDS or LABEL_IDS.index(label) not in members:
                continue
            inside = instances == number
            weight = cityscapes.SIZES[NAMES[LABEL_IDS.index(label)]] / inside.sum()
            right = np.isin(prediction[inside], hits).sum()
            found += weight * right
            missed += weight * (inside.sum() - right)
        false += (np.isin(prediction, members) & ~np.isin(truth, members) & (truth != 255)).sum()
    whole = found + missed + false
    return found / whole if whole else None


def same_or_none(got, expected):
    """Asserts that undefined figures are the same and others equal; returns those defined."""
    assert {k for k, v in got.items() if v is None} == {k for k, v in expected.items() if v is None}
    defined = {k: v for k, v in expected.items() if v is not None}
    assert {k: got[k] for k in defined} == pytest.approx(defined, rel=1e-12)
    return defined


def test_the_tables_are_complete():
    assert sorted(sum(map(list, cityscapes.CATEGORIES.values()), [])) == sorted(NAMES)
    assert set(cityscapes.SIZES) == set(
        cityscapes.CATEGORIES["human"] + cityscapes.CATEGORIES["vehicle"]
    )


def test_figures_are_the_definition():
    scenes = [scene(seed) for seed in range(4)]
    instances = [cityscapes.instance_counts(p, i) for p, _, i in scenes]
    summary = cityscapes.summarize(confusion_of(scenes), instances)
    iou, class_iiou, category_iiou = figures_slowly(scenes)
    assert {c["name"]: c["IoU"] for c in summary["categories"]} == pytest.approx(iou)
    got = {c["name"]: c["iIoU"] for c in summary["classes"]}
    assert len(same_or_none(got, class_iiou)) == 8
    with_instances = [c for c in summary["categories"] if "iIoU" in c]
    assert {c["name"]: c["iIoU"] for c in with_instances} == pytest.approx(category_iiou)
    means = [v for v in class_iiou.values() if v is not None]
    assert summary["iIoU"] == pytest.approx(np.mean(means))
    assert summary["category_iIoU"] == pytest.approx(np.mean(list(category_iiou.values())))
    assert summary["category_mIoU"] == pytest.approx(np.mean(list(iou.values())))
    # Bus, train and motorcycle are in no truth but in predictions: 0, which counts.
    assert got["train"] == 0
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_instances_are_counted_one_by_one():
    prediction, _, instances = scene(5)
    rows = cityscapes.instance_counts(prediction, instances)
    expected = []
    for number in np.unique(instances):
        if number // 1000 in (24, 25, 26, 27, 33):
            inside, train_id = instances == number, LABEL_IDS.index(number // 1000)
            kin = [i for i in range(19) if CATEGORY_OF[NAMES[i]] == CATEGORY_OF[NAMES[train_id]]]
            expected.append(
                [
                    train_id,
                    inside.sum(),
                    (prediction[inside] == train_id).sum(),
                    np.isin(prediction[inside], kin).sum(),
                ]
            )
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(rows, expected)


def test_the_order_of_images_is_nothing_to_the_last_bit():
    scenes = [scene(seed) for seed in range(6)]
    instances = [cityscapes.instance_counts(p, i) for p, _, i in scenes]
    matrix = confusion_of(scenes)
    assert cityscapes.summarize(matrix, instances) == cityscapes.summarize(matrix, instances[::-1])


def test_a_perfect_prediction_is_one_and_a_small_instance_weighs_as_much_as_a_large_one():
    rows = np.array([[11, 10, 10, 10], [11, 1000, 0, 1000]])  # two persons, the large one missed
    confusion = np.zeros((19, 19), np.int64)
    confusion[11, 11], confusion[11, 12] = 10, 1000
    summary = cityscapes.summarize(confusion, [rows])
    [person] = [c for c in summary["classes"] if c["name"] == "person"]
    assert person["iIoU"] == pytest.approx(0.5)
    [human] = [c for c in summary["categories"] if c["name"] == "human"]
    assert human["iIoU"] == human["IoU"] == 1


def test_without_instances_there_is_no_iiou():
    summary = cityscapes.summarize(confusion_of([scene(0)]))
    assert set(summary) == {"category_mIoU", "categories"}
    assert cityscapes.summarize(np.zeros((19, 19), np.int64), [])["iIoU"] is None


def test_instance_masks_are_found_beside_the_labels_and_checked(tmp_path):
    path = tmp_path / "aachen_000000_000019_gtFine_labelIds.png"
    record = Record("aachen/aachen_000000_000019", "image.png", str(path))
    assert cityscapes.instance_mask(record) is None
    beside = tmp_path / "aachen_000000_000019_gtFine_instanceIds.png"
    _, _, instances = scene(1)
    Image.fromarray(instances.astype(np.uint16)).save(beside)
    assert cityscapes.instance_mask(record) == str(beside)
    read = cityscapes.read_instances(record.id, str(beside), (40, 60))
    np.testing.assert_array_equal(read, instances)
    with pytest.raises(UserError, match=r"instanceIds.png.*expected integers \[40, 61\]"):
        cityscapes.read_instances(record.id, str(beside), (40, 61))
    Image.fromarray((instances + 30000).astype(np.uint16)).save(beside)
    with pytest.raises(UserError, match="expected 0..33999"):
        cityscapes.read_instances(record.id, str(beside), (40, 60))
    beside.write_bytes(beside.read_bytes()[:200])
    with pytest.raises(UserError, match="not a complete image file"):
        cityscapes.read_instances(record.id, str(beside), (40, 60))
    assert cityscapes.instance_mask(Record("x", "x.png", lambda: b"")) is None


def test_a_real_frame_at_its_size(shared):
    """The sample has no instance masks, so connected regions of label ids stand in for them."""
    from scipy import ndimage

    root = shared / "data" / "cityscapes_sample"
    if not root.is_dir():
        pytest.skip("needs the sample of Cityscapes")
    description = describe(str(root))
    [record] = description.records("val")
    assert cityscapes.instance_mask(record) is None
    truth = reading.read_label(description, record)
    with Image.open(record.label) as picture:
        instances = np.asarray(picture).astype(np.int32)
    for label in (24, 25, 26, 33):
        regions, _ = ndimage.label(instances == label)
        instances = np.where(regions > 0, 1000 * label + regions, instances)
    prediction = np.roll(np.where(truth == 255, 0, truth), 4, axis=1)
    rows = cityscapes.instance_counts(prediction, instances)
    summary = cityscapes.summarize(confusion_of([(prediction, truth, instances)]), [rows])
    iou, class_iiou, category_iiou = figures_slowly([(prediction, truth, instances)])
    assert {c["name"]: c["IoU"] for c in summary["categories"]} == pytest.approx(iou)
    got = {row["name"]: row["iIoU"] for row in summary["classes"]}
    assert len(same_or_none(got, class_iiou)) >= 3
    assert summary["instances"] == len(rows) > 5
    assert 0.3 < summary["category_iIoU"] < 1
