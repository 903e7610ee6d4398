"""The permutohedral lattice, against a dictionary of vertices filled point by point."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.ops import permutohedral


def elevation(d):
    """[d + 1, d], onto the hyperplane, scaled so that the blur is one unit wide: section 3.1."""
    matrix = np.zeros((d + 1, d))
    for i in range(1, d + 1):
        matrix[:i, i - 1] = 1
        matrix[i, i - 1] = -i
    norm = np.sqrt(np.arange(1, d + 1) * np.arange(2, d + 2))
    return matrix / norm * np.sqrt(2 / 3) * (d + 1)


def simplex(point):
    """The vertices [d + 1, d + 1] around a point [d] and its barycentric weights, in float64.

    By trial: of all lattice points near the elevated point, the d + 1 with remainders 0 to d that
    have it in their hull.
    """
    d = len(point)
    place = elevation(d) @ point
    base = np.floor(place / (d + 1)) * (d + 1)
    excess = -int(round(base.sum() / (d + 1)))
    # The multiple of d + 1 that dominates: as many coordinates a step up as the sum wants.
    for up in itertools.combinations(range(d + 1), excess):
        zero = base.copy()
        zero[list(up)] += d + 1
        delta = place - zero
        order = np.argsort(-delta)
        if delta[order[0]] - delta[order[-1]] <= d + 1:
            break
    else:
        raise AssertionError("no simplex")
    corners, weights = [], []
    for r in range(d + 1):
        corner = zero + r
        corner[order[d + 1 - r :]] -= d + 1
        corners.append(corner)
    # Solve for the weights: the corners' mean is the point, and they add up to 1.
    system = np.vstack([np.array(corners).T, np.ones(d + 1)])
    weights = np.linalg.lstsq(system, np.append(place, 1), rcond=None)[0]
    assert weights.min() > -1e-9
    return np.array(corners), weights


def slow_filter(features, values):
    """Splat, blur and slice of one lattice, from the paper's section 3."""
    n, d = features.shape
    cells = [simplex(point) for point in features]
    total = {}
    for (corners, weights), value in zip(cells, values, strict=True):
        for corner, weight in zip(corners, weights, strict=True):
            key = tuple(int(round(c)) for c in corner)
            total[key] = total.get(key, 0) + weight * value
    for axis in range(d + 1):
        step = np.full(d + 1, -1)
        step[axis] = d
        total = {
            key: value
            + 0.5 * total.get(tuple(int(k) for k in key + step), 0)
            + 0.5 * total.get(tuple(int(k) for k in key - step), 0)
            for key, value in total.items()
        }
    out = np.zeros_like(values, dtype=np.float64)
    for i, (corners, weights) in enumerate(cells):
        for corner, weight in zip(corners, weights, strict=True):
            out[i] += weight * total[tuple(int(round(c)) for c in corner)]
    return out, len(total)


@functools.partial(jax.jit, static_argnames=("capacity", "unroll"))
def _filtered(features, values, capacity, unroll):
    lattice = permutohedral.build(features)
    near = permutohedral.neighbours(lattice, capacity)
    vertices, weights = (jnp.moveaxis(x, 1, 0) for x in (lattice.vertices, lattice.weights))
    total = permutohedral.splat(vertices, weights, values, capacity, unroll)
    total = permutohedral.blur(near, total, unroll)
    return permutohedral.slice_at(vertices, weights, total), lattice.count


def filtered(features, values, capacity=None, unroll=False):
    """The sum of the filters of several lattices: [b, n, c], and the number of vertices."""
    capacity = capacity or sum(f.shape[1] * (f.shape[2] + 1) for f in features)
    features = [jnp.float32(f) for f in features]
    return _filtered(features, jnp.float32(values), capacity, unroll)


def points(n, *dims, b=1, seed=0, spread=1.5):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(b, n, d)) * spread for d in dims], rng.normal(size=(b, n, 3))


@pytest.mark.parametrize("dims, unroll", [((3,), True), ((2, 5), False)])
def test_against_a_dictionary(dims, unroll):
    """Lattices over the same points share the hash table and the loops, and nothing else."""
    features, values = points(60, *dims, b=2)
    got, count = filtered(features, values, unroll=unroll)
    for i in range(2):
        single = [slow_filter(np.float32(f[i]).astype(np.float64), values[i]) for f in features]
        assert count[i] == sum(vertices for _, vertices in single)
        np.testing.assert_allclose(got[i], sum(out for out, _ in single), atol=5e-5)


def test_weights_are_barycentric():
    """They interpolate: the vertices' mean is the point."""
    (features,), _ = points(500, 5, spread=20)
    keys, weights = jax.jit(permutohedral._corners, static_argnums=1)(jnp.float32(features), 1)
    cells, remainder, tag = permutohedral._unpack(keys)
    corners = 6 * cells + remainder[..., None]  # all coordinates but the last
    assert (np.asarray(tag) == 1).all()
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
    assert weights.min() > -1e-5
    mean = (weights[..., None] * corners).sum(1)
    np.testing.assert_allclose(mean, features @ elevation(5)[:5].T, atol=1e-3)


def test_a_wide_blur_is_a_gaussian():
    """A point in the middle of a dense grid spreads as exp(-r^2 / 2), to a seventh of the peak."""
    y, x = np.mgrid[-4:4.01:0.25, -4:4.01:0.25]
    features = np.stack([x, y], -1).reshape(1, -1, 2)
    values = (np.abs(features).sum(-1) == 0)[..., None].astype(np.float64)
    got = np.asarray(filtered([features], values)[0])[0, :, 0]
    want = np.exp(-0.5 * (features[0] ** 2).sum(-1))
    np.testing.assert_allclose(got / got.sum() * want.sum(), want, atol=1 / 7)


def test_capacity_and_batch_change_nothing():
    features, values = points(60, 2, 5, b=2)
    features[1][0] /= 10  # images of very different numbers of vertices
    together, count = filtered(features, values)
    assert count[1] > 3 * count[0]
    tight, _ = filtered(features, values, capacity=int(count.max()))
    np.testing.assert_array_equal(together, tight)
    others = [np.stack([f[0], f[0]]) for f in features]
    twice, _ = filtered(others, np.stack([values[0]] * 2))
    np.testing.assert_array_equal(twice[0], together[0])


def test_no_two_vertices_are_taken_for_one():
    """At 8192 x 8192 pixels, one to two pixels and a level wide."""
    rng = np.random.default_rng(5)
    n = 20000
    place, colour = rng.integers(0, 8192, (1, n, 2)), rng.integers(0, 256, (1, n, 3))
    # Pairs that differ in a single coordinate, by far or by little.
    place[0, 1::2], colour[0, 1::2] = place[0, ::2], colour[0, ::2]
    place[0, 1::4, 0] = (place[0, 1::4, 0] + 4096) % 8192
    colour[0, 3::4, 2] ^= 1
    features = [np.float32(f) for f in (np.concatenate([place / 2, colour], -1), place / 1.0)]

    @jax.jit  # as one: a point between two simplices may fall to either in another program
    def run(features):
        keys = [permutohedral._corners(f, tag)[0] for tag, f in enumerate(features)]
        return permutohedral.build(features), keys

    lattice, keys = run(features)
    numbers = np.split(np.asarray(lattice.vertices[0]), [6])
    total = 0
    for f, key, number in zip(features, keys, numbers, strict=True):
        d = f.shape[-1]
        elevated = f[0].astype(np.float64) @ elevation(d).T
        assert np.abs(elevated).max() / (d + 1) < permutohedral.MAX_CELL
        cells, remainder, _ = permutohedral._unpack(key)
        corners = (d + 1) * np.asarray(cells)[..., :d] + np.asarray(remainder)[..., None]
        assert np.abs(corners[0] - elevated[:, :d]).max() <= d + 1 + 1e-2
        # Equal numbers for equal vertices, and only for them.
        corners = corners.reshape(-1, d)
        distinct = len(np.unique(corners, axis=0))
        together = np.unique(np.concatenate([corners, number.reshape(-1, 1)], 1), axis=0)
        assert len(np.unique(number)) == len(together) == distinct > n
        total += distinct
    assert int(lattice.count[0]) == total


def test_hash_table_when_it_is_full():
    """Every slot taken: long probe sequences, many keys in the way of others."""
    rng = np.random.default_rng(6)
    distinct = rng.integers(-(2**31), 2**31, (2, 4096, 3)).astype(np.int32)
    keys = np.stack([rows[rng.integers(0, 4096, 40000)] for rows in distinct])
    keys[:, :4096] = distinct
    absent = rng.integers(-(2**31), 2**31, (2, 500, 3)).astype(np.int32)

    @jax.jit
    def run(keys, absent):
        empty = jnp.full((2, 4096 * 2), permutohedral.EMPTY)
        table, found = permutohedral._find(empty, keys, keys, claim=True)
        full = jnp.full((2, 4096), permutohedral.EMPTY)
        _, crowded = permutohedral._find(full, keys, keys, claim=True)
        _, other = permutohedral._find(table, keys, absent, claim=False)
        return found, crowded, other

    found, crowded, other = run(keys, absent)
    for image in range(2):
        first = {}
        for i, key in enumerate(map(tuple, keys[image].tolist())):
            first.setdefault(key, i)
        want = [first[key] for key in map(tuple, keys[image].tolist())]
        np.testing.assert_array_equal(found[image], want)
        np.testing.assert_array_equal(crowded[image], want)
    assert (np.asarray(other) == permutohedral.EMPTY).all()


def test_transposed_filter():
    """<y, filter x> equals <gradient, x>: autodiff's transpose of splat, blur and slice."""
    features, values = points(60, 2, 5, b=2)
    other = np.random.default_rng(9).normal(size=values.shape)
    gradient = jax.grad(lambda v: (filtered(features, v)[0] * other).sum())(values)
    forward, _ = filtered(features, values)
    np.testing.assert_allclose((gradient * values).sum(), (forward * other).sum(), rtol=1e-4)
