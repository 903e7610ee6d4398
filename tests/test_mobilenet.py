"""MobileNetV2 and V3 and LR-ASPP: published sizes and costs, strides, padding, and their parts."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import models
from jaxseg.errors import UserError
from jaxseg.models import common, lraspp, mobilenetv2, mobilenetv3
from jaxseg.models.segmenter import forward
from tests.nets import count, randomised, shapes


def image(h, w, b=1):
    return jax.ShapeDtypeStruct((b, h, w, 3), "f4")


def convolutions(module, h, w):
    """Every convolution that the module calls: (name of its parent, itself, input, output)."""
    found = []

    def record(call, args, kwargs, context):
        result = call(*args, **kwargs)
        if isinstance(context.module, common.Conv) and context.method_name == "__call__":
            found.append((context.module.path[-2], context.module, args[0], result))
        return result

    with nn.intercept_methods(record):
        shapes(module, image(h, w))
    return found


def multiply_adds(module, h, w):
    return sum(
        y.size * conv.kernel**2 * x.shape[-1] // conv.groups
        for _, conv, x, y in convolutions(module, h, w)
    )


# What follows the backbones on ImageNet: parameters, multiply-adds.
def v2_classifier(width):
    c, hidden = mobilenetv2.scaled(320 * width), max(1280, mobilenetv2.scaled(1280 * width))
    return c * hidden + 2 * hidden + (hidden + 1) * 1000, 49 * c * hidden + hidden * 1000


def v3_classifier(channels, hidden):
    return (channels + 1) * hidden + (hidden + 1) * 1000, channels * hidden + hidden * 1000


# Published counts: torchvision's to the last digit, others in millions. Multiply-adds of 224x224
# images are those of the papers' tables, in millions.
PUBLISHED = [
    (mobilenetv2.Backbone(), v2_classifier(1.0), 3_504_872, 300),
    (mobilenetv2.Backbone(0.5), v2_classifier(0.5), 1.97e6, None),
    (mobilenetv2.Backbone(1.4), v2_classifier(1.4), 6.11e6, None),
    (mobilenetv3.Backbone("large"), v3_classifier(960, 1280), 5_483_032, 219),
    (mobilenetv3.Backbone("small"), v3_classifier(576, 1024), 2_542_856, 56),
]


@pytest.mark.parametrize(("backbone", "rest", "parameters", "millions"), PUBLISHED)
def test_published_parameters_and_multiply_adds(backbone, rest, parameters, millions):
    found = count(shapes(backbone, image(64, 64))["params"]) + rest[0]
    if isinstance(parameters, int):
        assert found == parameters
    else:
        assert round(found, -4) == parameters
    if millions:
        assert abs((multiply_adds(backbone, 224, 224) + rest[1]) / 1e6 / millions - 1) < 0.015


@pytest.mark.parametrize(
    ("channels", "want"), [(3, 8), (12, 16), (18, 24), (22.4, 24), (30, 32), (33.6, 32), (44.8, 48)]
)
def test_channels_are_rounded_to_eight(channels, want):
    assert mobilenetv2.scaled(channels) == want


WIDTHS = {
    "mobilenetv2": (16, 24, 32, 96, 320),
    "large": (16, 24, 40, 112, 960),
    "small": (16, 16, 24, 48, 576),
}


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
@pytest.mark.parametrize("name", WIDTHS)
@pytest.mark.parametrize(("h", "w"), [(64, 96), (65, 51)])
def test_feature_sizes(name, stride, h, w):
    if name == "mobilenetv2":
        backbone = mobilenetv2.Backbone(output_stride=stride)
    else:
        backbone = mobilenetv3.Backbone(name, output_stride=stride)
    features, _ = jax.eval_shape(
        lambda x: backbone.init_with_output(jax.random.key(0), x, False), image(h, w, 2)
    )
    strides = [min(2**i, stride) for i in range(1, 6)]
    assert {name: x.shape for name, x in features.items()} == {
        f"stage{i}": (2, -(-h // s), -(-w // s), c)
        for i, (s, c) in enumerate(zip(strides, WIDTHS[name], strict=True))
    }


def geometry(backbone):
    """(stride, dilation) of the depthwise convolutions, in order."""
    return [
        (conv.strides, conv.dilation)
        for parent, conv, _, _ in convolutions(backbone, 64, 64)
        if parent == "depthwise"
    ]


def test_where_dilation_takes_the_place_of_stride():
    """As in MMSegmentation's models at output stride 8."""
    found = geometry(mobilenetv2.Backbone(output_stride=8))
    strides, dilations = (1, 2, 2, 1, 1, 1, 1), (1, 1, 1, 2, 2, 4, 4)
    want = []
    for stride, dilation, blocks in zip(strides, dilations, (1, 2, 3, 4, 3, 3, 1), strict=True):
        want += [(stride, dilation)] + [(1, 1)] * (blocks - 1)
    assert found == want

    found = geometry(mobilenetv3.Backbone("large", output_stride=8))
    assert [s for s, _ in found] == [1, 2, 1, 2] + [1] * 11
    assert [d for _, d in found] == [1] * 6 + [2] * 6 + [4] * 3
    found = geometry(mobilenetv3.Backbone("small", output_stride=8))
    assert [s for s, _ in found] == [2, 2] + [1] * 9
    assert [d for _, d in found] == [1] * 3 + [2] * 5 + [4] * 3


@pytest.mark.parametrize("size", [(8, 9), (7, 12)])
@pytest.mark.parametrize("kernel", [3, 5])
def test_padding_is_tensorflows(size, kernel):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, *size, 2)).astype(np.float32)
    weights = rng.normal(size=(kernel, kernel, 2, 3)).astype(np.float32)

    def convolve(x, padding):
        return jax.lax.conv_general_dilated(
            x, weights, (2, 2), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    got = convolve(mobilenetv3.same_pad(x, kernel, 2), "VALID")
    np.testing.assert_array_equal(got, convolve(x, "SAME"))


def test_squeeze_and_excite():
    rng = np.random.default_rng(0)
    x = (3 * rng.normal(size=(2, 5, 7, 16))).astype(np.float32)
    module = mobilenetv3.SqueezeExcite()
    params = randomised(jax.eval_shape(module.init, jax.random.key(0), x))["params"]
    params["expand"]["kernel"] *= 5  # so that some gates are shut and some wide open
    w1, b1 = params["reduce"]["kernel"][0, 0], params["reduce"]["bias"]
    w2, b2 = params["expand"]["kernel"][0, 0], params["expand"]["bias"]
    gate = np.maximum(x.mean((1, 2)) @ w1 + b1, 0) @ w2 + b2
    gate = np.clip((gate + 3) / 6, 0, 1)
    assert (gate == 0).any() and (gate == 1).any() and ((gate > 0) & (gate < 1)).any()
    got = module.apply({"params": params}, x)
    np.testing.assert_allclose(got, x * gate[:, None, None], atol=1e-5)


@pytest.mark.parametrize(
    ("h", "w", "rows", "cols"),
    [(64, 128, (0,), (0, 20, 40, 60)), (49, 88, (0,), (0, 20)), (65, 10, (0, 16), (0,))],
)
def test_window_means(h, w, rows, cols):
    """The paper's pooling; a map smaller than the window is one window."""
    x = np.random.default_rng(0).normal(size=(2, h, w, 3)).astype(np.float32)
    got = lraspp.window_means(x, 49, (16, 20))
    assert got.shape == (2, len(rows), len(cols), 3)
    for i, row in enumerate(rows):
        for j, col in enumerate(cols):
            want = x[:, row : row + 49, col : col + 49].mean((1, 2))
            np.testing.assert_allclose(got[:, i, j], want, atol=1e-6)


TINY = dict(
    lraspp=dict(
        name="lraspp",
        backbone=dict(name="mobilenetv3", size="small", width=0.25, output_stride=8),
        low_channels=(3, 4),
        channels=8,
        dropout=0.0,
    ),
    fcn=dict(
        name="fcn",
        backbone=dict(name="mobilenetv2", width=0.25, output_stride=8),
        channels=8,
        aux_channels=8,
        dropout=0.0,
    ),
)


@pytest.mark.slow  # tests/test_every_config.py trains both for a step
@pytest.mark.parametrize("name", ["lraspp", "fcn"])
def test_training_reaches_every_parameter_and_statistic(name):
    model = models.get(TINY[name], num_classes=4)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 65, 97, 3), np.uint8)
    variables = randomised(shapes(model, pixels))

    @jax.jit
    def run(variables, image):
        def loss(params):
            outputs, new = forward(model, {**variables, "params": params}, image, train=True)
            scores = [x for name, x in outputs.items() if name.endswith("logits")]
            return sum(((x - 1) ** 2).mean() for x in scores), new

        return jax.grad(loss, has_aux=True)(variables["params"])

    grads, new = run(variables, pixels)
    for path, grad in jax.tree.leaves_with_path(grads):
        assert np.isfinite(grad).all() and np.abs(grad).max() > 0, jax.tree_util.keystr(path)
    old, new = variables["batch_stats"], new["batch_stats"]
    assert jax.tree.structure(new) == jax.tree.structure(old)
    for before, after in zip(*map(jax.tree.leaves, (old, new)), strict=True):
        assert (before != after).all()


@pytest.mark.parametrize("name", TINY)
def test_bfloat16_stays_bfloat16(name):
    model = models.get(TINY[name], num_classes=4)
    x = image(64, 96)
    outputs = jax.eval_shape(
        lambda v, x: forward(model, v, x, train=False, dtype="bfloat16")[0], shapes(model, x), x
    )
    assert {x.dtype for x in outputs.values()} == {np.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (dict(name="mobilenetv2", width=0), r"backbone\.width=0"),
        (dict(name="mobilenetv2", output_stride=2), r"backbone\.output_stride=2.*32"),
        (dict(name="mobilenetv3", size="medium"), r"backbone\.size.*'medium'.*large"),
        (dict(name="mobilenetv3", output_stride=7), r"backbone\.output_stride=7"),
    ],
)
def test_mistakes_are_named(backbone, message):
    with pytest.raises(UserError, match=message):
        models.get_backbone(backbone)


def test_low_features_and_channels_must_pair():
    spec = TINY["lraspp"] | dict(low_channels=(3,))
    with pytest.raises(UserError, match=r"low_channels=\(3,\).*low_features"):
        models.get(spec, num_classes=4)
