"""Both forms of U-Net: sizes, counts and borders of the paper, gradients, names, their loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import convert, models
from jaxseg.errors import UserError
from jaxseg.losses.boundary import boundary_weighted_cross_entropy
from jaxseg.models import segmenter, unet
from jaxseg.models.upsample import METHODS


def image(h, w, channels=3):
    return jax.ShapeDtypeStruct((1, h, w, channels), jnp.float32)


def shapes(module, x, *arguments):
    return jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x, *arguments), x)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# ---- the original ----


def test_figure_1():
    """572 -> 388 with 23 convolutions: the sizes that the paper's figure and text state."""
    y, variables = shapes(unet.ValidUNet(), image(572, 572, 1), False)
    assert y.shape == (1, 388, 388, 64)
    kernels = [x for x in jax.tree.leaves(variables["params"]) if x.ndim == 4]
    assert len(kernels) + 1 == 23  # and the last, 1x1, is the head's
    assert max(kernels, key=lambda x: x.shape[-1]).shape[-1] == 1024
    # Every kernel of the figure, and a bias per output channel.
    want, c = 0, 1
    for width in (64, 128, 256, 512, 1024):
        want, c = want + 9 * c * width + 9 * width**2 + 2 * width, width
    for width in (512, 256, 128, 64):
        want += 4 * 2 * width**2 + 9 * 2 * width**2 + 9 * width**2 + 3 * width
    assert count(variables["params"]) == want


def test_tiles_are_the_smallest_that_cover():
    assert unet.tile(388) == (572, 388, 92)
    assert unet.tile(389)[:2] == (572 + 16, 388 + 16)
    for stages in (2, 3, 5):
        step = 2 ** (stages - 1)
        for n in (1, 30, 57):
            size, covered, margin = unet.tile(n, stages)
            assert n <= covered < n + step and size == covered + 2 * margin
            assert unet.tile(covered + 1, stages)[0] == size + step
    y, _ = shapes(unet.ValidUNet(2, 3), image(*(unet.tile(n, 3)[0] for n in (30, 57))), False)
    assert y.shape == (1, *(unet.tile(n, 3)[1] for n in (30, 57)), 2)
    with pytest.raises(ValueError, match="pooling 2"):  # a map that cannot be halved
        shapes(unet.ValidUNet(2, 3), image(unet.tile(30, 3)[0] - 2, 44), False)


@functools.cache
def original(upsample="transposed", stages=3):
    """A tiny original network and its variables, biases not zero."""
    model = models.get(dict(name="unet", width=4, stages=stages, upsample=upsample), num_classes=3)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8)
    abstract = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), x)
    rng = np.random.default_rng(0)
    return model, jax.tree.map(
        lambda x: (
            (rng.normal(size=x.shape) * 1.5 / np.sqrt(max(x.size / 8, 1))).astype("f4")
            if x.ndim == 4
            else np.full(x.shape, 0.1, np.float32)
        ),
        abstract,
    )


def pixels(b, h, w, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (b, h, w, 3), np.uint8)


def logits_of(model, variables, x):
    return segmenter.forward(model, variables, x, train=False)[0]["logits"]


def test_overlapping_tiles_join_without_a_seam():
    """Figure 2: logits of a part of an image are those of the whole, where it saw as much.

    A part's own border is mirrored; one margin away from it nothing of that is seen. Poolings lie
    on a grid of 4 pixels, so parts begin at multiples of it.
    """
    model, variables = original()
    margin = unet.tile(1, 3)[2]
    x = pixels(1, 88, 96)
    whole = jax.jit(functools.partial(logits_of, model))(variables, x)
    part = jax.jit(functools.partial(logits_of, model))(variables, x[:, 8:80, 16:92])
    assert whole.shape == (1, 88, 96, 3) and part.shape == (1, 72, 76, 3)
    inner = np.asarray(part[:, margin:-margin, margin:-margin])
    at = np.s_[:, 8 + margin : 80 - margin, 16 + margin : 92 - margin]
    np.testing.assert_allclose(inner, np.asarray(whole)[at], atol=1e-4 * np.std(whole))
    border = np.asarray(part[:, 0]) - np.asarray(whole[:, 8, 16:92])
    assert np.abs(border).max() > 0.01 * np.std(whole)  # there the mirror is seen


def test_the_border_is_mirrored():
    """An image that continues as its mirror image gives the same logits as one that ends there."""
    model, variables = original(stages=2)
    run = jax.jit(functools.partial(logits_of, model))
    margin = unet.tile(1, 2)[2]
    x = pixels(1, 30, 34)
    further = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode="reflect")
    want = np.asarray(run(variables, further))[:, margin:-margin, margin:-margin]
    np.testing.assert_allclose(run(variables, x), want, atol=1e-4 * want.std())


def gradients(model, variables, x, loss):
    """Of the parameters, in training."""
    state = {name: value for name, value in variables.items() if name != "params"}
    rngs = {"dropout": jax.random.key(0, impl="rbg")}

    @jax.jit
    @jax.grad
    def run(params):
        outputs, _ = segmenter.forward(model, {"params": params, **state}, x, train=True, rngs=rngs)
        return loss(outputs)

    return run(variables["params"])


@pytest.mark.parametrize("upsample", METHODS)
def test_gradients_of_the_original_reach_every_parameter(upsample):
    model, variables = original(upsample, stages=2)

    def loss(outputs):
        assert outputs["logits"].shape == (2, 21, 13, 3)  # no tile's output: a crop
        return jnp.square(outputs["logits"] - 1).mean()

    check_gradients(gradients(model, variables, pixels(2, 21, 13), loss))


def test_gradients_pass_through_the_border_weighted_loss():
    model, variables = original()
    labels = np.random.default_rng(1).integers(0, 3, (2, 25, 33)).astype(np.int32)

    def loss(outputs):
        total, n = boundary_weighted_cross_entropy(outputs["logits"], labels, ignore_label=255)
        return total / n

    check_gradients(gradients(model, variables, pixels(2, 25, 33), loss))


def check_gradients(grads):
    for path, grad in jax.tree.leaves_with_path(grads):
        assert np.isfinite(grad).all() and np.abs(grad).max() > 0, jax.tree_util.keystr(path)


def test_initialisation_keeps_the_variance():
    """Section 3: deviation sqrt(2 / N), N the inputs of a neuron, up-convolutions included."""
    model = models.get(dict(name="unet", width=32, stages=3), num_classes=3)
    params = jax.jit(lambda key: model.init(key, pixels(1, 8, 8), False))(
        jax.random.key(0, impl="rbg")
    )["params"]["backbone"]["net"]
    for path, inputs in ((("encoder3", "conv1"), 9 * 128), (("up2", "conv"), 128)):
        kernel = params[path[0]][path[1]]["kernel"]
        np.testing.assert_allclose(kernel.std(), np.sqrt(2 / inputs), rtol=0.03)


def test_dropout_is_at_the_end_of_the_contracting_path():
    net = unet.ValidUNet(8, 3, dropout=0.5)
    x = np.random.default_rng(0).normal(size=(1, 44, 44, 3)).astype(np.float32)
    variables = jax.jit(lambda key: net.init(key, x, False))(jax.random.key(0, impl="rbg"))

    @jax.jit
    def maps(key):
        _, state = net.apply(variables, x, True, rngs={"dropout": key}, capture_intermediates=True)
        return {k: v["__call__"][0] for k, v in state["intermediates"].items() if k[0] != "_"}

    one, other = maps(jax.random.key(1, impl="rbg")), maps(jax.random.key(2, impl="rbg"))
    same = {name: bool((one[name] == other[name]).all()) for name in one if "encoder" in name}
    # What the second encoder gives is dropped after it, so that only the third sees it.
    assert same == {"encoder1": True, "encoder2": True, "encoder3": False}


# ---- the padded form ----


def padded(**changes):
    arguments = dict(backbone=dict(name="unet"), feature="decoder1", aux_feature="decoder2")
    arguments |= dict(channels=64, num_convs=1, concat_input=False, aux_channels=64)
    return models.get(dict(name="fcn") | arguments | changes, num_classes=19)


def test_padded_parameter_count():
    """MMSegmentation publishes 29.06 M for its UNet-S5-D16 with FCN heads."""
    _, variables = shapes(padded(), image(64, 64), False)
    assert count(variables["params"]) == 29_062_886


@pytest.mark.parametrize(("h", "w"), [(64, 96), (63, 97), (50, 33), (5, 1)])
def test_padded_features(h, w):
    features, _ = shapes(unet.Backbone(width=8), image(h, w), False)
    want = {f"encoder{i}": 2 ** (i - 1) for i in range(1, 6)}
    want |= {f"decoder{i}": 2 ** (i - 1) for i in range(1, 5)}
    assert {name: x.shape for name, x in features.items()} == {
        name: (1, -(-h // s), -(-w // s), 8 * s) for name, s in want.items()
    }


@pytest.mark.parametrize("upsample", ["transposed", "unpool", "bilinear"])
def test_gradients_of_the_padded_form_reach_every_parameter(upsample):
    model = padded(
        backbone=dict(name="unet", width=4, stages=2, upsample=upsample),
        channels=4,
        aux_feature="encoder2",
        aux_channels=4,
    )
    x = pixels(2, 15, 21)
    variables = jax.jit(lambda key: model.init(key, x, False))(jax.random.key(0, impl="rbg"))

    def loss(outputs):
        return sum(jnp.square(outputs[name] - 1).mean() for name in ("logits", "aux_logits"))

    check_gradients(gradients(model, variables, x, loss))


@pytest.mark.parametrize("upsample", ["bilinear", "nearest", "unpool", "unpool_fixed"])
def test_an_odd_size_is_an_even_one_s_corner(upsample):
    """Pixels stay aligned: what is far from the missing last row and column does not change."""
    net = unet.Backbone(width=4, stages=3, upsample=upsample)
    x = np.random.default_rng(0).normal(size=(1, 64, 68, 3)).astype(np.float32)
    variables = jax.jit(lambda key: net.init(key, x, False))(jax.random.key(0, impl="rbg"))
    run = jax.jit(lambda x: net.apply(variables, x, False)["decoder1"])
    want, got = np.asarray(run(x)), np.asarray(run(x[:, :63, :65]))
    assert got.shape == (1, 63, 65, 4)
    np.testing.assert_allclose(got[:, :28, :28], want[:, :28, :28], atol=1e-5)


@pytest.mark.parametrize(
    ("upsample", "theirs"),
    [("bilinear", "interp_upsample.1.conv"), ("transposed", "deconv_upsamping.0")],
)
def test_names_of_mmsegmentation(upsample, theirs):
    names = unet.torch_names(unet.Backbone(upsample=upsample))
    place = functools.partial(convert.place, rank=4, names=names)
    assert place("encoder.0.0.convs.1.conv.weight") == "params/encoder1/conv1/conv/kernel"
    assert place("encoder.4.1.convs.0.conv.weight") == "params/encoder5/conv0/conv/kernel"
    up = place(f"decoder.0.upsample.{theirs}.weight").removeprefix("params/").split("/")
    _, variables = shapes(unet.Backbone(upsample=upsample), image(64, 64), False)
    kernel = functools.reduce(lambda tree, key: tree[key], up, variables["params"])
    # [64, 128, 1, 1] of a convolution there, [128, 64, 4, 4] of a transposed one.
    assert kernel.shape == ((1, 1, 128, 64) if upsample == "bilinear" else (4, 4, 64, 128))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (dict(upsample="bicubic"), r"config\.model\.upsample.*transposed"),
        (dict(stages=1), r"config\.model\.stages=1.*2"),
        (dict(width=0), r"config\.model\.width=0.*1"),
    ],
)
def test_mistakes_are_named(spec, message):
    with pytest.raises(UserError, match=message):
        models.get(dict(name="unet") | spec, num_classes=2)
    with pytest.raises(UserError, match=message.replace("model", r"model\.backbone")):
        unet.Backbone(**spec)


# ---- the loss ----


def two_bars():
    labels = np.zeros((2, 16, 40), np.int32)
    labels[0, :, 10:14] = labels[0, :, 20:24] = 1
    labels[1, :, :20] = 255
    logits = np.random.default_rng(0).normal(size=(2, 16, 40, 2)).astype(np.float32)
    return logits, labels


def test_border_weighted_loss_by_hand():
    logits, labels = two_bars()
    total, n = boundary_weighted_cross_entropy(
        logits, labels, ignore_label=255, class_weights=(1.0, 3.0)
    )
    weights = np.where(labels == 1, 3.0, 1.0) * (labels != 255)
    # Columns 13 to 20, the gap and the two borders' own pixels, of the paper's weight 7 apart.
    weights[0, :, 13:21] += 10 * np.exp(-(7**2) / 50)
    # Within a bar and outside, both distances grow by one with each column.
    for i, column in enumerate((12, 11, 10), 1):
        extra = 10 * np.exp(-((min(i, 3 - i) + 7 + i) ** 2) / 50)
        weights[0, :, column] += extra
        weights[0, :, 33 - column] += extra
    for i in range(1, 11):
        extra = 10 * np.exp(-((i + 10 + i) ** 2) / 50)
        weights[0, :, 10 - i] += extra
        weights[0, :, 23 + i] += extra
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    picked = np.take_along_axis(log_p, np.where(labels == 1, 1, 0)[..., None], -1)[..., 0]
    np.testing.assert_allclose(total, -(weights * picked).sum(), rtol=1e-5)
    np.testing.assert_allclose(n, weights.sum(), rtol=1e-5)


def test_border_weighted_loss_options():
    logits, labels = two_bars()
    loss = functools.partial(boundary_weighted_cross_entropy, logits, labels, ignore_label=255)
    gaps, n = loss(average="all")
    assert n == 2 * 16 * 40
    plain, n = loss(w0=0.0)
    assert n == (labels != 255).sum()
    # Of the background as cells, the three parts are parted by bars of 4 pixels, not by 6.
    background, _ = loss(cells=(0,))
    boundaries, _ = loss(cells=(0, 1))
    assert plain < gaps < background < boundaries
    alone, _ = loss(mask=np.array([False, True]))  # no bar, so nothing but cross-entropy
    log_p = jax.nn.log_softmax(logits[1, :, 20:])[..., 0]
    np.testing.assert_allclose(alone, -log_p.sum(), rtol=1e-5)
    for options in (dict(sigma=0.0), dict(w0=-1.0), dict(cells=(2,)), dict(average="some")):
        with pytest.raises(UserError, match=next(iter(options))):
            loss(**options)
