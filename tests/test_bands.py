"""Maps that are made and used up band by band, against the whole map in float64 NumPy."""

import functools
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from test_predict import make_model, numpy_resize, pictures

from jaxseg import losses, predict
from jaxseg.links import to_labels, to_labels_and_highest
from jaxseg.ops import bands
from jaxseg.ops.bands import Combined, Enlarged

C = 3
WEIGHTS = (0.5, 2.0, 1.0)
# coarse and full size: a whole factor, none, corners of odd sizes, one row, smaller
SIZES = [
    ((4, 5), (16, 20)),
    ((3, 4), (13, 9)),
    ((5, 3), (5, 7)),
    ((1, 2), (6, 5)),
    ((9, 7), (5, 4)),
]


@pytest.fixture(autouse=True)
def small_bands(monkeypatch):
    """Bands of a few rows, the last of which goes back over some."""
    monkeypatch.setattr(bands, "CPU_BAND", 30 * 2 * C)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 2, shape).astype(np.float32)


@pytest.mark.parametrize(("coarse", "size"), SIZES[1::3])
@pytest.mark.parametrize("align_corners", [False, True])
def test_rows_are_those_of_the_whole(coarse, size, align_corners):
    x = draw(2, *coarse, C)
    middle = Enlarged(x, (7, 6), align_corners)
    want = numpy_resize(x.astype(np.float64), (7, 6), align_corners)
    want = numpy_resize(want, size, align_corners)
    scores = Enlarged(middle, size, align_corners)
    doubled = Combined(lambda a, b: a + b[:, :, ::-1], (scores, scores))
    assert scores.shape == want.shape == doubled.shape
    np.testing.assert_allclose(bands.whole(scores), want, atol=1e-5)
    want += want[:, :, ::-1]
    for number in (2, size[0]):
        rows = jax.jit(lambda start, number=number: bands.rows(doubled, start, number))
        for start in {0, 1, size[0] - 2} if number == 2 else {0}:
            np.testing.assert_allclose(rows(start), want[:, start : start + number], atol=1e-5)


# ---- losses ----


def reference(name, logits, labels, mask, align_corners, gamma=2.0, smoothing=0.0, k=None):
    """The loss from its definition, float64; of OHEM the k least probable valid pixels."""
    z = numpy_resize(logits, labels.shape[1:], align_corners)
    valid = mask[:, None, None] & (labels != 255)
    z, y = z[valid], labels[valid]
    own = np.arange(len(y)), y
    w = np.asarray(WEIGHTS)[y]
    if name == "sigmoid_cross_entropy":
        own = np.arange(C) == y[:, None]
        cost = np.where(own, np.asarray(WEIGHTS) * np.log1p(np.exp(-z)), np.log1p(np.exp(z)))
        return cost.mean(-1).sum() / valid.sum()
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    cost = -w * log_p[own]
    if name == "focal":
        cost *= (1 - np.exp(log_p[own])) ** gamma
    if name == "cross_entropy":
        cost = (1 - smoothing) * cost - smoothing / C * (np.asarray(WEIGHTS) * log_p).sum(-1)
    if name == "ohem_cross_entropy":
        kept = np.argsort(-cost)[:k]
        return cost[kept].sum() / w[kept].sum()
    return cost.sum() / w.sum()


LOSSES = [
    ("cross_entropy", dict(label_smoothing=0.2)),
    ("sigmoid_cross_entropy", {}),
    ("focal", dict(gamma=1.5)),
    ("ohem_cross_entropy", dict(threshold=0.0, min_kept=9)),
]


def total(logits, labels, mask, align_corners, spec):
    batch = {"label": labels, "mask": mask}
    how = dict(ignore_label=255, align_corners=align_corners)
    return losses.total({"logits": logits}, batch, {"logits": spec}, **how)[0]


def labelled(b, size, seed=1):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, C, (b, *size)).astype(np.int32)
    labels[rng.random(labels.shape) < 0.2] = 255
    return labels


@pytest.mark.parametrize("band", [1, 30])
@pytest.mark.parametrize(("name", "options"), LOSSES)
def test_a_loss_and_its_gradient_are_those_of_the_whole_map(monkeypatch, name, options, band):
    """By finite differences of the definition in float64."""
    align_corners = band == 1  # a row at a time
    monkeypatch.setattr(bands, "CPU_BAND", band * 2 * C)
    logits, labels, mask = draw(2, 2, 3, C), labelled(2, (7, 8)), np.array([True, True])
    mask = mask if name == "ohem_cross_entropy" else np.array([True, False])
    spec = dict(name=name, class_weights=WEIGHTS, **options)
    step = jax.jit(jax.value_and_grad(lambda z: total(z, labels, mask, align_corners, spec)))
    value, grad = step(logits)
    facts = dict(gamma=1.5, smoothing=options.get("label_smoothing", 0), k=18)
    of = functools.partial(
        reference, name, labels=labels, mask=mask, align_corners=align_corners, **facts
    )
    z = logits.astype(np.float64)
    np.testing.assert_allclose(value, of(z), rtol=2e-6)
    want = np.zeros_like(z)
    for index in np.ndindex(z.shape):
        h = np.zeros_like(z)
        h[index] = 1e-5
        want[index] = (of(z + h) - of(z - h)) / 2e-5
    np.testing.assert_allclose(grad, want, atol=2e-6 * np.abs(want).max())


@pytest.mark.parametrize(("coarse", "size"), SIZES)
def test_bands_of_any_size_give_the_loss_of_an_array(coarse, size):
    """An array goes through the loss without bands; its gradient by way of the matrices."""
    logits, labels = draw(2, *coarse, C), labelled(2, size)
    loss = functools.partial(losses.cross_entropy, labels=labels, ignore_label=255)
    got = jax.jit(jax.value_and_grad(lambda z: loss(Enlarged(z, size))[0]))(logits)
    large = numpy_resize(logits.astype(np.float64), size).astype(np.float32)
    value, g = jax.jit(jax.value_and_grad(lambda z: loss(z)[0]))(large)
    rows, columns = (numpy_matrix(m, n) for n, m in zip(coarse, size, strict=True))
    np.testing.assert_allclose(got[0], value, rtol=1e-5)
    np.testing.assert_allclose(got[1], np.einsum("Hh,Ww,bHWc->bhwc", rows, columns, g), atol=1e-5)


def numpy_matrix(new, old):
    return numpy_resize(np.eye(old)[None, :, :, None], (new, old))[0, :, :, 0]


def test_bfloat16_logits_are_taken_to_float32_and_their_gradient_back():
    logits, labels, mask = draw(2, 2, 3, C), labelled(2, (7, 8)), np.ones(2, bool)
    low = jnp.asarray(logits, jnp.bfloat16)
    spec = dict(name="cross_entropy")
    step = jax.jit(jax.value_and_grad(lambda z: total(z, labels, mask, False, spec)))
    value, grad = step(low)
    want, want_grad = step(low.astype(jnp.float32))
    assert value.dtype == jnp.float32 and grad.dtype == jnp.bfloat16
    np.testing.assert_allclose(value, want, rtol=1e-6)
    np.testing.assert_array_equal(grad, want_grad.astype(jnp.bfloat16))


def test_extreme_logits_stay_finite():
    labels, mask = labelled(2, (7, 8)), np.ones(2, bool)
    spec = dict(name="focal")
    loss = functools.partial(total, labels=labels, mask=mask, align_corners=False, spec=spec)
    value, grad = jax.jit(jax.value_and_grad(loss))(1e4 * draw(2, 2, 3, C))
    assert np.isfinite(value) and np.isfinite(grad).all()


def test_eight_devices_give_the_loss_of_one_and_gather_nothing():
    logits, labels, mask = draw(8, 3, 4, C), labelled(8, (13, 9)), np.arange(8) != 5
    labels[2] = 255
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = jax.device_put((logits, labels, mask), NamedSharding(mesh, PartitionSpec("data")))
    for name, options in LOSSES[::3]:
        spec = dict(name=name, **options)

        def loss(logits, labels, mask, spec=spec):
            return total(logits, labels, mask, False, spec)

        step = jax.jit(jax.value_and_grad(loss))
        compiled = step.lower(*split).compile()
        text = compiled.as_text()
        assert not any(word in text for word in ("all-gather", "all-to-all", "permute")), name
        # The sum over the devices is not taken in the loop over the bands.
        assert text.count(" all-reduce(") <= (4 if name == "ohem_cross_entropy" else 2)
    for got, want in zip(compiled(*split), step(logits, labels, mask), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-8)
    compiled = jax.jit(lambda z: to_labels(Enlarged(z, (13, 9)))).lower(split[0]).compile()
    assert not any(word in compiled.as_text() for word in ("all-", "permute"))
    want = numpy_resize(logits.astype(np.float64), (13, 9)).argmax(-1)
    assert (compiled(split[0]) == want).mean() > 0.999


# ---- labels ----


@pytest.mark.parametrize(("coarse", "size"), SIZES)
def test_labels_are_those_of_the_whole_map(coarse, size):
    x, align_corners = draw(2, *coarse, C), coarse[0] % 2 == 1
    want = numpy_resize(x.astype(np.float64), size, align_corners)
    labels, highest = jax.jit(to_labels_and_highest)(Enlarged(x, size, align_corners))
    assert labels.dtype == jnp.int32
    clear = np.diff(np.sort(want, -1))[..., -1] > 1e-5
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(labels[clear], want.argmax(-1)[clear])
    np.testing.assert_allclose(highest, want.max(-1), atol=1e-5)


def test_of_equal_scores_the_first_wins():
    """Whole scores enlarged four times are sums of eighths, exact in any order: many are equal."""
    x = np.random.default_rng(0).integers(0, 3, (2, 6, 5, C)).astype(np.float32)
    want = numpy_resize(x.astype(np.float64), (24, 20))
    first, second = np.sort(want, -1)[..., :-3:-1].T
    assert (first == second).mean() > 0.1
    np.testing.assert_array_equal(to_labels(Enlarged(x, (24, 20))), want.argmax(-1))


def test_the_chain_in_bands_gives_the_labels_of_its_scores():
    config = {"flip": True, "scales": (0.5, 1.0)}
    model, variables = make_model()
    image = pictures(2, 24, 32)
    p = predict.make_probabilities(model, config, dtype="float32")(variables, image, (37, 51))
    labels = predict.make_predict(model, config, dtype="float32")(variables, image, (37, 51))
    p = np.asarray(p, np.float64)
    clear = np.diff(np.sort(p, -1))[..., -1] > 1e-5
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(labels[clear], p.argmax(-1)[clear])


# ---- what it is for ----


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize("name", ["cross_entropy", "ohem_cross_entropy"])
def test_no_program_holds_the_scores_at_full_size(platform, name):
    logits = jax.ShapeDtypeStruct((2, 64, 64, 150), jnp.bfloat16)
    labels = jax.ShapeDtypeStruct((2, 512, 512), jnp.int32)

    def both(logits, labels):
        step = jax.value_and_grad(total)
        spec = dict(name=name)
        found = to_labels(Enlarged(logits, (512, 512)))
        return step(logits, labels, jnp.ones(2, bool), False, spec), found

    text = jax.jit(both).trace(logits, labels).lower(lowering_platforms=(platform,)).as_text()
    assert "x512x512xi32>" in text
    assert "512x512x150" not in text and "scatter" not in text
    assert platform != "tpu" or "gather" not in text.replace("indices_are_sorted", "")


def test_a_loss_of_ones_own_gets_the_whole_map(monkeypatch):
    def brightest(logits, labels, *, ignore_label, mask):
        assert isinstance(logits, jax.Array) and logits.shape == (*labels.shape, C)
        return logits.max(-1).sum(), jnp.float32(labels.size)

    module = types.ModuleType("my_losses")
    module.brightest = brightest
    monkeypatch.setitem(sys.modules, "my_losses", module)
    logits = draw(2, 2, 3, C)
    got = total(
        logits, labelled(2, (7, 8)), np.ones(2, bool), True, dict(name="my_losses.brightest")
    )
    want = numpy_resize(logits.astype(np.float64), (7, 8), True).max(-1).mean()
    np.testing.assert_allclose(got, want, rtol=1e-5)
