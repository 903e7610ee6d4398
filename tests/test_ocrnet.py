"""OCRNet: regions gathered from pixels, pixels described by regions, and the head around both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import mmseg, models
from jaxseg.errors import UserError
from jaxseg.models import ocrnet
from tests.nets import check_gradients, randomised, shapes

SPEC = dict(
    name="ocrnet", backbone=dict(name="tests.tiny_backbone"), channels=8, ocr_channels=4,
    coarse_channels=6,
)  # fmt: skip


def example(seed=0, b=2, h=3, w=5, c=4, classes=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(b, h, w, c)).astype("f4"), rng.normal(size=(b, h, w, classes))


def test_a_region_is_the_mean_of_the_pixels_weighed_by_its_class():
    pixels, logits = example()
    got = ocrnet.gather(pixels, logits.astype("f4"))
    want = np.zeros((2, 3, 4))
    for i in range(2):
        for k in range(3):
            weights = np.exp(logits[i, :, :, k])
            want[i, k] = (weights[..., None] * pixels[i]).sum((0, 1)) / weights.sum()
    np.testing.assert_allclose(got, want, atol=1e-6)
    # Without a preference it is the mean of all, and a class that is sure of a pixel is that pixel.
    logits = np.zeros_like(logits)
    logits[:, 1, 4, 2] = 1e4
    got = ocrnet.gather(pixels, logits.astype("f4"))
    np.testing.assert_allclose(got[:, :2], pixels.mean((1, 2))[:, None].repeat(2, 1), atol=1e-6)
    np.testing.assert_allclose(got[:, 2], pixels[:, 1, 4], atol=1e-6)


def test_a_pixel_hears_most_of_the_regions_it_resembles():
    queries, _ = example(1)
    keys, values = (np.random.default_rng(i).normal(size=(2, 3, n)) for i, n in ((2, 4), (3, 7)))
    got = ocrnet.attend(queries, keys.astype("f4"), values.astype("f4"))
    want = np.zeros((2, 3, 5, 7))
    for i, y, x in np.ndindex(2, 3, 5):
        weights = np.exp(keys[i] @ queries[i, y, x] / 2)  # of four channels
        want[i, y, x] = weights @ values[i] / weights.sum()
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_the_order_of_the_regions_does_not_matter():
    """Not even to the whole block, in which no weight belongs to a class."""
    pixels, _ = example(4, c=8)
    regions = np.random.default_rng(5).normal(size=(2, 3, 8)).astype("f4")
    block = ocrnet.ObjectContext(4)
    variables = randomised(shapes(block, pixels, regions))
    got = block.apply(variables, pixels, regions[:, [2, 0, 1]], False)
    np.testing.assert_allclose(got, block.apply(variables, pixels, regions, False), atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_low_precision_stays_low_and_close(dtype):
    pixels, logits = example(6, h=40, w=40)
    regions = ocrnet.gather(jnp.asarray(pixels, dtype), jnp.asarray(logits, dtype))
    context = ocrnet.attend(jnp.asarray(pixels, dtype), regions, regions)
    assert regions.dtype == context.dtype == dtype
    exact = ocrnet.gather(pixels, logits.astype("f4"))
    np.testing.assert_allclose(
        np.asarray(regions, "f4"), exact, atol=1e-2 if dtype == jnp.bfloat16 else 1e-6
    )


def test_outputs_at_an_odd_size_and_gradients():
    model = models.get(SPEC | dict(dropout=0.0), num_classes=5)
    image = np.random.default_rng(7).integers(0, 256, (2, 33, 49, 3), np.uint8)
    variables = randomised(shapes(model, image))
    outputs = jax.eval_shape(lambda v, x: model.apply(v, x, False), variables, image)
    assert outputs["logits"].shape == outputs["coarse_logits"].shape == (2, 5, 7, 5)
    # The coarse head learns through the regions too: nothing is cut off.
    check_gradients(model, variables, image)


def test_features_must_be_of_one_size():
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8)
    model = models.get(SPEC | dict(coarse_feature="stage1"), num_classes=5)
    with pytest.raises(UserError, match=r"feature='stage4' has 8x8 pixels.*16x16.*output_stride"):
        shapes(model, image)
    model = models.get(SPEC | dict(feature=("stage1", "stage4"), coarse_feature="stage1"), 5)
    assert shapes(model, image)["params"]["head"]["pixels"]["conv"]["kernel"].shape[2] == 8 + 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(channels=0), r"config\.model\.channels=0"),
        (dict(ocr_channels=-1), r"config\.model\.ocr_channels=-1"),
        (dict(coarse_kernel=2), r"config\.model\.coarse_kernel=2.*odd"),
    ],
)
def test_mistakes_in_a_spec_are_named(change, message):
    with pytest.raises(UserError, match=message):
        models.get(SPEC | change, num_classes=5)


DESCRIPTION = dict(
    type="CascadeEncoderDecoder", num_stages=2,
    backbone=dict(
        type="ResNetV1c", depth=50, strides=[1, 2, 1, 1], dilations=[1, 1, 2, 4],
        contract_dilation=True,
    ),
    decode_head=[
        dict(
            type="FCNHead", in_index=2, channels=256, num_convs=1, concat_input=False,
            dropout_ratio=0.1, num_classes=4, align_corners=True,
        ),
        dict(
            type="OCRHead", in_index=3, channels=512, ocr_channels=128, dropout_ratio=0.1,
            num_classes=4, align_corners=True,
        ),
    ],
    data_preprocessor=dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], bgr_to_rgb=True),
)  # fmt: skip


def test_a_description_of_the_toolbox():
    model = models.get(mmseg.model_spec(DESCRIPTION))
    assert (model.head.feature, model.head.coarse.feature) == ("stage4", "stage3")
    assert (model.head.channels, model.head.ocr_channels) == (512, 128)
    assert (model.head.coarse.channels, model.head.coarse.kernel) == (256, 3)
    assert model.align_corners and model.head.align_corners and model.head.coarse.align_corners


@pytest.mark.parametrize(
    ("stage", "change", "message"),
    [
        (0, dict(num_convs=2), r"decode_head\[0\]\.num_convs=2"),
        (0, dict(dropout_ratio=0.2), r"decode_head\[0\]\.dropout_ratio=0\.2"),
        (0, dict(dilation=2), r"decode_head\[0\]\.dilation=2"),
        (1, dict(scale=2), r"decode_head\[1\]\.scale=2"),
        (1, dict(gain=2), r"decode_head\[1\]\.gain=2"),
    ],
)
def test_what_is_not_supported_is_named(stage, change, message):
    heads = list(DESCRIPTION["decode_head"])
    heads[stage] = heads[stage] | change
    with pytest.raises(UserError, match=message):
        mmseg.model_spec(DESCRIPTION | dict(decode_head=heads))
