"""The depthwise convolution: one filter, or several, for each channel.

XLA:CPU computes it at the price of a dense convolution. A sum of shifted products is two orders of
magnitude faster there, and gives GPUs a native gradient where it is dilated.
"""

import functools

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim

from jaxseg.ops.conv_plain import conv_plain, transpose


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise(x: jax.Array, kernel: jax.Array, geometry) -> jax.Array:
    """[b, h, w, c] with [kh, kw, 1, c] -> [b, h', w', c]; `geometry` as in `conv_plain`."""
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(by_taps, geometry=geometry),
        default=functools.partial(conv_plain, geometry=geometry, groups=x.shape[-1]),
    )


def _forward(x, kernel, geometry):
    return depthwise(x, kernel, geometry), (x, kernel)


def _backward(geometry, residuals, g):
    x, kernel = residuals
    channels, dilated = x.shape[-1], geometry[2] != (1, 1)

    def plain(x, kernel, g):
        dx = transpose(lambda x: conv_plain(x, kernel, geometry, channels), x, g)
        dk = transpose(lambda k: conv_plain(x, k, geometry, channels), kernel, g)
        return dx, dk

    def cuda(x, kernel, g):
        dx = transpose(lambda x: conv_plain(x, kernel, geometry, channels), x, g)
        return dx, kernel_gradient(x, kernel, g, geometry)

    def cpu(x, kernel, g):
        # Or the compiler keeps what each tap saw on the way forward: the image, once per tap.
        x = jax.lax.optimization_barrier(x)
        dx = input_gradient(x, kernel, g, geometry)
        return dx, kernel_gradient(x, kernel, g, geometry)

    cuda = cuda if dilated else plain
    return jax.lax.platform_dependent(x, kernel, g, cpu=cpu, cuda=cuda, default=plain)


depthwise.defvjp(_forward, _backward)


def by_taps(x, kernel, geometry) -> jax.Array:
    """Depthwise convolution as a sum of shifted images, each scaled per channel."""
    taps = kernel.reshape(-1, kernel.shape[-1]).astype(_accumulator(x.dtype))  # [kh * kw, c]
    images = _taps(x, kernel, geometry)
    pairs = [pair for pair in zip(images, taps, strict=True) if pair[0] is not None]
    return sum(image * tap for image, tap in pairs).astype(x.dtype)


def kernel_gradient(x, kernel, g, geometry) -> jax.Array:
    """The gradient of a depthwise convolution's kernel: products summed over pixels, per tap."""
    g = g.astype(_accumulator(x.dtype))
    unseen = jnp.zeros(g.shape[-1], g.dtype)
    taps = [
        unseen if image is None else (image * g).sum((0, 1, 2))
        for image in _taps(x, kernel, geometry)
    ]
    return jnp.stack(taps).reshape(kernel.shape).astype(kernel.dtype)


def input_gradient(x, kernel, g, geometry) -> jax.Array:
    """The gradient of a depthwise convolution's input."""
    strides, padding, dilation = geometry
    reach = [d * (k - 1) for d, k in zip(dilation, kernel.shape[:2], strict=True)]
    if strides != (1, 1) or any(p > r for p, r in zip(padding, reach, strict=True)):
        return transpose(lambda x: by_taps(x, kernel, geometry), x, g)
    # Without stride it is the convolution of the output's gradient with the mirrored kernel.
    padding = tuple(r - p for r, p in zip(reach, padding, strict=True))
    return by_taps(g, kernel[::-1, ::-1], (strides, padding, dilation))


def _taps(x, kernel, geometry) -> list[jax.Array | None]:
    """The image that each tap of the kernel sees, row by row: [b, h', w', c]; None for no image.

    It is padded no further than a tap that meets the image reaches: of large rates few do.
    """
    spans, outside = [], [(0, 0)]
    for n, k, s, p, d in zip(x.shape[1:3], kernel.shape[:2], *geometry, strict=True):
        reach = s * ((n + 2 * p - d * (k - 1) - 1) // s) + 1
        starts = meet = [i * d - p for i in range(k)]
        before = after = p
        if not is_symbolic_dim(n):
            meet = [start for start in starts if -reach < start < n] or starts[:1]
            before, after = max(0, -meet[0]), max(0, meet[-1] + reach - n)
        spans.append(
            [slice(i + before, i + before + reach, s) if i in meet else None for i in starts]
        )
        outside.append((before, after))
    x = jnp.pad(x, (*outside, (0, 0)))
    taps = [(rows, cols) for rows in spans[0] for cols in spans[1]]
    return [None if None in tap else x[:, tap[0], tap[1]] for tap in taps]


def _accumulator(dtype) -> jnp.dtype:
    return jnp.promote_types(dtype, jnp.float32)
