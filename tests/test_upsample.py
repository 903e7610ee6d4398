"""The ways to make a map larger, in value and gradient, against definitions in NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d

from jaxseg.models import upsample
from jaxseg.ops import conv, pool


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(got, want, tolerance=1e-5):
    want = np.asarray(want)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * np.abs(want).max())


def stamp(x, kernel, strides, padding, extra):
    """Transposed convolution by its definition: each pixel adds its multiple of the kernel."""
    (b, h, w, _), (kh, kw, features, _) = x.shape, kernel.shape
    (sh, sw), (ph, pw), (eh, ew) = (np.broadcast_to(v, 2) for v in (strides, padding, extra))
    out = np.zeros((b, sh * (h - 1) + kh + eh, sw * (w - 1) + kw + ew, features))
    for i, j in np.ndindex(h, w):
        part = np.einsum("bc,yxfc->byxf", x[:, i, j].astype(np.float64), kernel)
        out[:, sh * i : sh * i + kh, sw * j : sw * j + kw] += part
    return out[:, ph : out.shape[1] - ph, pw : out.shape[2] - pw]


TRANSPOSED = [
    # kernel, strides, padding, output padding
    ((2, 2), 2, 0, 0),
    ((4, 4), 2, 1, 0),
    ((3, 3), 2, 1, 1),
    ((3, 3), 1, 1, 0),
    ((1, 1), 2, 0, 1),  # gaps between the kernels
    ((5, 3), (2, 3), (2, 0), (1, 2)),
    ((16, 16), 8, 4, 0),
    ((4, 4), 2, 3, 1),  # crops more than the kernels overlap
]


@pytest.mark.parametrize(("size", "strides", "padding", "extra"), TRANSPOSED)
def test_conv_transpose2d_and_its_gradients(size, strides, padding, extra):
    x, kernel = draw(2, 4, 5, 3), draw(*size, 2, 3, seed=1)
    geometry = (strides, padding, extra)
    want = stamp(x, kernel, *geometry)
    g = draw(*want.shape, seed=2)

    @jax.jit
    def run(x, kernel):
        y, vjp = jax.vjp(lambda x, k: conv.conv_transpose2d(x, k, *geometry), x, kernel)
        return y, *vjp(jnp.asarray(g))

    y, dx, dk = run(x, kernel)
    close(y, want)
    # Its gradient is the convolution that it transposes: <g, T x> = <C g, x>.
    ahead = np.broadcast_to(padding, 2)
    padded = np.pad(g.astype(np.float64), ((0, 0), *((p, p) for p in ahead), (0, 0)))
    for n, c in np.ndindex(2, 3):
        plane = sum(correlate2d(padded[n, ..., f], kernel[..., f, c], "valid") for f in range(2))
        (sh, sw), (h, w) = np.broadcast_to(strides, 2), x.shape[1:3]
        close(dx[n, ..., c], plane[::sh, ::sw][:h, :w])
    # Linear in the kernel: along any direction the inner products agree.
    for seed in range(3, 6):
        direction = draw(*kernel.shape, seed=seed)
        np.testing.assert_allclose(
            (dk * direction).sum(),
            (g * stamp(x, direction, *geometry)).sum(),
            rtol=1e-4,
            atol=1e-3,
        )


@pytest.mark.parametrize(("size", "strides", "padding", "extra"), TRANSPOSED)
def test_the_form_of_accelerators(size, strides, padding, extra):
    """`conv_transpose2d` takes it on GPUs and TPUs; here it is run on a CPU."""
    x, kernel = draw(2, 4, 5, 3), draw(*size, 2, 3, seed=1)
    want = stamp(x, kernel, strides, padding, extra)
    g = draw(*want.shape, seed=2)
    pairs = [tuple(int(n) for n in np.broadcast_to(v, 2)) for v in (strides, padding, extra)]
    geometry = (*pairs[:2], (1, 1))

    @jax.jit
    def run(x, kernel, g):
        y = conv.transposed_natively(x, kernel, geometry, pairs[2])
        return y, *conv.transposed_gradients(x, kernel, g, geometry)

    y, dx, dk = run(x, kernel, g)
    close(y, want)
    # Linear in either argument: a gradient is the adjoint, <gradient, v> = <g, f(v)> for every v.
    for seed in range(3, 6):
        v, w = draw(*x.shape, seed=seed), draw(*kernel.shape, seed=seed)
        for got, expected in (
            (np.vdot(dx, v), (g * stamp(v, kernel, strides, padding, extra)).sum()),
            (np.vdot(dk, w), (g * stamp(x, w, strides, padding, extra)).sum()),
        ):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-3)


def test_conv_transpose2d_multiplies_no_zeros():
    """Where the stride divides the kernel, it costs what the convolution that it transposes costs:
    h w kh kw c features multiplications, with no row between or around the pixels."""
    x, kernel = jnp.zeros((1, 32, 32, 8)), jnp.zeros((2, 2, 4, 8))
    text = jax.jit(lambda x, k: conv.conv_transpose2d(x, k, 2)).lower(x, kernel).as_text()
    products = [line for line in text.splitlines() if "convolution" in line or "dot_gen" in line]
    assert len(products) == 1 and "tensor<1x32x32x16xf32>" in products[0]


def test_conv_transpose2d_keeps_half_precision():
    x, kernel = draw(1, 4, 4, 3), draw(4, 4, 2, 3, seed=1)
    got = conv.conv_transpose2d(jnp.bfloat16(x), jnp.bfloat16(kernel), 2, 1)
    assert got.dtype == jnp.bfloat16
    close(np.float32(got), stamp(x, kernel, 2, 1, 0), 2e-2)


@pytest.mark.parametrize("stride", [2, 3, 4, 8])
def test_bilinear_kernels_interpolate_exactly(stride):
    """A plane stays the plane: its value at each new pixel's position, away from the border."""
    k = 2 * stride - stride % 2
    kernel = upsample.bilinear_init(jax.random.key(0), (k, k, 3, 3), jnp.float32)
    rows, cols = np.mgrid[:6, :5]
    slopes = [(1.0, 0.0), (0.5, -2.0), (0.0, 0.0)]
    x = np.stack([a * rows + b * cols + 1 for a, b in slopes], -1)[None]
    got = conv.conv_transpose2d(jnp.float32(x), kernel, stride, stride // 2)
    at = [(np.arange(n) - (stride - 1) / 2) / stride for n in got.shape[1:3]]
    inner = np.ix_(*((p >= 0) & (p <= n - 1) for p, n in zip(at, (6, 5), strict=True)))
    for c, (a, b) in enumerate(slopes):
        want = a * at[0][:, None] + b * at[1] + 1
        close(got[0, ..., c][inner], want[inner])
        assert np.abs(got[0, 0, :, 2] - 1).max() > 0.1  # the border fades to zero


def test_bilinear_kernel_needs_equal_channels():
    with pytest.raises(ValueError, match="3 channels"):
        upsample.bilinear_init(None, (4, 4, 2, 3))


def pooled(x, window, strides, padding, ceil_mode):
    """PyTorch's rule: windows begin at -padding, and the last one begins in the image or before."""
    b, h, w, c = x.shape
    begins = []
    for n in (h, w):
        starts = np.arange(-padding, n, strides)
        fits = starts + window <= n + padding
        if ceil_mode:
            # A window that sticks out counts where the padded image does not end at the last one's.
            whole = fits.sum()
            ends = (whole - 1) * strides + window == n + 2 * padding
            fits[whole : whole + 1] = not ends
        begins.append(starts[fits])
    out = np.zeros((b, len(begins[0]), len(begins[1]), c))
    for i, j in np.ndindex(out.shape[1:3]):
        top, left = begins[0][i], begins[1][j]
        rows, cols = slice(max(top, 0), top + window), slice(max(left, 0), left + window)
        out[:, i, j] = x[:, rows, cols].max((1, 2))
    return out


@pytest.mark.parametrize("geometry", [(3, 2, 1), (2, 2, 0), (3, 2, 0), (3, 1, 1), (2, 3, 1)])
def test_max_pool_sizes(geometry):
    for size in [(9, 12), (8, 7), (4, 5)]:
        x = draw(1, *size, 2)
        for ceil_mode in (False, True):
            got = pool.max_pool(jnp.asarray(x), *geometry, ceil_mode)
            np.testing.assert_array_equal(got, pooled(x, *geometry, ceil_mode))


@pytest.mark.parametrize(
    ("size", "geometry"), [((8, 6), (2, 2)), ((7, 9), (2, 2)), ((8, 6), (3, 2))]
)
def test_unpool_inverts_pooling(size, geometry):
    x = jnp.asarray(draw(2, *size, 3))
    y, places = pool.max_pool_indices(x, *geometry)
    assert places.dtype == jnp.uint8
    np.testing.assert_array_equal(y, pool.max_pool(x, *geometry, 0, True))
    if geometry[0] == geometry[1]:
        back = pool.unpool(y, places, size, *geometry)
        kept = np.asarray(back) != 0
        np.testing.assert_array_equal(back, np.where(kept, x, 0))  # where it was, what it was
        assert kept.sum() == y.size
        again, same = pool.max_pool_indices(jnp.where(kept, back, -jnp.inf), *geometry)
        np.testing.assert_array_equal(again, y)
        np.testing.assert_array_equal(same, places)


@pytest.mark.parametrize("size", [(8, 6), (7, 9)])
def test_unpool_and_pooling_are_adjoint(size):
    """The gradient of each is the other, with the same places: <pool x, y> = <x, unpool y>."""
    x = jnp.asarray(draw(2, *size, 3))
    y, vjp = jax.vjp(lambda x: pool.max_pool_indices(x)[0], x)
    places = pool.max_pool_indices(x)[1]
    g = jnp.asarray(draw(*y.shape, seed=1))
    want = np.zeros(x.shape)
    for n, i, j, c in np.ndindex(y.shape):
        row, col = divmod(int(places[n, i, j, c]), 2)
        want[n, 2 * i + row, 2 * j + col, c] = g[n, i, j, c]
    np.testing.assert_array_equal(vjp(g)[0], want)
    np.testing.assert_array_equal(pool.unpool(g, places, size), want)
    fixed = np.zeros(x.shape)
    fixed[:, ::2, ::2] = g
    np.testing.assert_array_equal(pool.unpool(g, None, size), fixed)
    other = jnp.asarray(draw(*x.shape, seed=2))
    for indices, image in ((places, want), (None, fixed)):
        _, vjp = jax.vjp(lambda g, indices=indices: pool.unpool(g, indices, size), g)
        np.testing.assert_allclose((vjp(other)[0] * g).sum(), (other * image).sum(), rtol=1e-5)


def test_the_first_of_equals_is_pooled():
    _, places = pool.max_pool_indices(jnp.zeros((1, 3, 4, 1)))
    assert not places.any()


def test_no_form_scatters_or_gathers():
    def step(x):
        y, places = pool.max_pool_indices(x)
        return pool.unpool(jnp.sin(y), places, x.shape[1:3]).sum()

    text = jax.jit(jax.grad(step)).lower(jnp.zeros((1, 7, 8, 2))).as_text()
    assert "scatter" not in text and "gather" not in text


def test_unpool_refuses_a_size_that_was_not_pooled():
    with pytest.raises(ValueError, match=r"\(5, 6\).*\(3, 3\)"):
        pool.unpool(jnp.zeros((1, 2, 3, 1)), None, (5, 6))


@pytest.mark.parametrize("method", upsample.METHODS)
@pytest.mark.parametrize("size", [(8, 6), (7, 5)])
def test_every_method_reaches_the_size(method, size):
    features = 5 if method == "transposed" else None
    module = upsample.Upsample(method, features)
    x, places = draw(2, 4, 3, 2), jnp.zeros((2, 4, 3, 2), jnp.uint8)
    y, variables = module.init_with_output(jax.random.key(0), x, size, places)
    assert y.shape == (2, *size, features or 2)
    if method == "transposed":
        kernel = variables["params"]["conv"]["kernel"]
        want = stamp(x, np.asarray(kernel), 2, 0, 0)[:, : size[0], : size[1]]
        assert kernel.shape == (2, 2, 5, 2)
        close(y, want)
    else:
        assert not jax.tree.leaves(variables)
        # Pixels at even places: the old ones, but for interpolation between centres.
        if method != "bilinear":
            np.testing.assert_array_equal(np.asarray(y)[:, ::2, ::2], x)


@pytest.mark.parametrize(
    ("method", "size", "message"),
    [
        ("unpool", (8, 6), "indices=None"),
        ("cubic", (8, 6), "cubic"),
        ("transposed", (9, 6), r"\(9, 6\)"),
        ("unpool_fixed", (9, 6), r"\(9, 6\)"),
    ],
)
def test_upsample_refuses(method, size, message):
    with pytest.raises(ValueError, match=message):
        upsample.Upsample(method).init(jax.random.key(0), jnp.zeros((1, 4, 3, 2)), size)


def test_doublings_lead_from_small_to_large():
    assert upsample.doublings((3, 4), (9, 13)) == [(5, 7), (9, 13)]
    assert upsample.doublings((3, 4), (3, 4)) == []
    for large in ((9, 17), (2, 2)):
        with pytest.raises(ValueError, match="doublings"):
            upsample.doublings((3, 4), large)
