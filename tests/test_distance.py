"""Connected components and distances against SciPy, and the weight of borders in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxseg.ops import distance

components = jax.jit(distance.components)
transform = jax.jit(distance.distance_transform, static_argnames="radius")
nearest = jax.jit(distance.two_nearest, static_argnames="radius")


def scipy_components(labels, inside):
    """Consecutive numbers of the 4-connected regions of equal label of one map, 0 outside."""
    numbers = np.zeros(labels.shape, int)
    for value in np.unique(labels):
        region, count = ndimage.label(inside & (labels == value))
        numbers += np.where(region > 0, region + numbers.max(), 0)
    return numbers


def same_partition(got, want):
    """Whether two maps give the same regions, whatever their numbers, and 0 to the same pixels."""
    pairs = set(zip(got.ravel().tolist(), want.ravel().tolist(), strict=True))
    return (
        len(pairs) == len(np.unique(got)) == len(np.unique(want))
        and ((got == 0) == (want == 0)).all()
    )


@pytest.mark.parametrize("density", [0.3, 0.6])  # many islands; one winding region
def test_components_are_those_of_scipy(density):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (3, 37, 53)).astype(np.int32)
    inside = rng.random(labels.shape) < density
    labels[0], inside[1] = 0, False
    got = np.asarray(components(labels, inside))
    for one, label, where in zip(got, labels, inside, strict=True):
        assert same_partition(one, scipy_components(label, where))


def test_a_spiral_is_one_component():
    """As many bends as there can be: the sweeps must go on to its very end."""
    size = 33
    spiral = np.zeros((size, size), bool)
    y, x, (dy, dx) = 0, 0, (0, 1)
    free = np.pad(np.ones((size, size), bool), 2)  # two pixels ahead must be free, or we turn
    while True:
        spiral[y, x], free[y + 2, x + 2] = True, False
        ahead, beyond = free[y + 2 + dy, x + 2 + dx], free[y + 2 + 2 * dy, x + 2 + 2 * dx]
        edge = not (0 <= y + 2 * dy < size and 0 <= x + 2 * dx < size)
        if not (0 <= y + dy < size and 0 <= x + dx < size and ahead and (beyond or edge)):
            dy, dx = dx, -dy
            if not (free[y + 2 + dy, x + 2 + dx] and free[y + 2 + 2 * dy, x + 2 + 2 * dx]):
                break
        y, x = y + dy, x + dx
    assert ndimage.label(spiral)[1] == 1 and spiral.sum() > size * size / 3
    got = np.asarray(components(np.zeros((1, size, size), np.int32), spiral[None]))
    assert same_partition(got[0], spiral.astype(int))


def points(shape, count, seed=0):
    """Batches of maps, True at `count` random pixels each."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    for one in mask:
        one.ravel()[rng.choice(one.size, count, replace=False)] = True
    return mask


def test_distances_are_those_of_scipy():
    mask = points((3, 29, 43), 5)
    mask[2] = False
    got = np.asarray(transform(mask))
    for one, want in zip(got[:2], mask, strict=False):
        np.testing.assert_allclose(one, ndimage.distance_transform_edt(~want), rtol=1e-6)
    assert np.isinf(got[2]).all()  # nothing to be near to


def test_a_radius_only_cuts_off():
    mask = points((2, 29, 43), 5)
    full, near = np.asarray(transform(mask)), np.asarray(transform(mask, radius=7))
    np.testing.assert_array_equal(near, np.where(full <= 7, full, np.inf))


def test_the_two_nearest_sets_are_different_ones():
    ids = np.zeros((2, 31, 39), np.int32)
    rng = np.random.default_rng(1)
    for one in ids:  # each set many pixels, mixed: the nearest pixels are often of one set
        one.ravel()[rng.choice(one.size, 60, replace=False)] = rng.choice([7, 8, 900], 60)
    ids[1][ids[1] != 7] = 0
    first, second = map(np.asarray, nearest(ids))
    for i in range(2):
        to_each = [ndimage.distance_transform_edt(ids[i] != s) for s in np.unique(ids[i])[1:]]
        ordered = np.sort([*to_each, np.full(ids[i].shape, np.inf)], axis=0)
        np.testing.assert_allclose(first[i], ordered[0], rtol=1e-6)
        np.testing.assert_allclose(second[i], ordered[1], rtol=1e-6)
    assert np.isinf(second[1]).all()


def test_borders_are_the_pixels_with_another_neighbour():
    ids = np.zeros((1, 7, 8), np.int32)
    ids[0, 2:6, 0:5], ids[0, 3:5, 5:7] = 3, 9
    got = np.asarray(distance.borders(jnp.asarray(ids)))[0]
    want = ids[0].copy()
    want[3:5, 0:4] = 0  # within the first; its pixels at the edge of the image are no border
    np.testing.assert_array_equal(got, want)


def test_weights_of_two_bars():
    """Two bars 6 pixels apart: in the gap d1 + d2 = 7 everywhere, further out it grows."""
    labels = np.zeros((1, 9, 40), np.int32)
    labels[:, :, 10:14] = labels[:, :, 20:24] = 1
    got = np.asarray(jax.jit(distance.border_weights)(labels, labels == 1))[0]
    assert (got == got[0]).all()  # bars from edge to edge: no row differs

    def weight(total):
        return 10 * np.exp(-(total**2) / 50)

    np.testing.assert_allclose(got[0, 14:20], weight(7.0), rtol=1e-5)
    np.testing.assert_allclose(got[0, 13], weight(0 + 7), rtol=1e-5)  # a border's own pixel
    np.testing.assert_allclose(got[0, 11], weight(1 + 9), rtol=1e-5)  # within: to both borders
    np.testing.assert_allclose(got[0, 9], weight(1 + 11), rtol=1e-5)
    one = np.asarray(distance.border_weights(labels[..., :20], labels[..., :20] == 1))
    assert not one.any()  # a single cell has no neighbour to be kept apart from


def test_weights_of_touching_regions_follow_both_sides():
    labels = np.repeat(np.arange(2, dtype=np.int32), 16)[None, None].repeat(5, 1)
    got = np.asarray(distance.border_weights(labels, labels >= 0, w0=2.0, sigma=3.0))[0, 2]
    depth = np.minimum(np.abs(np.arange(32) - 15), np.abs(np.arange(32) - 16))
    np.testing.assert_allclose(got, 2 * np.exp(-((2 * depth + 1) ** 2) / 18), atol=1e-6)
