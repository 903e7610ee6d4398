"""Several losses at once: terms that share an output, points, and the look-up by name."""

import functools
import sys
import types

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxseg import losses
from jaxseg.errors import UserError
from jaxseg.ops import bands

C = 4
CE = dict(name="cross_entropy")


def example(seed=0, shape=(2, 12, 10)):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (shape[0], 6, 5, C)).astype(np.float32)
    labels = rng.integers(0, C, shape).astype(np.int32)
    labels[rng.random(shape) < 0.2] = 255
    return logits, labels


def jitted(outputs, labels, spec):
    return jax.jit(lambda outputs: total(outputs, labels, spec))(outputs)


def total(outputs, labels, spec, mask=None):
    mask = np.ones(len(labels), bool) if mask is None else mask
    batch = {"label": labels, "mask": mask}
    return losses.total(outputs, batch, spec, ignore_label=255, align_corners=False)


def test_terms_that_share_an_output_add_up():
    logits, labels = example()
    outputs = {"logits": logits, "aux_logits": -logits}
    spec = {
        "logits": CE,
        "lovasz": dict(name="lovasz_softmax", output="logits", weight=0.5),
        "overlap": dict(name="dice", output="aux_logits", weight=3.0, smooth=2.0),
    }
    loss, parts = jitted(outputs, labels, spec)
    large = jax.image.resize(logits, (2, 12, 10, C), "bilinear", antialias=False)

    def alone(loss, logits, **options):
        loss = functools.partial(loss, ignore_label=255, **options)
        return np.divide(*jax.jit(loss)(logits, labels))

    ce = alone(losses.cross_entropy, large)
    lovasz = alone(losses.lovasz_softmax, large)
    dice = alone(losses.dice, -large, smooth=2.0)
    assert list(parts) == ["loss/logits", "loss/lovasz", "loss/overlap"]
    np.testing.assert_allclose(list(parts.values()), [ce, 0.5 * lovasz, 3 * dice], rtol=1e-5)
    np.testing.assert_allclose(loss, ce + 0.5 * lovasz + 3 * dice, rtol=1e-5)


def test_an_output_is_resized_once_for_all_losses_that_need_it_whole(monkeypatch):
    calls = []
    resize = bands.resize
    monkeypatch.setattr(bands, "resize", lambda *a, **k: calls.append(a) or resize(*a, **k))
    logits, labels = example(1)
    spec = {"logits": dict(name="dice")}
    spec |= {f"tversky{i}": dict(name="tversky", output="logits") for i in range(3)}
    total({"logits": logits}, labels, spec)
    assert len(calls) == 1


def test_a_term_may_resize_its_output_in_its_own_way():
    """A plane stays one where the corners are aligned, and is flat at the borders where not."""
    logits, labels = example(8)
    y, x = np.meshgrid(np.linspace(0, 1, 6), np.linspace(0, 1, 5), indexing="ij")
    logits[:] = (x + 2 * y)[..., None] * np.arange(C)
    y, x = np.meshgrid(np.linspace(0, 1, 12), np.linspace(0, 1, 10), indexing="ij")
    large = np.broadcast_to((x + 2 * y)[..., None] * np.arange(C), (2, 12, 10, C))
    spec = {"logits": CE, "corners": CE | dict(output="logits", align_corners=True)}
    _, parts = jitted({"logits": logits}, labels, spec)
    want = np.divide(*losses.cross_entropy(np.float32(large), labels, ignore_label=255))
    np.testing.assert_allclose(parts["loss/corners"], want, rtol=1e-5)
    assert abs(parts["loss/logits"] - want) > 1e-3 * want


@pytest.mark.parametrize(
    ("name", "corners"), [("ohem_cross_entropy", True), ("cross_entropy", False)]
)
def test_a_term_may_score_those_pixels_only_where_another_output_says_yes(name, corners):
    """As if the labels of the others were ignored; which they are is not learned."""
    logits, labels = example(9)
    gate = np.random.default_rng(9).normal(0, 2, (2, 4, 3, 1)).astype(np.float32)
    options = dict(name=name, average="all", align_corners=corners)
    where = dict(output="boundary_logits", above=0.8)
    spec = {"near": options | dict(output="logits", where=where)}

    def loss(logits, gate):
        return total({"logits": logits, "boundary_logits": gate}, labels, spec)[0]

    value, (grad, of_gate) = jax.jit(jax.value_and_grad(loss, (0, 1)))(logits, gate)
    # Bilinear enlargement as two matrices, from its definition.
    axes = []
    for n, m in ((4, 12), (3, 10)):
        x = np.arange(m) * (n - 1) / (m - 1) if corners else (np.arange(m) + 0.5) * n / m - 0.5
        distance = np.abs(np.clip(x, 0, n - 1)[:, None] - np.arange(n))
        axes.append(np.maximum(1 - distance, 0))
    large = np.einsum("yh,xw,bhw->byx", *axes, gate[..., 0].astype(np.float64))
    chosen = 1 / (1 + np.exp(-large)) > 0.8
    assert 0.1 < chosen.mean() < 0.5
    masked = np.where(chosen, labels, 255)
    want, want_grad = jax.jit(
        jax.value_and_grad(lambda z: total({"logits": z}, masked, {"logits": options})[0])
    )(logits)
    np.testing.assert_allclose(value, want, rtol=1e-6)
    np.testing.assert_allclose(grad, want_grad, atol=1e-7)
    assert not np.any(of_gate)
    assert total({"logits": logits, "boundary_logits": 0 * gate}, labels, spec)[0] == 0


@pytest.mark.parametrize("name", sorted(losses.LOSSES))
def test_every_loss_takes_its_defaults_from_a_config(name):
    logits, labels = example(2)
    labels[:, 5:] = 1  # so that not every pixel is near a boundary
    whole = losses.TAKES.get(losses.LOSSES[name]) == (losses.IMAGES,)
    channels = dict(detail=2, boundary_cross_entropy=1).get(name, C)
    output = logits.mean((1, 2)) if whole else logits[..., :channels]
    loss, _ = jitted({"logits": output}, labels, {"logits": dict(name=name)})
    assert np.isfinite(loss) and loss > 0


def points(seed, labels, n=40):
    """Points at random places, none on an edge between pixels, and the labels of their pixels."""
    rng = np.random.default_rng(seed)
    b, h, w = labels.shape
    rows, cols = rng.integers(0, h, (b, n)), rng.integers(0, w, (b, n))
    inside = rng.uniform(0.1, 0.9, (b, n, 2))
    xy = np.stack([cols + inside[..., 0], rows + inside[..., 1]], -1) / (w, h)
    logits = rng.normal(0, 2, (b, n, C)).astype(np.float32)
    return {"xy": xy.astype(np.float32), "logits": logits}, labels[
        np.arange(b)[:, None], rows, cols
    ]


def test_points_are_scored_by_the_labels_of_their_pixels():
    _, labels = example(3, (2, 7, 12))
    output, picked = points(3, labels)
    loss, parts = jitted({"points": output}, labels, {"points": CE})
    z = output["logits"].astype(np.float64)
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    expected = np.mean([-log_p[i][picked[i]] for i in np.ndindex(picked.shape) if picked[i] < C])
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(parts["loss/points"], expected, rtol=1e-5)


def test_points_on_the_border_stay_inside():
    labels = np.arange(1, 13, dtype=np.int32).reshape(1, 3, 4) % 13 % C
    xy = np.array([[[0, 0], [1, 1], [1, 0], [0, 1]]], np.float32)
    picked = labels[0, [0, 2, 0, 2], [0, 3, 3, 0]]
    logits = 50 * np.eye(C, dtype=np.float32)[picked][None]
    loss, _ = jitted({"points": {"xy": xy, "logits": logits}}, labels, {"points": CE})
    assert loss < 1e-6


@pytest.mark.parametrize("name", ["ohem_cross_entropy", "focal", "dice", "lovasz_softmax"])
def test_points_take_any_loss_of_pixels(name):
    """A map whose pixels are all points, in any order, has the loss of the map."""
    logits, labels = example(4, (2, 6, 5))
    y, x = np.divmod(np.random.default_rng(0).permutation(30), 5)
    xy = np.stack([(x + 0.5) / 5, (y + 0.5) / 6], -1).astype(np.float32)
    output = {"xy": np.stack([xy, xy]), "logits": logits[:, y, x]}
    spec = dict(name=name)
    value, _ = jitted({"points": output}, labels, {"points": spec})
    expected, _ = jitted({"logits": logits}, labels, {"logits": spec})
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_labels_of_points_are_picked_on_the_device_that_has_them():
    _, labels = example(5, (8, 7, 6))
    output, _ = points(5, labels)
    mask = np.arange(8) < 6

    def loss(output, labels, mask):
        return total({"points": output}, labels, {"points": CE}, mask)[0]

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    arguments = jax.device_put((output, labels, mask), NamedSharding(mesh, PartitionSpec("data")))
    step = jax.jit(loss).lower(*arguments).compile()
    assert "all-gather" not in step.as_text()
    np.testing.assert_allclose(step(*arguments), loss(output, labels, mask), rtol=1e-6)


def test_a_loss_of_ones_own(monkeypatch):
    module = types.ModuleType("my_losses")
    module.wrong = lambda logits, labels, *, ignore_label, mask, scale=1.0: (scale * 6.0, 2.0)
    monkeypatch.setitem(sys.modules, "my_losses", module)
    logits, labels = example(6)
    spec = dict(name="my_losses.wrong", scale=2.0, weight=0.5)
    assert total({"logits": logits}, labels, {"logits": spec})[0] == 3.0
    with pytest.raises(UserError, match="'scal'.*mean 'scale'"):
        total({"logits": logits}, labels, {"logits": dict(name="my_losses.wrong", scal=2.0)})


@pytest.mark.parametrize(
    ("spec", "messages"),
    [
        (
            {"sharp": dict(name="dice", output="logit")},
            ["config.losses.sharp.output", "'logit'", "mean 'logits'"],
        ),
        ({"sharp": dict(name="dice")}, ["config.losses", "'sharp'", "logits, points, "]),
        ({"logits": dict(name="lovasz")}, ["losses.logits.name", "lovasz_softmax"]),
        ({"logits": dict(name="no.such")}, ["losses.logits.name='no.such'", "importable"]),
        ({"logits": dict(name="jaxseg.losses.nil")}, ["jaxseg.losses.nil", "importable"]),
        ({"logits": dict(name="dice", alpha=0.3)}, ["config.losses.logits", "'alpha'", "smooth"]),
        ({"logits": dict(name="dice", smooth=-1.0)}, ["config.losses.logits", "smooth=-1.0"]),
        (
            {"logits": dict(name="tversky", class_weights="median_frequency")},
            ["config.losses.logits", "median_frequency", "training data"],
        ),
        (
            {"points": dict(name="boundary_weighted_cross_entropy")},
            ["config.losses.points", "boundary_weighted_cross_entropy", "points"],
        ),
        (
            {"presence_logits": dict(name="focal")},
            ["config.losses.presence_logits", "focal", "whole images", "presence_cross_entropy"],
        ),
        (
            {"logits": dict(name="presence_cross_entropy")},
            ["config.losses.logits", "presence_cross_entropy", "map", "choose cross_entropy"],
        ),
        *(
            ({term: CE | dict(where=where)}, ["config.losses", *messages])
            for term, where, messages in (
                ("logits", dict(output="edge", above=0.8), ["where.output", "mean 'edges'"]),
                ("logits", dict(output="edges", over=0.8), ["where", "'over'", "above"]),
                ("logits", dict(output="edges", above=1), ["where.above=1", "[0, 1)"]),
                ("logits", dict(output="edges"), ["where.above=None", "probability"]),
                ("logits", dict(output="logits", above=0.8), ["where.output", "one logit"]),
                ("logits", "edges", ["where='edges'", "dict(output="]),
                ("points", dict(output="edges", above=0.8), ["points.where", "scattered"]),
            )
        ),
    ],
)
def test_a_mistake_in_the_config_is_named(spec, messages):
    logits, labels = example(7)
    outputs = {"logits": logits, "points": points(7, labels)[0]}
    outputs |= {"presence_logits": logits.mean((1, 2)), "edges": logits[..., :1]}
    with pytest.raises(UserError) as caught:
        total(outputs, labels, spec)
    for message in messages:
        assert message in str(caught.value)
