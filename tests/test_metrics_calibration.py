"""Calibration against its definition, pixel by pixel, and closed forms."""

import json

import jax
import numpy as np
import pytest

from jaxseg import plots
from jaxseg.metrics import calibration
from jaxseg.metrics.calibration import BINS, FINE

C, IGNORE = 5, 255


def maps(seed=0, shape=(3, 17, 23)):
    """Random confidences, predictions and labels, some of them ignored."""
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.2, 1, shape).astype(np.float32)
    confidence[:, 1] = 1.0
    predictions = rng.integers(0, C, shape).astype(np.int32)
    labels = np.where(rng.random(shape) < confidence, predictions, (predictions + 1) % C)
    labels[rng.random(shape) < 0.2] = IGNORE
    labels[0, 2, :2] = -1, C  # no classes either
    return confidence, predictions, labels.astype(np.int32)


def count(confidence, predictions, labels, ignore=IGNORE):
    function = jax.jit(lambda *x: calibration.counts(*x, C, ignore))
    return np.asarray(function(confidence, predictions, labels))


def error_slowly(confidence, predictions, labels):
    """Equation 3 of the paper from the pixels, in float64, and of each bin (n, accuracy, mean)."""
    valid = (labels >= 0) & (labels < C) & (labels != IGNORE)
    confidence, right = confidence[valid].astype(np.float64), (predictions == labels)[valid]
    error, bins = 0.0, []
    for m in range(BINS):
        inside = (confidence > m / BINS) & (confidence <= (m + 1) / BINS)
        if not inside.any():
            bins.append((0, None, None))
            continue
        accuracy, mean = right[inside].mean(), confidence[inside].mean()
        error += inside.mean() * abs(accuracy - mean)
        bins.append((int(inside.sum()), accuracy, mean))
    return error, bins, confidence.mean(), right.mean()


def test_the_error_is_that_of_the_definition_to_the_stated_bound():
    parts = maps()
    summary = calibration.summarize(count(*parts).sum(0))
    error, bins, confidence, accuracy = error_slowly(*parts)
    bound = summary["bound"]
    assert bound == 1 / 3600
    assert summary["ECE"] == pytest.approx(error, abs=bound) and error > 10 * bound
    assert summary["mean_confidence"] == pytest.approx(confidence, abs=bound)
    assert summary["accuracy"] == pytest.approx(accuracy, rel=1e-12)
    assert summary["overconfidence"] == pytest.approx(confidence - accuracy, abs=bound)
    for row, (pixels, right, mean) in zip(summary["bins"], bins, strict=True):
        assert row["pixels"] == pixels
        if pixels:
            assert row["accuracy"] == pytest.approx(right, rel=1e-12)
            assert row["confidence"] == pytest.approx(mean, abs=bound)
        else:
            assert row["accuracy"] is None and row["confidence"] is None


def test_every_labelled_pixel_is_in_one_bin_and_no_other_is():
    confidence, predictions, labels = maps(1)
    counts = count(confidence, predictions, labels)
    assert counts.shape == (3, 2, FINE) and counts.dtype == np.int32
    valid = (labels >= 0) & (labels < C)
    right = (predictions == labels) & valid
    np.testing.assert_array_equal(counts[:, 1].sum(-1), right.sum((1, 2)))
    np.testing.assert_array_equal(counts[:, 0].sum(-1), (valid & ~right).sum((1, 2)))
    # Ignored pixels: neither their confidence nor their prediction can be seen.
    other = np.where(valid, confidence, 0.999), np.where(valid, predictions, 0), labels
    np.testing.assert_array_equal(count(*other), counts)


def test_an_ignore_label_among_the_classes_is_ignored():
    confidence, predictions, labels = maps(2)
    counts = count(confidence, predictions, labels, ignore=2)
    valid = (labels >= 0) & (labels < C) & (labels != 2)
    assert counts.sum() == valid.sum()


def test_bins_are_closed_above_and_confidences_beyond_1_are_in_the_last():
    confidence = np.array([0, 0.5 / FINE, 1 / FINE, 1.01 / FINE, 0.5, 1, 1 + 1e-6], np.float32)
    zeros = np.zeros((1, 1, 7), np.int32)
    counts = count(confidence[None, None], zeros, zeros)[0, 1]
    expected = np.zeros(FINE, int)
    for place in (0, 0, 0, 1, FINE // 2 - 1, FINE - 1, FINE - 1):
        expected[place] += 1
    np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize("accuracy", [0.0, 0.25, 1.0])
def test_one_confidence_has_the_error_of_a_closed_form(accuracy):
    totals = np.zeros((2, FINE), np.int64)
    place = 1350  # its middle is 0.750278
    totals[:, place] = (1000 * (1 - accuracy), 1000 * accuracy)
    summary = calibration.summarize(totals)
    assert summary["ECE"] == pytest.approx(abs(accuracy - (place + 0.5) / FINE), rel=1e-12)
    assert summary["overconfidence"] == pytest.approx((place + 0.5) / FINE - accuracy, rel=1e-12)


def test_bins_that_make_up_for_each_other_have_no_overconfidence_but_an_error():
    totals = np.zeros((2, FINE), np.int64)
    totals[1, 900] = 10  # all right at one half
    totals[0, 899] = 10  # all wrong there, in the bin below
    # Middles: 900.5 / 1800 and 899.5 / 1800; together 1/2, as is the accuracy; one wide bin.
    summary = calibration.summarize(totals)
    assert summary["ECE"] == 0 and summary["overconfidence"] == 0
    totals = np.zeros((2, FINE), np.int64)
    totals[1, 1200] = 10  # bins 10 and 4: apart
    totals[0, 599] = 10
    summary = calibration.summarize(totals)
    assert summary["overconfidence"] == 0
    assert summary["ECE"] == pytest.approx(1 - 1200.5 / 1800)


def test_counts_beyond_2_31_are_exact():
    """Repeated counts, not pictures: figures stay what they are when all counts are multiplied."""
    counts = count(*maps(3)).sum(0, dtype=np.int64)
    once, often = calibration.summarize(counts), calibration.summarize(counts * 2**40)
    assert often["pixels"] == once["pixels"] * 2**40 > 2**49
    for name in ("ECE", "mean_confidence", "accuracy"):
        assert often[name] == once[name]


def test_nothing_counted_is_no_figure_and_still_a_picture(recwarn):
    summary = calibration.summarize(np.zeros((2, FINE), np.int64))
    for name in ("ECE", "accuracy", "mean_confidence", "overconfidence"):
        assert summary[name] is None
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert plots.reliability_diagram(summary, "empty").dtype == np.uint8
    assert not recwarn.list


def test_the_diagram_shows_accuracies_as_bars():
    """Along a bin's middle column, blue pixels up to its accuracy and none above."""
    totals = np.zeros((2, BINS, FINE // BINS), np.int64)
    accuracies = np.linspace(0, 0.8, BINS)
    totals[1, :, 60] = np.round(1000 * accuracies)
    totals[0, :, 60] = 1000 - totals[1, :, 60]
    picture = plots.reliability_diagram(calibration.summarize(totals.reshape(2, FINE)), "bars")
    blue = (picture == plots._BAR).all(-1)
    for m in range(BINS):
        # Off the diagonal and the grid, and below the panel's legend.
        column = plots._LEFT + round((m + 0.3) / BINS * plots._SIDE)
        panel = blue[plots._TOP + 60 : plots._TOP + plots._SIDE, column]
        assert panel.sum() / plots._SIDE == pytest.approx(accuracies[m], abs=0.012)
