"""PointRend, and the pyramid and coarse head under it: where it looks and what it draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxseg import losses, models
from jaxseg.errors import UserError
from jaxseg.models import fpn, pointrend, segmenter
from jaxseg.ops.resize import resize

CLASSES = 4
COARSE = dict(
    name="sem_fpn",
    features=("stage1", "stage3", "stage4"),
    strides=(4, 8, 8),
    neck_channels=6,
    channels=8,
    dropout=0.0,
)
SPEC = dict(
    name="pointrend",
    backbone=dict(name="tests.tiny_backbone"),
    coarse=COARSE,
    points=40,
    subdivision_points=50,
    channels=8,
    num_fcs=2,
)
H, W = 45, 70  # no stride divides them
POINTS_KEY = jax.random.key(7)


def image(b=1):
    return np.random.default_rng(0).integers(0, 256, (b, H, W, 3), np.uint8)


def drawn(model):
    """Variables of ordinary size, none of them zero; quicker than to compile `init`."""
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        spread = np.sqrt(2 / np.prod(leaf.shape[:-1])) if path[-1].key == "kernel" else 0.2
        away = 1 if path[-1].key in ("scale", "var") else 0
        return np.float32(away + spread * rng.uniform(-1.7, 1.7, leaf.shape))

    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image(), False))
    return jax.tree.map_with_path(draw, shapes)


@functools.cache
def variables():
    return drawn(models.get(SPEC, CLASSES))


def predict(b=1, **changes):
    model = models.get(SPEC | changes, CLASSES)
    run = jax.jit(lambda v, x: segmenter.forward(model, v, x, train=False)[0])
    return jax.device_get(run(variables(), image(b)))


def ramp(h=200, w=40):
    """Two classes that meet on the line x = 1/2, and a third that is far behind."""
    x = (np.arange(w) + 0.5) / w - 0.5
    rows = np.stack([x, -x, np.full(w, -5.0)], -1)
    return np.float32(np.broadcast_to(rows, (2, h, w, 3)))


def distance(h=24, w=32, radius=8.0):
    """Signed, from a circle, in pixels."""
    y, x = np.mgrid[:h, :w]
    return np.hypot(y - h / 2, x - w / 2) - radius


def test_uncertainty_is_second_less_first():
    logits = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    logits[0, :] = 3.0  # all tie
    order = np.sort(logits, -1)
    np.testing.assert_allclose(pointrend.uncertainty(logits), order[:, -2] - order[:, -1])


def test_found_pixels_lie_on_the_boundary():
    d = distance()
    logits = np.float32(np.stack([d, -d, np.full(d.shape, -9.0)], -1))[None]
    for n in (20, 60):
        found = np.asarray(pointrend.uncertain_pixels(logits, n))[0]
        assert len(set(found)) == n
        near = np.sort(np.abs(d).ravel())[:n]
        np.testing.assert_allclose(np.sort(np.abs(d).ravel()[found]), near, atol=1e-5)
    assert pointrend.uncertain_pixels(logits, 10**6).shape == (1, d.size)


@pytest.mark.parametrize(("oversample", "importance"), [(3.0, 0.75), (4.0, 0.5), (1.0, 1.0)])
def test_training_points_look_where_it_is_uncertain(oversample, importance):
    """The share beta of N is the beta / k most uncertain of what was drawn: a band about 1/2."""
    n = 4000
    xy = pointrend.training_points(POINTS_KEY, ramp(), n, oversample, importance)
    assert xy.shape == (2, n, 2) and xy.dtype == jnp.float32
    x, y = np.moveaxis(np.asarray(xy), -1, 0)
    chosen, evenly = np.split(np.abs(x - 0.5), [int(importance * n)], axis=1)
    band = importance / oversample / 2
    # Not at the top and bottom: the map is zero beyond, so that its last half pixel is uncertain.
    inside = np.abs(y[:, : chosen.shape[1]] - 0.5) < 0.5 - 0.5 / 200
    np.testing.assert_allclose((chosen * inside).max(1), band, rtol=0.06)
    np.testing.assert_allclose(chosen.mean(1), band / 2, rtol=0.06)
    if evenly.size:
        np.testing.assert_allclose(evenly.mean(1), 0.25, rtol=0.1)
    assert 0 <= y.min() and y.max() < 1 and abs(y.mean() - 0.5) < 0.02


def test_training_points_are_a_function_of_the_key():
    draw = functools.partial(
        pointrend.training_points, logits=ramp(), points=30, oversample=3.0, importance=0.75
    )
    first, again, other = draw(POINTS_KEY), draw(POINTS_KEY), draw(jax.random.key(8))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.9
    assert (first[0] != first[1]).mean() > 0.9  # each image has points of its own


@pytest.mark.parametrize("align_corners", [False, True])
def test_as_many_points_as_pixels_give_the_point_head_everywhere(align_corners):
    changes = dict(
        fine_features=("p1", "p2"),
        align_corners=align_corners,
        subdivision_steps=1,
        subdivision_points=10**6,
    )
    model = models.get(SPEC | changes, CLASSES)
    v = drawn(model)

    @jax.jit
    def run(v, x):
        return model.apply(
            v,
            x,
            False,
            mutable="intermediates",
            capture_intermediates=lambda module, _: isinstance(module, fpn.FPN),
        )

    outputs, captured = jax.device_get(run(v, image()))
    levels = captured["intermediates"]["neck"]["__call__"][0]
    coarse = outputs["coarse_logits"][0]
    h, w = (2 * n for n in coarse.shape[:2])
    assert outputs["logits"].shape == (1, h, w, CLASSES)

    def at_all_pixels(x):
        y, x_ = np.mgrid[:h, :w]
        if align_corners:
            place = [y * (x.shape[0] - 1) / (h - 1), x_ * (x.shape[1] - 1) / (w - 1)]
        else:
            place = [(y + 0.5) * x.shape[0] / h - 0.5, (x_ + 0.5) * x.shape[1] / w - 0.5]
        channels = [
            scipy.ndimage.map_coordinates(c, place, order=1, mode="grid-constant")
            for c in np.moveaxis(np.float64(x), -1, 0)
        ]
        return np.stack(channels, -1)

    score = at_all_pixels(coarse)
    x = np.concatenate([at_all_pixels(levels["p1"][0]), at_all_pixels(levels["p2"][0]), score], -1)
    layers = v["params"]["head"]["point"]
    for name in ("fc0", "fc1"):
        x = np.maximum(x @ np.asarray(layers[name]["kernel"])[0] + layers[name]["bias"], 0)
        x = np.concatenate([x, score], -1)
    want = x @ np.asarray(layers["classifier"]["kernel"])[0] + layers["classifier"]["bias"]
    np.testing.assert_allclose(outputs["logits"][0], want, atol=1e-4 * np.abs(want).max())


def test_pixels_that_are_certain_stay_interpolated():
    outputs = predict(subdivision_steps=1)
    coarse, logits = outputs["coarse_logits"], outputs["logits"]
    assert coarse.shape == (1, 12, 18, CLASSES) and logits.shape == (1, 24, 36, CLASSES)
    plain = np.asarray(resize(coarse, (24, 36)))
    redrawn = (np.abs(logits - plain) > 1e-4 * plain.std()).any(-1)
    assert redrawn.sum() == 50
    # No pixel that kept its score is less certain than one that was drawn anew.
    certain = np.asarray(pointrend.uncertainty(plain))
    assert certain[redrawn].min() >= certain[~redrawn].max() - 1e-5


def test_without_subdivision_the_coarse_logits_are_the_result():
    outputs = predict(subdivision_steps=0)
    np.testing.assert_array_equal(outputs["logits"], outputs["coarse_logits"])


def test_initial_parameters_do_not_depend_on_train():
    """Nor do they need a key for 'points', or a test time that uses the point head."""
    model = models.get(SPEC | dict(subdivision_steps=0), CLASSES)
    quick = jax.random.key(0, impl="rbg")
    init = jax.jit(lambda: [model.init(quick, image(), train) for train in (True, False)])
    jax.tree.map(np.testing.assert_array_equal, *init())


def train(model, params, state, x, labels):
    def loss(params):
        outputs, new = segmenter.forward(
            model, {"params": params, **state}, x, train=True, rngs={"points": POINTS_KEY}
        )
        spec = dict(logits=dict(name="cross_entropy"), points=dict(name="cross_entropy"))
        total, parts = losses.total(
            outputs,
            {"label": labels, "mask": jnp.ones(len(labels), bool)},
            spec,
            ignore_label=255,
            align_corners=False,
        )
        return total, (parts, outputs["points"], new)

    (_, rest), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return *rest, grads


@functools.cache
def trained(sharded):
    model = models.get(SPEC, CLASSES)
    v = variables()
    x, labels = image(8), np.random.default_rng(2).integers(0, CLASSES, (8, H, W), np.int32)
    state = {"batch_stats": v["batch_stats"]}
    if sharded:
        mesh = Mesh(np.array(jax.devices()), ("data",))
        x, labels = jax.device_put((x, labels), NamedSharding(mesh, PartitionSpec("data")))
        assert len(x.sharding.device_set) == 8
    run = jax.jit(functools.partial(train, model))
    return jax.device_get(run(v["params"], state, x, labels))


def test_training_reaches_every_parameter():
    parts, points, _, grads = trained(False)
    assert parts.keys() == {"loss/logits", "loss/points"}
    assert points["xy"].shape == (8, 40, 2) and points["logits"].shape == (8, 40, CLASSES)
    for path, grad in jax.tree.leaves_with_path(grads):
        assert np.isfinite(grad).all() and np.abs(grad).max() > 0, jax.tree_util.keystr(path)


def test_training_over_devices_is_training_on_one():
    one, eight = trained(False), trained(True)
    np.testing.assert_allclose(one[1]["xy"], eight[1]["xy"], atol=1e-6)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-3 * np.abs(a).max() + 1e-6)


def test_prediction_over_devices_is_prediction_on_one():
    model = models.get(SPEC, CLASSES)
    run = jax.jit(lambda v, x: segmenter.forward(model, v, x, train=False)[0]["logits"])
    mesh = Mesh(np.array(jax.devices()), ("data",))
    sharded = jax.device_put(image(8), NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_allclose(
        run(variables(), sharded), run(variables(), image(8)), rtol=1e-4, atol=1e-4
    )


def test_any_model_can_be_the_coarse_one():
    coarse = dict(name="deeplabv3p", rates=(2,), channels=8, low_channels=4, aux_channels=8)
    spec = SPEC | dict(coarse=coarse, fine_features=("stage1",))
    model = models.get(spec, CLASSES)
    assert model.neck is None and model.head.coarse.channels == 8

    def run(train):
        return model.init_with_output(jax.random.key(0), image(), train)[0]

    training, test = (jax.eval_shape(functools.partial(run, train)) for train in (True, False))
    assert training["logits"].shape == test["coarse_logits"].shape == (1, 12, 18, CLASSES)
    assert training["aux_logits"].shape == test["aux_logits"].shape == (1, 6, 9, CLASSES)
    assert test["logits"].shape == (1, 48, 72, CLASSES) and "points" not in test


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(points=0), r"config\.model\.points=0.*at least 1"),
        (dict(oversample=0.5), r"oversample=0\.5.*at least 1"),
        (dict(importance=1.5), r"importance=1\.5.*share"),
        (dict(subdivision_steps=-1), r"subdivision_steps=-1.*0 or more"),
        (dict(fine_features=()), r"fine_features=\(\).*at least one"),
        (dict(coarse=dict(name="sem_fnp")), r"config\.model\.coarse\.name.*sem_fpn"),
        (dict(coarse=COARSE | dict(chanels=3)), r"config\.model\.coarse\.chanels.*'channels'"),
        (dict(coarse=COARSE | dict(strides=(4, 8))), r"model\.coarse\.strides=\(4, 8\).*3 feat"),
        (dict(coarse=COARSE | dict(backbone={})), r"coarse\.backbone.*config\.model\.backbone"),
        (dict(backbone=dict(name="resnt")), r"config\.model\.backbone\.name.*resnet"),
    ],
)
def test_mistakes_in_a_spec_are_named(change, message):
    with pytest.raises(UserError, match=message):
        models.get(SPEC | change, CLASSES)


def test_a_fine_feature_that_is_not_there_is_named():
    model = models.get(SPEC | dict(fine_features=("stage1",)), CLASSES)
    with pytest.raises(UserError, match=r"fine_features.*'stage1'.*p1, p2, p3"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), image(), False))
