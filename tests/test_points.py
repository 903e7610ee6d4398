"""Sampling at points, against NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxseg.ops.points import sample

H, W = 5, 8


def features(b=2, c=3, h=H, w=W, seed=0):
    return np.random.default_rng(seed).normal(size=(b, h, w, c)).astype(np.float32)


def points(n=60, b=2, low=-0.3, high=1.3):
    """Points inside, outside, and at the corners."""
    xy = np.random.default_rng(1).uniform(low, high, (b, n, 2)).astype(np.float32)
    xy[:, :4] = [[0, 0], [1, 0], [0, 1], [1, 1]]
    return xy


def oracle(x, xy, align_corners=False):
    """SciPy's linear interpolation of a map that goes on in zeros."""
    size = np.array(x.shape[2:0:-1])
    place = xy * (size - 1.0) if align_corners else xy * size - 0.5
    out = np.empty((*xy.shape[:2], x.shape[-1]))
    for i, k in np.ndindex(len(x), x.shape[-1]):
        out[i, :, k] = scipy.ndimage.map_coordinates(
            x[i, ..., k].astype(np.float64), place[i, :, ::-1].T, order=1, mode="grid-constant"
        )
    return out


@pytest.mark.parametrize("align_corners", [False, True])
def test_bilinear(align_corners):
    x, xy = features(), points()
    got = sample(x, xy, align_corners=align_corners)
    np.testing.assert_allclose(got, oracle(x, xy, align_corners), atol=1e-5)
    assert got.dtype == jnp.float32


@pytest.mark.parametrize("align_corners", [False, True])
def test_corners(align_corners):
    """The map's corners are those of the corner pixels, or their centres."""
    x = 1 + np.arange(H * W, dtype=np.float32).reshape(1, H, W, 1)
    corner = x[0, [0, 0, -1, -1], [0, -1, 0, -1]]
    xy = np.float32([[[0, 0], [1, 0], [0, 1], [1, 1]]])
    # A quarter of the neighbours of the outer corner of a pixel is that pixel, the rest is zero.
    want = corner if align_corners else corner / 4
    np.testing.assert_allclose(sample(x, xy, align_corners=align_corners)[0], want)
    np.testing.assert_array_equal(sample(x, xy, "nearest", align_corners)[0], corner)


def test_nearest_takes_the_pixel_that_holds_the_point():
    labels = np.arange(H * W).reshape(1, H, W, 1)
    rows, cols = np.mgrid[:H, :W].reshape(2, -1)
    inside = np.random.default_rng(2).uniform(0.01, 0.99, (2, H * W))
    xy = np.stack([(cols + inside[0]) / W, (rows + inside[1]) / H], -1)[None].astype(np.float32)
    got = sample(labels, xy, "nearest")
    assert jnp.issubdtype(got.dtype, jnp.integer)
    np.testing.assert_array_equal(got[0, :, 0], np.arange(H * W))
    outside = np.float32([[[-0.01, 0.5], [0.5, 1.01]]])
    np.testing.assert_array_equal(sample(labels + 1, outside, "nearest"), np.zeros((1, 2, 1)))


def test_gradient_is_the_transpose():
    """<g, sample(y)> is <gradient for g, y> whatever y: sampling is linear in the features."""
    xy, g = points(), np.random.default_rng(3).normal(size=(2, 60, 3)).astype(np.float32)
    gradient = jax.grad(lambda x: (sample(x, xy) * g).sum())(features())
    for seed in (4, 5):
        other = features(seed=seed)
        np.testing.assert_allclose((gradient * other).sum(), (oracle(other, xy) * g).sum(), 1e-4)


def test_gradients_add_up_in_float32():
    """A sum of ones in bfloat16 would stop at 256."""
    xy = np.full((1, 2000, 2), 0.5, np.float32)
    x = jnp.ones((1, 1, 1, 1), jnp.bfloat16)
    gradient = jax.grad(lambda x: sample(x, xy).astype(jnp.float32).sum())(x)
    assert gradient.dtype == jnp.bfloat16 and abs(float(gradient[0, 0, 0, 0]) - 2000) <= 8


def test_a_batch_over_devices_stays_where_it_is():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    x, xy = features(8), points(b=8)

    def both(x, xy):
        y, back = jax.vjp(lambda x: sample(x, xy), x)
        return y, back(jnp.ones_like(y))

    run = jax.jit(both, in_shardings=(sharding, sharding), out_shardings=sharding)
    compiled = run.lower(x, xy).compile()
    for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert word not in compiled.as_text()
    for got, want in zip(compiled(*jax.device_put((x, xy), sharding)), both(x, xy), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match="cubic"):
        sample(features(), points(), "cubic")
