"""2-D convolution with explicit padding, and the forms of it that XLA compiles badly.

Models convolve through `conv2d` and `conv_transpose2d` alone. Two cases of the former have a
gradient or a body of their own:

* dilated: XLA:GPU turns the weight gradient of a dilated convolution into a forward convolution
  whose "filter" is as large as the image (jax-ml/jax#31662, openxla/xla#34273). Undilated
  convolutions and matrix products are native, and the gradient can be had from either.
* depthwise: XLA:CPU computes it at the price of a dense convolution. A sum of shifted products is
  two orders of magnitude faster there, and gives GPUs a native gradient when dilated.

A transposed convolution is rewritten as one without stride.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Pair = tuple[int, int]
DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# Above this rate, the weight gradient on GPU is taken tap by tap: space-to-batch would pad the
# image to a multiple of the rate, and most taps of a large rate fall outside the image.
SPACE_TO_BATCH_RATE = 8
# Up to this many groups are a convolution each: together, two take XLA:CPU 1.5 to 6 times as long
# and their gradients 4 to 27 times, and where they are dilated, GPUs want the gradient above.
FEW_GROUPS = 4


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
    `dilation > 1` or the convolution is depthwise (groups == c, features a multiple of it).
    """
    geometry = (_pair(strides), _pair(padding), _pair(dilation))
    if any(2 * p > d * (k - 1) for _, p, d, k in zip(*geometry, kernel.shape[:2], strict=True)):
        # The result would be larger than the image: in the gradient of the kernel it is the filter,
        # and XLA:CPU takes a loop a hundred times slower where a filter exceeds its image.
        x = jnp.pad(x, ((0, 0), *((p, p) for p in geometry[1]), (0, 0)))
        geometry = (geometry[0], (0, 0), geometry[2])
    if groups > 1 and groups == x.shape[-1]:
        # Several filters of a channel see a copy of it each: in groups, XLA:CPU takes ten times as
        # long, and twenty for the gradients.
        x = jnp.repeat(x, kernel.shape[-1] // groups, axis=-1)
        return _depthwise(x, kernel, geometry)
    if 1 < groups <= FEW_GROUPS:
        parts = zip(jnp.split(x, groups, -1), jnp.split(kernel, groups, -1), strict=True)
        return jnp.concatenate([conv2d(*part, *geometry) for part in parts], -1)
    if groups == 1 and geometry[0] == (1, 1) and geometry[2] != (1, 1):
        return _dilated(x, kernel, geometry)
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

    The usual form puts zeros between the pixels and convolves those as well (Dumoulin and Visin
    2016, arXiv:1603.07285, chapter 4). Here instead each output pixel of an s x s cell is a feature
    of its own of a convolution at the input's resolution, and the features are then laid out in
    space (Shi et al. 2016, arXiv:1609.07009): it multiplies no zeros where s divides k, its
    gradients are those of a plain convolution, and where k = s it is one matrix product.
    """
    strides, padding, extra = _pair(strides), _pair(padding), _pair(output_padding)
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


def conv_plain(x: jax.Array, kernel: jax.Array, geometry, groups: int = 1) -> jax.Array:
    """XLA's own convolution; `geometry` is (strides, padding, dilation), a pair each."""
    strides, padding, dilation = geometry
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        strides,
        [(p, p) for p in padding],
        rhs_dilation=dilation,
        dimension_numbers=DIMENSIONS,
        feature_group_count=groups,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dilated(x, kernel, geometry):
    return conv_plain(x, kernel, geometry)


def _dilated_forward(x, kernel, geometry):
    return conv_plain(x, kernel, geometry), (x, kernel)


def _dilated_backward(geometry, residuals, g):
    x, kernel = residuals

    def plain(x, kernel, g):
        return _transpose(lambda k: conv_plain(x, k, geometry), kernel, g)

    def native(x, kernel, g):
        if max(geometry[2]) <= SPACE_TO_BATCH_RATE:
            return kernel_gradient_by_phases(x, kernel, g, geometry)
        return kernel_gradient_by_taps(x, kernel, g, geometry)

    dx = _transpose(lambda x: conv_plain(x, kernel, geometry), x, g)
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
    x = _phases(x, rate, outer, sizes)  # [dh * dw * b, ~h / dh, ~w / dw, c]
    out = [n + 2 * i - (k - 1) for n, i, k in zip(sizes, inner, (kh, kw), strict=True)]
    g = _phases(g, rate, (0, 0), out)
    undilated = ((1, 1), inner, (1, 1))
    return _transpose(lambda k: conv_plain(x, k, undilated), kernel, g)


def _phases(x: jax.Array, rate: Pair, before: Pair, sizes) -> jax.Array:
    """[b, h, w, c] -> [dh * dw * b, *sizes, c]: zeros around, then one image for each offset."""
    b, h, w, c = x.shape
    (dh, dw), (nh, nw) = rate, sizes
    rows = (before[0], nh * dh - h - before[0])
    cols = (before[1], nw * dw - w - before[1])
    x = jnp.pad(x, ((0, 0), rows, cols, (0, 0)))
    x = x.reshape(b, nh, dh, nw, dw, c).transpose(2, 4, 0, 1, 3, 5)
    return x.reshape(dh * dw * b, nh, nw, c)


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(x, kernel, geometry):
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(depthwise_by_taps, geometry=geometry),
        default=functools.partial(conv_plain, geometry=geometry, groups=x.shape[-1]),
    )


def _depthwise_forward(x, kernel, geometry):
    return _depthwise(x, kernel, geometry), (x, kernel)


def _depthwise_backward(geometry, residuals, g):
    x, kernel = residuals
    channels, dilated = x.shape[-1], geometry[2] != (1, 1)

    def plain(x, kernel, g):
        dx = _transpose(lambda x: conv_plain(x, kernel, geometry, channels), x, g)
        dk = _transpose(lambda k: conv_plain(x, k, geometry, channels), kernel, g)
        return dx, dk

    def cuda(x, kernel, g):
        dx = _transpose(lambda x: conv_plain(x, kernel, geometry, channels), x, g)
        return dx, depthwise_kernel_gradient(x, kernel, g, geometry)

    def cpu(x, kernel, g):
        dx = depthwise_input_gradient(x, kernel, g, geometry)
        return dx, depthwise_kernel_gradient(x, kernel, g, geometry)

    cuda = cuda if dilated else plain
    return jax.lax.platform_dependent(x, kernel, g, cpu=cpu, cuda=cuda, default=plain)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def depthwise_by_taps(x, kernel, geometry) -> jax.Array:
    """Depthwise convolution as a sum of shifted images, each scaled per channel."""
    taps = kernel.reshape(-1, kernel.shape[-1]).astype(_accumulator(x.dtype))  # [kh * kw, c]
    images = _taps(x, kernel, geometry)
    return sum(image * tap for image, tap in zip(images, taps, strict=True)).astype(x.dtype)


def depthwise_kernel_gradient(x, kernel, g, geometry) -> jax.Array:
    """The gradient of a depthwise convolution's kernel: products summed over pixels, per tap."""
    g = g.astype(_accumulator(x.dtype))
    taps = [(image * g).sum((0, 1, 2)) for image in _taps(x, kernel, geometry)]
    return jnp.stack(taps).reshape(kernel.shape).astype(kernel.dtype)


def depthwise_input_gradient(x, kernel, g, geometry) -> jax.Array:
    """The gradient of a depthwise convolution's input."""
    strides, padding, dilation = geometry
    reach = [d * (k - 1) for d, k in zip(dilation, kernel.shape[:2], strict=True)]
    if strides != (1, 1) or any(p > r for p, r in zip(padding, reach, strict=True)):
        return _transpose(lambda x: depthwise_by_taps(x, kernel, geometry), x, g)
    # Without stride it is the convolution of the output's gradient with the mirrored kernel.
    padding = tuple(r - p for r, p in zip(reach, padding, strict=True))
    return depthwise_by_taps(g, kernel[::-1, ::-1], (strides, padding, dilation))


def _taps(x: jax.Array, kernel: jax.Array, geometry):
    """The part of the padded image that each tap of the kernel sees, row by row: [b, h', w', c]."""
    strides, (ph, pw), dilation = geometry
    x = jnp.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)))
    spans = []
    for n, k, s, d in zip(x.shape[1:3], kernel.shape[:2], strides, dilation, strict=True):
        out = (n - d * (k - 1) - 1) // s + 1
        spans.append([slice(i * d, i * d + s * (out - 1) + 1, s) for i in range(k)])
    return [x[:, rows, cols] for rows in spans[0] for cols in spans[1]]


def _transpose(linear: Callable, like: jax.Array, g: jax.Array) -> jax.Array:
    """The gradient of a linear function's argument, shaped like `like`, from its result's."""
    return jax.linear_transpose(linear, like)(g)[0]


def _accumulator(dtype) -> jnp.dtype:
    return jnp.promote_types(dtype, jnp.float32)


def _pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else tuple(value)
