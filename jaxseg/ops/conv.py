"""2-D convolution with explicit padding, and the forms of it that XLA compiles badly.

Models convolve through `conv2d` and `conv_transpose2d` alone. XLA:GPU turns the weight gradient of
a dilated convolution into a forward convolution whose "filter" is as large as the image
(jax-ml/jax#31662, openxla/xla#34273). Undilated convolutions and matrix products are native, and
the gradient can be had from either. Other cases are in `depthwise`, `pointwise` and
`space_to_depth`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.ops.conv_plain import conv_plain, transpose
from jaxseg.ops.depthwise import depthwise
from jaxseg.ops.pointwise import pointwise
from jaxseg.ops.space_to_depth import conv_few_channels

Pair = tuple[int, int]
# Above this rate, the weight gradient on GPU is taken tap by tap: space-to-batch would pad the
# image to a multiple of the rate, and most taps of a large rate fall outside the image.
SPACE_TO_BATCH_RATE = 8
# Up to this many groups are a convolution each: together, two take XLA:CPU 1.5 to 6 times as long
# and their gradients 4 to 27 times, and where they are dilated, GPUs want the gradient above.
FEW_GROUPS = 4
# Up to this many channels, a strided convolution has a form of its own on TPUs.
FEW_CHANNELS = 4


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    strides: int | Pair = 1,
    padding: int | Pair = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> jax.Array:
    """Cross-correlation of `x` [b, h, w, c] with `kernel` [kh, kw, c / groups, features].

    `padding` zeros go on both sides of an axis, as in PyTorch; `strides`, `padding` and `dilation`
    are one number or one per axis. Output axis: floor((n + 2p - d(k - 1) - 1) / s) + 1. The result
    [b, h', w', features] has the dtype of the inputs. Differentiable once, in reverse mode, where
    `dilation > 1`, the kernel is 1x1 or the convolution is depthwise (groups == c, features a
    multiple of it).
    """
    geometry = (_pair(strides), _pair(padding), _pair(dilation))
    if any(2 * p > d * (k - 1) for _, p, d, k in zip(*geometry, kernel.shape[:2], strict=True)):
        # The result would be larger than the image: in the gradient of the kernel it is the filter,
        # and XLA:CPU takes a loop a hundred times slower where a filter exceeds its image. The
        # barrier keeps XLA:GPU from making them one again, and then the image the filter.
        x = jnp.pad(x, ((0, 0), *((p, p) for p in geometry[1]), (0, 0)))
        x = jax.lax.optimization_barrier(x)
        geometry = (geometry[0], (0, 0), geometry[2])
    if groups > 1 and groups == x.shape[-1]:
        # Several filters of a channel see a copy of it each: in groups, XLA:CPU takes ten times as
        # long, and twenty for the gradients.
        x = jnp.repeat(x, kernel.shape[-1] // groups, axis=-1)
        return depthwise(x, kernel, geometry)
    if 1 < groups <= FEW_GROUPS:
        parts = zip(jnp.split(x, groups, -1), jnp.split(kernel, groups, -1), strict=True)
        return jnp.concatenate([conv2d(*part, *geometry) for part in parts], -1)
    if groups == 1 and kernel.shape[:2] == (1, 1):
        return pointwise(x, kernel, geometry[0])
    if groups == 1 and geometry[0] == (1, 1) and geometry[2] != (1, 1):
        return _dilated(x, kernel, geometry)
    if x.shape[-1] <= FEW_CHANNELS and min(geometry[0]) > 1 and geometry[2] == (1, 1):
        return conv_few_channels(x, kernel, geometry)
    return conv_plain(x, kernel, geometry, groups)


def conv_transpose2d(
    x: jax.Array,
    kernel: jax.Array,
    strides: int | Pair = 1,
    padding: int | Pair = 0,
    output_padding: int | Pair = 0,
) -> jax.Array:
    """The transpose of `conv2d`: `x` [b, h, w, c] with `kernel` [kh, kw, features, c].

    The kernel is that of the convolution transposed, which takes `features` to c channels. As in
    PyTorch's `ConvTranspose2d`, `padding` is that convolution's, here cropped off both sides, and
    `output_padding` rows more are kept at the end. Output axis: s(n - 1) + k - 2p + o. The result
    [b, h', w', features] has the dtype of the inputs.

    Differentiable once, in reverse mode.
    """
    geometry = (_pair(strides), _pair(padding), (1, 1))
    return _transposed(x, kernel, geometry, _pair(output_padding))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _transposed(x, kernel, geometry, extra):
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(transposed_by_cells, geometry=geometry, extra=extra),
        default=functools.partial(transposed_natively, geometry=geometry, extra=extra),
    )


def _transposed_forward(x, kernel, geometry, extra):
    return _transposed(x, kernel, geometry, extra), (x, kernel)


def _transposed_backward(geometry, extra, residuals, g):
    x, kernel = residuals

    def by_cells(x, kernel, g):
        return jax.vjp(lambda x, k: transposed_by_cells(x, k, geometry, extra), x, kernel)[1](g)

    native = functools.partial(transposed_gradients, geometry=geometry)
    return jax.lax.platform_dependent(x, kernel, g, cpu=by_cells, default=native)


_transposed.defvjp(_transposed_forward, _transposed_backward)


def transposed_natively(x, kernel, geometry, extra) -> jax.Array:
    """What GPUs and TPUs take for the gradient of a convolution's input, and have kernels for."""
    strides, padding, _ = geometry
    reach = [k - 1 - p for k, p in zip(kernel.shape[:2], padding, strict=True)]
    return jax.lax.conv_general_dilated(
        x,
        kernel[::-1, ::-1],
        (1, 1),
        [(r, r + o) for r, o in zip(reach, extra, strict=True)],
        lhs_dilation=strides,
        dimension_numbers=("NHWC", "HWOI", "NHWC"),
    )


def transposed_gradients(x, kernel, g, geometry) -> tuple[jax.Array, jax.Array]:
    """The gradients of a transposed convolution: a convolution, and the gradient of its kernel.

    The compiler's own gradient of the kernel is a forward convolution on GPUs, see above.
    """
    dx = conv_plain(g, kernel, geometry)
    return dx, transpose(lambda kernel: conv_plain(g, kernel, geometry), kernel, x)


def transposed_by_cells(x, kernel, geometry, extra) -> jax.Array:
    """A transposed convolution without zeros between the pixels, which CPUs would multiply.

    The usual form has them (Dumoulin and Visin 2016, arXiv:1603.07285, chapter 4). Here instead
    each output pixel of an s x s cell is a feature of its own of a convolution at the input's
    resolution, and the features are then laid out in space (Shi et al. 2016, arXiv:1609.07009): it
    multiplies no zeros where s divides k, its gradients are those of a plain convolution, and where
    k = s it is one matrix product.
    """
    strides, padding, _ = geometry
    b, h, w, _ = x.shape
    (kh, kw, features, inputs), (sh, sw) = kernel.shape, strides
    # Tap t of the kernel reaches pixel t % s of the cell t // s cells away from the input pixel.
    rh, rw = -(-kh // sh), -(-kw // sw)
    kernel = jnp.pad(kernel, ((0, rh * sh - kh), (0, rw * sw - kw), (0, 0), (0, 0)))
    kernel = kernel.reshape(rh, sh, rw, sw, features, inputs)[::-1, :, ::-1]
    kernel = kernel.transpose(0, 2, 5, 1, 3, 4).reshape(rh, rw, inputs, sh * sw * features)
    x = conv2d(x, kernel, padding=(rh - 1, rw - 1))
    # [b, h + rh - 1, w + rw - 1, sh * sw * features] -> [b, (h + rh - 1) * sh, ..., features]
    x = x.reshape(*x.shape[:3], sh, sw, features).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(b, (h + rh - 1) * sh, (w + rw - 1) * sw, features)
    crop = [(0, 0, 0)]
    for n, m, k, s, p, o in zip(
        (h, w), x.shape[1:3], (kh, kw), strides, padding, extra, strict=True
    ):
        crop.append((-p, s * (n - 1) + k - p + o - m, 0))
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [*crop, (0, 0, 0)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dilated(x, kernel, geometry):
    return conv_plain(x, kernel, geometry)


def _dilated_forward(x, kernel, geometry):
    return conv_plain(x, kernel, geometry), (x, kernel)


def _dilated_backward(geometry, residuals, g):
    x, kernel = residuals

    def plain(x, kernel, g):
        return transpose(lambda k: conv_plain(x, k, geometry), kernel, g)

    def native(x, kernel, g):
        if max(geometry[2]) <= SPACE_TO_BATCH_RATE:
            return kernel_gradient_by_phases(x, kernel, g, geometry)
        return kernel_gradient_by_taps(x, kernel, g, geometry)

    dx = transpose(lambda x: conv_plain(x, kernel, geometry), x, g)
    dk = jax.lax.platform_dependent(x, kernel, g, cuda=native, default=plain)
    return dx, dk


_dilated.defvjp(_dilated_forward, _dilated_backward)


def kernel_gradient_by_phases(x, kernel, g, geometry) -> jax.Array:
    """The kernel's gradient of a dilated, unstrided convolution, from an undilated one.

    Pixels a rate apart form an image of their own, a phase, and a dilated convolution is an
    undilated one of each phase (the space-to-batch rewriting of Holschneider's a-trous algorithm).
    """
    _, padding, rate = geometry
    kh, kw = kernel.shape[:2]
    # Padding by whole steps of the rate is padding of every phase; any rest is added to the image.
    inner = tuple(p // d if p % d == 0 else 0 for p, d in zip(padding, rate, strict=True))
    outer = tuple(p - i * d for p, i, d in zip(padding, inner, rate, strict=True))
    sizes = [-(-(n + 2 * o) // d) for n, o, d in zip(x.shape[1:3], outer, rate, strict=True)]
    x = _phases(x, rate, outer, sizes)  # [b * dh * dw, ~h / dh, ~w / dw, c]
    out = [n + 2 * i - (k - 1) for n, i, k in zip(sizes, inner, (kh, kw), strict=True)]
    g = _phases(g, rate, (0, 0), out)
    undilated = ((1, 1), inner, (1, 1))
    return transpose(lambda k: conv_plain(x, k, undilated), kernel, g)


def _phases(x: jax.Array, rate: Pair, before: Pair, sizes) -> jax.Array:
    """[b, h, w, c] -> [b * dh * dw, *sizes, c]: zeros around, then one image for each offset.

    The batch comes first: where it is split over devices, their images' phases stay with them.
    """
    b, h, w, c = x.shape
    (dh, dw), (nh, nw) = rate, sizes
    rows = (before[0], nh * dh - h - before[0])
    cols = (before[1], nw * dw - w - before[1])
    x = jnp.pad(x, ((0, 0), rows, cols, (0, 0)))
    x = x.reshape(b, nh, dh, nw, dw, c).transpose(0, 2, 4, 1, 3, 5)
    return x.reshape(b * dh * dw, nh, nw, c)


def kernel_gradient_by_taps(x, kernel, g, geometry) -> jax.Array:
    """The kernel's gradient of a dilated, unstrided convolution, one matrix product for each tap.

    A tap sees the image shifted by (row, col) * rate - padding; only the overlap enters.
    """
    _, padding, rate = geometry
    taps = []
    for row, col in np.ndindex(*kernel.shape[:2]):
        rows = _overlap(row * rate[0] - padding[0], x.shape[1], g.shape[1])
        cols = _overlap(col * rate[1] - padding[1], x.shape[2], g.shape[2])
        if rows is None or cols is None:
            taps.append(jnp.zeros(kernel.shape[2:], kernel.dtype))
            continue
        tap = jnp.einsum(
            "bhwi,bhwo->io",
            x[:, rows[0], cols[0]],
            g[:, rows[1], cols[1]],
            preferred_element_type=_accumulator(x.dtype),
        )
        taps.append(tap.astype(kernel.dtype))
        # One tap after the other: nine copies of a wide feature map at once fill a GPU.
        x, g, taps[-1] = jax.lax.optimization_barrier((x, g, taps[-1]))
    return jnp.stack(taps).reshape(kernel.shape)


def _overlap(shift: int, n_in: int, n_out: int) -> tuple[slice, slice] | None:
    """Where output index i meets input index i + shift: (slice of input, slice of output)."""
    start, stop = max(0, -shift), min(n_out, n_in - shift)
    return (slice(start + shift, stop + shift), slice(start, stop)) if start < stop else None


def _accumulator(dtype) -> jnp.dtype:
    return jnp.promote_types(dtype, jnp.float32)


def _pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else tuple(value)
