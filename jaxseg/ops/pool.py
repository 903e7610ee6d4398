"""Pooling: the maximum and the mean over windows, and the inverse of the former."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def max_pool(
    x: jax.Array, window: int = 3, strides: int = 2, padding: int = 1, ceil_mode: bool = False
) -> jax.Array:
    """The maximum over square windows of [b, h, w, c], with `padding` on both sides of each axis.

    Output axis: floor((n + 2p - k) / s) + 1; with `ceil_mode`, rounded up instead, but for a last
    window that would start past the image: as in PyTorch. Of equal maxima in a window, the first in
    row order receives the gradient, as there. XLA's own gradient (select-and-scatter) is slow on
    every platform; this one reads shifted images only.
    """
    outside = ((padding, padding),) * 2  # pixels after the last window do no harm here
    if ceil_mode:
        _, outside = _extent(x.shape[1:3], window, strides, padding, ceil_mode)
    return jax.lax.reduce_window(
        x,
        -jnp.inf,
        jax.lax.max,
        (1, window, window, 1),
        (1, strides, strides, 1),
        ((0, 0), *outside, (0, 0)),
    )


def _extent(size, window, strides, padding, ceil_mode):
    """Per axis: the number of windows, and the padding (before, after) that they cover."""
    counts, outside = [], []
    for n in size:
        span = n + 2 * padding - window
        count = span // strides + 1
        if ceil_mode and span % strides and count * strides < n + padding:
            count += 1
        counts.append(count)
        outside.append((padding, max(0, strides * (count - 1) + window - n - padding)))
    return counts, outside


def _max_and_place(x, window, strides, padding, ceil_mode):
    """The maxima, and the place of each in its window: 0 to window^2 - 1, in row order, uint8."""
    # The winner is remembered by its place in the window. To find it again by comparing values
    # would be wrong: XLA may compute `x` twice, and the two can differ in the last bit.
    (rows, cols), outside = _extent(x.shape[1:3], window, strides, padding, ceil_mode)
    padded = jnp.pad(x, ((0, 0), *outside, (0, 0)), constant_values=-jnp.inf)
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
    return best, winner


def _put_back(x, winner, size, window, strides, padding) -> jax.Array:
    """Each value at its place in its window of an image of `size`; where windows overlap, sums."""
    out = 0
    for place, (i, j) in enumerate(np.ndindex(window, window)):
        part = jnp.where(winner == place, x, jnp.zeros((), x.dtype))
        out += _spread(part, size, strides, (i - padding, j - padding))
    return out


def _spread(x: jax.Array, size, strides: int, first: tuple[int, int]) -> jax.Array:
    """[b, h, w, c] on a grid of an image of `size` that begins at pixel `first`; else zeros."""
    inside, config = [], [(0, 0, 0)]
    for n, m, start in zip(size, x.shape[1:3], first, strict=True):
        # What falls outside is cut off first: to pad by less than nothing would do it as well, but
        # XLA's partitioner crashes on that where the image is split over devices.
        before, after = max(-(start // strides), 0), min(m, (n - 1 - start) // strides + 1)
        start += strides * before
        inside.append(slice(before, after))
        config.append((start, n - start - strides * (after - before - 1) - 1, strides - 1))
    return jax.lax.pad(x[:, *inside], jnp.zeros((), x.dtype), [*config, (0, 0, 0)])


def _forward(x, *geometry):
    best, winner = _max_and_place(x, *geometry)
    # Of `x` only the size is needed on the way back: an empty array carries it.
    return best, (winner, jnp.zeros((*x.shape[1:3], 0)))


def _backward(window, strides, padding, ceil_mode, residuals, g):
    winner, size = residuals
    return (_put_back(g, winner, size.shape[:2], window, strides, padding),)


max_pool.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def max_pool_indices(
    x: jax.Array, window: int = 2, strides: int = 2
) -> tuple[jax.Array, jax.Array]:
    """Maxima over windows of [b, h, w, c], and where they were: what `unpool` needs.

    Returns:
      the maxima [b, h', w', c], as `max_pool` without padding in `ceil_mode` has them: windows that
      stick out at the bottom or right hold the pixels that are there; and uint8 [b, h', w', c], the
      place of each in its window, counted row by row, the first of equals.
    """
    return _max_and_place(x, window, strides, 0, True)


def _indices_forward(x, window, strides):
    best, winner = _max_and_place(x, window, strides, 0, True)
    return (best, winner), (winner, jnp.zeros((*x.shape[1:3], 0)))


def _indices_backward(window, strides, residuals, g):
    return _backward(window, strides, 0, True, residuals, g[0])


max_pool_indices.defvjp(_indices_forward, _indices_backward)


def unpool(
    x: jax.Array,
    indices: jax.Array | None,
    size: tuple[int, int],
    window: int = 2,
    strides: int = 2,
) -> jax.Array:
    """Puts every pixel of [b, h, w, c] back into its window: [b, *size, c], zeros elsewhere.

    Max-unpooling (Zeiler and Fergus 2014, arXiv:1311.2901, section 2.1) as in SegNet. Where windows
    overlap and two pixels go to one place, they add up.

    Args:
      indices: places in the windows, from `max_pool_indices` with equal `window` and `strides`;
        without any, the corner at the top left, as in Dosovitskiy et al. 2014, arXiv:1411.5928.
      size: of the image that was pooled.

    Raises:
      ValueError: pooling an image of `size` does not give h x w.
    """
    counts, _ = _extent(size, window, strides, 0, True)
    if tuple(counts) != x.shape[1:3]:
        raise ValueError(f"unpool: {tuple(size)} is pooled to {tuple(counts)}, not {x.shape[1:3]}")
    if indices is None:
        return _spread(x, size, strides, (0, 0))
    return _put_back(x, indices, size, window, strides, 0)


def avg_pool(x: jax.Array, window: int) -> jax.Array:
    """The mean over adjacent square windows: [b, h, w, c] -> [b, ceil(h / k), ceil(w / k), c].

    Windows that stick out at the bottom or right average the pixels they hold.
    """
    if window == 1:
        return x
    counts, outside = [], []
    for n in x.shape[1:3]:
        m = -(-n // window)
        outside.append((0, m * window - n))
        counts.append(np.minimum(n - np.arange(m) * window, window))
    area = np.outer(*counts)[..., None]
    total = _window_sum(x, window, window, outside)
    return (total / area.astype(total.dtype)).astype(x.dtype)


def avg_pool_padded(x: jax.Array, window: int, strides: int, padding: int) -> jax.Array:
    """The mean over square windows of [b, h, w, c] with `padding` zeros around, which count.

    PyTorch's `AvgPool2d` as it is by default. Output axis: floor((n + 2p - k) / s) + 1.
    """
    total = _window_sum(x, window, strides, [(padding, padding)] * 2)
    return (total / window**2).astype(x.dtype)


def _window_sum(x: jax.Array, window: int, strides: int, outside) -> jax.Array:
    """Sums over square windows, in float32 at least; `outside` as in `_extent`."""
    return jax.lax.reduce_window(
        x.astype(jnp.promote_types(x.dtype, jnp.float32)),
        0.0,
        jax.lax.add,
        (1, window, window, 1),
        (1, strides, strides, 1),
        ((0, 0), *outside, (0, 0)),
    )
