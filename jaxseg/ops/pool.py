"""Pooling: the maximum and the mean over windows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def max_pool(x: jax.Array, window: int = 3, strides: int = 2, padding: int = 1) -> jax.Array:
    """The maximum over square windows of [b, h, w, c], with `padding` on both sides of each axis.

    Output axis: floor((n + 2p - k) / s) + 1. Of equal maxima in a window, the first in row order
    receives the gradient, as in PyTorch. XLA's own gradient (select-and-scatter) is slow on every
    platform; this one reads shifted images only.
    """
    return jax.lax.reduce_window(
        x,
        -jnp.inf,
        jax.lax.max,
        (1, window, window, 1),
        (1, strides, strides, 1),
        ((0, 0), (padding, padding), (padding, padding), (0, 0)),
    )


def _forward(x, window, strides, padding):
    # The winner is remembered by its place in the window. To find it again by comparing values
    # would be wrong: XLA may compute `x` twice, and the two can differ in the last bit.
    outside = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = jnp.pad(x, outside, constant_values=-jnp.inf)
    rows, cols = ((n + 2 * padding - window) // strides + 1 for n in x.shape[1:3])
    best = winner = None
    for place, (i, j) in enumerate(np.ndindex(window, window)):
        tap = padded[
            :,
            i : i + strides * (rows - 1) + 1 : strides,
            j : j + strides * (cols - 1) + 1 : strides,
        ]
        if best is None:
            best, winner = tap, jnp.zeros(tap.shape, jnp.uint8)
            continue
        better = (tap > best) | jnp.isnan(tap)
        best = jnp.where(better, tap, best)
        winner = jnp.where(better, jnp.uint8(place), winner)
    # Of `x` only the size is needed on the way back: an empty array carries it.
    return best, (winner, jnp.zeros((*x.shape[1:3], 0)))


def _backward(window, strides, padding, residuals, g):
    winner, size = residuals
    dx = 0
    for place, (i, j) in enumerate(np.ndindex(window, window)):
        part = jnp.where(winner == place, g, jnp.zeros((), g.dtype))
        # Back to where the tap was read: zeros between, around, and off the padding again.
        config = [(0, 0, 0)]
        for n, m, first in zip(size.shape[:2], g.shape[1:3], (i, j), strict=True):
            before = first - padding
            config.append((before, n - before - strides * (m - 1) - 1, strides - 1))
        dx += jax.lax.pad(part, jnp.zeros((), g.dtype), [*config, (0, 0, 0)])
    return (dx,)


max_pool.defvjp(_forward, _backward)


def avg_pool(x: jax.Array, window: int) -> jax.Array:
    """The mean over adjacent square windows: [b, h, w, c] -> [b, ceil(h / k), ceil(w / k), c].

    Windows that stick out at the bottom or right average the pixels they hold.
    """
    if window == 1:
        return x
    counts, outside = [], [(0, 0)]
    for n in x.shape[1:3]:
        m = -(-n // window)
        outside.append((0, m * window - n))
        counts.append(np.minimum(n - np.arange(m) * window, window))
    total = jax.lax.reduce_window(
        x.astype(jnp.promote_types(x.dtype, jnp.float32)),
        0.0,
        jax.lax.add,
        (1, window, window, 1),
        (1, window, window, 1),
        (*outside, (0, 0)),
    )
    area = np.outer(*counts)[..., None]
    return (total / area.astype(total.dtype)).astype(x.dtype)
