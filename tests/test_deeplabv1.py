"""DeepLab v1: the paper's table on the field of view, its receptive field, alignment, gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import models
from jaxseg.errors import UserError
from jaxseg.models import segmenter
from jaxseg.models.deeplabv1 import DeepLabV1Head
from tests.nets import check_gradients, randomised

VGG = dict(name="vgg", pool=3, output_stride=8)
CONVOLUTIONS = 14_714_688
# The paper's table on the field of view: kernel, dilation ("input stride") and channels of fc6; the
# field of view in pixels; parameters for 21 classes, as printed there in millions.
TABLE = [
    (7, 4, 4096, 224, 134.3),
    (4, 4, 4096, 128, 65.1),
    (4, 8, 4096, 224, 65.1),
    (3, 12, 1024, 224, 20.5),
]


def model(width=1, classes=2, **arguments):
    backbone = VGG | dict(width=width)
    spec = dict(name="deeplabv1", channels=4, backbone=backbone) | arguments
    return models.get(spec, num_classes=classes)


def abstract(model, h=33, w=33):
    image = jax.ShapeDtypeStruct((1, h, w, 3), jnp.uint8)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), image)["params"]


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params, image):
    outputs, _ = segmenter.forward(model, {"params": params}, image, train=False)
    return outputs["logits"]


@pytest.mark.parametrize(("kernel", "dilation", "channels", "field", "millions"), TABLE)
def test_parameter_counts(kernel, dilation, channels, field, millions):
    net = model(64, 21, kernel=kernel, dilation=dilation, channels=channels)
    count = sum(leaf.size for leaf in jax.tree.leaves(abstract(net)))
    fc6, fc7 = (512 * kernel**2 + 1) * channels, (channels + 1) * channels
    assert count == CONVOLUTIONS + fc6 + fc7 + (channels + 1) * 21
    assert abs(count / 1e6 - millions) < 0.06


@pytest.mark.parametrize(("kernel", "dilation", "channels", "field", "millions"), TABLE)
def test_field_of_view(kernel, dilation, channels, field, millions):
    """Which cells of pool5 a score sees. The field is in pixels, a cell of VGG's pool5 being 32."""
    head = DeepLabV1Head(num_classes=1, kernel=kernel, dilation=dilation, channels=2)
    cells, centre = 41, 20
    features = {"pool5": jnp.ones((1, cells, cells, 3)), "conv1": jnp.ones((1, 321, 321, 1))}
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), features, False))
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)

    def score(pool5):
        scores = head.apply(params, features | {"pool5": pool5}, False)["logits"]
        return scores[0, 8 * centre, 8 * centre, 0]

    seen = np.asarray(jax.grad(score)(features["pool5"]))[0, :, :, 0] > 0
    # The taps of fc6, each an average of 3x3 cells.
    taps = centre + (np.arange(kernel) - (kernel - 1) / 2) * dilation
    want = np.isin(np.arange(cells), np.add.outer(taps, (-1, 0, 1)))
    np.testing.assert_array_equal(seen, np.outer(want, want))
    reach = np.ptp(np.flatnonzero(want)) - 2
    assert 8 * reach + 32 == field


def receptive_field(kernel, dilation):
    """Pixels that a score depends on, along one axis: the layers of the network, one by one."""
    layers = [(3, 1, 1)] * 2 + [(3, 1, 2)]  # (kernel, dilation, stride): conv1, pool1
    layers += [(3, 1, 1)] * 2 + [(3, 1, 2)]
    layers += [(3, 1, 1)] * 3 + [(3, 1, 2)]
    layers += [(3, 1, 1)] * 3 + [(3, 1, 1)]  # pool4 keeps the size
    layers += [(3, 2, 1)] * 3 + [(3, 1, 1), (3, 1, 1)]  # conv5, pool5, the average
    layers += [(kernel, dilation, 1)]
    field, stride = 1, 1
    for size, rate, step in layers:
        field += (size - 1) * rate * stride
        stride *= step
    return field


@pytest.mark.parametrize(("kernel", "dilation"), [(3, 12), (4, 8), (7, 4)])
def test_receptive_field(kernel, dilation):
    """A bright pixel reaches the central score from inside the field and from nowhere else."""
    field = receptive_field(kernel, dilation)
    assert (kernel, field) in [(3, 435), (4, 435), (7, 435)]
    net = model(kernel=kernel, dilation=dilation, mean=(0.0,) * 3, std=(1.0,) * 3)

    def along_rows(path, leaf):  # ones in the central row of each kernel, no bias
        if leaf.ndim == 1:
            return np.zeros(leaf.shape, "f4")
        ones = np.zeros(leaf.shape, "f4")
        ones[leaf.shape[0] // 2] = 1
        return ones

    params = jax.tree.map_with_path(along_rows, abstract(net))
    # For a kernel of 4 rows the central one of them lies half a dilation below the centre.
    width, centre = 481, 240
    places = centre + np.array([-1, 1])[:, None] * (np.array([-1, 0]) + (field - 1) // 2 + 1)
    image = np.zeros((4, 121, width, 3), "f4")
    image[np.arange(4), 56 + 4 * dilation * (kernel % 2 == 0), places.ravel()] = 1
    seen = logits(net, params, image)[:, 56, centre, 0] > 0
    np.testing.assert_array_equal(seen.reshape(2, 2), [[True, False], [True, False]])


@pytest.mark.parametrize(("h", "w"), [(73, 89), (72, 96), (70, 83)])
def test_a_centred_pixel_stays_centred(h, w):
    net = model(kernel=1, dilation=1, mean=(0.0,) * 3, std=(1.0,) * 3)

    def identity(path, leaf):
        kernel = np.zeros(leaf.shape, "f4")
        if leaf.ndim == 4:
            kernel[leaf.shape[0] // 2, leaf.shape[1] // 2, 0, 0] = 1
        return kernel

    params = jax.tree.map_with_path(identity, abstract(net))
    image = np.zeros((1, h, w, 3), "f4")
    image[0, 32, 40] = 1
    got = np.asarray(logits(net, params, image))[0, ..., 0]
    assert got.shape == (h, w)
    around = got[32 - 31 : 32 + 32, 40 - 31 : 40 + 32]
    assert around.max() == got[32, 40] > 0
    np.testing.assert_allclose(around, around[::-1], atol=1e-6)
    np.testing.assert_allclose(around, around[:, ::-1], atol=1e-6)
    # Three pools without stride, the average one of them, carry the pixel three cells far.
    assert (around[31] > 0).all() and not got[:, 40 + 32].any() and not got[:, 40 - 32].any()


@pytest.mark.parametrize(("h", "w"), [(1, 9), (40, 57), (65, 50)])
def test_scores_are_interpolated_eightfold(h, w):
    net = model(width=2)
    params = jax.tree.map(
        lambda leaf: np.random.default_rng(leaf.size).normal(size=leaf.shape).astype("f4"),
        abstract(net),
    )
    image = np.random.default_rng(0).integers(0, 256, (1, h, w, 3), np.uint8)
    got = np.asarray(logits(net, params, image))[0]
    assert got.shape == (h, w, 2)
    got = got / np.abs(got).max()
    knots = got[::8, ::8]
    for i, j in ((0, 3), (5, 0), (6, 7)):
        rows, cols = ((n - 1) // 8 for n in (h, w))
        a, b = i / 8, j / 8
        have = got[i::8, j::8][:rows, :cols]
        top = knots[:-1, :-1] * (1 - b) + knots[:-1, 1:] * b
        bottom = knots[1:, :-1] * (1 - b) + knots[1:, 1:] * b
        want = (top * (1 - a) + bottom * a)[:rows, :cols]
        np.testing.assert_allclose(have[: len(want)], want, atol=1e-5)


def test_gradients_reach_every_parameter():
    net = model(width=2, classes=3)
    params = randomised(abstract(net))
    image = np.random.default_rng(0).integers(0, 256, (2, 41, 57, 3), np.uint8)
    check_gradients(net, {"params": params}, image)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(kernel=4, dilation=3), r"kernel=4.*dilation=3.*even"),
        (dict(kernel=0), r"kernel=0"),
        (dict(backbone=dict(name="vgg")), r"pool=2.*pool=3"),
        (dict(backbone=VGG | dict(padding=100)), r"padding=100.*padding=1"),
        (dict(backbone=dict(name="resnet")), r"backbone\.name='resnet'.*'vgg'"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        models.get(dict(name="deeplabv1", backbone=VGG) | arguments, num_classes=2)
