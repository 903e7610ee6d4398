"""ResNeSt: published sizes, split attention against NumPy, and what a config may say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import mmseg
from jaxseg.errors import UserError
from jaxseg.models import resnest
from tests.nets import count, randomised, shapes

# Parameters of the ImageNet classifiers, as timm counts the authors' release.
IMAGENET = {50: 27_483_240, 101: 48_275_016, 200: 70_201_544, 269: 110_929_480}


@pytest.mark.parametrize("depth", IMAGENET)
def test_published_parameter_counts(depth):
    backbone = shapes(resnest.Backbone(depth), jax.ShapeDtypeStruct((1, 64, 64, 3), "f4"))
    assert count(backbone["params"]) + 2049 * 1000 == IMAGENET[depth]


@pytest.mark.parametrize("stride", [8, 32])
@pytest.mark.parametrize(("h", "w"), [(64, 128), (97, 131), (33, 50)])
def test_feature_sizes(stride, h, w):
    backbone = resnest.Backbone(101, stride)
    x = jax.ShapeDtypeStruct((2, h, w, 3), "f4")
    features, _ = jax.eval_shape(
        lambda x: backbone.init_with_output(jax.random.key(0), x, False), x
    )
    strides = dict(stem=2, stage1=4, stage2=8, stage3=min(16, stride), stage4=min(32, stride))
    widths = dict(stem=128, stage1=256, stage2=512, stage3=1024, stage4=2048)
    assert {name: x.shape for name, x in features.items()} == {
        name: (2, -(-h // s), -(-w // s), widths[name]) for name, s in strides.items()
    }


def normalised(x, params, stats):
    y = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    return np.maximum(y * params["scale"] + params["bias"], 0)


@pytest.mark.parametrize("dilation", [1, 2])
def test_split_attention_against_numpy(dilation):
    c, features, (h, w) = 6, 4, (9, 7)
    module = resnest.SplitAttention(features, dilation)
    x = np.random.default_rng(0).normal(size=(2, h, w, c)).astype(np.float32)
    variables = randomised(shapes(module, x))
    got = jax.jit(lambda v, x: module.apply(v, x, False))(variables, x)

    params, stats = variables["params"], variables["batch_stats"]
    kernel = params["conv"]["conv"]["kernel"].astype(np.float64)
    padded = np.pad(x, ((0, 0), (dilation, dilation), (dilation, dilation), (0, 0)))
    maps = []
    for split in range(2):
        seen = slice(split * c // 2, (split + 1) * c // 2)
        made = slice(split * features, (split + 1) * features)
        y = 0
        for i, j in np.ndindex(3, 3):
            rows, cols = slice(i * dilation, i * dilation + h), slice(j * dilation, None)
            y = y + padded[:, rows, cols][:, :, :w, seen] @ kernel[i, j, :, made]
        own = [{k: v[made] for k, v in tree["conv"]["bn"].items()} for tree in (params, stats)]
        maps.append(normalised(y, *own))
    context = (maps[0] + maps[1]).mean((1, 2))

    def dense(x, name):
        return x @ params[name]["kernel"][0, 0].astype(np.float64) + params[name]["bias"]

    assert params["fc1"]["bias"].shape == (32,)  # at least so many
    scores = dense(normalised(dense(context, "fc1"), params["bn"], stats["bn"]), "fc2")
    first = 1 / (1 + np.exp(scores[:, features:] - scores[:, :features]))  # softmax of two
    weights = (first[:, None, None], 1 - first[:, None, None])
    assert 0.05 < first.std()  # the attention does attend
    want = weights[0] * maps[0] + weights[1] * maps[1]
    np.testing.assert_allclose(got, want, atol=1e-4 * want.std())


def test_equal_splits_need_no_attention():
    """The weights of a channel add up to one, whatever they are."""
    module = resnest.SplitAttention(4)
    half = np.random.default_rng(1).normal(size=(1, 8, 6, 3)).astype(np.float32)
    x = np.concatenate([half, half], -1)
    variables = randomised(shapes(module, x), seed=2)
    for leaf in jax.tree.leaves([variables[kind]["conv"] for kind in variables]):
        leaf[..., 4:] = leaf[..., :4]
    apply = jax.jit(lambda v: module.apply(v, x, False))
    got = apply(variables)
    for leaf in jax.tree.leaves([variables["params"][name] for name in ("fc1", "fc2")]):
        leaf[:] = 0
    np.testing.assert_allclose(got, apply(variables), atol=1e-5)
    assert got.std() > 0.1


def gradients(module, variables, x, pick=lambda y: y):
    """Of a loss on what `pick` takes: (parameters' gradients, statistics after the step)."""

    @jax.jit
    def run(params):
        def loss(params):
            y, new = module.apply({**variables, "params": params}, x, True, mutable=["batch_stats"])
            return jnp.square(pick(y) - 1).mean(), new["batch_stats"]

        return jax.grad(loss, has_aux=True)(params)

    return jax.device_get(run(variables["params"]))


def test_training_reaches_every_parameter_and_statistic():
    block = resnest.Bottleneck(6, 2, 1)
    x = np.random.default_rng(0).normal(size=(4, 10, 7, 8)).astype(np.float32)
    variables = randomised(shapes(block, x))
    grads, new = gradients(block, variables, x)
    # The normalisation after it takes off what this adds.
    assert np.abs(grads["conv2"]["fc1"].pop("bias")).max() < 1e-5
    for path, grad in jax.tree.leaves_with_path(grads):
        assert np.isfinite(grad).all() and np.abs(grad).max() > 0, jax.tree_util.keystr(path)
    old = variables["batch_stats"]
    assert jax.tree.structure(new) == jax.tree.structure(old)
    for before, after in zip(*map(jax.tree.leaves, (old, new)), strict=True):
        assert (before != after).all()


@pytest.mark.slow
def test_frozen_norms_stay(monkeypatch):
    monkeypatch.setitem(resnest.BLOCKS, 50, (8, (1, 1, 1, 2)))
    x = np.random.default_rng(0).normal(size=(2, 40, 56, 3)).astype(np.float32)
    variables = randomised(shapes(resnest.Backbone(50, 16), x))
    backbone = resnest.Backbone(50, 16, freeze_norm=True)
    _, stats = gradients(backbone, variables, x, lambda features: features["stage4"])
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(depth=152), r"backbone\.depth=152.*50, 101, 200, 269"),
        (dict(output_stride=2), r"backbone\.output_stride=2.*4, 8, 16, 32"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        resnest.Backbone(**arguments)


DESCRIPTION = dict(
    type="EncoderDecoder",
    backbone=dict(
        type="ResNeSt", depth=101, stem_channels=128, radix=2, strides=[1, 2, 1, 1],
        dilations=[1, 1, 2, 4], contract_dilation=True,
    ),
    decode_head=dict(
        type="UPerHead", num_classes=4, channels=32, align_corners=True, in_index=[0, 1, 2, 3],
        pool_scales=[1, 4], dropout_ratio=0.2,
    ),
    auxiliary_head=dict(
        type="FCNHead", num_classes=4, channels=16, align_corners=True, in_index=1, num_convs=1,
        concat_input=False, dropout_ratio=0.2,
    ),
    data_preprocessor=dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], bgr_to_rgb=True),
)  # fmt: skip


def test_description_of_mmsegmentation():
    """Parts that no released model joins."""
    assert mmseg.model_spec(DESCRIPTION) == dict(
        name="upernet",
        backbone=dict(name="resnest", depth=101, output_stride=8),
        num_classes=4,
        features=("stage1", "stage2", "stage3", "stage4"),
        channels=32,
        bins=(1, 4),
        aux_feature="stage2",
        aux_channels=16,
        dropout=0.2,
        align_corners=True,
        mean=(1.0, 2.0, 3.0),
        std=(4.0, 5.0, 6.0),
    )


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("backbone", dict(depth=50), r"backbone\.stem_channels=128.*64"),
        ("backbone", dict(stem_channels=64), r"backbone\.stem_channels=64.*128"),
        ("backbone", dict(radix=4), r"backbone\.radix=4"),
        ("backbone", dict(avg_down_stride=False), r"backbone\.avg_down_stride=False"),
        ("backbone", dict(multi_grid=[1, 2, 4]), r"backbone\.multi_grid=\[1, 2, 4\]"),
        ("backbone", dict(dilations=[1, 1, 2, 2]), r"backbone\.dilations=\(1, 1, 2, 2\)"),
        ("backbone", dict(plugins=[]), r"backbone\.plugins"),
        ("decode_head", dict(gain=2), r"decode_head\.gain=2"),
        ("auxiliary_head", dict(concat_input=True), r"auxiliary_head\.concat_input=True"),
    ],
)
def test_what_is_not_supported_is_named(part, change, message):
    with pytest.raises(UserError, match=message):
        mmseg.model_spec(DESCRIPTION | {part: DESCRIPTION[part] | change})
