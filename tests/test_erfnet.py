"""ERFNet: factorised convolutions, and sizes on the way down and up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from jaxseg import mmseg, models
from jaxseg.errors import UserError
from jaxseg.models import erfnet
from jaxseg.models.common import Conv
from tests.nets import check_gradients, randomised, shapes


@pytest.mark.parametrize(("kernel", "dilation"), [((3, 1), 1), ((1, 3), 4), ((3, 5), 2), (3, 2)])
def test_a_convolution_of_any_window(kernel, dilation):
    """Against SciPy's, with the zeros between the taps written out."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 9, 11, 2)).astype(np.float32)
    conv = Conv(3, kernel, dilation=dilation)
    params = conv.init(jax.random.key(0), x)["params"]
    params["bias"] = rng.normal(size=3)
    small = np.asarray(params["kernel"])
    assert small.shape == ((kernel, kernel) if isinstance(kernel, int) else kernel) + (2, 3)
    sparse = np.zeros([dilation * (n - 1) + 1 for n in small.shape[:2]] + [2, 3])
    sparse[::dilation, ::dilation] = small
    got = conv.apply({"params": params}, x)
    for k in range(3):
        want = params["bias"][k] + sum(
            scipy.signal.correlate2d(x[0, :, :, c], sparse[:, :, c, k], "same") for c in range(2)
        )
        np.testing.assert_allclose(got[0, :, :, k], want, atol=1e-5)


@pytest.mark.parametrize("dilation", [1, 4])
def test_a_factorised_block_sees_a_cross_of_crosses(dilation):
    """3x3 in the first pair of convolutions, 3x3 of the rate in the second, and its own pixel."""
    side, x = 15, np.ones((1, 15, 15, 1), np.float32)
    block = erfnet.NonBottleneck1D(dilation)
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), shapes(block, x))
    touched = x.copy()
    touched[0, side // 2, side // 2] += 1
    moved = np.abs(block.apply(variables, touched, False) - block.apply(variables, x, False))
    near = [i + dilation * j for i in (-1, 0, 1) for j in (-1, 0, 1)]
    assert {tuple(place) for place in np.argwhere(moved[0, :, :, 0] > 1e-6) - side // 2} == {
        (i, j) for i in near for j in near
    }


def test_pooling_is_stretched_over_an_odd_map():
    """Rows 0 to 4 pool to two rows, which are spread over the convolution's three."""
    x = np.broadcast_to(np.arange(5.0, dtype=np.float32)[:, None, None], (1, 5, 4, 1))
    block = erfnet.Downsampler(2)
    variables = shapes(block, x)
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), variables)
    variables["params"]["bn"]["scale"] *= np.sqrt(1 + 1e-3, dtype=np.float32)
    got = block.apply(variables, x, False)
    assert got.shape == (1, 3, 2, 2)
    # Maxima 1 and 3, at half-integer centres; normalised, they are what they were.
    np.testing.assert_allclose(got[0, :, 0, 1], [1, 2, 3], atol=1e-5)


@pytest.mark.parametrize(("h", "w"), [(64, 96), (75, 101)])
def test_feature_sizes(h, w):
    x = jax.ShapeDtypeStruct((2, h, w, 3), jnp.float32)
    net = erfnet.ERFNet()
    features = jax.eval_shape(lambda x: net.init_with_output(jax.random.key(0), x, False)[0], x)
    h, w = -(-h // 8), -(-w // 8)
    assert features["encoder"].shape == (2, h, w, 128)
    assert features["decoder"].shape == (2, 4 * h, 4 * w, 16)


@pytest.fixture
def shallow(monkeypatch):
    """With one plain block and one dilated one, for what takes a compilation."""
    monkeypatch.setattr(erfnet, "ENCODER", ((16, ()), (64, (1,)), (128, (4,))))


def test_gradients_reach_everything(shallow):
    model = models.get(dict(name="erfnet", channels=8, block_dropout=0.0), num_classes=3)
    image = np.random.default_rng(1).integers(0, 256, (2, 31, 33, 3), np.uint8)
    # At test time: a bias before a normalisation has no gradient in training.
    check_gradients(model, randomised(shapes(model, image)), image, train=False)


def test_values_are_dropped_in_the_encoder_alone(shallow):
    x = np.ones((1, 16, 16, 3), np.float32)
    net = erfnet.ERFNet(dropout=0.5)
    variables = randomised(shapes(net, x))
    run = jax.jit(lambda key: net.apply(variables, x, False, rngs={"dropout": key}))
    one, other = run(jax.random.key(0)), run(jax.random.key(1))
    assert (one["encoder"] != other["encoder"]).any()
    block = erfnet.NonBottleneck1D()
    quiet = randomised(shapes(block, x))
    again = block.apply(quiet, x, False, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_array_equal(again, block.apply(quiet, x, False))


DESCRIPTION = dict(
    type="EncoderDecoder",
    backbone=dict(type="ERFNet", enc_stage_non_bottlenecks=[5, 8], dropout_ratio=0.3),
    decode_head=dict(
        type="FCNHead", channels=64, num_convs=1, concat_input=False, num_classes=4,
        dropout_ratio=0.2,
    ),
    data_preprocessor=dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], bgr_to_rgb=True),
)  # fmt: skip


def test_a_description_of_the_toolbox():
    model = models.get(mmseg.model_spec(DESCRIPTION))
    assert model.backbone.dropout == 0.3 and not model.align_corners
    assert (model.head.feature, model.head.channels, model.head.dropout) == ("decoder", 64, 0.2)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("backbone", dict(dec_upsample_channels=[64, 32]), r"backbone\.dec_upsample_channels"),
        ("backbone", dict(depth=3), r"backbone\.depth=3"),
        ("decode_head", dict(num_convs=2), r"decode_head\.num_convs=2"),
        ("decode_head", dict(concat_input=True), r"decode_head\.concat_input=True"),
    ],
)
def test_what_is_not_supported_is_named(part, change, message):
    with pytest.raises(UserError, match=message):
        mmseg.model_spec(DESCRIPTION | {part: DESCRIPTION[part] | change})
    with pytest.raises(UserError, match=r"model\.neck"):
        mmseg.model_spec(DESCRIPTION | dict(neck=dict(type="FPN")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(channels=0), r"config\.model\.channels=0"),
        (dict(block_dropout=1.0), r"config\.model\.block_dropout=1\.0"),
    ],
)
def test_mistakes_in_a_spec_are_named(change, message):
    with pytest.raises(UserError, match=message):
        models.get(dict(name="erfnet") | change, num_classes=3)
