"""SegNet and SegNet-Basic: the published sizes, and where unpooling puts things."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from jaxseg import convert, models
from jaxseg.errors import UserError
from jaxseg.models import segmenter, segnet, segnet_basic, vgg
from jaxseg.models.upsample import METHODS

STAGES = {"segnet": 5, "segnet_basic": 4}
PLAIN = dict(mean=(0.0,) * 3, std=(1.0,) * 3)


def build(name, classes=3, **arguments):
    return models.get(dict(name=name, **arguments), num_classes=classes)


def shapes(model, h=64, w=64):
    image = jax.ShapeDtypeStruct((1, h, w, 3), jnp.uint8)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), image)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def drawn(abstract):
    """Random variables, without compiling the initialisers."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        spread = np.sqrt(2 / np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.2
        return (rng.normal(size=leaf.shape) * spread).astype(np.float32)

    return jax.tree.map_with_path(draw, abstract)


def pixels(h, w, b=1):
    return np.random.default_rng(h).integers(1, 256, (b, h, w, 3), np.uint8)


# ---- sizes ----


def test_parameters_of_segnet_are_those_published():
    classes = 11
    down = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256)]
    down += [(256, 512)] + 5 * [(512, 512)]
    up = 5 * [(512, 512)] + [(512, 256), (256, 256), (256, 256), (256, 128), (128, 128)]
    up += [(128, 64), (64, 64)]
    want = sum(9 * a * b + 3 * b for a, b in down + up) + (9 * 64 + 1) * classes
    got = count(shapes(build("segnet", classes))["params"])
    assert got == want == 29_449_355  # ENet's table 3 (arXiv:1606.02147): 29.46 M


def test_parameters_of_segnet_basic_are_those_of_the_paper():
    classes = 11
    want = 49 * 64 * (3 + 7 * 64) + 8 * 2 * 64 + 65 * classes
    got = count(shapes(build("segnet_basic", classes))["params"])
    assert got == want == 1_416_075
    assert abs(got / 1.425e6 - 1) < 0.01  # table 1, where all counts are multiples of 25 k


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("upsample", METHODS)
def test_logits_have_the_size_of_the_image_whatever_it_is(name, upsample):
    model = build(name, classes=4, width=4, upsample=upsample, dropout=0.5)
    for h, w in ((64, 96), (61, 45), (33, 90)):
        image = jax.ShapeDtypeStruct((2, h, w, 3), jnp.uint8)
        outputs = jax.eval_shape(
            lambda x, model=model: model.init_with_output(jax.random.key(0), x, False)[0], image
        )
        assert outputs["logits"].shape == (2, h, w, 4)
        for stage in range(1, STAGES[name] + 1):
            size = tuple(-(-n // 2**stage) for n in (h, w))
            assert outputs[f"pool{stage}"].shape[1:3] == size
            assert outputs[f"indices{stage}"].shape == outputs[f"pool{stage}"].shape
            assert outputs[f"indices{stage}"].dtype == jnp.uint8


def test_width_scales_every_layer_and_learned_upsampling_adds_to_them():
    wide, narrow = (shapes(build("segnet", width=w))["params"] for w in (64, 8))
    a, b = (traverse_util.flatten_dict(tree) for tree in (wide, narrow))
    assert a.keys() == b.keys()
    # All but the image's three channels and the classifier's three classes scale.
    assert all(a[path].size == b[path].size * 64 for path in a if a[path].size > 10_000)
    learned = count(shapes(build("segnet", width=8, upsample="transposed"))["params"])
    squares = [64, 64, 32, 16, 8]  # widths that grow: 2x2 kernels and biases
    assert learned - count(narrow) == sum(4 * c * c + c for c in squares)


def test_receptive_field_of_segnet_basic_is_106_pixels():
    """Section 3.1; a pixel that is no number spoils what depends on it."""
    encoder = segnet_basic.Encoder(width=1)
    x = np.ones((240, 240, 16, 3), np.float32)
    x[np.arange(240), np.arange(240)] = np.nan  # one row in each image
    variables = drawn(jax.eval_shape(lambda x: encoder.init(jax.random.key(0), x, False), x[:1]))
    deep = jax.jit(lambda v, x: encoder.apply(v, x, False)["pool4"])(variables, x)
    reached = np.isnan(deep[:, 7, 0, 0])  # which rows the eighth of fifteen depends on
    assert reached.sum() == 106 and np.diff(np.flatnonzero(reached)).max() == 1


# ---- unpooling ----


def identities(abstract):
    """Variables with which every convolution and norm hands its first channels on unchanged."""

    def fill(path, leaf):
        name, shape = path[-1].key, leaf.shape
        if name == "kernel":
            kernel = np.zeros(shape, np.float32)
            kernel[shape[0] // 2, shape[1] // 2] = np.eye(*shape[2:])
            return kernel
        # The variance makes up for the norm's epsilon.
        return np.full(shape, {"scale": 1, "var": 1 - 1e-5}.get(name, 0), np.float32)

    return jax.tree.map_with_path(fill, abstract)


def response(image):
    """SegNet-Basic's input, from the formula: a sum over the channels up to two away."""
    x = image.astype(np.float64)
    near = [np.square(x[..., max(0, c - 2) : c + 3]).sum(-1) for c in range(3)]
    return x / (1 + 1e-4 / 5 * np.stack(near, -1)) ** 0.75


@pytest.mark.parametrize(("h", "w"), [(64, 96), (70, 45)])
@pytest.mark.parametrize("upsample", ["unpool", "unpool_fixed"])
@pytest.mark.parametrize("name", STAGES)
def test_every_maximum_returns_to_its_place(name, upsample, h, w):
    """With identities for layers, what is left of an image are the maxima of its blocks."""
    model = build(name, width=3, upsample=upsample, **PLAIN)
    image = pixels(h, w)
    x = response(image) if name == "segnet_basic" else image.astype(np.float64)
    x = x + np.zeros(3)
    block = 2 ** STAGES[name]
    want = np.zeros_like(x)
    for top in range(0, h, block):
        for left in range(0, w, block):
            part = x[0, top : top + block, left : left + block]
            for c in range(3):
                place = np.unravel_index(first_maximum(part[..., c]), part.shape[:2])
                place = (0, 0) if upsample == "unpool_fixed" else place
                want[0, top + place[0], left + place[1], c] = part[..., c].max()
    run = jax.jit(lambda v, x: segmenter.forward(model, v, x, train=False)[0]["logits"])
    got = run(identities(shapes(model)), image)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)


def first_maximum(x):
    """Where halving by 2x2 maxima finds the maximum: the first in row order at each halving."""
    if x.size == 1:
        return 0
    h, w = x.shape
    best = {}
    for i in range(0, h, 2):
        for j in range(0, w, 2):
            part = x[i : i + 2, j : j + 2]
            k = np.unravel_index(part.argmax(), part.shape)
            best[i // 2, j // 2] = (part.max(), (i + k[0], j + k[1]))
    small = np.array([[best[i, j][0] for j in range(-(-w // 2))] for i in range(-(-h // 2))])
    inner = np.unravel_index(first_maximum(small), small.shape)
    i, j = best[inner][1]
    return i * w + j


@pytest.mark.parametrize("name", STAGES)
def test_training_reaches_every_layer(name):
    model = build(name, width=2, dropout=0.5)
    image = pixels(48, 64, 2)

    @jax.jit
    def gradients(params, state):
        def loss(params):
            key = jax.random.key(0, impl="rbg")  # compiles faster than the default generator
            outputs, _ = segmenter.forward(
                model, {"params": params, **state}, image, train=True, rngs={"dropout": key}
            )
            return jnp.square(outputs["logits"] - 1).mean()

        return jax.grad(loss)(params)

    variables = drawn(shapes(model))
    grads = gradients(variables.pop("params"), variables)
    for path, leaf in traverse_util.flatten_dict(grads).items():
        assert np.isfinite(leaf).all(), path
        if path[-1] != "bias":  # a norm undoes the bias of the convolution before it
            assert np.abs(leaf).max() > 0, path


# ---- dropout and weights from elsewhere ----


@pytest.mark.parametrize(("name", "drops"), [("segnet", 6), ("segnet_basic", 4)])
def test_dropout_is_off_at_test_time_unless_a_key_is_given(name, drops):
    bayesian, plain = build(name, width=4, dropout=0.5), build(name, width=4)
    assert shapes(bayesian) == shapes(plain)
    image, variables = pixels(32, 32), drawn(shapes(plain))
    calls = []

    @jax.jit
    def run(variables, seed=None):
        def watch(call, arguments, keywords, context):
            calls.append((type(context.module), getattr(context.module, "deterministic", None)))
            return call(*arguments, **keywords)

        rngs = None if seed is None else {"dropout": jax.random.key(seed, impl="rbg")}
        with nn.intercept_methods(watch):
            outputs, _ = segmenter.forward(bayesian, variables, image, train=False, rngs=rngs)
        return {name: outputs[name] for name in ("pool2", "pool3", "logits")}

    want = run(variables)
    off = jax.jit(lambda v: segmenter.forward(plain, v, image, train=False)[0]["logits"])
    np.testing.assert_allclose(want["logits"], off(variables), rtol=1e-4, atol=1e-4)
    assert calls.count((nn.Dropout, True)) == drops and (nn.Dropout, False) not in calls
    first, second = run(variables, 1), run(variables, 2)
    assert calls.count((nn.Dropout, False)) == drops
    assert np.abs(first["logits"] - second["logits"]).max() > 0
    # Half of the values of the inner pools are gone, the others doubled; outer pools are whole.
    np.testing.assert_allclose(first["pool2"], want["pool2"], rtol=1e-4, atol=1e-4)
    whole, dropped = np.asarray(want["pool3"]), np.asarray(first["pool3"])
    kept = dropped != 0
    np.testing.assert_allclose(dropped[kept], 2 * whole[kept], rtol=1e-3)
    assert 0.3 < kept.sum() / np.count_nonzero(whole) < 0.7


def test_the_encoder_takes_the_weights_of_vgg_16():
    model = build("segnet", width=4)
    backbone = vgg.Backbone(16, width=4, norm=True)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), "f4")
    want = jax.eval_shape(lambda x: backbone.init(jax.random.key(0), x, False), image)
    got = shapes(model)
    assert got["params"]["backbone"] == want["params"]
    assert got["batch_stats"]["backbone"] == want["batch_stats"]
    names = convert.torch_names(model)  # torchvision's vgg16_bn: layer 41 is its last norm
    assert convert.place("backbone.features.0.weight", 4, names) == (
        "params/backbone/conv1_1/kernel"
    )
    assert convert.place("backbone.features.41.running_var", 1, names) == (
        "batch_stats/backbone/norm5_3/var"
    )


@pytest.mark.parametrize("module", [segnet, segnet_basic])
def test_an_unknown_way_of_upsampling_is_told(module):
    with pytest.raises(UserError, match=r"config\.model\.upsample.*did you mean 'unpool'"):
        module.Model(3, upsample="unpol")
