"""The 1x1 convolution: a matrix product for each pixel, and on CPUs compiled as one.

XLA:CPU hands convolutions to a library (YNNPACK) that takes 3 to 8 times as long for the weight
gradient of a 1x1 as a matrix product does, and a little longer in the other directions.
"""

import functools

import jax
import jax.numpy as jnp

from jaxseg.ops.conv_plain import conv_plain, transpose

Pair = tuple[int, int]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def pointwise(x: jax.Array, kernel: jax.Array, strides: Pair) -> jax.Array:
    """[b, h, w, c] with [1, 1, c, features] -> [b, ceil(h / s), ceil(w / s), features]."""
    if _is_thin(x):
        return by_product(x, kernel, strides)
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(by_product, strides=strides),
        default=functools.partial(_plain, strides=strides),
    )


def _plain(x, kernel, strides):
    return conv_plain(x, kernel, (strides, (0, 0), (1, 1)))


def _forward(x, kernel, strides):
    return pointwise(x, kernel, strides), (x, kernel)


def _backward(strides, residuals, g):
    def plain(x, kernel, g):
        dx = transpose(lambda x: _plain(x, kernel, strides), x, g)
        return dx, transpose(lambda k: _plain(x, k, strides), kernel, g)

    if _is_thin(residuals[0]):
        return gradients(*residuals, g, strides)
    cpu = functools.partial(gradients, strides=strides)
    return jax.lax.platform_dependent(*residuals, g, cpu=cpu, default=plain)


pointwise.defvjp(_forward, _backward)


def by_product(x: jax.Array, kernel: jax.Array, strides: Pair) -> jax.Array:
    """`pointwise` as one matrix product."""
    return _product(_seen(x, strides), kernel[0, 0], 3, 0)


def gradients(x, kernel, g, strides: Pair) -> tuple[jax.Array, jax.Array]:
    """The gradients of the two arguments of `pointwise`, from that of its result."""
    dx = transpose(lambda x: _seen(x, strides), x, _product(g, kernel[0, 0], 3, 1))
    # A product over three axes at once would copy its factors.
    x, g = (y.reshape(-1, y.shape[-1]) for y in (_seen(x, strides), g))
    if x.shape[1] <= g.shape[1]:
        dk = _product(x, g, 0, 0)
    else:
        # Up to four times as fast with the fewer channels first. The barrier keeps the compiler
        # from exchanging the factors again.
        dk = jax.lax.optimization_barrier(_product(g, x, 0, 0)).T
    return dx, dk[None, None]


def _product(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int) -> jax.Array:
    """The matrix product over one axis of each, summed in float32 at least."""
    exact = jnp.promote_types(a.dtype, jnp.float32)
    dimensions = (((axis_a,), (axis_b,)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=exact).astype(a.dtype)


def _is_thin(x: jax.Array) -> bool:
    """Whether the image is a row or a column: XLA:GPU makes it the filter of the kernel's gradient,
    which it does not recognise there."""
    return 1 in x.shape[1:3]


def _seen(x: jax.Array, strides: Pair) -> jax.Array:
    """The pixels that a 1x1 convolution of these strides looks at."""
    return jax.lax.slice(x, (0, 0, 0, 0), x.shape, (1, *strides, 1))
