"""IoU by size against a flood fill in plain Python; by hand; sums; invariances."""

import json

import numpy as np
import pytest
from scipy import ndimage

from jaxseg.metrics import sizes

IGNORE = 255


def draw(seed=0, shape=(48, 64), classes=(0, 1, 3), smoothness=2):
    """A prediction that resembles its label; ignored areas and single pixels that are no class."""
    rng = np.random.default_rng(seed)

    def blobs(number):
        noise = rng.normal(size=(number, *shape))
        return ndimage.gaussian_filter(noise, (0, smoothness, smoothness)).argmax(0)

    label = np.asarray(classes)[blobs(len(classes))]
    prediction = np.roll(label, (1, 2), (0, 1))
    noise = rng.random(shape)
    prediction = np.where(noise < 0.03, rng.choice(classes, shape), prediction)
    label[blobs(6) == 0] = IGNORE
    label[rng.random(shape) < 0.01] = -1
    return prediction, label


def flood(mask):
    """The 8-connected components of a mask, each a set of pixels."""
    left, found = set(map(tuple, np.argwhere(mask))), []
    while left:
        waiting, component = [left.pop()], set()
        while waiting:
            y, x = waiting.pop()
            component.add((y, x))
            around = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= around
            waiting.extend(around)
        found.append(component)
    return found


def count_slowly(prediction, label, num_classes, ignore=IGNORE):
    """The counts by their definition, component by component."""

    def size(component):
        share = len(component) / label.size
        return 0 if share < 1 / 300 else 1 if share < 0.03 else 2

    totals = np.zeros((3, num_classes, 3), int)
    valid = (label >= 0) & (label < num_classes) & (label != ignore)
    for c in range(num_classes):
        true = flood((label == c) & valid)
        guessed = set(map(tuple, np.argwhere((prediction == c) & valid)))
        for component in true:
            right = len(component & guessed)
            totals[size(component), c] += right, len(component), right
        for component in flood((prediction == c) & valid):
            overlaps = [(len(component & t), len(t), size(t)) for t in true if component & t]
            where = max(overlaps)[2] if overlaps else size(component)
            totals[where, c, 2] += len(component.difference(*true))
    return totals


@pytest.mark.parametrize("smoothness", [0.7, 2, 6])
@pytest.mark.parametrize("shape", [(48, 64), (61, 37)])
def test_counts_are_those_of_the_definition(shape, smoothness):
    prediction, label = draw(0, shape, smoothness=smoothness)
    got = sizes.counts(prediction, label, 4, IGNORE)
    assert got.shape == (3, 4, 3) and got.dtype == np.int64
    np.testing.assert_array_equal(got, count_slowly(prediction, label, 4))
    assert not got[:, 2].any() and got[:, (0, 1, 3), 1].any(1).sum() >= 2


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 2), (30, 10)])
def test_small_images(shape):
    for seed in range(5):
        prediction, label = draw(seed, shape)
        want = count_slowly(prediction, label, 4)
        np.testing.assert_array_equal(sizes.counts(prediction, label, 4, IGNORE), want)


def test_any_class_can_be_the_ignored_one():
    prediction, label = draw(1)
    got = sizes.counts(prediction, label, 4, 1)
    np.testing.assert_array_equal(got, count_slowly(prediction, label, 4, ignore=1))
    assert not got[:, 1, :2].any()


def test_the_sizes_sum_to_the_confusion_matrix():
    prediction, label = draw(2)
    valid = (label >= 0) & (label < 4)
    p, t = prediction[valid], label[valid]
    want = [[np.sum((p == c) & (t == c)), np.sum(t == c), np.sum(p == c)] for c in range(4)]
    np.testing.assert_array_equal(sizes.counts(prediction, label, 4, IGNORE).sum(0), want)


def test_what_is_predicted_in_ignored_pixels_changes_nothing():
    prediction, label = draw(3)
    ignored = (label < 0) | (label == IGNORE)
    other = np.where(ignored, (prediction + 1) % 4, prediction)
    got, want = (sizes.counts(p, label, 4, IGNORE) for p in (other, prediction))
    np.testing.assert_array_equal(got, want)


def test_turned_and_enlarged_images():
    """Size is relative: an image of twice the width and height has four times the counts."""
    pair = draw(4)
    want = sizes.counts(*pair, 4, IGNORE)
    for turned in ([np.flipud(x) for x in pair], [np.rot90(x) for x in pair]):
        np.testing.assert_array_equal(sizes.counts(*turned, 4, IGNORE), want)
    enlarged = [x.repeat(2, 0).repeat(2, 1) for x in pair]
    np.testing.assert_array_equal(sizes.counts(*enlarged, 4, IGNORE), 4 * want)


def test_bytes_are_labels_too():
    pair = [np.where(x < 0, 3, x) for x in draw(5)]
    got = sizes.counts(*(x.astype(np.uint8) for x in pair), 4, IGNORE)
    np.testing.assert_array_equal(got, sizes.counts(*pair, 4, IGNORE))


@pytest.mark.parametrize(
    ("pixels", "size"), [(1, 0), (9, 0), (10, 1), (11, 1), (89, 1), (90, 2), (3000, 2)]
)
def test_limits(pixels, size):
    """Of 3000 pixels 10 are 1/300, where medium begins, and 90 are 3 %, where large does."""
    label = (np.arange(3000) >= pixels).astype(int).reshape(50, 60)
    got = sizes.counts(label, label, 2, IGNORE)
    assert got[:, 0].tolist() == [[pixels] * 3 if i == size else [0] * 3 for i in range(3)]


def test_cocos_limits_in_an_image_of_its_usual_size():
    assert [float(limit) * 640 * 480 for limit in sizes.LIMITS] == [32**2, 96**2]


def test_a_diagonal_line_is_one_component():
    label = np.eye(60, dtype=int)  # 60 of 3600 pixels: medium; each of them alone would be small
    assert sizes.counts(label, label, 2, IGNORE)[:, 1, 1].tolist() == [0, 60, 0]


def test_false_positives_by_hand():
    """100 x 30 pixels: small below 10, large from 90 on."""
    label = np.zeros((30, 100), int)
    label[2:12, 2:12] = 1  # large
    label[20:22, 10:12] = 1  # small
    prediction = np.zeros_like(label)
    prediction[2:12, 2:15] = 1  # the large one and 30 pixels more
    prediction[20:22, 11:14] = 1  # half of the small one and 4 pixels more
    prediction[10:25, 50] = 1  # alone: 15 pixels, medium
    got = sizes.counts(prediction, label, 2, IGNORE)[:, 1]
    assert got.tolist() == [[2, 4, 6], [0, 0, 15], [100, 100, 130]]
    prediction[12:20, 11] = 1  # joins both: all false positives are the large one's
    got = sizes.counts(prediction, label, 2, IGNORE)[:, 1]
    assert got.tolist() == [[2, 4, 2], [0, 0, 15], [100, 100, 142]]
    label[20:22, 50] = 1  # a small one in the lone stripe
    got = sizes.counts(prediction, label, 2, IGNORE)[:, 1]
    assert got.tolist() == [[4, 6, 17], [0, 0, 0], [100, 100, 142]]


def test_of_equal_overlaps_the_larger_component_counts():
    label = np.zeros((30, 100), int)
    label[5, 10:14] = 1  # small
    label[5:25, 20:30] = 1  # large
    for reach in (2, 3):
        prediction = np.zeros_like(label)
        prediction[5, 14 - reach : 22] = 1  # 2 or 3 pixels of the small, 2 of the large, 6 between
        got = sizes.counts(prediction, label, 2, IGNORE)[:, 1]
        small, large = (reach, reach + 6)[reach > 2], (2 + 6, 2)[reach > 2]
        assert got[:, 2].tolist() == [small, 0, large]


def test_figures_follow_from_the_counts():
    totals = np.zeros((3, 3, 3), np.int64)
    totals[0] = [[3, 6, 5], [0, 0, 4], [0, 0, 0]]  # found in part; only predicted; not at all
    totals[2] = [[8, 8, 8], [0, 2, 0], [0, 0, 0]]
    summary = sizes.summarize(totals, "abc")
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert list(summary) == ["small", "medium", "large"]
    small, medium, large = summary.values()
    names = ("name", "IoU", "recall", "pixels", "predicted_pixels")
    rows = [("a", 3 / 8, 0.5, 6, 5), ("b", 0.0, None, 0, 4), ("c", None, None, 0, 0)]
    assert small["classes"] == [dict(zip(names, row, strict=True)) for row in rows]
    assert (small["mIoU"], small["mean_recall"], small["pixels"]) == (3 / 16, 0.5, 6)
    assert (medium["mIoU"], medium["mean_recall"], medium["pixels"]) == (None, None, 0)
    assert (large["mIoU"], large["mean_recall"], large["pixels"]) == (0.5, 0.5, 10)
    with pytest.raises(ValueError, match="2 classes"):
        sizes.summarize(totals, "ab")
