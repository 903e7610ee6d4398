"""Fast-SCNN: its two branches and what scores them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import mmseg, models
from jaxseg.errors import UserError
from jaxseg.models import fastscnn
from tests.nets import check_gradients, randomised, shapes


@pytest.mark.parametrize(("h", "w"), [(64, 128), (97, 131), (33, 1)])
def test_feature_sizes(h, w):
    net = fastscnn.FastSCNN()
    x = jax.ShapeDtypeStruct((2, h, w, 3), jnp.float32)
    features = jax.eval_shape(lambda x: net.init_with_output(jax.random.key(0), x, False)[0], x)
    assert {name: x.shape for name, x in features.items()} == {
        name: (2, -(-h // stride), -(-w // stride), c)
        for name, stride, c in (("downsampled", 8, 64), ("global", 32, 128), ("fused", 8, 128))
    }


def test_a_separable_convolution_is_linear_up_to_its_end():
    """Between its halves is no ReLU, so with norms that do nothing it is one 3x3 convolution."""
    x = np.random.default_rng(0).normal(size=(1, 6, 7, 3)).astype(np.float32)
    conv = fastscnn.DSConv(4, strides=2)
    variables = randomised(shapes(conv, x))
    for half in ("depthwise_conv", "pointwise_conv"):
        norm = variables["params"][half]["bn"]
        norm.update(scale=np.full_like(norm["scale"], np.sqrt(1 + 1e-5)), bias=0 * norm["bias"])
        stats = variables["batch_stats"][half]["bn"]
        stats.update(mean=0 * stats["mean"], var=np.ones_like(stats["var"]))
    deep = variables["params"]["depthwise_conv"]["conv"]["kernel"][:, :, 0]  # [3, 3, 3]
    wide = variables["params"]["pointwise_conv"]["conv"]["kernel"][0, 0]  # [3, 4]
    padded = np.pad(x[0], ((1, 1), (1, 1), (0, 0)))
    want = np.zeros((3, 4, 4))
    for i, j in np.ndindex(3, 4):
        window = padded[2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        want[i, j] = np.maximum((window * deep).sum((0, 1)) @ wide, 0)
    assert (want == 0).any() and (want > 0).any()
    np.testing.assert_allclose(conv.apply(variables, x, False)[0], want, atol=1e-5)


@pytest.mark.slow
def test_gradients_reach_everything_through_the_three_outputs(monkeypatch):
    monkeypatch.setattr(fastscnn, "BOTTLENECKS", ((64, 1, 2), (96, 1, 2), (96, 1, 1)))
    model = models.get(dict(name="fastscnn", channels=16, aux_channels=4), num_classes=3)
    image = np.random.default_rng(1).integers(0, 256, (2, 65, 97, 3), np.uint8)
    variables = randomised(shapes(model, image))
    outputs = jax.eval_shape(lambda v, x: model.apply(v, x, False), variables, image)
    assert outputs["logits"].shape == outputs["aux_logits_1"].shape == (2, 9, 13, 3)
    assert outputs["aux_logits_0"].shape == (2, 3, 4, 3)
    names = ("logits", "aux_logits_0", "aux_logits_1")
    # At test time: a bias before a linear layer and a normalisation has no gradient in training.
    check_gradients(model, variables, image, names, train=False)


def test_auxiliary_heads_may_be_left_out():
    model = models.get(dict(name="fastscnn", aux_channels=0), num_classes=3)
    assert model.aux_head is None


@pytest.mark.parametrize(
    ("change", "key"), [(dict(channels=0), "channels"), (dict(aux_channels=-1), "aux_channels")]
)
def test_mistakes_in_a_spec_are_named(change, key):
    with pytest.raises(UserError, match=rf"config\.model\.{key}="):
        models.get(dict(name="fastscnn") | change, num_classes=3)


AUX = dict(
    type="FCNHead", channels=32, num_convs=1, concat_input=False, num_classes=4, align_corners=True
)
DESCRIPTION = dict(
    type="EncoderDecoder",
    backbone=dict(type="FastSCNN", out_indices=[0, 1, 2], align_corners=True),
    decode_head=dict(
        type="DepthwiseSeparableFCNHead", channels=64, concat_input=False, num_classes=4,
        in_index=-1, align_corners=True,
    ),
    auxiliary_head=[AUX | dict(in_index=-2), AUX | dict(in_index=-3)],
    data_preprocessor=dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], bgr_to_rgb=True),
)  # fmt: skip


def test_a_description_of_the_toolbox():
    model = models.get(mmseg.model_spec(DESCRIPTION))
    assert model.align_corners and model.backbone.align_corners and model.head.channels == 64
    assert [(head.feature, head.channels) for head in model.aux_head] == [
        ("global", 32),
        ("downsampled", 32),
    ]


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("backbone", dict(global_block_strides=[2, 2, 2]), r"global_block_strides"),
        ("backbone", dict(align_corners=False), r"backbone\.align_corners=False"),
        ("decode_head", dict(concat_input=True), r"decode_head\.concat_input=True"),
        ("decode_head", dict(num_convs=3), r"decode_head\.num_convs=3"),
        ("decode_head", dict(dropout_ratio=0.2), r"auxiliary_head\[0\]\.dropout_ratio"),
    ],
)
def test_what_is_not_supported_is_named(part, change, message):
    with pytest.raises(UserError, match=message):
        mmseg.model_spec(DESCRIPTION | {part: DESCRIPTION[part] | change})


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        (None, r"auxiliary_head=None.*two FCNHeads"),
        ([AUX | dict(in_index=-2)], r"auxiliary_head=.*two FCNHeads"),
        ([AUX | dict(in_index=-3)] * 2, r"auxiliary_head\[0\]\.in_index=-3"),
        ([AUX | dict(in_index=-2), AUX | dict(in_index=-3, channels=16)], r"\[1\]\.channels=16"),
    ],
)
def test_its_auxiliary_heads_are_two_and_alike(heads, message):
    with pytest.raises(UserError, match=message):
        mmseg.model_spec(DESCRIPTION | dict(auxiliary_head=heads))
