"""Pooling to a grid of given size, whatever the size of the map: the bins of PyTorch.

Bin i of k along an axis of n pixels begins at floor(i n / k) and ends before ceil((i + 1) n / k).
Bins hold at least one pixel, overlap by at most one where k does not divide n, and repeat pixels
where k exceeds n.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim


def adaptive_avg_pool(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The mean of each bin: [b, h, w, c] -> [b, *size, c], in the dtype of `x`.

    A product with a matrix of weights per axis, summed in float32 at least.
    """
    rows, cols = (_means(n, k) for n, k in zip(x.shape[1:3], size, strict=True))
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    contract = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    y = contract("yh,bhwc->bywc", rows.astype(y.dtype), y)
    y = contract("xw,bywc->byxc", cols.astype(y.dtype), y)
    return y.astype(x.dtype)


def adaptive_max_pool(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The largest value of each bin: [b, h, w, c] -> [b, *size, c].

    Of equal values the first in row order receives the gradient, as in PyTorch.
    """
    # Columns first: then the first row with the maximum wins, and in it the first column.
    for axis in (2, 1):
        edges = bins(x.shape[axis], size[axis - 1])
        x = jnp.stack(
            [_max(jax.lax.slice_in_dim(x, *edge, axis=axis), axis) for edge in edges], axis
        )
    return x


def bins(n: int, k: int) -> list[tuple[int, int]]:
    """(begin, end) of each of `k` bins on an axis of `n` pixels."""
    return [(i * n // k, -(-(i + 1) * n // k)) for i in range(k)]


def _means(n: int, k: int) -> np.ndarray:
    """The means over the bins of an axis as a matrix [k, n]; `n` may be symbolic."""
    xp = jnp if is_symbolic_dim(n) else np
    pixel, i = xp.arange(n), np.arange(k)[:, None]
    begin, end = i * n // k, -(-(i + 1) * n // k)
    return ((pixel >= begin) & (pixel < end)) / (end - begin)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max(x: jax.Array, axis: int) -> jax.Array:
    return x.max(axis)


def _forward(x, axis):
    # The place of the maximum is kept. To find it again by comparing values, as JAX's own gradient
    # does, fails where XLA computes `x` twice and the two differ in the last bit.
    winner = jnp.expand_dims(jnp.argmax(x, axis).astype(jnp.int32), axis)
    return x.max(axis), (winner, jnp.zeros((x.shape[axis], 0)))


def _backward(axis, residuals, g):
    winner, size = residuals
    shape = list(winner.shape)
    shape[axis] = size.shape[0]
    place = jax.lax.broadcasted_iota(jnp.int32, shape, axis)
    return (jnp.where(place == winner, jnp.expand_dims(g, axis), jnp.zeros((), g.dtype)),)


_max.defvjp(_forward, _backward)
