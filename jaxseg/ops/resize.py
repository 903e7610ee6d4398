"""Image resizing without antialiasing, with both conventions for the corners."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim


def resize(
    x: jax.Array,
    size: tuple[int, int],
    method: str = "bilinear",
    align_corners: bool = False,
) -> jax.Array:
    """Resizes [b, h, w, c] to [b, *size, c] by interpolation, in the dtype of `x`.

    Equal to PyTorch's `F.interpolate`: "bilinear" takes pixel centres at half-integers (or the
    corner pixels as fixed points where `align_corners`) and never averages over more than two
    pixels per axis; "nearest" takes pixel floor(i * n_in / n_out). Weights are float32 at least.
    Sizes may be symbolic, as in `jax.export`: where the program then runs, it computes the weights.

    Raises:
      ValueError: another method, or `align_corners` with "nearest", where it means nothing.
    """
    if method not in ("bilinear", "nearest") or (method == "nearest" and align_corners):
        raise ValueError(f"resize: no method {method!r} with align_corners={align_corners}")
    size = tuple(n if is_symbolic_dim(n) else int(n) for n in size)
    if size == x.shape[1:3]:
        return x
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        if method == "nearest":
            rows, cols = (_nearest(n, m) for n, m in zip(x.shape[1:3], size, strict=True))
            return x[:, rows][:, :, cols]
        raise ValueError(f"resize: bilinear interpolation of {x.dtype}; convert to float first")
    return _resize(x, size, method, align_corners)


def resize_rows(
    x: jax.Array,
    size: tuple[int, int],
    start: int | jax.Array,
    rows: int,
    align_corners: bool = False,
) -> jax.Array:
    """Rows `start` to `start + rows` of `resize(x, size)`, bilinear, without the others.

    x [b, h, w, c] -> [b, rows, size[1], c]; `start` may be traced, 0 <= start <= size[0] - rows.
    """
    y = x.astype(_accumulator(x.dtype))
    low, high, weight = (
        jax.lax.dynamic_slice_in_dim(jnp.asarray(taps), start, rows)
        for taps in _taps(x.shape[1], size[0], "bilinear", align_corners)
    )
    weight = weight.astype(y.dtype)[:, None, None]
    y = jnp.take(y, low, 1, mode="clip") * (1 - weight) + jnp.take(y, high, 1, mode="clip") * weight
    return resize(y.astype(x.dtype), (rows, size[1]), align_corners=align_corners)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _resize(x, size, method, align_corners):
    # Matrix products suit a TPU, which is slow to gather; elsewhere two taps per axis are cheaper.
    return jax.lax.platform_dependent(
        x,
        tpu=functools.partial(by_matrices, size=size, method=method, align_corners=align_corners),
        default=functools.partial(by_taps, size=size, method=method, align_corners=align_corners),
    )


def _forward(x, size, method, align_corners):
    # Only the shape is needed on the way back: an empty array carries it.
    return _resize(x, size, method, align_corners), jnp.zeros((*x.shape[1:3], 0), x.dtype)


def _backward(size, method, align_corners, residual, g):
    # The transpose of a gather is a scatter, slow everywhere; that of a matrix is a matrix.
    h, w, _ = residual.shape
    rows = _matrix(h, size[0], method, align_corners)
    cols = _matrix(w, size[1], method, align_corners)
    return (_contract(g, rows.T, cols.T),)


_resize.defvjp(_forward, _backward)


def by_taps(x, size, method="bilinear", align_corners=False) -> jax.Array:
    """Resizes by picking two pixels per axis and mixing them."""
    dtype = x.dtype
    y = x.astype(_accumulator(dtype))
    for axis, (n, m) in enumerate(zip(x.shape[1:3], size, strict=True), start=1):
        if n == m:
            continue
        low, high, weight = _taps(n, m, method, align_corners)
        first = jnp.take(y, low, axis, mode="clip")
        if isinstance(weight, jax.Array) or weight.any():
            shape = (-1, 1, 1) if axis == 1 else (-1, 1)
            weight = weight.astype(y.dtype).reshape(shape)
            first = first * (1 - weight) + jnp.take(y, high, axis, mode="clip") * weight
        y = first
    return y.astype(dtype)


def by_matrices(x, size, method="bilinear", align_corners=False) -> jax.Array:
    """Resizes by one matrix product per axis."""
    rows = _matrix(x.shape[1], size[0], method, align_corners)
    cols = _matrix(x.shape[2], size[1], method, align_corners)
    return _contract(x, rows, cols)


def _contract(x: jax.Array, rows: np.ndarray, cols: np.ndarray) -> jax.Array:
    """[b, h, w, c] with [h', h] and [w', w] -> [b, h', w', c]."""
    y = x.astype(_accumulator(x.dtype))
    contract = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    if rows.shape[0] != rows.shape[1]:
        y = contract("yh,bhwc->bywc", rows.astype(y.dtype), y)
    if cols.shape[0] != cols.shape[1]:
        y = contract("xw,bywc->byxc", cols.astype(y.dtype), y)
    return y.astype(x.dtype)


def _taps(n: int, m: int, method: str, align_corners: bool):
    """The two source pixels of each of m outputs on an axis of n, and the second's weight."""
    if method == "nearest":
        index = _nearest(n, m)
        return index, index, np.zeros(1)
    xp = _numpy_for(n, m)
    i = xp.arange(m)
    # A source position is a fraction of whole numbers, and as such exact in any precision.
    if align_corners:
        position, unit = i * (n - 1), xp.maximum(m - 1, 1)
    else:
        position, unit = xp.clip((2 * i + 1) * n - m, 0, 2 * m * (n - 1)), 2 * m
    low = position // unit
    return low, xp.minimum(low + 1, n - 1), position % unit / unit


def _matrix(n: int, m: int, method: str, align_corners: bool) -> np.ndarray | jax.Array:
    """The interpolation along one axis as a matrix [m, n]."""
    low, high, weight = _taps(n, m, method, align_corners)
    pixels, weight = _numpy_for(n).arange(n), weight[:, None]
    return (pixels == low[:, None]) * (1 - weight) + (pixels == high[:, None]) * weight


def _nearest(n: int, m: int) -> np.ndarray | jax.Array:
    # In float32, as PyTorch computes it: at a few sizes rounding moves a pixel off the exact rule.
    xp = _numpy_for(n, m)
    position = xp.arange(m, dtype=np.float32) * (xp.float32(n) / xp.float32(m))
    return xp.minimum(xp.floor(position).astype(np.int32), n - 1)


def _numpy_for(*sizes: int):
    """NumPy, or jax.numpy where a size is symbolic."""
    return jnp if any(map(is_symbolic_dim, sizes)) else np


def _accumulator(dtype) -> jnp.dtype:
    return jnp.promote_types(dtype, jnp.float32)
