"""DDRNet: sizes, what is pooled, and what flows between the resolutions."""

import jax
import numpy as np
import pytest

from jaxseg import mmseg, models
from jaxseg.errors import UserError
from jaxseg.models import ddrnet
from tests.nets import check_gradients, randomised, shapes

SPEC = dict(name="ddrnet", channels=4, ppm_channels=6, head_channels=4)


def image(h, w, b=1):
    return np.random.default_rng(0).integers(0, 256, (b, h, w, 3), np.uint8)


@pytest.mark.parametrize(("h", "w"), [(128, 192), (65, 97), (33, 50), (8, 9)])
def test_sizes(h, w):
    """MMSegmentation takes multiples of 8 only; here the small maps follow the large one."""
    model = models.get(SPEC, 5)
    outputs, _ = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, True), image(h, w, 2)
    )
    size = 2, -(-h // 8), -(-w // 8)
    channels = dict(high=8, fused=16, logits=5, aux_logits=5)
    assert {name: x.shape for name, x in outputs.items()} == {
        name: (*size, c) for name, c in channels.items()
    }


@pytest.mark.parametrize("size", [(16, 32), (5, 7), (1, 1)])
def test_what_is_pooled(size):
    """Means over windows of 5, 9 and 17 pixels with zeros around, and over the whole map."""
    x = np.random.default_rng(1).normal(size=(2, *size, 3)).astype(np.float32)
    *levels, mean = ddrnet.pooled(x)
    np.testing.assert_allclose(mean, x.mean((1, 2), keepdims=True), atol=1e-6)
    for stride, got in zip((2, 4, 8), levels, strict=True):
        padded = np.pad(x, ((0, 0), (stride, stride), (stride, stride), (0, 0)))
        want = np.stack(
            [
                np.stack(
                    [
                        padded[:, y : y + 2 * stride + 1, z : z + 2 * stride + 1].mean((1, 2))
                        for z in range(0, size[1], stride)
                    ],
                    1,
                )
                for y in range(0, size[0], stride)
            ],
            1,
        )
        np.testing.assert_allclose(got, want, atol=1e-6)


def test_fusion_exchanges_what_is_rectified():
    """With all that goes up made zero, high stays; and what is negative is not handed on."""
    rng = np.random.default_rng(2)
    high, low = rng.normal(size=(1, 8, 12, 4)), rng.normal(size=(1, 2, 3, 16))
    high, low = high.astype(np.float32), low.astype(np.float32)
    fusion = ddrnet.BilateralFusion(2)
    variables = randomised(jax.eval_shape(lambda: fusion.init(jax.random.key(0), high, low, False)))
    up, down = fusion.apply(variables, high, low, False)
    other, same = fusion.apply(variables, high, np.where(low < 0, 9 * low, low), False)
    np.testing.assert_allclose(up, other, atol=1e-5)
    np.testing.assert_allclose(same - down, np.where(low < 0, 8 * low, 0), atol=1e-5)
    bn = variables["params"]["compress"]["bn"]
    bn.update(scale=0 * bn["scale"], bias=0 * bn["bias"])
    up, _ = fusion.apply(variables, high, low, False)
    np.testing.assert_array_equal(up, high)


def test_every_parameter_is_trained_by_one_of_the_outputs():
    model = models.get(SPEC, 5)
    x = image(64, 64)
    variables = randomised(shapes(model, x))
    check_gradients(model, variables, x, ("logits", "aux_logits"), train=False)


DESCRIPTION = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], bgr_to_rgb=True),
    backbone=dict(type="DDRNet", channels=64, ppm_channels=128, align_corners=False),
    decode_head=dict(type="DDRHead", channels=128, num_classes=19, dropout_ratio=0.0),
)


def test_description_is_understood():
    assert mmseg.model_spec(DESCRIPTION) == dict(
        name="ddrnet", num_classes=19, channels=64, ppm_channels=128, head_channels=128,
        dropout=0.0, mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("backbone", dict(align_corners=True), "backbone.align_corners=True"),
        ("backbone", dict(depth=39), "backbone.depth=39"),
        ("decode_head", dict(align_corners=True), "decode_head.align_corners=True"),
        ("decode_head", dict(type="FCNHead"), "decode_head.type='FCNHead'"),
        ("decode_head", dict(num_convs=2), "decode_head.num_convs=2"),
        ("auxiliary_head", dict(type="FCNHead"), "auxiliary_head="),
    ],
)
def test_what_is_not_supported_is_named(part, change, message):
    with pytest.raises(UserError, match=message):
        mmseg.model_spec(DESCRIPTION | {part: DESCRIPTION.get(part, {}) | change})
