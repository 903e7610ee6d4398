"""The loss of a boundary map against its definition, pixel by pixel in float64."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxseg import losses
from jaxseg.errors import UserError
from jaxseg.losses.edges import boundaries

IGNORED = (255, -1)


def near(labels, width):
    """One image: where squares are that lie on pixels which differ from a neighbour."""
    h, w = labels.shape
    found = np.zeros((h, w), bool)
    for y, x in np.ndindex(h, w):
        for row, col in ((y - 1, x), (y, x + 1), (y + 1, x + 1), (y + 1, x - 1)):
            if not (0 <= row < h and 0 <= col < w):
                continue
            one, other = labels[y, x], labels[row, col]
            if one == other or one in IGNORED or other in IGNORED:
                continue
            start = (width - 1) // 2  # of the square, before the pixel; the rest is after
            rows = slice(max(y - start, 0), y - start + width)
            cols = slice(max(x - start, 0), x - start + width)
            found[rows, cols] = True
    return found


def example(seed=0, shape=(3, 13, 18)):
    """Large regions, some ignored, and things of one pixel, some at the image's border."""
    rng = np.random.default_rng(seed)
    b, h, w = shape
    coarse = rng.choice([0, 0, 1, 2, 255], (b, 3, 4)).astype(np.int32)
    labels = coarse[:, np.arange(h) * 3 // h][:, :, np.arange(w) * 4 // w]
    labels[:, 0, w // 2], labels[:, h // 2, 0] = 7, -1
    return rng.normal(0, 2, (*shape, 1)).astype(np.float32), labels


def reference(logits, labels, mask=None, width=4, average="valid"):
    """(sum, count): each pixel's cross-entropy times the other kind's share of the pixels."""
    target = np.stack([near(x, width) for x in labels])
    counted = np.ones(labels.shape, bool) if average == "all" else ~np.isin(labels, IGNORED)
    if mask is not None:
        counted &= mask[:, None, None]
    p = 1 / (1 + np.exp(-logits[..., 0].astype(np.float64)))
    n, m = counted.sum(), (counted & target).sum()
    weights = np.where(target, n - m, m) / n
    loss = -np.where(target, np.log(p), np.log(1 - p))
    return (loss * weights)[counted].sum(), n


def run(logits, labels, **options):
    loss = functools.partial(losses.boundary_cross_entropy, ignore_label=255, **options)
    return jax.jit(loss)(logits, labels)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 7])
def test_boundaries_are_their_definition(width):
    _, labels = example(width)
    got = np.asarray(boundaries(labels, 255, width))
    want = np.stack([near(x, width) for x in labels])
    np.testing.assert_array_equal(got, want)
    assert want.any() and not want.all()


def test_an_ignored_region_has_no_boundary():
    labels = np.full((1, 9, 9), 3, np.int32)
    labels[:, :, 4:] = 255
    assert not boundaries(labels, 255, 4).any()
    assert boundaries(labels, 254, 4).any()


@pytest.mark.parametrize("average", ["valid", "all"])
@pytest.mark.parametrize("masked", [False, True])
def test_loss_is_its_definition(average, masked):
    logits, labels = example(1)
    options = dict(mask=np.array([True, False, True])) if masked else {}
    value, count = run(logits, labels, average=average, **options)
    want, want_count = reference(logits, labels, average=average, **options)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    assert count == want_count and value.dtype == count.dtype == np.float32


def test_gradient_is_that_of_finite_differences():
    logits, labels = example(2, (1, 6, 7))
    grad = np.asarray(jax.grad(lambda z: run(z, labels, width=2)[0])(logits))
    for index in np.ndindex(logits.shape):
        step = np.zeros(logits.shape)
        step[index] = 1e-4
        high, low = (reference(logits + s, labels, width=2)[0] for s in (step, -step))
        np.testing.assert_allclose(grad[index], (high - low) / 2e-4, atol=1e-5)


def test_without_boundaries_or_without_pixels_it_is_zero():
    logits, labels = example(3)
    value, count = run(logits, 0 * labels)
    assert value == 0 and count == labels.size
    for options in (dict(mask=np.zeros(3, bool), average="all"), dict(average="valid")):
        value, count = run(logits, 0 * labels + 255, **options)
        assert value == 0 and count == 0


def test_extreme_logits_have_a_finite_loss():
    _, labels = example(4)
    target = np.stack([near(x, 4) for x in labels])[..., None]
    sure = np.where(target, 1e4, -1e4).astype(np.float32)
    value, grad = jax.value_and_grad(lambda z: run(z, labels)[0])(sure)
    assert value == 0 and np.isfinite(grad).all()
    # All wrong: 10,000 per pixel, half of it for each kind.
    counted = ~np.isin(labels, IGNORED)
    m, n = (counted & target[..., 0]).sum(), counted.sum()
    np.testing.assert_allclose(run(-sure, labels)[0], 2e4 * m * (n - m) / n, rtol=1e-5)


def test_eight_devices_give_the_loss_of_one():
    logits, labels = example(5, (8, 12, 12))
    mask = np.arange(8) != 5

    def loss(logits, labels, mask):
        value, count = losses.boundary_cross_entropy(logits, labels, ignore_label=255, mask=mask)
        return value / count

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    arguments = jax.device_put((logits, labels, mask), NamedSharding(mesh, PartitionSpec("data")))
    step = jax.jit(loss).lower(*arguments).compile()
    assert "all-gather" not in step.as_text()
    want, count = reference(logits, labels, mask)
    np.testing.assert_allclose(step(*arguments), want / count, rtol=1e-5)


@pytest.mark.parametrize(
    ("channels", "options", "message"),
    [
        (2, {}, "expected an output with one logit.*not 2.*output"),
        (1, dict(width=0), "width=0: expected"),
        (1, dict(width=2.5), "width=2.5: expected"),
        (1, dict(average="kept"), "average.*kept.*valid, all"),
    ],
)
def test_a_mistake_is_named(channels, options, message):
    logits, labels = example(6)
    with pytest.raises(UserError, match=message):
        run(np.tile(logits, channels), labels, **options)
