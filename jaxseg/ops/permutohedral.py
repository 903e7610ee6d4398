"""Gaussian filters of high dimension on the permutohedral lattice.

Adams, Baek and Davis 2010, "Fast high-dimensional filtering using the permutohedral lattice",
Computer Graphics Forum 29(2). Points of d features fall into simplices of d + 1 lattice vertices.
A filter spreads every point's value over the vertices of its simplex (splat), lets each vertex
exchange with its two neighbours along d + 1 axes (blur), and reads the points' values back (slice).
Vertices that belong to no point's simplex do not exist, as in the authors' hash table.

Here the hash table is filled by all points at once. Images never look at one another, and the order
of the sums is the same whatever the capacity and the rest of the batch.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MAX_FEATURES = 5
# A vertex is one of MAX_FEATURES cell numbers, which are held in 16 bits each.
MAX_CELL = 2**15 - 8
EMPTY = np.int32(np.iinfo(np.int32).max)  # of a slot of the hash table: no vertex
MISSING = np.int32(-1)  # neighbour
TRUSTED = dict(mode="promise_in_bounds", wrap_negative_indices=False)  # indices


class Lattice(NamedTuple):
    """One or more lattices over the same n points, with their vertices in one numbering.

    Corners are the vertices of the points' simplices; k of them belong to a point, d + 1 for each
    lattice. The longest lattice has `axes` of them.
    """

    vertices: jax.Array  # int32 [b, k, n]: numbers from 0, by corner
    weights: jax.Array  # float32 [b, k, n], barycentric: they add up to 1 per lattice
    count: jax.Array  # int32 [b], of vertices
    ahead: jax.Array  # int32 [b, axes, k * n]: each vertex's neighbour on one side, or MISSING


def build(features: Sequence[jax.Array]) -> Lattice:
    """The lattices of points with `features`, one float32 [b, n, d] per lattice, d <= 5.

    A unit of the features is one standard deviation of the filter. Their spread may be some
    `MAX_CELL` units; no two vertices are taken for one within it.
    """
    keys, weights = zip(*(_corners(f, tag) for tag, f in enumerate(features)), strict=True)
    weights = jnp.concatenate(weights, 1)
    keys = jnp.concatenate(keys, 1)
    b, k, n, words = keys.shape
    keys = keys.reshape(b, k * n, words)
    slots = 1 << math.ceil(math.log2(1.2 * k * n + 16))
    table, first = _find(jnp.full((b, slots), EMPTY), keys, keys, claim=True)
    upto = _running_count(first == jnp.arange(k * n, dtype=jnp.int32))
    vertices = _take(upto, first) - 1
    dims = [f.shape[-1] for f in features]
    ahead = _ahead(dims, table, keys, vertices, upto[:, -1], chunk=max(min(n, 1024), n // 8))
    return Lattice(vertices.reshape(b, k, n), weights, upto[:, -1], ahead)


def _corners(features, tag):
    """Keys int32 [b, d+1, n, 3] of the corners of each point's simplex, and weights [b, d+1, n].

    In float32, with the roundings and the order of operations of the authors' code, so that points
    on the boundary of two simplices, as whole columns of pixels are, fall to the same side.
    """
    d = features.shape[-1]
    spread = float(np.float32(math.sqrt(2 / 3) * (d + 1)))  # section 3.1: the blur's own deviation
    # Onto the hyperplane of d + 1 coordinates that add up to zero.
    place, total = [None] * (d + 1), 0.0
    for i in range(d, 0, -1):
        step = features[..., i - 1] * np.float32(1 / math.sqrt(i * (i + 1)) * spread)
        place[i] = total - i * step
        total = total + step
    place[0] = total
    place = jnp.stack(place)  # [d+1, b, n]
    # The nearest point whose coordinates are multiples of d + 1 ...
    down = np.float32(1 / (d + 1))
    cell = jnp.round(place * down)
    rest = place - (d + 1) * cell
    # ... and the order of the remainders, 0 the largest, tell the simplex.
    i = jnp.arange(d + 1)[:, None, None]
    j = i[:, None]
    before = (rest[:, None] > rest) | ((rest[:, None] == rest) & (j < i))  # j before i
    cell = cell.astype(jnp.int32)
    rank = before.sum(0, dtype=jnp.int32) + cell.sum(0)
    wrap = (rank < 0).astype(jnp.int32) - (rank > d).astype(jnp.int32)
    rank += (d + 1) * wrap
    cell += wrap
    share = (place - (d + 1) * cell.astype(place.dtype)) * down
    k = jnp.arange(d, -1, -1)[:, None, None, None]
    share = jnp.where(rank == k, share, 0).sum(1)  # from the last rank to the first
    weights = share - jnp.roll(share, 1, 0).at[0].add(-1)
    # Corner r has coordinates congruent to r: (d + 1) * cell + r, a cell less from rank d + 1 - r.
    remainder = i[:, :, 0]
    cells = [
        c[:, None] - (k[:, None] > d - remainder).astype(jnp.int32)
        for c, k in zip(cell[:d], rank[:d], strict=True)
    ]
    return _pack(cells, remainder, tag), jnp.moveaxis(weights, 0, 1)


def _pack(cells, remainder, tag):
    """A vertex as three words: its cells, what its coordinates leave divided by d + 1, lattice."""
    fields = [*cells, *[0] * (MAX_FEATURES - len(cells)), remainder + 8 * tag]
    words = [(a & 0xFFFF) | (b << 16) for a, b in zip(fields[::2], fields[1::2], strict=True)]
    return jnp.stack(jnp.broadcast_arrays(*words), -1)


def _unpack(words):
    """The inverse of `_pack`; the cells as int32 [..., MAX_FEATURES]."""
    fields = jnp.stack([(words << 16) >> 16, words >> 16], -1).reshape(*words.shape[:-1], -1)
    return fields[..., :MAX_FEATURES], fields[..., -1] & 7, fields[..., -1] >> 3


def _take(x, index):
    """x[i, index[i]] of every image i."""
    return jax.vmap(lambda x, i: x.at[i].get(**TRUSTED))(x, index)


def _running_count(x):
    """How many of bool [b, n] are true up to each, itself included: int32 [b, n]."""
    # In two levels, the lower a product with ones: `cumsum` takes 10 times as long on CPUs.
    b, n = x.shape
    width = 128
    x = jnp.pad(x, ((0, 0), (0, -n % width))).reshape(b, -1, width).astype(jnp.float32)
    inside = (x @ np.triu(np.ones((width, width), np.float32))).astype(jnp.int32)
    sums = inside[..., -1]
    before = jnp.cumsum(sums, 1) - sums
    return (inside + before[..., None]).reshape(b, -1)[:, :n]


def _find(table, keys, wanted, claim, active=True):
    """Looks keys up in a hash table with open addressing.

    Args:
      table: int32 [b, slots], a power of two: indices into `keys`, or EMPTY.
      keys: int32 [b, m, 3].
      wanted: int32 [b, q, 3].
      claim: what is not there is entered under its index in `wanted`, which is `keys`; of equals,
        the first.
      active: bool [b, q], which to look for; nothing is found for others.

    Returns:
      the table, and int32 [b, q]: the index in `keys` under which it is found, or EMPTY.
    """
    b, q, _ = wanted.shape
    mask = table.shape[1] - 1
    index = jnp.broadcast_to(jnp.arange(q, dtype=jnp.int32), (b, q))
    start = _hash(wanted) & mask
    active = jnp.broadcast_to(active, (b, q))
    visit = functools.partial(_visit, keys=keys, claim=claim)
    table, found, active = visit(table, start, wanted, index, active)
    # Most keys are there at once. The others are gathered, as many as there is room for, and go on
    # along their probe sequence. Equal keys take the same way, so none is entered twice.
    room = max(min(q, 1024), q // 8)

    def some(state):
        table, found, active = state
        rank = _running_count(active)
        chosen = active & (rank <= room)
        at = jnp.where(chosen, rank - 1, room)
        nobody = jnp.full(room, q, jnp.int32)
        picked = jax.vmap(lambda at, i: nobody.at[at].set(i, mode="drop"))(at, index)
        inside = jnp.minimum(picked, q - 1)
        few = _take(wanted, inside)

        def probe(state):
            table, slot, step, here, left = state
            slot = (slot + step) & mask
            table, met, left = visit(table, slot, few, inside, left)
            return table, slot, step + 1, jnp.where(met != EMPTY, met, here), left

        nowhere = jnp.full(picked.shape, EMPTY)
        state = (table, _take(start, inside), jnp.int32(1), nowhere, picked < q)
        table, _, _, here, _ = jax.lax.while_loop(lambda s: s[-1].any(), probe, state)
        found = jax.vmap(lambda f, i, x: f.at[i].set(x, mode="drop"))(found, picked, here)
        return table, found, active & ~chosen

    table, found, _ = jax.lax.while_loop(lambda s: s[-1].any(), some, (table, found, active))
    return table, found


def _visit(table, slot, wanted, index, active, keys, claim):
    """One look at one slot each: the table, what was found there, and who must look further."""
    if claim:
        free = active & (_take(table, slot) == EMPTY)
        enter = jax.vmap(lambda t, s, i: t.at[s].min(i, **TRUSTED))
        table = enter(table, slot, jnp.where(free, index, EMPTY))
    held = _take(table, slot)
    taken = active & (held != EMPTY)
    there = _take(keys, jnp.where(taken, held, 0))
    same = taken & (there == wanted).all(-1)
    return table, jnp.where(same, held, EMPTY), taken & ~same


def _hash(words):
    """int32 [..., 3] -> int32 [...], its low bits as good as any."""
    mixed = 0
    for i, odd in enumerate((0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)):
        mixed += words[..., i].astype(jnp.uint32) * np.uint32(odd)
    for shift, odd in ((15, 0x2C1B3C6D), (12, 0x297A2D39)):
        mixed = (mixed ^ (mixed >> shift)) * np.uint32(odd)
    return (mixed ^ (mixed >> 15)).astype(jnp.int32)


def _ahead(dims, table, keys, vertices, count, chunk):
    """`Lattice.ahead`: the neighbour with one less in each coordinate and d + 1 more in one."""
    b, corners, _ = keys.shape
    axes = max(dims) + 1
    axis, field = np.ogrid[:axes, :1, :MAX_FEATURES][::2]
    corner = jnp.arange(corners, dtype=jnp.int32)
    # One corner of each vertex. Any will do.
    put = jax.vmap(lambda v: jnp.zeros_like(corner).at[v].max(corner, **TRUSTED))
    corner_of = put(vertices)

    # As many vertices as there are, some at a time.
    def some(state):
        start, ahead = state
        start = jnp.minimum(start, corners - chunk)
        number = start + jnp.arange(chunk, dtype=jnp.int32)
        exists = (number < count[:, None])[:, None]  # [b, 1, chunk]
        own = jax.lax.dynamic_slice_in_dim(corner_of, start, chunk, 1)
        cells, remainder, tag = _unpack(_take(keys, own)[:, None])
        d = jnp.asarray(dims, jnp.int32)[tag]
        # The last coordinate is not in the key. Further axes have no neighbours.
        borrow = (remainder == 0).astype(jnp.int32)[..., None]
        moved = cells - (field < d[..., None]) * (borrow - (field == axis))
        lower = jnp.where(remainder == 0, d, remainder - 1)
        wanted = _pack([moved[..., i] for i in range(MAX_FEATURES)], lower, tag)
        _, found = _find(
            table, keys, wanted.reshape(b, -1, wanted.shape[-1]), claim=False,
            active=(exists & (axis[..., 0] <= d)).reshape(b, -1),
        )  # fmt: skip
        missing = found == EMPTY
        there = jnp.where(missing, MISSING, _take(vertices, jnp.where(missing, 0, found)))
        there = there.reshape(b, axes, chunk)
        return start + chunk, jax.lax.dynamic_update_slice_in_dim(ahead, there, start, 2)

    state = (jnp.int32(0), jnp.zeros((b, axes, corners), jnp.int32))
    return jax.lax.while_loop(lambda state: state[0] < count.max(), some, state)[1]


def neighbours(lattice: Lattice, capacity: int) -> jax.Array:
    """The two neighbours of each vertex along each axis: int32 [axes, 2, b, capacity + 1].

    `capacity`, at least the number of vertices, stands for a missing neighbour.
    """
    number = jnp.arange(capacity, dtype=jnp.int32)
    exists = number < lattice.count[:, None, None]
    ahead = jnp.where(exists, lattice.ahead[..., :capacity], MISSING)
    ahead = jnp.where(ahead == MISSING, capacity, ahead)
    # Whose neighbour a vertex is on one side, that is its neighbour on the other.
    nobody = jnp.full(capacity + 1, capacity, jnp.int32)
    back = jax.vmap(jax.vmap(lambda a: nobody.at[a].min(number, **TRUSTED)))(ahead)
    ahead = jnp.pad(ahead, ((0, 0), (0, 0), (0, 1)), constant_values=capacity)
    back = back.at[..., capacity].set(capacity)
    return jnp.stack([ahead, back]).transpose(2, 0, 1, 3)


def splat(
    vertices: jax.Array, weights: jax.Array, values: jax.Array, capacity: int, unroll: bool = False
) -> jax.Array:
    """The vertices' weighted sums [b, capacity + 1, c] of the points' values [b, n, c].

    The points' vertices and weights are [k, b, n]. With `unroll` there is no loop: fewer steps, and
    more memory where the compiler does not fuse them.
    """
    b, _, c = values.shape
    add = jax.vmap(lambda total, v, x: total.at[v].add(x, **TRUSTED))

    # One corner after the other: the weighted values of all would be k times as large as values.
    def one_corner(total, corner):
        v, w = corner
        return add(total, v, w[..., None] * values), None

    total = jnp.zeros((b, capacity + 1, c), values.dtype)
    return jax.lax.scan(one_corner, total, (vertices, weights), unroll=unroll)[0]


def blur(near: jax.Array, values: jax.Array, unroll: bool = False) -> jax.Array:
    """One pass of the filter (1/2, 1, 1/2) along each axis of `neighbours`."""

    def one_axis(values, near):
        return values + 0.5 * (_take(values, near[0]) + _take(values, near[1])), None

    return jax.lax.scan(one_axis, values, near, unroll=unroll)[0]


def slice_at(vertices: jax.Array, weights: jax.Array, values: jax.Array) -> jax.Array:
    """The points' values [b, n, c], interpolated between those of the vertices.

    The points' vertices and weights are [k, b, n].
    """
    return sum(w[..., None] * _take(values, v) for v, w in zip(vertices, weights, strict=True))
