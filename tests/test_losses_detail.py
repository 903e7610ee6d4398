"""STDC's detail loss against its definition, in NumPy and float64."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxseg import losses
from jaxseg.errors import UserError
from jaxseg.losses.detail import detail_target


def edges(labels, stride):
    """Where the Laplacian at every stride-th pixel is positive, as bool of the size of `labels`."""
    h, w = labels.shape

    def laplacian(y, x):
        total = 0
        for row in range(y - 1, y + 2):
            for col in range(x - 1, x + 2):
                inside = 0 <= row < h and 0 <= col < w
                value = int(labels[row, col]) if inside else 0
                total += 8 * value if (row, col) == (y, x) else -value
        return total

    small = -(-h // stride), -(-w // stride)
    positive = np.zeros((h, w), bool)
    for y, x in np.ndindex(h, w):
        row, col = y * small[0] // h, x * small[1] // w  # nearest, as PyTorch has it
        positive[y, x] = laplacian(row * stride, col * stride) > 0.1
    return positive


def target(labels):
    """In tenths, so that what is exactly at the threshold is not above it."""
    return np.stack(
        [6 * edges(x, 1) + 3 * edges(x, 2) + 1 * edges(x, 4) > 1 for x in labels]
    ).astype(int)


def example(seed=0, shape=(3, 13, 18)):
    """Large regions, so that most pixels are no edge; some of them ignored."""
    rng = np.random.default_rng(seed)
    b, h, w = shape
    coarse = rng.choice([0, 1, 2, 18, 255], (b, 4, 4)).astype(np.int32)
    labels = coarse[:, np.arange(h) * 4 // h][:, :, np.arange(w) * 4 // w]
    labels[:, 2, 3] += 1  # and a thing of one pixel
    return rng.normal(0, 2, (*shape, 2)).astype(np.float32), labels


def loss_of(logits, labels):
    """Sum over the images, from the definition."""
    total = 0
    for z, t in zip(np.float64(logits), target(labels), strict=True):
        t = np.stack([t == 0, t == 1], -1)
        p = 1 / (1 + np.exp(-z))
        entropy = -np.where(t, np.log(p), np.log(1 - p)).mean()
        overlap = 2 * (p * t).sum() / ((p**2).sum() + t.sum())
        total += entropy + 1 - overlap
    return total


detail = jax.jit(functools.partial(losses.detail, ignore_label=255))
found = jax.jit(detail_target)


@pytest.mark.parametrize("size", [(13, 18), (16, 16), (7, 30)])
def test_target_is_its_definition(size):
    _, labels = example(0, (1, *size))
    got = np.asarray(found(labels))
    assert got.dtype == np.int32 and 0.1 < got.mean() < 0.9
    np.testing.assert_array_equal(got, target(labels))


def test_an_edge_is_on_the_side_of_the_larger_label():
    """And at the image's border, outside of which is 0; one label everywhere else has no edge."""
    labels = np.zeros((1, 16, 16), np.int32)
    assert not np.any(found(labels))
    labels[:, :, 8:] = 3
    got = np.asarray(found(labels))[0]
    assert got[2:14, 8].all() and not got[:, :8].any() and not got[4:12, 10:14].any()


def test_the_coarsest_edges_alone_are_none():
    """A thin line seen by a pixel at stride 4 only: its weight of 0.1 is not above 0.1."""
    labels = np.zeros((1, 16, 16), np.int32)
    labels[0, 8, 8] = 1
    got = np.asarray(found(labels))[0]
    assert edges(labels[0], 4)[8:12, 8:12].all()
    np.testing.assert_array_equal(np.argwhere(got), [[8, 8], [8, 9], [9, 8], [9, 9]])


def test_loss_is_its_definition():
    logits, labels = example(1)
    value, count = detail(logits, labels)
    np.testing.assert_allclose(value, loss_of(logits, labels), rtol=1e-5)
    assert count == 3 and value.dtype == count.dtype == np.float32


def test_rows_of_padding_do_not_count():
    logits, labels = example(2)
    mask = np.array([True, False, True])
    value, count = detail(logits, labels, mask=mask)
    np.testing.assert_allclose(value, loss_of(logits[::2], labels[::2]), rtol=1e-5)
    assert count == 2
    gradient = jax.grad(lambda z: detail(z, labels, mask=mask)[0])(logits)
    assert not np.any(gradient[1]) and np.all(gradient[0])
    value, count = detail(logits, labels, mask=np.zeros(3, bool))
    assert value == count == 0


def test_gradient_is_that_of_finite_differences():
    logits, labels = example(3, (1, 5, 6))
    gradient = np.asarray(jax.grad(lambda z: detail(z, labels)[0])(logits))
    for index in [(0, 0, 0, 0), (0, 2, 3, 1), (0, 4, 5, 0), (0, 3, 3, 1)]:
        step = np.zeros(logits.shape)
        step[index] = 1e-5
        change = loss_of(logits + step, labels) - loss_of(logits - step, labels)
        np.testing.assert_allclose(gradient[index], change / 2e-5, rtol=1e-3, atol=1e-7)


def test_extreme_logits_have_a_finite_loss():
    _, labels = example(4)
    sure = 200.0 * np.eye(2, dtype=np.float32)[target(labels)] - 100
    value, grad = jax.value_and_grad(lambda z: detail(z, labels)[0])(sure)
    assert value < 1e-6 and np.isfinite(grad).all()
    # All wrong: 100 per pixel, and no overlap.
    np.testing.assert_allclose(detail(-sure, labels)[0] / 3, 101, rtol=1e-6)


def test_eight_devices_give_the_loss_of_one():
    logits, labels = example(5, (8, 12, 12))
    mask = np.arange(8) != 5

    def loss(logits, labels, mask):
        value, count = losses.detail(logits, labels, ignore_label=255, mask=mask)
        return value / count

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    arguments = jax.device_put((logits, labels, mask), NamedSharding(mesh, PartitionSpec("data")))
    step = jax.jit(loss).lower(*arguments).compile()
    assert "all-gather" not in step.as_text()
    np.testing.assert_allclose(step(*arguments), loss(logits, labels, mask), rtol=1e-6)


def test_other_than_two_logits_are_refused():
    logits, labels = example(6)
    with pytest.raises(UserError, match="detail: expected.*two logits.*not 6.*output"):
        losses.detail(np.tile(logits, 3), labels, ignore_label=255)
