"""Image resizing without antialiasing, with both conventions for the corners."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim

# Pixels that are picked one by one and added up, rather than by a matrix product.
MOST_TAPS = 32


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


def row_window(
    n: int, m: int, start: int | jax.Array, number: int, align_corners: bool = False
) -> tuple[jax.Array | int, int]:
    """What some rows of a resized map are made of: the first row, and how many, of an axis of n.

    They are rows `start` to `start + number` of the m that `resize` makes, bilinear. `start` may be
    traced, 0 <= start <= m - number; how many rows are needed does not depend on it.
    """
    if n == m:
        return start, number
    low, high, _ = _taps(n, m, "bilinear", align_corners)
    needed = int((high[number - 1 :] - low[: m - number + 1]).max()) + 1
    return jnp.minimum(jnp.asarray(low, jnp.int32)[start], n - needed), needed


def row_taps(
    n: int, m: int, start: int | jax.Array, number: int, align_corners: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The two source rows of each of these rows, int32, and the second's weight, float32."""
    low, high, weight = _taps(n, m, "bilinear", align_corners)
    taps = jnp.asarray(low, jnp.int32), jnp.asarray(high, jnp.int32), jnp.float32(weight)
    return tuple(jax.lax.dynamic_slice_in_dim(x, start, number) for x in taps)


@jax.custom_vjp
def mix_rows(x: jax.Array, low: jax.Array, high: jax.Array, weight: jax.Array) -> jax.Array:
    """Rows x[low] (1 - weight) + x[high] weight: float32 [b, h, w, c] -> [b, number, w, c].

    It is `resize` from row to row, for rows that are known only when the program runs. Only `x` has
    a gradient.
    """

    def by_taps(x, low, high, weight):
        first, second = (jnp.take(x, i, 1, mode="clip") for i in (low, high))
        return first * (1 - weight[:, None, None]) + second * weight[:, None, None]

    def by_matrix(x, *taps):
        return _contract(x, _as_matrix(x.shape[1], *taps), None)

    return jax.lax.platform_dependent(x, low, high, weight, tpu=by_matrix, default=by_taps)


def _mix_forward(x, *taps):
    return mix_rows(x, *taps), (jnp.zeros((0, x.shape[1])), *taps)


def _mix_backward(residuals, g):
    like, *taps = residuals
    return _contract(g, _as_matrix(like.shape[1], *taps).T, None), None, None, None


mix_rows.defvjp(_mix_forward, _mix_backward)


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
    # The transpose of a gather is a scatter, slow everywhere; that of a matrix is a matrix. On a
    # GPU its product, in full float32, is a lot of arithmetic where a few pixels are to be added.
    how = dict(size=residual.shape[:2], method=method, align_corners=align_corners)
    by_taps = functools.partial(transposed_by_taps, **how)
    by_matrices = functools.partial(transposed_by_matrices, **how)
    return (jax.lax.platform_dependent(g, cuda=by_taps, default=by_matrices),)


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


def transposed_by_matrices(g, size, method="bilinear", align_corners=False) -> jax.Array:
    """The gradient of what `resize` resized, of that `size`: [b, h', w', c] -> [b, *size, c]."""
    sizes = zip(size, g.shape[1:3], strict=True)
    matrices = (_matrix(n, m, method, align_corners) for n, m in sizes)
    return _contract(g, *(None if x is None else x.T for x in matrices))


def transposed_by_taps(g, size, method="bilinear", align_corners=False) -> jax.Array:
    """The same by adding up, for each pixel, the few of `g` that it went into."""
    sizes = list(zip(size, g.shape[1:3], strict=True))
    if any(is_symbolic_dim(n) for pair in sizes for n in pair):
        return transposed_by_matrices(g, size, method, align_corners)
    y = g.astype(_accumulator(g.dtype))
    for axis, (n, m) in enumerate(sizes, start=1):
        if n != m:
            y = _add_up(y, axis, _matrix(n, m, method, align_corners))
    return y.astype(g.dtype)


def _add_up(y: jax.Array, axis: int, matrix: np.ndarray) -> jax.Array:
    """The product of an axis with a matrix [m, n] whose columns have a few numbers in one place."""
    rows, columns = np.nonzero(matrix)
    first = np.full(matrix.shape[1], len(matrix))
    np.minimum.at(first, columns, rows)
    width = (rows - first[columns]).max() + 1
    if width > MOST_TAPS:
        return _contract(y, *((matrix.T, None) if axis == 1 else (None, matrix.T)))
    padded = np.pad(matrix, ((0, width), (0, 0)))
    total = 0
    for index in first + np.arange(width)[:, None]:
        weight = padded[index, np.arange(len(index))].astype(y.dtype)
        weight = weight.reshape((-1, 1, 1) if axis == 1 else (-1, 1))
        total += jnp.take(y, np.minimum(index, len(matrix) - 1), axis, mode="clip") * weight
    return total


def _contract(x: jax.Array, rows: np.ndarray | None, cols: np.ndarray | None) -> jax.Array:
    """[b, h, w, c] with [h', h] and [w', w] -> [b, h', w', c]; None leaves an axis as it is."""
    y = x.astype(_accumulator(x.dtype))
    contract = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    if rows is not None:
        y = contract("yh,bhwc->bywc", rows.astype(y.dtype), y)
    if cols is not None:
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


def _matrix(n: int, m: int, method: str, align_corners: bool) -> np.ndarray | jax.Array | None:
    """The interpolation along one axis as a matrix [m, n]; None where it changes nothing."""
    return None if n == m else _as_matrix(n, *_taps(n, m, method, align_corners))


def _as_matrix(n: int, low, high, weight) -> np.ndarray | jax.Array:
    """Taps as a matrix [m, n]."""
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
