"""Convolution, resizing and pooling, in value and gradient, against definitions in NumPy/SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d

from jaxseg.ops import conv, pool, resize


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(got, want, tolerance=1e-5):
    want = np.asarray(want)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * np.abs(want).max())


def conv_oracle(x, kernel, strides, padding, dilation, groups):
    """Float64, one channel pair at a time, the kernel spread out with zeros."""
    (sh, sw), (ph, pw), (dh, dw) = (np.broadcast_to(v, 2) for v in (strides, padding, dilation))
    kh, kw, inputs, features = kernel.shape
    spread = np.zeros((dh * (kh - 1) + 1, dw * (kw - 1) + 1, inputs, features))
    spread[::dh, ::dw] = kernel
    x = np.pad(x.astype(np.float64), ((0, 0), (ph, ph), (pw, pw), (0, 0)))
    out = []
    for f in range(features):
        first = f // (features // groups) * inputs
        planes = [
            sum(correlate2d(im[..., first + i], spread[..., i, f], "valid") for i in range(inputs))
            for im in x
        ]
        out.append(np.stack(planes)[:, ::sh, ::sw])
    return np.stack(out, -1)


def linear_gradient(function, shape, g):
    """The gradient of <g, function(v)> for a linear function, one unit vector at a time."""
    basis = np.eye(int(np.prod(shape))).reshape(-1, *shape)
    return np.array([(g * function(unit)).sum() for unit in basis]).reshape(shape)


DEPTHWISE = [
    # kernel, strides, padding, dilation
    ((3, 3, 1, 4), 1, 1, 1),
    ((3, 3, 1, 4), 1, 2, 2),
    ((3, 3, 1, 4), 2, 1, 1),
    ((3, 3, 1, 4), 2, 3, 3),
    ((3, 3, 1, 4), 1, 12, 12),
    ((3, 3, 1, 4), 1, 3, 1),
    ((3, 3, 1, 12), 2, 1, 1),  # three filters of each channel
    ((3, 3, 1, 4), 1, 9, 9),  # rows see the middle tap alone, columns all three
    ((2, 2, 1, 4), 1, 10, 20),  # no tap meets the image
]
DILATED = [
    ((3, 3, 4, 2), 1, 2, 2),
    ((3, 3, 4, 2), 1, 4, 4),
    ((3, 3, 4, 2), 1, 12, 12),  # only the middle tap meets the image
    ((3, 3, 4, 2), 1, 1, 3),
    ((3, 3, 4, 2), 1, 0, 2),
    ((3, 1, 4, 2), (1, 1), (2, 0), (2, 1)),
    ((2, 3, 4, 2), 1, (3, 2), (3, 2)),
]
PLAIN = [
    ((3, 3, 4, 2), 1, 1, 1, 1),
    ((3, 3, 4, 2), 2, 1, 1, 1),
    ((1, 1, 4, 3), 2, 0, 1, 1),
    ((1, 1, 4, 6), (2, 1), 0, 1, 1),
    ((1, 1, 4, 3), 1, 0, 1, 1),
    ((7, 7, 4, 1), 2, 3, 1, 1),
    ((3, 3, 4, 2), 2, 2, 2, 1),
    ((3, 3, 2, 6), 1, 1, 1, 2),
]
CASES = PLAIN + [(*case, 1) for case in DILATED] + [(*case, 4) for case in DEPTHWISE]


@pytest.mark.parametrize(("shape", "strides", "padding", "dilation", "groups"), CASES)
def test_conv2d_and_its_gradients(shape, strides, padding, dilation, groups):
    x, kernel = draw(1, 7, 10, 4), draw(*shape, seed=1)
    geometry = (strides, padding, dilation, groups)
    want = conv_oracle(x, kernel, *geometry)
    g = draw(*want.shape, seed=2)

    @jax.jit
    def run(x, kernel):
        y, vjp = jax.vjp(lambda x, k: conv.conv2d(x, k, *geometry), x, kernel)
        return y, *vjp(jnp.asarray(g))

    y, dx, dk = run(x, kernel)
    close(y, want)
    close(dx, linear_gradient(lambda v: conv_oracle(v, kernel, *geometry), x.shape, g))
    close(dk, linear_gradient(lambda v: conv_oracle(x, v, *geometry), kernel.shape, g))


@pytest.mark.parametrize("rewriting", ["phases", "taps"])
@pytest.mark.parametrize(("shape", "strides", "padding", "dilation"), DILATED)
def test_kernel_gradients_for_gpus(rewriting, shape, strides, padding, dilation):
    x, kernel = draw(2, 7, 10, 4), draw(*shape, seed=1)
    geometry = tuple(tuple(np.broadcast_to(v, 2).tolist()) for v in (strides, padding, dilation))
    g = draw(*conv_oracle(x, kernel, *geometry, 1).shape, seed=2)
    gradient = getattr(conv, f"kernel_gradient_by_{rewriting}")
    got = jax.jit(lambda x, k, g: gradient(x, k, g, geometry))(x, kernel, g)
    close(got, linear_gradient(lambda v: conv_oracle(x, v, *geometry, 1), kernel.shape, g))


def test_the_platform_decides_the_form():
    """Each platform gets its own program; nothing is left to decide when it runs."""

    def lowered(groups, platform):
        x, kernel = jnp.zeros((1, 16, 16, 8)), jnp.zeros((3, 3, 8 // groups, 8))
        step = jax.jit(jax.grad(lambda k: (conv.conv2d(x, k, 1, 2, 2, groups) ** 2).sum()))
        return step.trace(kernel).lower(lowering_platforms=(platform,))

    # A strided kernel gradient is what XLA:GPU fails to match to a native one.
    assert "stride = [2, 2]" in lowered(1, "cpu").as_text()
    assert "stride = [2, 2]" not in lowered(1, "cuda").as_text()
    assert "stride = [2, 2]" not in lowered(8, "cuda").as_text()
    assert "stride = [2, 2]" in lowered(8, "tpu").as_text()
    assert "convolution" not in lowered(8, "cpu").as_text()
    for groups in (1, 8):
        assert "conditional" not in lowered(groups, "cpu").compile().as_text()


def test_pointwise_is_a_matrix_product_on_cpus():
    """Its weight gradient as a convolution takes several times as long there."""
    x, kernel = jnp.zeros((2, 8, 8, 6)), jnp.zeros((1, 1, 6, 4))
    step = jax.jit(jax.value_and_grad(lambda k: (conv.conv2d(x, k) ** 2).sum()))
    for platform, convolutions in (("cpu", 0), ("cuda", 2), ("tpu", 2)):
        text = step.trace(kernel).lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.convolution") == convolutions
    assert "conditional" not in step.lower(kernel).compile().as_text()


def test_conv2d_keeps_half_precision():
    x, kernel = draw(1, 6, 6, 4), draw(3, 3, 1, 4, seed=1)
    want = conv_oracle(x, kernel, 1, 2, 2, 4)
    got = conv.conv2d(jnp.bfloat16(x), jnp.bfloat16(kernel), 1, 2, 2, 4)
    assert got.dtype == jnp.bfloat16
    close(np.float32(got), want, 2e-2)
    pointwise = draw(1, 1, 4, 3, seed=2)
    got = conv.conv2d(jnp.bfloat16(x), jnp.bfloat16(pointwise))
    assert got.dtype == jnp.bfloat16
    close(np.float32(got), conv_oracle(x, pointwise, 1, 0, 1, 1), 2e-2)


def resize_oracle(x, size, method, align_corners):
    """Pixel by pixel, as PyTorch documents `F.interpolate`."""
    (h, w), (rows, cols) = x.shape[1:3], size
    out = np.zeros((x.shape[0], rows, cols, x.shape[3]))

    def source(i, n, m):
        if method == "nearest":
            return float(min(n - 1, np.floor(np.float32(i) * (np.float32(n) / np.float32(m)))))
        at = i * (n - 1) / (m - 1) if align_corners and m > 1 else (i + 0.5) * n / m - 0.5
        return 0.0 if align_corners and m == 1 else min(max(at, 0.0), n - 1.0)

    for i in range(rows):
        for j in range(cols):
            y, z = source(i, h, rows), source(j, w, cols)
            for a in {int(y), min(int(y) + 1, h - 1)}:
                for b in {int(z), min(int(z) + 1, w - 1)}:
                    out[:, i, j] += (1 - abs(y - a)) * (1 - abs(z - b)) * x[:, a, b]
    return out


BILINEAR = [[0, 0.625, 1.375, 2], [1.5, 2.125, 2.875, 3.5], [3, 3.625, 4.375, 5]]
ALIGNED = [[0, 2 / 3, 4 / 3, 2], [1.5, 13 / 6, 17 / 6, 3.5], [3, 11 / 3, 13 / 3, 5]]
NEAREST = [[0, 0, 1, 2], [0, 0, 1, 2], [3, 3, 4, 5]]
SIZES = [((5, 7), (10, 28)), ((5, 7), (9, 13)), ((9, 12), (4, 5)), ((1, 1), (3, 4))]
SIZES += [((6, 5), (1, 17)), ((3, 8), (3, 5)), ((2, 2), (40, 3))]
METHODS = [("bilinear", False), ("bilinear", True), ("nearest", False)]


@pytest.mark.parametrize(("method", "align_corners"), METHODS)
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_resize_and_its_gradient(source, target, method, align_corners):
    x, g = draw(2, *source, 3), draw(2, *target, 3, seed=1)

    @jax.jit
    def run(x):
        y, vjp = jax.vjp(lambda x: resize.resize(x, target, method, align_corners), x)
        on_tpu = resize.by_matrices(x, target, method, align_corners)
        on_gpu = resize.transposed_by_taps(jnp.asarray(g), source, method, align_corners)
        return y, vjp(jnp.asarray(g))[0], on_tpu, on_gpu

    y, dx, on_tpu, dx_on_gpu = run(x)
    want = resize_oracle(x, target, method, align_corners)
    close(y, want)
    close(on_tpu, want)
    single = (1, *source, 1)
    for c in range(3):  # samples and channels are independent: one plane at a time
        plane = linear_gradient(
            lambda v: resize_oracle(v, target, method, align_corners), single, g[:1, ..., c : c + 1]
        )
        close(dx[:1, ..., c : c + 1], plane)
        close(dx_on_gpu[:1, ..., c : c + 1], plane)


def test_resize_reproduces_pytorch():
    """Values of torch 2.13's F.interpolate for torch.arange(6.).view(1, 1, 2, 3) at 3x4."""
    x = np.arange(6, dtype=np.float32).reshape(1, 2, 3, 1)
    want = {
        ("bilinear", False): BILINEAR,
        ("bilinear", True): ALIGNED,
        ("nearest", False): NEAREST,
    }
    for (method, align_corners), values in want.items():
        close(resize.resize(x, (3, 4), method, align_corners)[0, ..., 0], values, 1e-6)


def test_resize_keeps_the_dtype():
    labels = np.array([[[[0], [255]], [[7], [3]]]], np.uint8)
    up = resize.resize(jnp.asarray(labels), (4, 4), "nearest")
    assert up.dtype == jnp.uint8
    np.testing.assert_array_equal(up, labels.repeat(2, 1).repeat(2, 2))
    x = draw(1, 4, 4, 2)
    half = resize.resize(jnp.bfloat16(x), (8, 8))
    assert half.dtype == jnp.bfloat16
    close(np.float32(half), resize_oracle(x, (8, 8), "bilinear", False), 1e-2)


@pytest.mark.parametrize(
    ("dtype", "method", "align_corners"),
    [("float32", "cubic", False), ("float32", "nearest", True), ("int32", "bilinear", False)],
)
def test_resize_refuses(dtype, method, align_corners):
    with pytest.raises(ValueError, match="resize"):
        resize.resize(jnp.zeros((1, 2, 2, 1), dtype), (3, 3), method, align_corners)


def max_pool_oracle(x, g, window, strides, padding):
    """The maxima, and the gradient sent to the first maximum of each window in row order."""
    b, h, w, c = x.shape
    out, dx = np.zeros(g.shape), np.zeros(x.shape)
    for n, i, j, ch in np.ndindex(*g.shape):
        best = (-np.inf, 0, 0)
        for row in range(i * strides - padding, i * strides - padding + window):
            for col in range(j * strides - padding, j * strides - padding + window):
                if 0 <= row < h and 0 <= col < w and x[n, row, col, ch] > best[0]:
                    best = (x[n, row, col, ch], row, col)
        out[n, i, j, ch] = best[0]
        dx[n, best[1], best[2], ch] += g[n, i, j, ch]
    return out, dx


@pytest.mark.parametrize("geometry", [(3, 2, 1), (2, 2, 0), (3, 1, 1), (3, 3, 0)])
@pytest.mark.parametrize("size", [(9, 12), (8, 7)])
def test_max_pool_and_its_gradient(size, geometry):
    # Few distinct values: nearly every window has a tie; all negative, so padding must not win.
    x = np.random.default_rng(0).integers(-3, 0, (2, *size, 3)).astype(np.float32)
    window, strides, padding = geometry
    out = [(n + 2 * padding - window) // strides + 1 for n in size]
    g = draw(2, *out, 3)

    @jax.jit
    def run(x):
        y, vjp = jax.vjp(lambda x: pool.max_pool(x, *geometry), x)
        return y, vjp(jnp.asarray(g))[0]

    y, dx = run(x)
    want, gradient = max_pool_oracle(x, g, *geometry)
    np.testing.assert_array_equal(y, want)
    close(dx, gradient)


def test_avg_pool_counts_only_pixels():
    x = draw(1, 5, 8, 2)
    got = pool.avg_pool(x, 2)
    assert got.shape == (1, 3, 4, 2)
    for i, j in np.ndindex(3, 4):
        close(got[0, i, j], x[0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((0, 1)))
    assert pool.avg_pool(x, 1) is x


@pytest.mark.parametrize("geometry", [(3, 2, 1), (5, 2, 2), (3, 1, 1), (4, 3, 0)])
def test_avg_pool_padded_counts_the_zeros_around(geometry):
    window, strides, padding = geometry
    x = draw(2, 9, 12, 3)
    # A depthwise convolution whose taps are all one.
    taps = np.full((window, window, 1, 3), 1 / window**2)
    got = jax.jit(lambda x: pool.avg_pool_padded(x, *geometry))(x)
    close(got, conv_oracle(x, taps, strides, padding, 1, 3))


def test_max_pool_passes_on_what_is_not_a_number():
    x = np.zeros((1, 4, 4, 1), np.float32)
    x[0, 3, 3] = np.nan
    y, _ = jax.vjp(pool.max_pool, jnp.asarray(x))
    for got in (y, pool.max_pool(jnp.asarray(x))):
        np.testing.assert_array_equal(np.isnan(got[0, ..., 0]), [[False, False], [False, True]])
