"""XLA's own convolution, which the forms in `jaxseg.ops.conv` are made of."""

from collections.abc import Callable

import jax

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


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


def transpose(linear: Callable, like: jax.Array, g: jax.Array) -> jax.Array:
    """The gradient of a linear function's argument, shaped like `like`, from its result's."""
    return jax.linear_transpose(linear, like)(g)[0]
