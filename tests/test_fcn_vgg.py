"""FCN-32s/16s/8s: the released networks' sizes, crops and kernels, alignment, stages, gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import convolve2d

from jaxseg import convert, models, trees
from jaxseg.errors import UserError
from jaxseg.models import fcn_vgg, segmenter
from jaxseg.models.fcn_vgg import FCNVGGHead, Upscore
from jaxseg.ops.resize import resize
from tests.nets import check_gradients, randomised

# Layers of the released networks by stride: the upsampling ones and their factors, the skips, and
# the crops, of which the last is the image's.
RELEASED = {
    32: (("upscore32",), (32,), (), (19,)),
    16: (("upscore2", "upscore16"), (2, 16), ("pool4",), (5, 27)),
    8: (("upscore2", "upscore_pool4", "upscore8"), (2, 2, 8), ("pool4", "pool3"), (5, 9, 31)),
}
SKIP_CHANNELS = {"pool4": 512, "pool3": 256}
# What an image of PASCAL VOC takes and gives: 500 pixels and 198 more, five pools, a 7x7 window.
VOC = {"size": 500, "pool3": 88, "pool4": 44, "pool5": 22, "fc6": 16}


def model(stride=8, padding=100, width=1, classes=2, **arguments):
    backbone = dict(name="vgg", width=width, padding=padding)
    spec = dict(name="fcn_vgg", stride=stride, fc_channels=4, backbone=backbone) | arguments
    return models.get(spec, num_classes=classes)


def abstract(model, h=33, w=33):
    image = jax.ShapeDtypeStruct((1, h, w, 3), jnp.uint8)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), image)["params"]


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params, image):
    outputs, _ = segmenter.forward(model, {"params": params}, image, train=False)
    return outputs["logits"]


@pytest.mark.parametrize("stride", RELEASED)
def test_parameter_counts(stride):
    names, factors, skips, _ = RELEASED[stride]
    learned = abstract(model(stride, width=64, classes=21, fc_channels=4096))
    count = sum(leaf.size for leaf in jax.tree.leaves(learned))
    fc6, fc7, score = 512 * 49 * 4096 + 4096, 4097 * 4096, 4097 * 21
    published = 14_714_688 + fc6 + fc7 + score  # FCN-32s without upsampling: 134 M in table 1
    assert published == 134_346_581
    skips = sum((SKIP_CHANNELS[name] + 1) * 21 for name in skips)
    kernels = sum((2 * factor * 21) ** 2 for factor in factors)
    assert count == published + skips + kernels
    assert {f"head/{name}/conv/kernel" for name in names} == {
        name for name in trees.named_leaves(learned) if "upscore" in name
    }
    fixed = model(stride, width=64, classes=21, fc_channels=4096, upsample="bilinear")
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract(fixed))) == published + skips


@pytest.mark.parametrize("stride", RELEASED)
@pytest.mark.parametrize("padding", [100, 1])
@pytest.mark.parametrize(("h", "w"), [(1, 33), (47, 64), (65, 90)])
def test_logits_have_the_size_of_the_image(stride, padding, h, w):
    net = model(stride, padding)
    image = jax.ShapeDtypeStruct((2, h, w, 3), jnp.uint8)
    outputs = jax.eval_shape(lambda x: net.init_with_output(jax.random.key(0), x, False)[0], image)
    assert outputs["logits"].shape == (2, h, w, 2)


def test_sizes_are_those_of_the_released_networks():
    net = model(width=1)
    image = jax.ShapeDtypeStruct((1, VOC["size"], VOC["size"], 3), jnp.uint8)
    outputs, state = jax.eval_shape(
        lambda x: net.apply(
            net.init(jax.random.key(0), x, False), x, False, capture_intermediates=True
        ),
        image,
    )
    sizes = {name: x.shape[1] for name, x in outputs.items()}
    assert {name: sizes[name] for name in ("pool3", "pool4", "pool5")} == {
        name: VOC[name] for name in ("pool3", "pool4", "pool5")
    }
    inside = state["intermediates"]["head"]
    rows = {name: inside[name]["__call__"][0].shape[1] for name in inside if name != "__call__"}
    assert rows["fc6"] == rows["fc7"] == rows["score_fr"] == VOC["fc6"]
    assert (rows["upscore2"], rows["upscore_pool4"], rows["upscore8"]) == (34, 70, 568)


def deconvolve(x, kernel, stride):
    """Caffe's Deconvolution without padding: zeros between the pixels, a full convolution."""
    h, w, c = x.shape
    apart = np.zeros((stride * (h - 1) + 1, stride * (w - 1) + 1, c))
    apart[::stride, ::stride] = x
    planes = [
        sum(convolve2d(apart[..., i], kernel[:, :, o, i], "full") for i in range(c))
        for o in range(kernel.shape[2])
    ]
    return np.stack(planes, -1)


@pytest.mark.parametrize("stride", RELEASED)
def test_head_is_the_released_network(stride):
    """Against one in NumPy that is told the crops, with kernels that are neither 0 nor bilinear."""
    names, factors, skips, crops = RELEASED[stride]
    h, w = 41, 70
    rng = np.random.default_rng(stride)
    features = {"conv1": np.zeros((1, h + 198, w + 198, 1))}
    for level in (3, 4, 5):
        size = (-(-(n + 198) // 2**level) for n in (h, w))
        features[f"pool{level}"] = rng.normal(size=(1, *size, 3))
    features = jax.tree.map(np.float32, features)
    head = FCNVGGHead(num_classes=2, stride=stride, fc_channels=3, skip_scales=(0.5, 0.25))
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), features, False))
    params = randomised(shapes["params"])
    got = jax.jit(lambda p, f: head.apply({"params": p}, f, False))(params, features)["logits"][0]

    def valid(x, layer):
        kernel, bias = params[layer]["kernel"].astype("f8"), params[layer]["bias"]
        k = kernel.shape[0]
        windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), (0, 1))  # [h, w, c, k, k]
        return np.einsum("hwcij,ijco->hwo", windows, kernel) + bias

    x = np.maximum(valid(features["pool5"][0], "fc6"), 0)
    x = valid(np.maximum(valid(x, "fc7"), 0), "score_fr")
    for i, (name, factor) in enumerate(zip(names, factors, strict=True)):
        x = deconvolve(x, params[name]["conv"]["kernel"], factor)
        if i < len(skips):
            skip = valid((0.5, 0.25)[i] * features[skips[i]][0], f"score_{skips[i]}")
            crop = crops[i]
            x = x + skip[crop : crop + x.shape[0], crop : crop + x.shape[1]]
    x = x[crops[-1] : crops[-1] + h, crops[-1] : crops[-1] + w]
    assert got.shape == (h, w, 2)
    np.testing.assert_allclose(got / x.std(), x / x.std(), atol=1e-4)


@pytest.mark.parametrize("padding", [100, 1])
@pytest.mark.parametrize(
    ("stride", "scored"),
    [(s, f"score_{n}") for s, (_, _, skips, _) in RELEASED.items() for n in ("fr", *skips)],
)
def test_a_centred_block_stays_centred(stride, padding, scored):
    """A bright block that fills one cell of pool5 is scored symmetrically about its centre."""
    net = model(stride, padding, fc_channels=1, mean=(0.0,) * 3, std=(1.0,) * 3)
    net = net.clone(head=net.head.clone(skip_scales=(1.0, 1.0)))

    def identity(path, leaf):
        name, place = path[-2].key, jax.tree_util.keystr(path)
        if "upscore" in place:
            return fcn_vgg.bilinear_init(None, leaf.shape)
        kernel = np.zeros(leaf.shape, "f4")
        if leaf.ndim == 4 and (not name.startswith("score") or name == scored):
            kernel[leaf.shape[0] // 2, leaf.shape[1] // 2, 0, 0] = 1
        return kernel

    params = jax.tree.map_with_path(identity, abstract(net))
    top, left = ((n + 1 - padding) % 32 + n // 32 * 32 for n in (64, 96))
    image = np.zeros((1, 181, 230, 3), "f4")
    image[:, top : top + 32, left : left + 32] = 1
    got = np.asarray(logits(net, params, image))[0, ..., 0]
    margin = 40
    around = got[top - margin : top + 32 + margin, left - margin : left + 32 + margin]
    assert around.shape == (112, 112) and around.max() > 0.5
    np.testing.assert_allclose(around, around[::-1], atol=1e-6)
    np.testing.assert_allclose(around, around[:, ::-1], atol=1e-6)
    if stride == 32:  # a hat: linear over the distance of two cells
        hat = np.maximum(0, 1 - np.abs(np.arange(112) - 55.5) / 32)
        np.testing.assert_allclose(around, np.outer(hat, hat), atol=1e-6)


@pytest.mark.parametrize("factor", [2, 8, 16, 32])
def test_upsampling_begins_bilinear(factor):
    ramp = np.add.outer(3.0 * np.arange(6), -np.arange(7.0))[None, ..., None]
    x = np.concatenate([ramp, np.random.default_rng(0).normal(size=ramp.shape)], -1).astype("f4")
    learned, fixed = (Upscore(factor, method) for method in ("transposed", "bilinear"))
    variables = learned.init(jax.random.key(0), x)
    got = learned.apply(variables, x)
    assert got.shape == (1, factor * 7, factor * 8, 2)
    edge = factor // 2
    inner = got[:, edge : -edge or None, edge : -edge or None]
    want = resize(x, (factor * 6, factor * 7))
    np.testing.assert_allclose(
        inner[:, edge:-edge, edge:-edge], want[:, edge:-edge, edge:-edge], atol=1e-4
    )
    # On a ramp that is known in closed form: pixels i of the map lie at factor (i + 1) - 0.5.
    rows, cols = ((np.arange(factor * n) + 0.5) / factor - 1 for n in (7, 8))
    exact = np.add.outer(3 * rows, -cols)
    within = np.ix_((rows >= 0) & (rows <= 5), (cols >= 0) & (cols <= 6))
    np.testing.assert_allclose(got[0, ..., 0][within], exact[within], atol=1e-4)
    # Fading borders included, the fixed one is the same, and has no parameters.
    assert not fixed.init(jax.random.key(0), x)
    np.testing.assert_allclose(fixed.apply({}, x), got, atol=1e-4)


def test_each_stage_starts_from_the_last():
    image = np.random.default_rng(0).integers(0, 256, (1, 107, 140, 3), np.uint8)
    nets = {stride: model(stride, 1, width=2, skip_scales=(1.0, 1.0)) for stride in RELEASED}
    init = jax.jit(lambda key: {s: net.init(key, image, False) for s, net in nets.items()})
    fresh = init(jax.random.key(0, impl="rbg"))  # compiles faster than the default generator

    def trained(variables):  # everything but the upsampling, which stays near where it begins
        other = trees.named_leaves(randomised(variables))
        leaves = trees.named_leaves(variables).items()
        return trees.nested({k: v if "upscore" in k else other[k] for k, v in leaves})

    new = {16: "head/(upscore.*|score_pool4)", 8: "head/(upscore(8|16|_pool4)|score_pool3)"}
    last = trained(fresh[32])
    for stride, skip in new.items():
        with pytest.raises(UserError, match="init_skip"):
            trees.fill(fresh[stride], last, None, "the last stage")
        filled = trees.fill(fresh[stride], last, skip, "the last stage")
        old = trees.named_leaves(last)
        for name, leaf in trees.named_leaves(filled).items():
            if name in old:
                np.testing.assert_array_equal(leaf, old[name])
            else:  # new layers: a bilinear kernel, or a score of zero
                assert "upscore" in name or not np.any(leaf), name
        # What changes at first is only by how many steps the scores are upsampled, and that hardly
        # away from the borders.
        before = logits(nets[2 * stride], last["params"], image)[:, 32:-32, 32:-32]
        after = logits(nets[stride], filled["params"], image)[:, 32:-32, 32:-32]
        assert before.std() > 0.1 and (after - before).std() < 0.1 * before.std()
        last = trained(filled)


@pytest.mark.parametrize("padding", [100, 1])
def test_gradients_reach_every_parameter(padding):
    net = model(8, padding, width=2, classes=3, skip_scales=(1.0, 1.0))
    params = randomised(abstract(net))
    image = np.random.default_rng(0).integers(0, 256, (1, 41, 57, 3), np.uint8)
    check_gradients(net, {"params": params}, image)


def test_weights_by_the_released_networks_names():
    head = FCNVGGHead(num_classes=2)
    names = convert.torch_names(model())
    assert [
        convert.place(f"decode_head.{name}.weight", 4, names)
        for name in ("fc6", "score_pool3", "upscore_pool4", "upscore", "upscore8", "fc8")
    ] == [
        "params/head/fc6/kernel",
        "params/head/score_pool3/kernel",
        "params/head/upscore_pool4/conv/kernel",
        "params/head/upscore32/conv/kernel",
        "params/head/upscore8/conv/kernel",
        None,
    ]
    assert len(fcn_vgg.torch_names(head)) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(stride=4), r"stride=4.*\(8, 16, 32\)"),
        (dict(upsample="nearest"), r"config\.model\.upsample.*'nearest'.*transposed, bilinear"),
        (dict(skip_scales=(1.0,)), r"skip_scales=\(1\.0,\).*two"),
        (dict(backbone=dict(name="vgg", padding=50)), r"padding=50.*\(100, 1\)"),
        (dict(backbone=dict(name="vgg", pool=3)), r"pool=3.*pool=2"),
        (dict(backbone=dict(name="resnet")), r"backbone\.name='resnet'.*'vgg'"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        model(**arguments)
