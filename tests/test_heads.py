"""Heads of FCN, PSPNet and DeepLabv3: what they join, and how far they see."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import models
from jaxseg.errors import UserError
from jaxseg.models.deeplabv3 import ASPP
from jaxseg.models.fcn import FCNHead, select
from jaxseg.models.pspnet import PyramidPooling
from jaxseg.models.resnet import Backbone

TINY = dict(name="tests.tiny_backbone")


def positive(module, x, **changed):
    """Variables without a zero or a sign, so that what is seen is not lost; `changed` by path."""
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, False), x)

    def fill(path, leaf):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        for part, value in changed.items():
            if part in path:
                return np.full(leaf.shape, value, np.float32)
        return np.full(leaf.shape, 0 if path.endswith(("bias", "mean")) else 0.5, np.float32)

    return jax.tree.map_with_path(fill, shapes)


def seen(module, side=31, channels=2, pick=lambda y: y, wrap=lambda x: x, **changed):
    """Offsets from a pixel of the outputs that change with it."""
    x = np.ones((1, side, side, channels), np.float32)
    touched = x.copy()
    touched[0, side // 2, side // 2] += 1
    variables = positive(module, wrap(x), **changed)
    run = jax.jit(lambda x: pick(module.apply(variables, wrap(x), False)))
    moved = np.abs(run(touched) - run(x))[0].max(-1)
    return {(int(i), int(j)) for i, j in np.argwhere(moved > 1e-6) - side // 2}


def square(offsets):
    return {(i, j) for i in offsets for j in offsets}


def grown(places, by):
    """Minkowski sum: what a further convolution makes of a footprint."""
    return {(i + k, j + m) for i, j in places for k, m in by}


NEAR = square((-1, 0, 1))


@pytest.mark.parametrize(
    ("options", "want"),
    [
        (dict(num_convs=0, concat_input=False), {(0, 0)}),
        (dict(num_convs=2, concat_input=False, kernel=1), {(0, 0)}),
        (dict(num_convs=2, concat_input=False), square(range(-2, 3))),
        (dict(num_convs=1, concat_input=False, dilation=6), square((-6, 0, 6))),
        # The convolution after the join is not dilated, and sees the input too.
        (dict(num_convs=2, dilation=6), grown(square((-12, -6, 0, 6, 12)), NEAR)),
    ],
)
def test_fcn_head_sees(options, want):
    head = FCNHead(2, "x", 2, **options)
    assert seen(head, wrap=lambda x: {"x": x}, pick=lambda y: y["logits"]) == want


def test_aspp_sees_each_rate_and_the_whole_image():
    aspp = ASPP(2, (2, 5, 9))
    atrous = set.union(*(square((-r, 0, r)) for r in (2, 5, 9)))
    # Without the image's branch: the branches' footprints, through the last 3x3.
    assert seen(aspp, **{"pool/bn/scale": 0}) == grown(atrous, NEAR)
    assert seen(aspp) == square(range(-15, 16))


def test_aspp_has_a_branch_for_each_rate():
    x = jax.ShapeDtypeStruct((1, 8, 8, 32), jnp.float32)
    for rates in ((), (1,), (6, 12, 18), (6, 12, 18, 24)):
        module = ASPP(16, rates)
        params = jax.eval_shape(lambda x, m=module: m.init(jax.random.key(0), x, False), x)[
            "params"
        ]
        joined = params["project"]["conv"]["kernel"].shape
        assert joined == (3, 3, (2 + len(rates)) * 16, 16)


def test_features_are_joined_at_the_size_of_the_first():
    ramp = np.broadcast_to(np.arange(4.0, dtype=np.float32)[:, None, None], (1, 4, 4, 1))
    features = {"fine": np.ones((1, 10, 10, 2), np.float32), "coarse": ramp}
    joined = select(features, ("fine", "coarse"), align_corners=True)
    assert joined.shape == (1, 10, 10, 3) and (joined[..., :2] == 1).all()
    # The corners stay where they are, so 4 rows become 10 with a third of a step between.
    np.testing.assert_allclose(joined[0, :, 5, 2], np.arange(10) / 3, rtol=1e-5)
    by_centres = select(features, ("fine", "coarse"))[0, :, 5, 2]
    np.testing.assert_allclose(
        by_centres, ((np.arange(10) + 0.5) * 0.4 - 0.5).clip(0, 3), rtol=1e-5
    )
    assert select(features, ("coarse", "fine")).shape == (1, 4, 4, 3)
    assert select(features, "coarse") is ramp
    # A head of one layer scores just those channels.
    head = FCNHead(3, ("fine", "coarse"), num_convs=0, concat_input=False, align_corners=True)
    params = {"kernel": np.eye(3, dtype=np.float32)[None, None], "bias": np.zeros(3, np.float32)}
    logits = head.apply({"params": {"classifier": {"conv": params}}}, features, False)["logits"]
    np.testing.assert_allclose(logits, joined, atol=1e-6)


@pytest.mark.parametrize("pool", ["average", "max"])
def test_pyramid_joins_its_input_and_summaries_of_its_regions(pool):
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype(np.float32)
    pyramid = PyramidPooling((1, 6), 8, pool, reduce=False)
    y = np.asarray(pyramid.apply({}, x, False))
    assert y.shape == (2, 6, 6, 9)
    np.testing.assert_array_equal(y[..., :3], x)
    whole = x.mean((1, 2)) if pool == "average" else x.max((1, 2))
    np.testing.assert_allclose(y[..., 3:6], whole[:, None, None] + 0 * x, atol=1e-5)
    np.testing.assert_allclose(y[..., 6:], x, atol=1e-5)  # as many bins as pixels


def test_pyramid_level_two_by_two():
    """Four quarters, each of one value, are interpolated between their centres."""
    x = np.zeros((1, 8, 8, 1), np.float32)
    x[:, 4:] = 4.0
    level = np.asarray(PyramidPooling((2,), 1, reduce=False).apply({}, x, False))[0, :, 0, 1]
    np.testing.assert_allclose(level, [0, 0, 0.5, 1.5, 2.5, 3.5, 4, 4], atol=1e-6)
    aligned = PyramidPooling((2,), 1, reduce=False, align_corners=True).apply({}, x, False)
    np.testing.assert_allclose(aligned[0, :, 0, 1], 4 * np.arange(8) / 7, atol=1e-6)


def test_pyramid_reduces_each_level():
    x = jax.ShapeDtypeStruct((1, 9, 7, 64), jnp.float32)
    pyramid = PyramidPooling((1, 2, 3, 6), 16)
    y, variables = jax.eval_shape(
        lambda x: pyramid.init_with_output(jax.random.key(0), x, False), x
    )
    assert y.shape == (1, 9, 7, 64 + 4 * 16)
    assert variables["params"]["level3"]["conv"]["kernel"].shape == (1, 1, 64, 16)


@pytest.mark.parametrize("name", ["fcn", "pspnet", "deeplabv3"])
def test_options_reach_the_heads(name):
    """Another feature, a width, no auxiliary head; the same parameters in training and without."""
    spec = dict(name=name, backbone=TINY, channels=8, align_corners=True)
    image = jax.ShapeDtypeStruct((2, 65, 49, 3), jnp.uint8)

    def shapes(train, **changes):
        model = models.get(spec | changes, num_classes=5)
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        return jax.eval_shape(lambda x: model.init_with_output(keys, x, train), image)

    outputs, variables = shapes(True)
    assert outputs["logits"].shape == outputs["aux_logits"].shape == (2, 9, 7, 5)
    assert jax.tree.leaves(variables) == jax.tree.leaves(shapes(False)[1])
    outputs, variables = shapes(False, feature="stage1", aux_channels=0)
    assert outputs["logits"].shape == (2, 17, 13, 5)
    assert "aux_logits" not in outputs and "aux_head" not in variables["params"]
    with pytest.raises(UserError, match=r"feature 'stage5'.*stage4"):
        shapes(False, feature="stage5")


def test_unknown_pooling_is_named():
    with pytest.raises(UserError, match=r"config\.model\.pool.*'median'.*average, max"):
        models.get(dict(name="pspnet", backbone=TINY, pool="median"), num_classes=2)


# SegFormer's table of ADE20K models (arXiv:2105.15203, table 2) has FCN 68.6 M and PSPNet 68.1 M.
@pytest.mark.parametrize(("name", "millions"), [("fcn", 68.6), ("pspnet", 68.1)])
def test_published_parameter_counts(name, millions):
    spec = dict(name=name, backbone=dict(name="resnet", depth=101, output_stride=8))
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8)
    model = models.get(spec, num_classes=150)
    params = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), image)["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert round(count / 1e6, 1) == millions


def test_resnet_269():
    """3 + 30 + 48 + 8 blocks of three convolutions, a stem and a classifier are 269 layers."""
    blocks, widths = (3, 30, 48, 8), (64, 128, 256, 512)
    assert 3 * sum(blocks) + 2 == 269
    want, inputs = 7 * 7 * 3 * 64 + 2 * 64, 64
    for number, w in zip(blocks, widths, strict=True):
        want += inputs * 4 * w + 2 * 4 * w  # projection of the first block's shortcut
        for i in range(number):
            c = inputs if i == 0 else 4 * w
            want += c * w + 9 * w * w + w * 4 * w + 2 * (w + w + 4 * w)
        inputs = 4 * w
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    backbone = Backbone(269, "plain")
    params = jax.eval_shape(lambda x: backbone.init(jax.random.key(0), x, False), x)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == want


@functools.cache
def stages(output_stride, dilations=()):
    """Features of one ResNet-18, always with the same weights."""
    backbone = Backbone(18, "plain", output_stride, dilations=dilations)
    x = np.random.default_rng(0).normal(size=(1, 64, 96, 3)).astype(np.float32)
    shapes = jax.eval_shape(lambda x: backbone.init(jax.random.key(0), x, False), x)

    def draw(path, leaf):
        rng = np.random.default_rng(len(jax.tree_util.keystr(path)) * leaf.size)
        if path[-1].key == "kernel":
            return (rng.normal(size=leaf.shape) / np.sqrt(leaf.size / leaf.shape[-1])).astype("f4")
        return np.full(leaf.shape, path[-1].key in ("scale", "var"), np.float32)

    variables = jax.tree.map_with_path(draw, shapes)
    return jax.device_get(jax.jit(lambda x: backbone.apply(variables, x, False))(x))


def test_rates_may_be_given_per_stage():
    follow, given = stages(8), stages(8, (1, 1, 2, 4))
    np.testing.assert_array_equal(given["stage4"], follow["stage4"])
    # Dilated and strided: the strides stay, stage 3 is the first to differ.
    plain, both = stages(32), stages(32, (1, 1, 2, 4))
    assert both["stage4"].shape == plain["stage4"].shape == (1, 2, 3, 512)
    np.testing.assert_array_equal(both["stage2"], plain["stage2"])
    assert np.abs(both["stage3"] - plain["stage3"]).max() > 0.1 * plain["stage3"].std()
    with pytest.raises(UserError, match=r"dilations=\(1, 2\).*4 stages"):
        Backbone(18, dilations=(1, 2))
