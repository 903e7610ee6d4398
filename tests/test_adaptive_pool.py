"""Adaptive pooling against explicit loops over its bins."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.ops.adaptive_pool import adaptive_avg_pool, adaptive_max_pool

# (map, grid): divisible, not, more bins than pixels, whole map, one pixel.
SIZES = [((6, 9), (3, 3)), ((13, 25), (6, 6)), ((4, 5), (6, 7)), ((7, 5), (1, 1)), ((1, 1), (2, 3))]


def windows(n, k):
    """The pixels of each bin, by the definition with exact fractions."""
    return [range(math.floor(i * n / k), math.ceil((i + 1) * n / k)) for i in range(k)]


def cells(x, size):
    """(row, column, values [b, pixels, c]) of each cell of the grid."""
    for i, rows in enumerate(windows(x.shape[1], size[0])):
        for j, cols in enumerate(windows(x.shape[2], size[1])):
            values = x[:, rows][:, :, cols]
            yield i, j, values.reshape(len(x), -1, x.shape[-1])


def draw(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("shape", "size"), SIZES)
def test_values_are_those_of_each_bin(shape, size):
    x = draw((2, *shape, 3))
    mean, largest = adaptive_avg_pool(x, size), adaptive_max_pool(x, size)
    assert mean.shape == largest.shape == (2, *size, 3)
    for i, j, values in cells(x, size):
        np.testing.assert_allclose(mean[:, i, j], values.mean(1), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(largest[:, i, j], values.max(1))


def test_the_bins_of_five_pixels():
    """By hand: 5 pixels in 3 bins are 0-1, 1-3 and 3-4; in 2 they are 0-2 and 2-4."""
    x = jnp.asarray([1.0, 2.0, 4.0, 8.0, 16.0]).reshape(1, 1, 5, 1)
    assert adaptive_avg_pool(x, (1, 3)).ravel().tolist() == pytest.approx([1.5, 14 / 3, 12])
    assert adaptive_avg_pool(x, (1, 2)).ravel().tolist() == pytest.approx([7 / 3, 28 / 3])
    assert adaptive_max_pool(-x, (1, 3)).ravel().tolist() == [-1, -2, -8]


@pytest.mark.parametrize(("shape", "size"), SIZES)
@pytest.mark.parametrize("ties", [False, True])
def test_gradients(shape, size, ties):
    x = draw((2, *shape, 3))
    x = np.round(x) if ties else x
    g = draw((2, *size, 3), seed=1)
    of_mean = jax.grad(lambda x: jnp.vdot(adaptive_avg_pool(x, size), g))(x)
    of_max = jax.grad(lambda x: jnp.vdot(adaptive_max_pool(x, size), g))(x)
    want_mean, want_max = np.zeros_like(x), np.zeros_like(x)
    for i, rows in enumerate(windows(shape[0], size[0])):
        for j, cols in enumerate(windows(shape[1], size[1])):
            want_mean[:, rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1] += (
                g[:, i, j] / (len(rows) * len(cols))
            )[:, None, None]
            for b, c in np.ndindex(2, 3):
                window = x[b, rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1, c]
                y, z = np.unravel_index(window.argmax(), window.shape)  # the first in row order
                want_max[b, rows[y], cols[z], c] += g[b, i, j, c]
    np.testing.assert_allclose(of_mean, want_mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(of_max, want_max, rtol=1e-5, atol=1e-6)


def test_bfloat16_is_summed_in_float32():
    x = jnp.ones((1, 64, 64, 1), jnp.bfloat16) * 1.5
    for pool in (adaptive_avg_pool, adaptive_max_pool):
        y = pool(x, (1, 1))
        assert y.dtype == jnp.bfloat16 and y.item() == 1.5
