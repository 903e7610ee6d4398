"""Dense CRF: against its definition in NumPy, against itself on the lattice, against pydensecrf."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxseg.errors import UserError
from jaxseg.ops import dense_crf as module
from jaxseg.ops.dense_crf import dense_crf

C = 4
# Most tests share one size and one number of iterations, and so one compilation.
FEW = 3
NARROW = dict(bilateral_sxy=20.0, bilateral_srgb=13.0)


def scene(b=1, h=12, w=16, c=C, seed=0):
    """Noisy probabilities, an image of shaded regions, and the labels of the regions."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:h, :w]
    disc = (x - 0.7 * w) ** 2 + (y - 0.3 * h) ** 2 < (0.2 * h) ** 2
    label = ((x > 0.4 * w) + (y > 0.55 * h) * 1 + disc * 2) % c
    image, probabilities = [], []
    for _ in range(b):
        shade = rng.uniform(30, 220, (c, 3))[label] + 15 * np.sin(x / 5 + y / 9)[..., None]
        image.append(np.clip(shade + rng.normal(0, 6, (h, w, 3)), 0, 255).astype(np.uint8))
        noise = rng.dirichlet(np.full(c, 0.7), (h, w))
        probabilities.append(0.6 * noise + 0.4 * np.eye(c)[label])
    return np.float32(probabilities), np.stack(image), np.stack([label] * b)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def by_definition(p, image, iterations, widths, weights, compatibility):
    """Mean field over all pairs of pixels, one at a time, in float64: [h, w, C]."""
    h, w, c = p.shape
    place = [(x, y) for y in range(h) for x in range(w)]
    colour = image.reshape(-1, 3).astype(np.float64)
    (sx, sy), (bx, by), rgb = widths
    kernels = np.zeros((2, h * w, h * w))
    for i, (xi, yi) in enumerate(place):
        for j, (xj, yj) in enumerate(place):
            dx, dy = xi - xj, yi - yj
            dc = ((colour[i] - colour[j]) ** 2).sum() / rgb**2
            kernels[0, i, j] = np.exp(-0.5 * ((dx / sx) ** 2 + (dy / sy) ** 2))
            kernels[1, i, j] = np.exp(-0.5 * ((dx / bx) ** 2 + (dy / by) ** 2 + dc))
    unary = -np.log(np.maximum(p.reshape(-1, c), 1e-8).astype(np.float64))
    q = softmax(-unary)
    for _ in range(iterations):
        energy = unary.copy()
        for kernel, weight in zip(kernels, weights, strict=True):
            root = np.sqrt(kernel.sum(1))
            message = (kernel / root[:, None] / root) @ q
            for label in range(c):
                energy[:, label] += weight * message @ compatibility[label]
        q = softmax(-energy)
    return q.reshape(h, w, c)


POTTS = 1 - np.eye(C)
LEARNED = np.random.default_rng(7).normal(size=(C, C))


@pytest.mark.parametrize("compatibility", [None, LEARNED])
def test_exact_is_the_definition(compatibility):
    p, image, _ = scene(b=2, h=7, w=6)
    p[0, 0, 0] = [1, 0, 0, 0]  # below the floor of 1e-8
    settings = dict(
        iterations=3, smooth_sxy=(2.0, 3.5), smooth_weight=1.5, bilateral_sxy=(9.0, 5.0),
        bilateral_srgb=20.0, bilateral_weight=2.0, compatibility=compatibility,
    )  # fmt: skip
    got = dense_crf(p, image, method="exact", **settings)
    widths, weights = ((2.0, 3.5), (9.0, 5.0), 20.0), (1.5, 2.0)
    for i in range(2):
        cost = POTTS if compatibility is None else compatibility
        want = by_definition(p[i], image[i], 3, widths, weights, cost)
        np.testing.assert_allclose(got[i], want, atol=2e-5)


def test_lattice_against_exact():
    """The approximation's error: 0.2 % in the mean, more than 5 % in one pixel of a hundred."""
    p, image, label = scene(b=3, h=48, w=48)
    got = np.asarray(dense_crf(p, image, iterations=5, **NARROW))
    want = np.asarray(dense_crf(p, image, iterations=5, method="exact", **NARROW))
    error = np.abs(got - want).max(-1)
    assert error.mean() < 0.002 and np.quantile(error, 0.99) < 0.05
    assert (got.argmax(-1) == want.argmax(-1)).mean() > 0.995
    # And it is of use: the regions come out of the noise.
    assert (p.argmax(-1) == label).mean() < 0.9 and (got.argmax(-1) == label).mean() > 0.99
    # The lattice has no mirror symmetry: what changes in a mirror is its error.
    for axis in (1, 2):
        flipped = dense_crf(np.flip(p, axis), np.flip(image, axis), iterations=5, **NARROW)
        change = np.abs(got - np.flip(flipped, axis)).max(-1)
        assert change.mean() < 0.002 and np.quantile(change, 0.99) < 0.05


def test_lattice_filters_as_exact_does():
    """One step tells one message, up to what it adds to all classes."""
    rng = np.random.default_rng(3)
    _, image, _ = scene(h=24, w=32)
    p = rng.dirichlet(np.ones(C), (1, 24, 32)).astype(np.float32)
    for weights in ((1.0, 0.0), (0.0, 1.0)):
        messages = []
        for method in module.METHODS:
            q = dense_crf(
                p, image, iterations=1, smooth_weight=weights[0], bilateral_weight=weights[1],
                method=method, **NARROW,
            )  # fmt: skip
            message = jnp.log(q) - jnp.log(p)
            messages.append(message - message.mean(-1, keepdims=True))
        lattice, exact = messages
        assert float(jnp.abs(lattice - exact).mean()) < 0.15 * float(jnp.abs(exact).mean())


@pytest.mark.parametrize(
    "name", ["0001TP_008820", pytest.param("Seq05VD_f02910", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("setting", ["deeplab", "default"])
def test_pydensecrf(shared, name, setting):
    """Reference results for photographs, some of whose lattices need another bucket."""
    from PIL import Image

    spec = importlib.util.spec_from_file_location("unary", shared / "crf/unary.py")
    unary = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unary)
    reference = np.load(shared / f"crf/{name}.npz")
    rows, cols = reference["rows"], reference["cols"]
    with Image.open(shared / f"data/camvid/test/{name}.webp") as picture:
        image = np.asarray(picture.convert("RGB"))
    with Image.open(shared / f"data/camvid/testannot/{name}.png") as picture:
        p = unary.unary(np.asarray(picture), name)
    np.testing.assert_allclose(p[rows[:50], cols[:50]], reference["unary_check"], atol=1e-6)

    keys = "smooth_sxy", "smooth_weight", "bilateral_sxy", "bilateral_srgb", "bilateral_weight"
    *values, iterations = reference[f"{setting}_params"].tolist()
    settings = dict(zip(keys, values, strict=True))
    q = np.asarray(dense_crf(p[None], image[None], iterations=int(iterations), **settings))[0]
    assert (q.argmax(-1) == reference[f"{setting}_map"]).mean() > 0.9999
    error = np.abs(q[rows, cols] - reference[f"{setting}_q"])
    assert error.max() < 1e-3 and np.median(error) < 1e-6


@pytest.mark.parametrize("method", module.METHODS)
def test_gradients(method):
    """To the probabilities, the weights and the compatibility, through all iterations."""
    p, image, _ = scene(h=6, w=7)
    rng = np.random.default_rng(2)
    reading = rng.normal(size=p.shape)

    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2, 3, 4))
    def loss(p, weights, compatibility, image, width):
        q = dense_crf(
            p, image, iterations=3, smooth_weight=weights[0], bilateral_weight=weights[1],
            bilateral_sxy=width, bilateral_srgb=25.0, compatibility=compatibility, method=method,
        )  # fmt: skip
        return (q * reading).sum()

    loss = jax.jit(loss)
    at = [p, np.float32([0.8, 1.1]), np.float32(LEARNED), np.float32(image), np.float32(9)]
    _, gradients = loss(*at)
    for i in range(3):
        direction = rng.normal(size=at[i].shape) * (0.1 * p if i == 0 else 1)
        ends = [
            loss(*at[:i], np.float32(at[i] + step * direction), *at[i + 1 :])[0]
            for step in (5e-3, -5e-3)
        ]
        want = float(ends[0] - ends[1]) / 1e-2
        assert abs(want) > 0.1
        np.testing.assert_allclose((gradients[i] * direction).sum(), want, rtol=0.02)
    assert not np.asarray(gradients[3]).any() and not np.asarray(gradients[4]).any()


def test_buckets_and_batch_change_nothing(monkeypatch):
    p, image, _ = scene(b=2)
    image[1] = 128  # few vertices
    n = p.shape[1] * p.shape[2]

    def run(p, image):
        q = module._dense_crf.__wrapped__(
            p, image, jnp.float32([3, 3, 20, 20, 13]), jnp.float32([3, 4]), None,
            iterations=2, method="lattice",
        )  # fmt: skip
        return (q**2).sum(), q

    monkeypatch.setattr(module, "_capacities", lambda pixels: (n // 2, 9 * n))
    both = jax.jit(jax.value_and_grad(run, has_aux=True))
    (_, together), gradient = both(p, image)
    for i in (0, 1):
        # Without the other the second image needs no more than the small bucket.
        (_, alone), g = both(*(np.stack([x[i]] * 2) for x in (p, image)))
        np.testing.assert_array_equal(alone[0], together[i])
        np.testing.assert_allclose(g[0], gradient[i], rtol=1e-5, atol=1e-6)


def test_a_batch_over_devices_stays_where_it_is(monkeypatch):
    """Only single numbers travel: which bucket, and whether all vertices are found."""
    p, image, _ = scene(b=8)
    n = p.shape[1] * p.shape[2]
    monkeypatch.setattr(module, "_capacities", lambda pixels: (n, 9 * n))
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))

    @functools.partial(jax.jit, in_shardings=(sharding, sharding), out_shardings=sharding)
    def run(p, image):
        return module._dense_crf.__wrapped__(
            p, image, jnp.float32([3, 3, 20, 20, 13]), jnp.float32([3, 4]), None,
            iterations=FEW, method="lattice",
        )  # fmt: skip

    compiled = run.lower(p, image).compile()
    for line in compiled.as_text().splitlines():
        for word in ("all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
            assert f" {word}(" not in line and f" {word}-start(" not in line, line
        if " all-reduce(" in line:
            assert "[] all-reduce(" in line, line
    got = compiled(*jax.device_put((p, image), sharding))
    monkeypatch.undo()
    for i in range(8):
        want = dense_crf(p[i : i + 1], image[i : i + 1], iterations=FEW, **NARROW)
        np.testing.assert_allclose(got[i], want[0], atol=1e-5)


def test_other_settings_need_no_compilation():
    p, image, _ = scene()
    run = functools.partial(dense_crf, p, image, iterations=FEW)
    run()
    compiled = module._dense_crf._cache_size()
    first = run(bilateral_srgb=5, smooth_sxy=(1, 2))
    second = run(bilateral_weight=2.5, smooth_weight=np.float32(1), bilateral_sxy=jnp.float32(9))
    assert module._dense_crf._cache_size() == compiled
    assert float(jnp.abs(first - second).max()) > 1e-3


@pytest.mark.parametrize("method", module.METHODS)
def test_classes_may_change_places(method):
    p, image, _ = scene()
    order = [2, 0, 3, 1]
    run = functools.partial(dense_crf, image=image, iterations=FEW, method=method)
    np.testing.assert_allclose(run(p[..., order]), run(p)[..., order], atol=1e-5)
    if method == "exact":
        got = run(p[..., order], compatibility=LEARNED[order][:, order])
        np.testing.assert_allclose(got, run(p, compatibility=LEARNED)[..., order], atol=1e-5)


def test_exact_keeps_mirror_symmetry():
    p, image, _ = scene()
    run = functools.partial(dense_crf, iterations=FEW, method="exact", **NARROW)
    for axis in (1, 2):
        flipped = run(np.flip(p, axis), np.flip(image, axis))
        np.testing.assert_allclose(np.flip(flipped, axis), run(p, image), atol=1e-4)


@pytest.mark.parametrize("method", module.METHODS)
@pytest.mark.parametrize("size", [(1, 1), (12, 1)])
def test_images_one_pixel_wide(method, size):
    p, image, _ = scene(h=size[0], w=size[1])
    got = dense_crf(p, image, iterations=2, bilateral_srgb=30.0, method=method)
    want = by_definition(p[0], image[0], 2, ((3, 3), (67, 67), 30.0), (3, 4), POTTS)
    np.testing.assert_allclose(got[0], want, atol=1e-5 if method == "exact" else 0.05)


@pytest.mark.parametrize("method", module.METHODS)
def test_constant_image(method):
    """All vertices of the colours fall together. What is the same everywhere stays the same."""
    prior = np.float32([0.1, 0.2, 0.3, 0.4])
    p = np.broadcast_to(prior, (1, 12, 16, C))
    image = np.full((1, 12, 16, 3), 200, np.uint8)
    got = np.asarray(dense_crf(p, image, iterations=FEW, method=method))
    # In the middle the normalised kernels add up to nearly 1 each: three scalar updates.
    q = np.float64(prior)
    for _ in range(FEW):
        q = softmax(np.log(prior) + 7 * q)
    np.testing.assert_allclose(got[0, 6, 8], q, atol=0.05)
    assert (got.argmax(-1) == 3).all()


def test_a_certain_pixel_gives_way():
    """Unary energies end at -log(1e-8): one odd pixel among others of its colour is outvoted."""
    p = np.broadcast_to(np.float32([1, 0, 0, 0]), (1, 12, 16, C)).copy()
    p[0, 5, 5] = [0, 1, 0, 0]
    image = np.full((1, 12, 16, 3), 50, np.uint8)
    run = functools.partial(dense_crf, p, image, iterations=FEW)
    weak = run(bilateral_weight=0.1, smooth_weight=0.1)
    strong = run(bilateral_weight=60.0, smooth_weight=0.0)
    assert int(weak[0, 5, 5].argmax()) == 1 and int(strong[0, 5, 5].argmax()) == 0
    assert np.isfinite(strong).all()


@pytest.mark.parametrize("method", module.METHODS)
def test_no_iterations(method):
    p, image, _ = scene()
    np.testing.assert_allclose(dense_crf(2 * p, image, iterations=0, method=method), p, rtol=1e-5)


def test_any_dtype_gives_float32():
    p, image, _ = scene()
    got = dense_crf(jnp.bfloat16(p), np.float32(image), iterations=FEW, method="exact")
    want = dense_crf(p, image, iterations=FEW, method="exact")
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=0.1)


def test_one_artefact_for_every_platform():
    p, image, _ = scene()
    run = jax.jit(lambda p, image: dense_crf(p, image, iterations=FEW))
    exported = jax.export.export(run, platforms=("cpu", "cuda", "tpu"))(p, image)
    back = jax.export.deserialize(exported.serialize())
    want = dense_crf(p, image, iterations=FEW)
    np.testing.assert_allclose(back.call(p, image), want, atol=1e-5)


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(smooth_sxy=0.0), "smooth_sxy=0.0"),
        (dict(smooth_sxy=(3.0, -1.0)), "smooth_sxy=-1.0"),
        (dict(bilateral_sxy=(1.0, 2.0, 3.0)), "a pair"),
        (dict(bilateral_srgb=float("nan")), "bilateral_srgb=nan"),
        (dict(bilateral_srgb=1e-4), "at least"),
        (dict(bilateral_srgb=np.ones(3)), "expected a number"),
        (dict(iterations=-1), "iterations=-1"),
        (dict(iterations=2.5), "iterations=2.5"),
        (dict(method="grid"), "lattice, exact"),
        (dict(compatibility=np.ones((3, 3))), r"\(4, 4\)"),
        (dict(probabilities=np.ones((1, 12, 16, 1), np.float32)), "two or more classes"),
        (dict(probabilities=np.ones((12, 16, 4), np.float32)), r"\(12, 16, 4\)"),
        (dict(image=np.ones((1, 12, 15, 3))), r"\(1, 12, 15, 3\)"),
        (dict(image=np.ones((1, 12, 16, 1))), "resize|expected"),
    ],
)
def test_bad_values(wrong, words):
    p, image, _ = scene()
    with pytest.raises(UserError, match=words):
        dense_crf(**(dict(probabilities=p, image=image) | wrong))
