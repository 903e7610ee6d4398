"""Xception as DeepLabv3+ has it: a public port's outputs, published sizes, dilation for stride."""

import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references

from jaxseg import convert, models
from jaxseg.errors import UserError
from jaxseg.models.xception import Backbone, torch_names

GOLDEN = pathlib.Path(__file__).with_name("golden") / "timm" / "xception71.npz"
# Parameters that timm 1.0 counts for its `xception41` and so on, with ImageNet's classifier.
TIMM = {41: 26_969_560, 65: 39_916_312, 71: 42_338_736}
# The networks of section 4.3: VOC's 21 classes, output stride 16, and no auxiliary head.
PAPER = dict(
    name="deeplabv3p",
    backbone=dict(name="xception", depth=65, output_stride=16),
    rates=(6, 12, 18),
    channels=256,
    aux_channels=0,
    project=1,
)


def image(h=64, w=64):
    return jax.ShapeDtypeStruct((1, h, w, 3), jnp.float32)


def shapes(module, x):
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x, False), x)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def randomised(abstract, seed=0):
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        spread = np.sqrt(2 / np.prod(leaf.shape[:-1])) if path[-1].key == "kernel" else 0.2
        return (rng.normal(size=leaf.shape) * spread).astype(np.float32)

    return jax.tree.map_with_path(draw, abstract)


@pytest.mark.parametrize("depth", TIMM)
def test_parameter_counts(depth):
    parameters = count(shapes(Backbone(depth), image())["params"])
    assert parameters == TIMM[depth] - 1000 * (2048 + 1)


def test_parameter_count_of_the_whole():
    """41,258,213 with the running statistics: published for the Keras port of the release."""
    variables = shapes(models.get(PAPER, 21), image())
    assert count(variables) == 41_258_213


def test_multiply_adds():
    """54.17 billion at 513x513 (table 5); TensorFlow's profiler adds some for the biases."""
    model = models.get(PAPER, 21)
    variables = shapes(model, image(513, 513))
    traced = jax.make_jaxpr(lambda v, x: model.apply(v, x, False)["logits"])(
        variables, image(513, 513)
    )
    np.testing.assert_allclose(multiply_adds(traced.jaxpr), 54.17e9, rtol=4e-3)


def multiply_adds(jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            total += equation.outvars[0].aval.size * int(np.prod(kernel[:3]))
        inner = []
        for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "jaxpr")):
            value = getattr(value, "jaxpr", value)
            if hasattr(value, "eqns"):
                inner.append(multiply_adds(value))
        # Platforms' forms of one operation are branches, of which one is a convolution.
        total += max(inner, default=0) if equation.primitive.name == "cond" else sum(inner)
    return total


def test_features_equal_those_of_the_public_port():
    """timm 1.0.19's XceptionAligned with the blocks of Xception-71, but one in the middle, at
    output stride 16: BatchNorm epsilon 1e-3, weights by `references.draw`, pixels by default_rng(0)
    and of the outputs every 16th channel."""
    npz = np.load(GOLDEN)
    backbone = Backbone(71, output_stride=16, middle_blocks=1, act_between=False)
    x = np.random.default_rng(0).normal(size=(1, *npz["size"], 3)).astype(np.float32)
    variables = convert.from_torch(
        references.state_dict(npz), shapes(backbone, x), torch_names(backbone)
    )
    features = jax.jit(lambda v, x: backbone.apply(v, x, False))(variables, x)
    for name in ("stage0", "stage1", "stage2", "stage3", "stage4"):
        got = np.asarray(features[name])[0, ..., ::16]
        assert got.shape == npz[name].shape
        assert references.relative_error(got, npz[name]) < 1e-5


@pytest.mark.parametrize("between", [True, False])
def test_the_paper_rectifies_between_the_halves(between):
    """With `act_between` no pointwise convolution sees a negative value; else only the last three
    see none."""
    backbone = Backbone(41, middle_blocks=1, width=1 / 16, act_between=between)
    x = np.random.default_rng(0).normal(size=(1, 33, 33, 3)).astype(np.float32)
    lowest = {}

    def watch(call, args, kwargs, context):
        if context.module.name == "pointwise_conv":
            lowest["/".join(context.module.path)] = args[0].min()
        return call(*args, **kwargs)

    @jax.jit
    def run(variables):
        with nn.intercept_methods(watch):
            backbone.apply(variables, x, False)
        return lowest

    found = run(randomised(shapes(backbone, x)))
    assert len(found) == 3 * (3 + 1 + 2)
    for path, low in found.items():
        assert (low >= 0) == (between or path.startswith("exit1"))


@pytest.mark.parametrize("depth", [65, 71])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_feature_sizes(depth, stride, h=97, w=130):
    backbone = Backbone(depth, stride)
    features = jax.eval_shape(
        lambda x: backbone.init_with_output(jax.random.key(0), x, False)[0], image(h, w)
    )
    strides = dict(stage0=2, stage1=4, stage2=8, stage3=min(16, stride), stage4=min(32, stride))
    widths = dict(stage0=128, stage1=256, stage2=728, stage3=1024, stage4=2048)
    assert {name: x.shape for name, x in features.items()} == {
        name: (1, -(-h // s), -(-w // s), widths[name]) for name, s in strides.items()
    }


@functools.cache
def dense(output_stride, multi_grid=(), size=(65, 49)):
    """All features of one small network, always with the same weights, at some output stride."""
    backbone = Backbone(41, output_stride, multi_grid, middle_blocks=1, width=1 / 16)
    x = np.random.default_rng(1).normal(size=(1, *size, 3)).astype(np.float32)
    variables = randomised(shapes(backbone, x))
    return jax.device_get(jax.jit(lambda v, x: backbone.apply(v, x, False))(variables, x))


def close(got, want):
    np.testing.assert_allclose(got / want.std(), want / want.std(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_dilation_replaces_stride_exactly(output_stride):
    """Dense features, subsampled, are the strided ones: borders included."""
    finest, coarse = dense(4), dense(output_stride)
    for stage, nominal in enumerate((2, 4, 8, 16, 32)):
        step = min(nominal, output_stride) // min(nominal, 4)
        name = f"stage{stage}"
        close(coarse[name], finest[name][:, ::step, ::step])


def test_multi_grid_rates_are_those_of_the_last_block():
    close(dense(16, (2, 2, 2))["stage4"], dense(16)["stage4"])
    other = dense(16, (2, 4, 8))
    close(other["stage3"], dense(16)["stage3"])
    assert np.abs(other["stage4"] - dense(16)["stage4"]).max() > 0.1 * other["stage4"].std()


# By hand, from figure 4: each 3x3 convolution adds twice the stride so far to what a pixel sees.
# Stem: 3, 7. Two convolutions at stride 2: 15. The strided one: 19; two at stride 4: 35; ...
FIELDS = {"stage0": (15, 40), "stage1": (35, 20), "stage2": (75, 10)}  # and pixel 80's index


def test_receptive_fields():
    backbone = Backbone(65, 16, middle_blocks=1, width=1 / 16)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 161, 161, 3)), jnp.float32)
    # Nothing negative: nothing cancels and no ReLU hides a pixel.
    variables = jax.tree.map(np.abs, randomised(shapes(backbone, x)))
    variables["batch_stats"] = jax.tree.map_with_path(
        lambda path, v: -v if path[-1].key == "mean" else v, variables["batch_stats"]
    )

    @jax.jit
    def sensitivity(x):
        def centres(x):
            features = backbone.apply(variables, x, False)
            return {name: features[name][0, at, at].sum() for name, (_, at) in FIELDS.items()}

        return jax.jacrev(centres)(jnp.abs(x))

    for name, gradient in sensitivity(x).items():
        rows, cols = np.nonzero(np.asarray(gradient)[0].sum(-1))
        assert rows.max() - rows.min() + 1 == FIELDS[name][0] == cols.max() - cols.min() + 1
        assert rows.min() + rows.max() == 160  # centred on the pixel that it stands for


@pytest.mark.parametrize("upsample", ["transposed", "unpool_fixed", "bilinear", "nearest"])
def test_decoder_grows_by_any_method(upsample):
    spec = PAPER | dict(
        backbone=dict(name="xception", depth=41, output_stride=16, middle_blocks=1, width=1 / 16),
        channels=8,
        upsample=upsample,
        image_pool=False,
    )
    model = models.get(spec, 3)
    outputs, variables = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, False), image(97, 70)
    )
    assert outputs["logits"].shape == (1, 25, 18, 3)
    head = variables["params"]["head"]
    assert "pool" not in head["aspp"]
    assert ("upsample0" in head, "upsample1" in head) == ((upsample == "transposed",) * 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(depth=50), r"depth=50.*41, 65, 71"),
        (dict(output_stride=12), r"output_stride=12.*\(4, 8, 16, 32\)"),
        (dict(multi_grid=(1, 2)), r"multi_grid=\(1, 2\).*three"),
        (dict(width=0), r"width=0.*positive"),
        (dict(middle_blocks=-1), r"middle_blocks=-1"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        models.get(PAPER | dict(backbone=dict(name="xception") | changes), 3)
    with pytest.raises(UserError, match=r"config\.model\.upsample.*unpool_fixed"):
        models.get(PAPER | dict(upsample="unpool"), 3)
