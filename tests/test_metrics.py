"""Metrics against their definitions over sets of pixels, in plain NumPy."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxseg import metrics
from jaxseg.metrics import confusion

C = 6
NAMES = ("road", "sidewalk", "traffic light", "sky", "person", "bus")


def maps(seed=0, shape=(8, 9, 11), present=range(C)):
    """Random predictions and labels; some labels are ignored, and some are no class at all."""
    rng = np.random.default_rng(seed)
    predictions = rng.integers(0, C, shape).astype(np.int32)
    labels = rng.choice(np.asarray(present, np.int32), shape)
    labels[rng.random(shape) < 0.3] = 0  # uneven, as in pictures
    labels[rng.random(shape) < 0.1] = 255
    labels[0, 0, :3] = -1, C, 254
    return predictions, labels


def count_slowly(predictions, labels, mask=None, ignore=255):
    counts = np.zeros((C, C), np.int64)
    for index in np.ndindex(labels.shape):
        inside = mask is None or mask[index[0]]
        if inside and labels[index] in range(C) and labels[index] != ignore:
            counts[labels[index], predictions[index]] += 1
    return counts


def matmul_form(predictions, labels, mask=None, ignore=255, chunk=30):
    """The form for accelerators, on labels as `confusion_matrix` hands them over."""
    valid = (labels >= 0) & (labels < C) & (labels != ignore)
    if mask is not None:
        valid = valid & mask[:, None, None]
    return confusion._by_product(predictions, jnp.where(valid, labels, C), C, chunk)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("ignore", [255, 2])
def test_confusion_matrix_counts_pairs(masked, ignore):
    predictions, labels = maps()
    mask = np.arange(8) % 3 != 1 if masked else None
    expected = count_slowly(predictions, labels, mask, ignore)
    count = jax.jit(lambda p, t: metrics.confusion_matrix(p, t, C, ignore, mask))
    counts = count(predictions, labels)
    assert counts.dtype == jnp.int32
    np.testing.assert_array_equal(counts, expected)
    np.testing.assert_array_equal(matmul_form(predictions, labels, mask, ignore), expected)


@pytest.mark.parametrize("chunk", [1, 11, 40, 2**16])
def test_bands_of_any_height_count_every_row_once(chunk):
    predictions, labels = maps(1)
    counts = matmul_form(predictions, labels, chunk=chunk)
    np.testing.assert_array_equal(counts, count_slowly(predictions, labels))


@pytest.mark.parametrize("form", [confusion._by_scatter, confusion._by_product])
def test_counts_above_2_24_are_exact(form):
    """One cell of one batch holds more pixels than float32 can count one by one."""
    shape = (2, 4099, 2049)
    pixels = int(np.prod(shape))
    assert pixels > 2**24 and pixels % 2 == 0
    predictions, labels = np.ones(shape, np.int32), np.ones(shape, np.int32)
    labels[0, 0, 0] = 0
    counts = jax.jit(form, static_argnums=2)(predictions, labels, 2)
    np.testing.assert_array_equal(counts, [[0, 1], [0, pixels - 1]])


@pytest.mark.parametrize("form", ["public", "product"])
def test_eight_devices_count_as_one(form):
    predictions, labels = maps(2)
    mask = np.arange(8) != 7
    if form == "public":
        count = jax.jit(lambda p, t, m: metrics.confusion_matrix(p, t, C, 255, m))
    else:
        count = jax.jit(functools.partial(matmul_form, chunk=22))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(
        (predictions, labels, mask), NamedSharding(mesh, PartitionSpec("data"))
    )
    if form == "public":
        count = count.lower(*sharded).compile()
        assert "all-gather" not in count.as_text()
    np.testing.assert_array_equal(count(*sharded), count_slowly(predictions, labels, mask))


def test_the_sum_over_batches_does_not_depend_on_the_batch_size():
    predictions, labels = maps(3)
    sums = [
        metrics.accumulate(
            (
                metrics.confusion_matrix(predictions[i : i + size], labels[i : i + size], C, 255)
                for i in range(0, 8, size)
            ),
            C,
        )
        for size in (1, 3, 8)
    ]
    for total in sums:
        np.testing.assert_array_equal(total, count_slowly(predictions, labels))


def test_the_sum_passes_int32_and_float32():
    largest = np.iinfo(np.int32).max
    batches = [jnp.full((1, 1), largest, jnp.int32)] * 5 + [jnp.ones((1, 1), jnp.int32)]
    total = metrics.accumulate(iter(batches), 1)
    assert total.dtype == np.int64
    assert int(total[0, 0]) == 5 * largest + 1
    assert metrics.accumulate([], 2).tolist() == [[0, 0], [0, 0]]


def defined(values):
    values = [v for v in values if v is not None]
    return sum(values) / len(values)


@pytest.mark.parametrize("present", [range(C), (0, 1, 3), (4,)])
def test_figures_are_those_of_sets_of_pixels(present):
    predictions, labels = maps(4, present=present)
    summary = metrics.summarize(count_slowly(predictions, labels), NAMES)
    valid = (labels >= 0) & (labels < C)
    p, t = predictions[valid], labels[valid]
    ious, accuracies, dices, weighted = [], [], [], 0.0
    for c in range(C):
        both, either = np.sum((p == c) & (t == c)), np.sum((p == c) | (t == c))
        true, predicted = np.sum(t == c), np.sum(p == c)
        ious.append(both / either if either else None)
        accuracies.append(both / true if true else None)
        dices.append(2 * both / (true + predicted) if true + predicted else None)
        weighted += true / len(t) * both / either
        row = summary["classes"][c]
        assert row["name"] == NAMES[c]
        assert (row["pixels"], row["predicted_pixels"]) == (true, predicted)
        assert row["IoU"] == pytest.approx(ious[-1])
        assert row["accuracy"] == pytest.approx(accuracies[-1])
        assert row["Dice"] == pytest.approx(dices[-1])
    assert summary["pixels"] == len(t)
    assert summary["pixel_accuracy"] == pytest.approx(np.mean(p == t))
    assert summary["mIoU"] == pytest.approx(defined(ious))
    assert summary["mean_accuracy"] == pytest.approx(defined(accuracies))
    assert summary["mean_Dice"] == pytest.approx(defined(dices))
    assert summary["frequency_weighted_IoU"] == pytest.approx(weighted)


def test_classes_without_pixels():
    """a and b occur; c is predicted only: 0 and in the mean; d is in neither: out of it."""
    confusion = np.array([[6, 0, 2, 0], [0, 8, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    summary = metrics.summarize(confusion, "abcd")
    a, b, c, d = summary["classes"]
    assert (c["IoU"], c["Dice"], c["accuracy"]) == (0.0, 0.0, None)
    assert (d["IoU"], d["Dice"], d["accuracy"]) == (None, None, None)
    assert summary["mIoU"] == pytest.approx((6 / 8 + 1 + 0) / 3)
    assert summary["mean_Dice"] == pytest.approx((12 / 14 + 1 + 0) / 3)
    assert summary["mean_accuracy"] == pytest.approx((6 / 8 + 1) / 2)
    assert summary["pixel_accuracy"] == pytest.approx(14 / 16)
    assert summary["frequency_weighted_IoU"] == pytest.approx((6 / 8 + 1) / 2)


def test_a_summary_is_json_even_when_nothing_was_counted(recwarn):
    summary = metrics.summarize(np.zeros((2, 2), np.int64), ("a", "b"))
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["mIoU"] is None and summary["pixel_accuracy"] is None
    assert metrics.scalars(summary) == {}
    assert "-" in metrics.table(summary)
    assert not recwarn.list


def test_a_confusion_matrix_of_another_size_is_refused():
    with pytest.raises(ValueError, match="3 classes"):
        metrics.summarize(np.zeros((2, 2), np.int64), "abc")


def test_scalars_are_what_a_plot_shows():
    summary = metrics.summarize(np.array([[3, 1], [0, 0]]), ("a", "b"))
    assert metrics.scalars(summary) == {
        "mIoU": 0.375,
        "pixel_accuracy": 0.75,
        "mean_accuracy": 0.75,
        "frequency_weighted_IoU": 0.75,
        "mean_Dice": pytest.approx(3 / 7),
        "IoU/a": 0.75,
        "IoU/b": 0.0,
    }


def test_the_table_is_aligned():
    confusion = np.array([[6, 0, 2, 0], [0, 12345678, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    names = ("road", "traffic light", "c", "d")
    assert metrics.table(metrics.summarize(confusion, names)).splitlines() == [
        "class             IoU  accuracy    Dice    pixels",
        "-------------------------------------------------",
        "road            75.00     75.00   85.71         8",
        "traffic light  100.00    100.00  100.00  12345678",
        "c                0.00         -    0.00         0",
        "d                   -         -       -         0",
        "-------------------------------------------------",
        "mean            58.33     87.50   61.90  12345686",
        "mIoU 58.33, pixel accuracy 100.00, frequency-weighted IoU 100.00",
    ]
