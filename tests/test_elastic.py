"""Elastic deformation: its field, what it does to images and labels, and its randomness."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy import ndimage

from jaxseg.ops import elastic

IGNORE = 255
apply = jax.jit(elastic.apply, static_argnums=3)


def sample(b=2, h=24, w=37, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (b, h, w, 3), np.uint8)
    return images, rng.integers(0, 5, (b, h, w)).astype(np.int32)


def constant(shift, labels):
    coarse = np.broadcast_to(np.float32(shift), (len(labels), *elastic.GRID, 2))
    return elastic.field(coarse, labels.shape[1:])


def test_no_displacement_changes_nothing():
    images, labels = sample()
    got, got_labels = apply(images, labels, constant((0, 0), labels), IGNORE)
    np.testing.assert_array_equal(got, images.astype(np.float32))
    np.testing.assert_array_equal(got_labels, labels)


@pytest.mark.parametrize(("down", "right"), [(3, -5), (-30, 50)])  # the latter beyond the image
def test_a_constant_displacement_is_a_translation(down, right):
    images, labels = sample()
    field = constant((down, right), labels)
    np.testing.assert_allclose(field, np.broadcast_to((down, right), field.shape), rtol=1e-6)
    got, got_labels = apply(images, labels, np.round(field), IGNORE)
    reach = ((0, 0), (60, 60), (60, 60))
    window = np.s_[:, 60 + down : 60 + down + 24, 60 + right : 60 + right + 37]
    mirrored = np.pad(images, (*reach, (0, 0)), mode="reflect")[window]
    np.testing.assert_array_equal(got, mirrored)
    np.testing.assert_array_equal(got_labels, np.pad(labels, reach, constant_values=IGNORE)[window])


def test_values_are_those_of_scipy():
    images, labels = sample(1)
    field = np.asarray(elastic.field(elastic.draw(jax.random.key(3), 1, 4.0), labels.shape[1:]))
    got, got_labels = apply(images, labels, field, IGNORE)
    places = np.indices(labels.shape[1:]) + field[0].transpose(2, 0, 1)
    for c in range(3):
        want = ndimage.map_coordinates(
            images[0, ..., c].astype(np.float64), places, order=1, mode="mirror"
        )
        np.testing.assert_allclose(got[0, ..., c], want, atol=0.05)
    want = ndimage.map_coordinates(labels[0], places, order=0, mode="nearest")
    known = np.asarray(got_labels[0] != IGNORE)
    # Places within rounding of the middle between two pixels may go to either.
    assert (got_labels[0] == want)[known].mean() > 0.995 and known.mean() > 0.5
    outside = (np.round(places) < 0) | (np.round(places) >= np.reshape(labels.shape[1:], (2, 1, 1)))
    np.testing.assert_array_equal(known, ~outside.any(0))


def test_the_field_takes_the_grid_s_values_and_is_smooth():
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(1, *elastic.GRID, 2)).astype(np.float32)
    field = np.asarray(elastic.field(coarse, (41, 61)))
    np.testing.assert_allclose(field[:, ::20, ::30], coarse, atol=1e-6)
    # Twice differentiable pieces: steps between pixels differ by the curvature over distance^2.
    for axis, distance in ((1, 20), (2, 30)):
        assert np.abs(np.diff(field, 2, axis)).max() < 8 * np.abs(coarse).max() / distance**2
    # Odd about the centre, it vanishes there.
    odd = coarse - coarse[:, ::-1, ::-1]
    np.testing.assert_allclose(np.asarray(elastic.field(odd, (41, 61)))[0, 20, 30], 0, atol=1e-6)


def test_images_and_labels_move_together_and_labels_stay_labels():
    """An image that shows its labels still does, where neither mixes nor leaves."""
    labels = np.arange(5, dtype=np.int32).repeat(16)[None, None].repeat(64, 1)  # wide stripes
    images = np.repeat(labels[..., None] * 50, 3, -1).astype(np.uint8)
    key = jax.random.key(1)
    got, got_labels = jax.jit(elastic.deform, static_argnums=4)(key, images, labels, 4.0, IGNORE)
    got, got_labels = np.asarray(got), np.asarray(got_labels)
    assert set(np.unique(got_labels)) <= {0, 1, 2, 3, 4, IGNORE}
    kept = got_labels != IGNORE
    assert 0.5 < kept.mean() < 1 and (got_labels != labels)[kept].mean() > 0.05
    # Bilinear values and nearest labels differ by half a step at most.
    assert np.abs(got[kept] / 50 - got_labels[kept][:, None]).max() <= 0.5 + 1e-3


def test_spread_and_key():
    coarse = np.asarray(elastic.draw(jax.random.key(0), 400, 10.0))
    assert coarse.shape == (400, 3, 3, 2)
    np.testing.assert_allclose(coarse.std((0, 1, 2)), 10, rtol=0.05)
    np.testing.assert_allclose(coarse.mean((0, 1, 2)), 0, atol=0.7)
    # Image i of any batch, and no two alike.
    np.testing.assert_array_equal(elastic.draw(jax.random.key(0), 3, 10.0), coarse[:3])
    assert len(np.unique(coarse[:, 0, 0, 0])) == 400


def test_images_on_several_devices_are_deformed_alike():
    """Also that none has to see another's: no communication is in the program."""
    images, labels = sample(8)
    deform = jax.jit(elastic.deform, static_argnums=(3, 4))
    want = deform(jax.random.key(0), images, labels, 3.0, IGNORE)
    over = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    arguments = (jax.random.key(0), *jax.device_put((images, labels), over), 3.0, IGNORE)
    program = deform.lower(*arguments).compile()
    for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert word not in program.as_text()
    for a, b in zip(deform(*arguments), want, strict=True):
        assert len(a.sharding.device_set) == len(jax.devices())
        np.testing.assert_allclose(a, b, atol=1e-3)
