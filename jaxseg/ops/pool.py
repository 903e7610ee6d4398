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
    y = max_pool(x, window, strides, padding)
    return y, (x, y)


def _backward(window, strides, padding, residuals, g):
    x, y = residuals
    (b, h, w, c), (rows, cols) = x.shape, y.shape[1:3]
    outside = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = jnp.pad(x, outside, constant_values=-jnp.inf)
    taken = jnp.zeros(y.shape, bool)
    dx = jnp.zeros(x.shape, g.dtype)
    for i, j in np.ndindex(window, window):
        tap = jax.lax.slice(
            padded,
            (0, i, j, 0),
            (b, i + strides * (rows - 1) + 1, j + strides * (cols - 1) + 1, c),
            (1, strides, strides, 1),
        )
        hit = (tap == y) & ~taken
        taken = taken | hit
        # Back to where the tap was read: zeros between, around, and off the padding again.
        before = (i - padding, j - padding)
        after = (
            h - before[0] - strides * (rows - 1) - 1,
            w - before[1] - strides * (cols - 1) - 1,
        )
        config = [(lo, hi, strides - 1) for lo, hi in zip(before, after, strict=True)]
        part = jnp.where(hit, g, jnp.zeros((), g.dtype))
        dx += jax.lax.pad(part, jnp.zeros((), g.dtype), [(0, 0, 0), *config, (0, 0, 0)])
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
