"""Losses that dwell on hard pixels, OHEM and focal, against their definitions in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxseg import losses
from jaxseg.errors import UserError
from jaxseg.ops.select import kth_smallest

C = 5
WEIGHTS = (0.5, 1.0, 2.0, 0.0, 1.5)


def example(seed=0, shape=(3, 6, 7), scale=3.0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (*shape, C)).astype(np.float32)
    labels = rng.integers(0, C, shape).astype(np.int32)
    labels[rng.random(shape) < 0.2] = 255
    return logits, labels


def run(loss, logits, labels, **options):
    return jax.jit(functools.partial(loss, ignore_label=255, **options))(logits, labels)


def own_probability(logits, labels):
    """Of the valid pixels in row order, float64."""
    z = logits[labels != 255].astype(np.float64)
    p = np.exp(z - z.max(-1, keepdims=True))
    return (p / p.sum(-1, keepdims=True))[np.arange(len(z)), labels[labels != 255]]


@pytest.mark.parametrize("jit", [True, False])
def test_kth_smallest_is_that_of_a_sort(jit):
    rng = np.random.default_rng(0)
    x = (10.0 ** rng.uniform(-45, 38, (9, 11))).astype(np.float32)  # subnormal numbers too
    x[0, :5] = 0, 0, 1, 1, np.inf
    where = rng.random(x.shape) < 0.7
    ordered = np.sort(x[where])
    function = jax.jit(kth_smallest) if jit else kth_smallest
    for k in (0, 1, 5, len(ordered) // 2, len(ordered) - 1) if jit else (7,):
        assert function(x, k, where) == ordered[k]


@pytest.mark.parametrize("average", ["kept", "kept_pixels", "valid", "all"])
@pytest.mark.parametrize("weights", [(), WEIGHTS])
@pytest.mark.parametrize(
    ("threshold", "min_kept"), [(0.7, 5), (0.05, 30), (0.05, 10**9), (0.0, 30), (0.0, 10**9)]
)
def test_ohem_is_its_definition(threshold, min_kept, weights, average):
    logits, labels = example()
    value, count = run(
        losses.ohem_cross_entropy,
        logits,
        labels,
        threshold=threshold,
        min_kept=min_kept,
        class_weights=weights,
        average=average,
    )
    p = own_probability(logits, labels)
    w = np.asarray(weights)[labels[labels != 255]] if weights else np.ones(len(p))
    loss, k = -w * np.log(p), 3 * min_kept
    if threshold:
        kept = p < max(threshold, np.sort(p)[min(k, len(p) - 1)])
    else:
        kept = loss >= np.sort(loss)[::-1][min(k, len(p)) - 1]
    np.testing.assert_allclose(value, loss[kept].sum(), rtol=1e-5)
    counts = dict(kept=w[kept].sum(), kept_pixels=kept.sum(), valid=w.sum(), all=labels.size)
    np.testing.assert_allclose(count, counts[average], rtol=1e-6)
    if not weights and threshold < 0.7 and min_kept == 30:
        assert kept.sum() == 90


@pytest.mark.parametrize("weights", [(), WEIGHTS])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ohem_cross_entropy", dict(threshold=1.1, min_kept=1)),
        ("ohem_cross_entropy", dict(threshold=0.0, min_kept=42)),  # all that an image has
        ("focal", dict(gamma=0.0)),
    ],
)
def test_both_become_cross_entropy(name, options, weights):
    logits, labels = example(1)
    arguments = dict(labels=labels, ignore_label=255, class_weights=weights)
    hard, every = (
        jax.jit(jax.value_and_grad(functools.partial(loss, **arguments), has_aux=True))
        for loss in (functools.partial(losses.LOSSES[name], **options), losses.cross_entropy)
    )
    (value, count), grad = hard(logits)
    (expected, expected_count), expected_grad = every(logits)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(count, expected_count, rtol=1e-6)
    np.testing.assert_allclose(grad, expected_grad, atol=1e-6)


def test_ohem_gives_easy_and_ignored_pixels_no_gradient():
    logits, labels = example(2)
    grad = jax.grad(lambda z: run(losses.ohem_cross_entropy, z, labels, min_kept=1)[0])(logits)
    hard = np.zeros(labels.shape, bool)
    hard[labels != 255] = own_probability(logits, labels) < 0.7
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(-1, keepdims=True)
    expected = (p - np.eye(C)[np.where(hard, labels, 0)]) * hard[..., None]
    np.testing.assert_allclose(grad, expected, atol=1e-6)


@pytest.mark.parametrize("average", ["valid", "all"])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_is_its_definition(gamma, average):
    logits, labels = example(3)
    value, count = run(
        losses.focal, logits, labels, gamma=gamma, class_weights=WEIGHTS, average=average
    )
    p, w = own_probability(logits, labels), np.asarray(WEIGHTS)[labels[labels != 255]]
    np.testing.assert_allclose(value, -(w * (1 - p) ** gamma * np.log(p)).sum(), rtol=1e-5)
    np.testing.assert_allclose(count, w.sum() if average == "valid" else labels.size, rtol=1e-6)


def test_focal_gradient_is_that_of_finite_differences():
    logits, labels = example(4, (1, 3, 4))
    grad = np.asarray(jax.grad(lambda z: run(losses.focal, z, labels, gamma=0.7)[0])(logits))

    def reference(logits):
        p = own_probability(logits, labels)
        return -((1 - p) ** 0.7 * np.log(p)).sum()

    for index in np.ndindex(logits.shape):
        step = np.zeros(logits.shape)
        step[index] = 1e-5
        slope = (reference(logits + step) - reference(logits - step)) / 2e-5
        np.testing.assert_allclose(grad[index], slope, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ohem_cross_entropy", dict(threshold=0.7)),
        ("ohem_cross_entropy", dict(threshold=0.0)),
        ("focal", dict(gamma=0.5)),
        ("focal", dict(gamma=2.0)),
    ],
)
def test_extreme_logits_and_no_valid_pixel(name, options):
    logits, labels = example(5)
    loss = functools.partial(losses.LOSSES[name], ignore_label=255, **options)
    step = jax.jit(jax.value_and_grad(lambda z, y: loss(z, y)[0]))
    value, grad = step(1e4 * logits, labels)
    assert np.isfinite(value) and np.isfinite(grad).all()
    low = jnp.asarray(logits, jnp.bfloat16)
    np.testing.assert_allclose(
        step(low, labels)[0], step(low.astype(jnp.float32), labels)[0], rtol=1e-6
    )
    value, grad = step(logits, np.full_like(labels, 255))
    assert value == 0 and (np.asarray(grad) == 0).all()


@pytest.mark.parametrize("options", [dict(threshold=1e-3), dict(threshold=0.0)])
def test_eight_devices_mine_the_whole_batch(options):
    """The hard pixels are those of the batch, though the devices' shares differ widely."""
    logits, labels = example(6, (8, 6, 7))
    logits[:4] *= np.linspace(0.1, 3, 4)[:, None, None, None]
    labels[2] = 255
    mask = np.arange(8) != 5

    def loss(logits, labels, mask):
        value, count = losses.ohem_cross_entropy(
            logits, labels, ignore_label=255, mask=mask, min_kept=10, **options
        )
        return value / count, count

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    arguments = jax.device_put((logits, labels, mask), NamedSharding(mesh, PartitionSpec("data")))
    step = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(*arguments).compile()
    assert "all-gather" not in step.as_text()
    (value, count), grad = step(*arguments)
    assert count == 70  # of the seven images that are no padding
    one = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (one_value, _), one_grad = one(logits, labels, mask)
    np.testing.assert_allclose(value, one_value, rtol=1e-6)
    np.testing.assert_allclose(grad, one_grad, atol=1e-7)
    p = own_probability(logits[mask], labels[mask])
    np.testing.assert_allclose(value, -np.log(np.sort(p)[:70]).mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "messages"),
    [
        ("ohem_cross_entropy", dict(threshold=-0.5), ["threshold=-0.5", "at least 0"]),
        ("ohem_cross_entropy", dict(min_kept=0), ["min_kept=0", "at least 1"]),
        ("ohem_cross_entropy", dict(average="keep"), ["average", "mean 'kept'"]),
        ("focal", dict(gamma=-1.0), ["gamma=-1.0", "at least 0"]),
        ("focal", dict(gamma="2"), ["gamma='2'", "a number"]),
        ("focal", dict(class_weights=(1.0, 2.0)), ["class_weights has 2", "5 classes"]),
        ("focal", dict(class_weights="median_frequency"), ["class_weights='median_", "Training"]),
    ],
)
def test_a_mistake_in_the_options_is_named(name, options, messages):
    logits, labels = example(7)
    with pytest.raises(UserError) as caught:
        losses.LOSSES[name](logits, labels, ignore_label=255, **options)
    for message in messages:
        assert message in str(caught.value)
