"""Boundary metrics against their definitions, mask by mask, in SciPy; closed forms; invariances."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxseg.metrics import boundaries
from jaxseg.metrics.boundaries import WIDTHS
from jaxseg.sharding import make_mesh, over_batch

IGNORE = 255
SQUARE = np.ones((3, 3), bool)
count = jax.jit(boundaries.counts, static_argnums=2)  # one program for any ignored label


def blobs(rng, shape, classes, smoothness):
    """Label maps of the classes whose smooth noise is greatest."""
    noise = rng.normal(size=(len(classes), *shape))
    return np.asarray(classes, np.int32)[
        ndimage.gaussian_filter(noise, (0, 0, smoothness, smoothness)).argmax(0)
    ]


def maps(shape, classes=(0, 1, 3), seed=0, smoothness=3):
    """Predictions that resemble the labels; ignored areas and single pixels that are no class."""
    rng = np.random.default_rng(seed)
    labels = blobs(rng, shape, classes, smoothness)
    predictions = np.roll(labels, (1, 2), (1, 2))
    noise = rng.random(shape)
    predictions = np.where(noise < 0.02, rng.choice(classes, shape), predictions).astype(np.int32)
    labels[blobs(rng, shape, range(6), smoothness) == 0] = IGNORE
    labels[rng.random(shape) < 0.01] = -1
    return predictions, labels


def count_slowly(prediction, label, num_classes):
    """The counts of one image, by the definitions."""
    h, w = label.shape
    diagonal = math.sqrt(h**2 + w**2)
    valid = (label >= 0) & (label < num_classes)  # 255 is none of the classes
    truth, predicted = np.where(valid, label, 1000), np.where(valid, prediction, 1000)

    def band(mask):
        depth = max(1, int(round(0.02 * diagonal)))
        return mask & ~ndimage.binary_erosion(mask, SQUARE, depth, border_value=0)

    def contour(mask):
        return np.argwhere(mask & ~ndimage.binary_erosion(mask, SQUARE, border_value=1))

    def matched(points, others):
        if not len(points) or not len(others):
            return 0
        squares = ((points[:, None] - others) ** 2).sum(-1).min(1)
        return np.sum(400**2 * squares < 3**2 * (h**2 + w**2))  # 3 / 400 = 0.75 %

    to_boundary = np.full((h, w), np.inf)
    for value in np.unique(truth):
        region = truth == value
        if not region.all():
            steps = ndimage.distance_transform_cdt(region, "chessboard")
            to_boundary[region] = steps[region]

    result = {"boundary_iou": [], "trimap": [], "contour": []}
    for c in range(num_classes):
        true, guess = truth == c, predicted == c
        result["boundary_iou"].append([band(true) & band(guess), band(true), band(guess)])
        near = [to_boundary <= width for width in WIDTHS]
        result["trimap"].append([[true & guess & n, true & n, guess & n] for n in near])
        a, b = contour(true), contour(guess)
        result["contour"].append([len(a), matched(a, b), len(b), matched(b, a)])
    bands, trimap = (np.sum(result[k], (-2, -1)) for k in ("boundary_iou", "trimap"))
    return {
        "boundary_iou": bands.T,
        "trimap": np.moveaxis(trimap, 0, -1),
        "contour": np.transpose(result["contour"]),
    }


def assert_equal(got, want):
    assert got.keys() == want.keys()
    for name, values in want.items():
        np.testing.assert_array_equal(got[name], values, err_msg=name)


CASES = [
    ((1, 1), 4, (0, 1, 3)),
    ((1, 7), 4, (0, 1, 3)),
    ((6, 5), 4, (0, 1, 3)),  # smaller than most bands
    ((37, 53), 4, (0, 1, 3)),  # class 2 is absent
    ((37, 53), 70, (0, 31, 32, 63, 64, 69)),  # contours in three words of bits
    ((23, 611), 4, (0, 1, 3)),  # a long diagonal: bands 12 deep, contours match up to 4.6 apart
]


@pytest.mark.parametrize(("shape", "num_classes", "classes"), CASES)
def test_counts_are_those_of_the_definitions(shape, num_classes, classes):
    predictions, labels = maps((3, *shape), classes)
    labels[2] = np.where(labels[2] == IGNORE, 0, labels[2])
    got = count(predictions, labels, num_classes, IGNORE)
    assert all(values.dtype == jnp.int32 for values in got.values())
    for i in range(3):
        want = count_slowly(predictions[i], labels[i], num_classes)
        assert_equal({k: v[i] for k, v in got.items()}, want)
    if min(shape) > 20:  # the cases are not all trivial
        contour = np.asarray(got["contour"]).sum((0, 2))
        assert 0 < contour[1] < contour[0] and 0 < contour[3] < contour[2]


@pytest.mark.parametrize("radii", [{5}, {1, 12}, {1, 2, 4, 8, 40}])
def test_windows_leave_no_pixel_out(radii):
    """One odd pixel, seen from everywhere, with radii that are reached in several steps."""
    labels = np.zeros((2, 59, 67), np.int32)
    labels[0, 30, 20] = labels[1, 58, 66] = 1
    to_boundary = jax.jit(lambda x: boundaries._to_boundary(x, radii))(labels)
    for got, label in zip(np.asarray(to_boundary), labels, strict=True):
        want = ndimage.distance_transform_cdt(label == 0, "chessboard")
        want[label == 1] = 1  # the odd pixel has others beside it
        for radius in radii:
            np.testing.assert_array_equal(got <= radius, want <= radius)


def test_any_class_can_be_the_ignored_one():
    predictions, labels = maps((3, 37, 53))
    got = count(predictions, labels, 4, 1)
    want = count(predictions, np.where(labels == 1, IGNORE, labels), 4, IGNORE)
    assert_equal(got, want)
    assert not np.asarray(got["boundary_iou"])[:, 1, 1].any()


def test_labels_may_be_bytes():
    predictions, labels = (np.where(x < 0, 3, x) for x in maps((3, 37, 53)))
    want = count(predictions, labels, 4, IGNORE)
    assert_equal(count(predictions.astype(np.uint8), labels.astype(np.uint8), 4, IGNORE), want)


def test_what_is_predicted_in_ignored_pixels_changes_nothing():
    predictions, labels = maps((3, 37, 53))
    ignored = (labels < 0) | (labels == IGNORE)
    other = np.where(ignored, (predictions + 1) % 4, predictions)
    assert (other != predictions).sum() > 50
    assert_equal(count(other, labels, 4, IGNORE), count(predictions, labels, 4, IGNORE))


def test_a_prediction_that_is_right_wherever_there_is_truth_is_perfect():
    predictions, labels = maps((3, 37, 53))
    right = np.where((labels < 0) | (labels == IGNORE), predictions, labels)
    totals = {k: np.sum(v, 0) for k, v in count(right, labels, 4, IGNORE).items()}
    summary = boundaries.summarize(totals, "abcd")
    assert summary["mean_boundary_IoU"] == summary["mean_boundary_F"] == 1
    assert all(t["mIoU"] == t["pixel_accuracy"] == 1 for t in summary["trimap"])


def test_truth_and_prediction_change_places():
    """Without ignored pixels Boundary IoU and F are symmetric; trimaps are the truth's alone."""
    a, b = (np.where((x < 0) | (x == IGNORE), 0, x) for x in maps((3, 37, 53)))
    forward, backward = count(a, b, 4, IGNORE), count(b, a, 4, IGNORE)
    np.testing.assert_array_equal(forward["boundary_iou"][:, (0, 2, 1)], backward["boundary_iou"])
    np.testing.assert_array_equal(forward["contour"][:, (2, 3, 0, 1)], backward["contour"])
    assert (np.asarray(forward["trimap"]) != backward["trimap"]).any()


def test_flipped_and_renamed_maps_have_the_same_counts():
    predictions, labels = maps((3, 37, 53))
    want = count(predictions, labels, 4, IGNORE)
    for axes in ((1,), (2,), (1, 2)):
        assert_equal(count(np.flip(predictions, axes), np.flip(labels, axes), 4, IGNORE), want)
    renamed = [np.where((x >= 0) & (x < 4), 3 - x, x) for x in (predictions, labels)]
    got = count(*renamed, 4, IGNORE)
    assert_equal({k: np.flip(v, -1) for k, v in got.items()}, want)


@pytest.mark.parametrize("shift", [0, 1, 4, 8])
def test_boundary_iou_of_a_shifted_square(shift):
    """Bands of squares of side s, d deep, k <= d apart: m = s - 2d is the side of what is within.

    Each holds s^2 - m^2 pixels; the intersection of the squares, s (s - k), loses both insides,
    which lie in it and cover m (m + k).
    """
    depth, s, k = 8, 100, shift
    assert boundaries.band_depth(240, 320) == depth
    truth, prediction = np.zeros((2, 1, 240, 320), np.int32)
    truth[:, 50 : 50 + s, 60 : 60 + s] = 1
    prediction[:, 50 : 50 + s, 60 + k : 60 + k + s] = 1
    got = np.asarray(count(prediction, truth, 2, IGNORE)["boundary_iou"])[0, :, 1]
    m = s - 2 * depth
    assert got.tolist() == [s * (s - k) - m * (m + k), s**2 - m**2, s**2 - m**2]


@pytest.mark.parametrize("shift", [0, 1, 2, 3, 4])
def test_figures_of_a_shifted_line(shift):
    """The diagonal is 400 pixels: contours match when they are less than 3 apart, not at 3."""
    truth, prediction = np.zeros((2, 1, 240, 320), np.int32)
    truth[..., 160:] = 1
    prediction[..., 160 + shift :] = 1
    got = {k: np.asarray(v)[0] for k, v in count(prediction, truth, 2, IGNORE).items()}
    matched = 240 if shift < 3 else 0
    assert got["contour"].tolist() == [[240] * 2, [matched] * 2] * 2
    for width, (both, true, predicted) in zip(WIDTHS, got["trimap"], strict=True):
        wrong = min(shift, width)
        assert true.tolist() == [240 * width] * 2
        assert both.tolist() == [240 * width, 240 * (width - wrong)]
        assert predicted.tolist() == [240 * (width + wrong), 240 * (width - wrong)]


def test_the_edge_of_the_image_is_a_boundary_in_boundary_iou_only():
    labels = np.zeros((1, 240, 320), np.int32)
    got = {k: np.asarray(v)[0] for k, v in count(labels, labels, 2, IGNORE).items()}
    band = 240 * 320 - (240 - 16) * (320 - 16)
    assert got["boundary_iou"].tolist() == [[band, 0]] * 3
    assert not got["trimap"].any() and not got["contour"].any()


def test_sums_do_not_depend_on_the_batch_size():
    predictions, labels = maps((7, 37, 53))
    totals = []
    for size in (1, 3, 7):
        total = {}
        for i in range(0, 7, size):
            rows = len(labels[i : i + size])
            padding = ((0, size - rows), (0, 0), (0, 0))
            batch = (
                np.pad(predictions[i : i + size], padding),
                np.pad(labels[i : i + size], padding),
            )
            for name, values in count(*batch, 4, IGNORE).items():
                total[name] = total.get(name, 0) + np.asarray(values, np.int64)[:rows].sum(0)
        totals.append(total)
    for total in totals[1:]:
        assert_equal(total, totals[0])


def test_images_stay_on_their_devices():
    predictions, labels = maps((8, 37, 53))
    mesh = make_mesh()
    sharded = jax.device_put((predictions, labels), over_batch(mesh))
    compiled = count.lower(*sharded, 4, IGNORE).compile()
    text = compiled.as_text()
    assert not any(word in text for word in ("all-gather", "all-reduce", "all-to-all"))
    got = compiled(*sharded, IGNORE)
    assert all(v.sharding.is_equivalent_to(over_batch(mesh), v.ndim) for v in got.values())
    single = [count(p[None], t[None], 4, IGNORE) for p, t in zip(predictions, labels, strict=True)]
    assert_equal(got, {k: np.concatenate([s[k] for s in single]) for k in got})


def test_figures_follow_from_the_counts():
    """a is found in part, b is predicted where it is not, c misses its match, d does not occur."""
    trimap = np.zeros((len(WIDTHS), 3, 4), np.int64)
    trimap[0] = [[6, 0, 0, 0], [8, 0, 2, 0], [7, 3, 0, 0]]
    totals = {
        "boundary_iou": np.array([[3, 0, 0, 0], [4, 0, 5, 0], [6, 7, 0, 0]]),
        "trimap": trimap,
        "contour": np.array([[10, 0, 5, 0], [5, 0, 0, 0], [8, 4, 6, 0], [6, 0, 0, 0]]),
    }
    summary = boundaries.summarize(totals, "abcd")
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    a, b, c, d = summary["classes"]
    assert a["name"] == "a" and a["boundary_IoU"] == pytest.approx(3 / 7)
    assert (a["boundary_precision"], a["boundary_recall"]) == (0.75, 0.5)
    assert a["boundary_F"] == pytest.approx(2 * 0.75 * 0.5 / 1.25)
    assert (b["boundary_IoU"], b["boundary_F"]) == (c["boundary_IoU"], c["boundary_F"]) == (0, 0)
    assert (b["boundary_precision"], b["boundary_recall"]) == (0, None)
    assert d == dict.fromkeys(d, None) | {"name": "d"}
    assert summary["mean_boundary_IoU"] == pytest.approx(1 / 7)
    assert summary["mean_boundary_F"] == pytest.approx(0.2)
    assert summary["trimap"][0] == {
        "width": 1,
        "mIoU": pytest.approx(6 / 9 / 3),
        "pixel_accuracy": 0.6,
        "pixels": 10,
    }
    assert summary["trimap"][1]["mIoU"] is None and summary["trimap"][1]["pixel_accuracy"] is None
    with pytest.raises(ValueError, match="3 classes"):
        boundaries.summarize(totals, "abc")


def test_f_scores_of_single_images():
    contour = np.array([[[4, 2], [2, 0], [4, 0], [2, 0]], [[0, 1], [0, 1], [0, 3], [0, 3]]])
    np.testing.assert_array_equal(boundaries.f_scores(contour), [[0.5, 0], [np.nan, 1]])
