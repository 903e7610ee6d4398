"""Photometric distortion: each part against colorsys, the odds, and no communication."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxseg.ops import photometric
from jaxseg.ops.photometric import Distortion


@pytest.fixture(scope="module")
def images():
    """uint8 [4, 6, 5, 3] with greys, black, white and fully saturated colours among them."""
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3)).astype(np.uint8)
    images[:, 0] = [[0, 0, 0], [255, 255, 255], [90, 90, 90], [255, 0, 0], [0, 0, 255]]
    images[:, 1] = [[0, 255, 0], [255, 255, 0], [0, 77, 77], [50, 50, 0], [9, 0, 9]]
    return images


def distortion(count=4, **values):
    neutral = dict(brightness=0.0, contrast=1.0, contrast_first=False, saturation=1.0, hue=0.0)
    return Distortion(
        **{k: jnp.broadcast_to(jnp.asarray(values.get(k, v)), count) for k, v in neutral.items()}
    )


def in_hsv(images, change):
    """Oracle: `change(h, s, v)` pixel by pixel with the standard library's colorsys."""
    flat = images.reshape(-1, 3) / 255.0
    pixels = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel))) for pixel in flat]
    return np.array(pixels).reshape(images.shape) * 255


def apply(images, **values):
    return np.asarray(photometric.apply(jnp.asarray(images), distortion(**values)))


def test_nothing_drawn_changes_nothing(images):
    for first in (False, True):
        out = apply(images, contrast_first=first)
        assert out.dtype == np.float32
        np.testing.assert_array_equal(out, images)
    fractions = np.random.default_rng(1).uniform(0, 255, (4, 6, 5, 3)).astype(np.float32)
    np.testing.assert_array_equal(apply(fractions), fractions)


def test_brightness_and_contrast(images):
    x = images.astype(float)
    for shift in (-32.0, 17.5, 32.0):
        np.testing.assert_allclose(apply(images, brightness=shift), np.clip(x + shift, 0, 255))
    for factor in (0.5, 1.5):
        np.testing.assert_allclose(
            apply(images, contrast=factor), np.clip(x * factor, 0, 255), rtol=1e-6
        )


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.2, 1.5])
def test_saturation(images, factor):
    expected = in_hsv(images, lambda h, s, v: (h, min(s * factor, 1.0), v))
    np.testing.assert_allclose(apply(images, saturation=factor), expected, atol=2e-4)


@pytest.mark.parametrize("degrees", [-36.0, -1.0, 13.0, 36.0, 120.0])
def test_hue(images, degrees):
    expected = in_hsv(images, lambda h, s, v: ((h + degrees / 360) % 1.0, s, v))
    np.testing.assert_allclose(apply(images, hue=degrees), expected, atol=1e-3)


def test_order_of_the_parts(images):
    """Clipped after every part; contrast before the colours or after them, image by image."""
    values = dict(brightness=30.0, contrast=1.4, saturation=1.3, hue=20.0)
    mixed = np.array([True, False, True, False])
    got = apply(images, contrast_first=mixed, **values)

    def contrast(x):
        return np.clip(x * 1.4, 0, 255)

    def colours(x):
        return in_hsv(x, lambda h, s, v: ((h + 20 / 360) % 1.0, min(s * 1.3, 1.0), v))

    bright = np.clip(images.astype(float) + 30, 0, 255)
    first, last = colours(contrast(bright)), contrast(colours(bright))
    expected = np.where(mixed[:, None, None, None], first, last)
    assert np.abs(first - last).max() > 10
    np.testing.assert_allclose(got, expected, atol=2e-3)


def test_odds_and_ranges():
    n = 20000
    drawn = jax.tree.map(np.asarray, jax.jit(photometric.draw, static_argnums=1)(_key(0), n))
    ranges = dict(brightness=(-32, 32, 0), contrast=(0.5, 1.5, 1), saturation=(0.5, 1.5, 1))
    for name, (low, high, neutral) in {**ranges, "hue": (-36, 36, 0)}.items():
        values = getattr(drawn, name)
        changed = values[values != neutral]
        assert abs(len(changed) / n - 0.5) < 0.015, name
        assert changed.min() >= low and changed.max() <= high
        shares = np.histogram(changed, 8, (low, high))[0] / len(changed)
        np.testing.assert_allclose(shares, 1 / 8, atol=0.015, err_msg=name)
    assert abs(drawn.contrast_first.mean() - 0.5) < 0.015
    # Independent of each other: no pair of decisions or values is correlated.
    columns = [*drawn[:2], drawn.contrast_first, *drawn[3:]]
    columns += [drawn.brightness != 0, drawn.contrast != 1, drawn.hue != 0, drawn.saturation != 1]
    correlation = np.corrcoef(np.array(columns, float)) - np.eye(9)
    assert np.abs(correlation).max() < 0.03


def _key(seed):
    return jax.random.key(seed)


def test_each_image_has_its_own_randomness():
    same = jnp.full((6, 4, 4, 3), jnp.array([120, 60, 200], jnp.uint8))
    distort = jax.jit(photometric.distort)
    out = np.asarray(distort(_key(3), same))
    assert out.min() >= 0 and out.max() <= 255
    assert len({image.tobytes() for image in out}) > 3
    np.testing.assert_array_equal(out, distort(_key(3), same))
    assert not np.array_equal(out, distort(_key(4), same))
    # Image i depends on the key and i, not on the rest of the batch.
    np.testing.assert_allclose(out[:2], photometric.distort(_key(3), same[:2]), atol=1e-3)


def test_sharded_batch_needs_no_communication():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    images = np.random.default_rng(5).integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)
    sharded = jax.device_put(images, sharding)
    compiled = jax.jit(photometric.distort, out_shardings=sharding).lower(_key(0), sharded)
    compiled = compiled.compile()
    program = compiled.as_text()
    for operation in ("all-reduce", "all-gather", "all-to-all", "collective-permute", "gather("):
        assert operation not in program, operation
    expected = photometric.distort(_key(0), jnp.asarray(images))
    np.testing.assert_allclose(compiled(_key(0), sharded), expected, atol=1e-3)
