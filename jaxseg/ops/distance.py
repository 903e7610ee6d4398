"""Connected components and exact Euclidean distances on the device, for the weight of borders.

Everything works on whole batches of label maps, without gathers and in the memory of a few label
maps, so that it can be a part of the training step.
"""

import math

import jax
import jax.numpy as jnp

FAR = 2**30  # squared distance to nothing: no image is 2^15 pixels long


def components(labels: jax.Array, inside: jax.Array) -> jax.Array:
    """Numbers the connected regions (4 neighbours) of equal label in each image.

    Every pixel starts with a number of its own. Along rows and columns in turn, each run of a
    region takes the greatest number in it, until nothing changes: after as many sweeps as the
    region's most winding way has bends.

    Args:
      labels: int32 [b, h, w].
      inside: bool [b, h, w]; pixels that are False belong to no region and part the others.

    Returns:
      int32 [b, h, w], 0 where not `inside`. Two pixels of an image have the same positive number
      if and only if they are connected; the numbers have gaps.
    """
    _, h, w = labels.shape
    numbers = 1 + jnp.arange(h * w, dtype=jnp.int32).reshape(1, h, w)
    first = jnp.where(inside, numbers, 0)
    regions = jnp.where(inside, labels, -1)
    joined = [regions == _neighbour(regions, axis, -1, fill=-1) for axis in (1, 2)]

    def sweep(state):
        ids, _ = state
        new = ids
        for axis, to_previous in zip((1, 2), joined, strict=True):
            new = _run_maxima(new, inside & to_previous, axis)
        return new, jnp.any(new != ids)

    return jax.lax.while_loop(lambda state: state[1], sweep, (first, jnp.array(True)))[0]


def _neighbour(x: jax.Array, axis: int, offset: int, fill) -> jax.Array:
    """x at index i + offset along `axis` in place of index i; `fill` outside."""
    edges = [(0, 0, 0)] * x.ndim
    edges[axis] = (-offset, offset, 0)  # a negative edge cuts off
    return jax.lax.pad(x, jnp.asarray(fill, x.dtype), edges)


def _run_maxima(values: jax.Array, to_previous: jax.Array, axis: int) -> jax.Array:
    """The maximum over each run along `axis`; `to_previous`: the pixel before is in the same."""

    def combine(a, b):  # b is further in the direction of the scan
        return jnp.where(b[1], jnp.maximum(a[0], b[0]), b[0]), a[1] & b[1]

    to_next = _neighbour(to_previous, axis, 1, fill=False)
    values, _ = jax.lax.associative_scan(combine, (values, to_previous), axis=axis)
    values, _ = jax.lax.associative_scan(combine, (values, to_next), axis=axis, reverse=True)
    return values


def two_nearest(ids: jax.Array, radius: int = 0) -> tuple[jax.Array, jax.Array]:
    """Distances of every pixel to the nearest and to the second nearest of the numbered sets.

    Separable and exact: the two nearest sets by way of any column are among the two nearest
    within that column, so that columns are searched first, then rows over the columns' results.
    Each search visits one offset after the other, `2 radius + 1` of them.

    Args:
      ids: int32 [b, h, w]: which set a pixel belongs to; 0: none.
      radius: how far to look, pixels; 0: everywhere.

    Returns:
      (first, second), float32 [b, h, w], pixels between centres; 0 for a pixel of a set itself,
      infinite where there is no such set (within `radius`).
    """
    squared = jnp.where(ids > 0, 0, FAR)
    # Squared distances are integers, exact in int32: (first, its set, second, its set).
    state = (squared, ids, jnp.full_like(squared, FAR), jnp.zeros_like(ids))
    for axis in (1, 2):
        reach = ids.shape[axis] - 1
        state = _search(state, axis, min(radius, reach) if radius else reach)
    limit = min(radius**2, FAR - 1) if radius else FAR - 1
    first, second = (
        jnp.where(square <= limit, jnp.sqrt(square.astype(jnp.float32)), jnp.inf)
        for square in (state[0], state[2])
    )
    return first, second


def _search(state, axis: int, reach: int):
    """The two nearest sets among those that the pixels up to `reach` along `axis` know."""
    outside = [(0, 0)] * 3
    outside[axis] = (reach, reach)
    fills = (FAR, 0, FAR, 0)
    padded = [jnp.pad(x, outside, constant_values=f) for x, f in zip(state, fills, strict=True)]
    size = state[0].shape[axis]

    def visit(i, best):
        step = jnp.square(i - reach)
        first, first_id, second, second_id = (
            jax.lax.dynamic_slice_in_dim(x, i, size, axis) for x in padded
        )
        best = _insert(best, jnp.minimum(first + step, FAR), first_id)
        return _insert(best, jnp.minimum(second + step, FAR), second_id)

    return jax.lax.fori_loop(0, 2 * reach + 1, visit, state)


def _insert(best, square: jax.Array, of: jax.Array):
    """Enters set `of` at a squared distance into the two nearest, which are different sets."""
    first, first_id, second, second_id = best
    known = of == first_id
    closer, between = square < first, ~known & (square < second)
    moved = closer & ~known  # what was first becomes second
    return (
        jnp.where(closer, square, first),
        jnp.where(closer, of, first_id),
        jnp.where(moved, first, jnp.where(between, square, second)),
        jnp.where(moved, first_id, jnp.where(between, of, second_id)),
    )


def distance_transform(mask: jax.Array, radius: int = 0) -> jax.Array:
    """Exact Euclidean distance to the nearest True pixel.

    bool [b, h, w] -> float32 [b, h, w], pixels; infinite where there is none, or with a `radius`
    none so near.
    """
    return two_nearest(mask.astype(jnp.int32), radius)[0]


def borders(ids: jax.Array) -> jax.Array:
    """Keeps of each numbered set the pixels that have a 4-neighbour of another number, or of none.

    int32 [b, h, w] -> int32 [b, h, w], 0 elsewhere. The edge of the image is no border: what lies
    beyond is not known.
    """
    border = jnp.zeros(ids.shape, bool)
    for axis in (1, 2):
        for offset in (-1, 1):
            neighbour = _neighbour(ids, axis, offset, fill=-1)
            border |= (neighbour != ids) & (neighbour >= 0)
    return jnp.where(border, ids, 0)


def border_weights(
    labels: jax.Array, inside: jax.Array, w0: float = 10.0, sigma: float = 5.0
) -> jax.Array:
    """U-Net's weight of the thin gaps between cells: w0 exp(-(d1 + d2)^2 / (2 sigma^2)).

    Ronneberger et al. 2015, arXiv:1505.04597, equation 2, second term. d1 and d2 are the distances
    to the border of the nearest and of the second nearest cell. A cell is a connected region of one
    label; a pixel within a cell measures to that cell's border like any other.

    Args:
      labels: int32 [b, h, w].
      inside: bool [b, h, w]: the pixels that belong to cells.
      w0: the weight where two cells touch.
      sigma: how fast it falls, pixels.

    Returns:
      float32 [b, h, w]. Beyond d1 + d2 = 6 sigma, where it is below 2e-8 w0, it may be 0.
    """
    radius = math.ceil(6 * sigma)
    first, second = two_nearest(borders(components(labels, inside)), radius)
    return w0 * jnp.exp(-jnp.square(first + second) / (2 * sigma**2))
