"""Strided convolutions as convolutions of cells, against PyTorch's definition in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.ops import conv
from jaxseg.ops.conv_plain import conv_plain
from jaxseg.ops.space_to_depth import to_cells
from tests.test_ops import close, conv_oracle, draw

CASES = [
    # size, kernel, strides, padding
    ((10, 12), (7, 7), (2, 2), (3, 3)),
    ((9, 11), (3, 3), (2, 2), (1, 1)),
    ((9, 8), (3, 3), (2, 2), (0, 0)),
    ((11, 10), (5, 5), (3, 3), (2, 2)),
    ((9, 8), (3, 5), (2, 4), (1, 2)),
    ((7, 8), (1, 1), (2, 2), (0, 0)),
]


@pytest.mark.parametrize(("size", "kernel", "strides", "padding"), CASES)
def test_cells_give_the_strided_convolution_and_its_gradients(size, kernel, strides, padding):
    x, k = draw(2, *size, 3), draw(*kernel, 3, 4, seed=1)

    def by_cells(x, k):
        cells, unstrided = to_cells(x, k, strides, padding)
        assert cells.shape[-1] == unstrided.shape[2] == 3 * strides[0] * strides[1]
        return conv_plain(cells, unstrided, ((1, 1), (0, 0), (1, 1)))

    def oracle(x, k):
        return conv_oracle(np.asarray(x), np.asarray(k), strides, padding, 1, 1)

    expected = oracle(x, k)
    close(jax.jit(by_cells)(x, k), expected)
    g = draw(*expected.shape, seed=2)
    gradients = jax.jit(lambda x, k, g: jax.vjp(by_cells, x, k)[1](g))(x, k, g)
    # Both are linear: a gradient is the adjoint, <gradient, v> = <g, f(v)> for every v.
    for gradient, f in zip(
        gradients, (lambda v: oracle(v, k), lambda v: oracle(x, v)), strict=True
    ):
        for seed in range(3):
            v = draw(*gradient.shape, seed=seed + 3)
            expected = (g * f(v)).sum()
            scale = np.linalg.norm(gradient) * np.linalg.norm(v)
            assert abs(np.vdot(gradient, v) - expected) < 1e-5 * scale


@pytest.mark.parametrize("channels", [1, 3, 4, 5])
def test_tpus_alone_convolve_cells(channels):
    """What is lowered for a TPU, without one: the kernel of the convolution that runs there."""
    shapes = [
        jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 32, 32, channels), (7, 7, channels, 8))
    ]
    trace = jax.jit(lambda x, k: conv.conv2d(x, k, 2, 3)).trace(*shapes)
    few = f"tensor<4x4x{4 * channels}x8xf32>"
    assert (few in trace.lower(lowering_platforms=("tpu",)).as_text()) == (channels <= 4)
    for platform in ("cpu", "cuda"):
        assert few not in trace.lower(lowering_platforms=(platform,)).as_text()
