"""Figures of single images and their resamples, against loops over the definition."""

import json

import jax
import numpy as np
import pytest

from jaxseg import metrics
from jaxseg.metrics import images

C, IGNORE = 4, 255


def maps(seed=0, n=6, shape=(9, 12)):
    """Images in which some classes are missing, and one without a labelled pixel."""
    rng = np.random.default_rng(seed)
    labels = np.stack([rng.choice(rng.permutation(C)[: 2 + i % 3], shape) for i in range(n)])
    predictions = np.where(rng.random(labels.shape) < 0.6, labels, rng.integers(0, C, labels.shape))
    labels[rng.random(labels.shape) < 0.1] = IGNORE
    labels[n - 1] = IGNORE
    return predictions.astype(np.int32), labels.astype(np.int32)


def rows(predictions, labels):
    matrices = jax.jit(lambda p, t: images.confusion_matrices(p, t, C, IGNORE))(predictions, labels)
    return np.stack([images.sides(matrix) for matrix in np.asarray(matrices)])


def miou_slowly(prediction, label):
    """Over the classes of the truth, from sets of pixels."""
    valid = label != IGNORE
    scores = []
    for c in np.unique(label[valid]):
        a, b = (prediction == c) & valid, label == c
        scores.append((a & b).sum() / (a | b).sum())
    return np.mean(scores) if scores else np.nan


def test_counts_of_images_are_those_of_each_image():
    predictions, labels = maps()
    counted = rows(predictions, labels)
    assert counted.shape == (6, 3, C) and counted.dtype == np.int64
    for i in range(6):
        valid = labels[i] != IGNORE
        for c in range(C):
            p, t = (predictions[i] == c) & valid, labels[i] == c
            assert counted[i, :, c].tolist() == [(p & t).sum(), t.sum(), p.sum()]


def test_miou_of_images_is_the_definition():
    predictions, labels = maps(1)
    expected = [miou_slowly(p, t) for p, t in zip(predictions, labels, strict=True)]
    np.testing.assert_allclose(images.image_miou(rows(predictions, labels)), expected, rtol=1e-12)
    assert np.isnan(expected[-1])


def test_a_class_that_is_not_there_adds_no_zero():
    """50 pixels of class 0, one of which is taken for class 3."""
    counts = np.zeros((1, 3, C), np.int64)
    counts[0, :, 0], counts[0, 2, 3] = (49, 50, 49), 1
    assert images.image_miou(counts) == pytest.approx(49 / 50)


def test_the_worst_and_the_best_are_named():
    predictions, labels = maps(2, n=9)
    ids = [f"city/{i}" for i in range(9)]
    counts = rows(predictions, labels)
    summary = images.summarize(ids, counts, number=3)
    scores = {id: miou_slowly(p, t) for id, p, t in zip(ids, predictions, labels, strict=True)}
    del scores["city/8"]
    ordered = sorted(scores, key=scores.get)
    assert [row["id"] for row in summary["worst"]] == ordered[:3]
    assert [row["id"] for row in summary["best"]] == ordered[:-4:-1]
    assert [row["mIoU"] for row in summary["worst"]] == pytest.approx(
        [scores[id] for id in ordered[:3]]
    )
    assert summary["images"] == 8
    assert summary["mean"] == pytest.approx(np.mean(list(scores.values())))
    values = sorted(scores.values())
    assert summary["quantiles"]["0%"] == pytest.approx(values[0])
    assert summary["quantiles"]["50%"] == pytest.approx((values[3] + values[4]) / 2)
    assert summary["quantiles"]["100%"] == pytest.approx(values[-1])
    # Ties go by name, and the order of the images is nothing.
    order = np.random.default_rng(0).permutation(9)
    assert images.summarize([ids[i] for i in order], counts[order], 3)["worst"] == summary["worst"]
    same = images.summarize(["b", "a", "c"], counts[[0, 0, 0]], 2)
    assert [r["id"] for r in same["worst"]] == [r["id"] for r in same["best"]] == ["a", "b"]


def figures(counts, number=images.RESAMPLES, seed=0):
    """Figures of the resamples of [n, 3, C]."""
    sums = images.resample({"classes": counts}, number, seed)["classes"]
    return {"mIoU": images.miou(sums), "pixel_accuracy": images.pixel_accuracy(sums)}


def test_no_labelled_pixel_is_no_figure(recwarn):
    counts = np.zeros((2, 3, C), np.int64)
    summary = images.summarize(["a", "b"], counts)
    assert summary["images"] == 0 and summary["mean"] is None and summary["worst"] == []
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert images.interval(figures(counts, 10)["mIoU"]) is None
    assert not recwarn.list


def test_resamples_are_those_of_repeated_images():
    """Every resample again from a list of images, some of them several times, by `summarize`."""
    predictions, labels = maps(3)
    counts, number, n = rows(predictions, labels), 130, 6
    resampled = figures(counts, number, seed=7)
    rng = np.random.default_rng(7)
    weights = np.concatenate(
        [rng.multinomial(n, np.full(n, 1 / n), size=size) for size in (100, 30)]
    )
    assert (weights.sum(1) == n).all() and weights.max() > 1
    matrices = np.asarray(images.confusion_matrices(predictions, labels, C, IGNORE))
    for i in range(number):
        drawn = np.repeat(np.arange(n), weights[i])
        summary = metrics.summarize(sum(matrices[j].astype(np.int64) for j in drawn), "abcd")
        for name in ("mIoU", "pixel_accuracy"):
            assert resampled[name][i] == pytest.approx(summary[name], rel=1e-12)


def test_counts_of_several_kinds_are_resampled_together():
    rng = np.random.default_rng(0)
    counts = {"a": rng.integers(0, 9, (7, 3, 2)), "b": rng.integers(0, 9, (7, 5))}
    together = images.resample(counts, 20)
    for name, x in counts.items():
        assert together[name].shape == (20, *x.shape[1:])
        np.testing.assert_array_equal(together[name], images.resample({name: x}, 20)[name])


def test_equal_images_have_an_interval_without_width():
    predictions, labels = maps(4)
    counts = np.repeat(rows(predictions, labels)[:1], 20, axis=0)
    summary = metrics.summarize(
        np.asarray(images.confusion_matrices(predictions[:1], labels[:1], C, IGNORE))[0], "abcd"
    )
    for name, values in figures(counts, 200).items():
        assert images.interval(values) == pytest.approx([summary[name]] * 2)


def test_the_interval_of_an_accuracy_is_the_binomial_one():
    """n images of one pixel, a share of them right: percentiles of a binomial, to its steps."""
    from scipy import stats

    n, right = 400, 300
    counts = np.zeros((n, 3, 2), np.int64)
    counts[:, 1, 0] = 1
    counts[:right, 0, 0] = counts[:right, 2, 0] = 1
    counts[right:, 2, 1] = 1
    values = figures(counts, 4000)["pixel_accuracy"]
    expected = stats.binom(n, right / n).ppf([0.025, 0.975]) / n
    np.testing.assert_allclose(images.interval(values), expected, atol=2.5 / n)


def test_resamples_are_paired_by_the_seed():
    """The second system gets one pixel more right in every image: so in every resample."""
    counts = np.zeros((50, 3, 2), np.int64)
    rng = np.random.default_rng(0)
    right = rng.integers(10, 80, 50)
    counts[:, :, 0] = np.stack([right, np.full(50, 100), right], 1)
    counts[:, 2, 1] = 100 - right
    better = counts + np.array([[1, 0], [0, 0], [1, -1]])
    first, second = (figures(x)["pixel_accuracy"] for x in (counts, better))
    np.testing.assert_allclose(second - first, 0.01, rtol=1e-9)
    low, high = images.interval(first)
    assert high - low > 0.02, "unpaired, the difference would drown"


def test_counts_beyond_2_31_change_nothing():
    """Counts multiplied by 2^30, sums of pixels beyond 2^40: the same figures to the last bit."""
    counts = rows(*maps(5))
    large = counts * 2**30
    assert large.sum() > 2**38
    for name, values in figures(counts, 50).items():
        np.testing.assert_array_equal(figures(large, 50)[name], values)
    np.testing.assert_array_equal(images.image_miou(large), images.image_miou(counts))
