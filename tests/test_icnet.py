"""ICNet: what each of its resolutions sees, and what guides them in training."""

import functools

import jax
import numpy as np
import pytest

from jaxseg import mmseg, models
from jaxseg.errors import UserError
from jaxseg.models import icnet
from jaxseg.models.segmenter import forward
from tests.nets import check_gradients, randomised, shapes

SPEC = dict(
    name="icnet", depth=18, bins=(1, 2), pyramid_channels=4, light_channels=3,
    branch_channels=(4, 5, 6), channels=7, aux_channels=8,
)  # fmt: skip


@functools.cache
def model_and_variables():
    model = models.get(SPEC, 5)
    return model, randomised(shapes(model, np.zeros((1, 64, 64, 3), np.uint8)))


@pytest.mark.parametrize("size", [(8, 6), (7, 10), (5, 3)])
def test_halving_is_the_mean_of_four_pixels(size):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    h, w = size[0] // 2, size[1] // 2
    want = x[:, : 2 * h, : 2 * w].reshape(2, h, 2, w, 2, 3).mean((2, 4))
    np.testing.assert_allclose(icnet.halve(x), want, atol=1e-6)


@pytest.mark.parametrize(("h", "w"), [(128, 192), (129, 193), (75, 62), (33, 40)])
def test_sizes(h, w):
    model, _ = model_and_variables()
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    outputs, _ = jax.eval_shape(
        lambda x: model.init_with_output(keys, x, True),
        jax.ShapeDtypeStruct((2, h, w, 3), np.uint8),
    )
    whole, small = [-(-n // 8) for n in (h, w)], []
    for n in (h, w):
        n = (n // 2 + 1) // 2  # half of it, and a stride
        n = n // 2 + 1  # a pool whose last window may lie in the padding
        small.append((n + 1) // 2)
    assert {name: x.shape for name, x in outputs.items()} == dict(
        whole=(2, *whole, 4),
        half=(2, *small, 5),
        quarter=(2, *(n // 2 for n in small), 6),
        logits=(2, *whole, 5),
        aux_logits_0=(2, *small, 5),
        aux_logits_1=(2, *whole, 5),
    )


def test_only_the_light_branch_sees_single_pixels():
    """A chessboard of one pixel is nothing at half the size."""
    model, variables = model_and_variables()
    rng = np.random.default_rng(1)
    flat = rng.integers(50, 200, (1, 32, 32, 3)).repeat(2, 1).repeat(2, 2).astype(np.float32)
    board = np.indices((64, 64)).sum(0)[None, ..., None] % 2
    run = jax.jit(lambda x: forward(model, variables, x, train=False)[0])
    one, other = run(flat), run(flat + 80 * board - 40)
    for name in ("half", "quarter", "aux_logits_0", "aux_logits_1"):
        np.testing.assert_allclose(one[name], other[name], atol=1e-4 * np.std(one[name]))
    for name in ("whole", "logits"):
        assert np.abs(one[name] - other[name]).max() > 0.01 * np.std(one[name])


def test_every_parameter_is_trained_by_one_of_the_outputs():
    model, variables = model_and_variables()
    x = np.random.default_rng(2).integers(0, 256, (1, 64, 64, 3), np.uint8)
    outputs = ("logits", "aux_logits_0", "aux_logits_1")
    check_gradients(model, variables, x, outputs, train=False)


def test_the_guides_can_be_left_out():
    assert models.get(SPEC | dict(aux_channels=0), 5).aux_head is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(depth=20), "depth=20: expected one of.*18"),
        (dict(branch_channels=(64, 256)), r"branch_channels=\(64, 256\): expected three"),
    ],
)
def test_mistakes_in_a_spec_are_named(change, message):
    with pytest.raises(UserError, match=message):
        models.get(SPEC | change, 5)


def head(index, **changes):
    return dict(
        type="FCNHead", channels=128, num_convs=1, concat_input=False, num_classes=19,
        in_index=index, align_corners=False,
    ) | changes  # fmt: skip


DESCRIPTION = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], bgr_to_rgb=True),
    backbone=dict(
        type="ICNet", layer_channels=(128, 512), psp_out_channels=512, out_channels=(64, 256, 256),
        backbone_cfg=dict(
            type="ResNetV1c", depth=18, strides=[1, 2, 1, 1], dilations=[1, 1, 2, 4],
            contract_dilation=True,
        ),
    ),
    neck=dict(type="ICNeck", in_channels=(64, 256, 256), out_channels=128),
    decode_head=head(2, dropout_ratio=0),
    auxiliary_head=[head(0), head(1)],
)  # fmt: skip


def test_description_is_understood():
    assert mmseg.model_spec(DESCRIPTION) == dict(
        name="icnet", num_classes=19, depth=18, bins=(1, 2, 3, 6), pyramid_channels=512,
        light_channels=32, branch_channels=(64, 256, 256), channels=128, aux_channels=128,
        dropout=0, aux_dropout=0.1, mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("backbone", dict(align_corners=True), "backbone.align_corners=True"),
        ("backbone", dict(backbone_cfg=dict(type="ResNet", depth=18)), "backbone.backbone_cfg"),
        ("neck", dict(type="FPN"), "neck.type='FPN'"),
        ("neck", dict(out_channels=64), "neck.out_channels=64"),
        ("neck", None, "neck.type=None"),
        ("decode_head", dict(in_index=1), "decode_head.in_index=1"),
        ("auxiliary_head", None, "auxiliary_head=None"),
        ("auxiliary_head", [head(0)], "auxiliary_head=.*list of 2"),
        ("auxiliary_head", [head(0), head(1, channels=64)], "auxiliary_head.channels"),
        ("auxiliary_head", [head(0), head(1, dropout_ratio=0)], "dropout_ratio=0"),
    ],
)
def test_what_is_not_supported_is_named(part, change, message):
    value = DESCRIPTION[part] | change if isinstance(change, dict) else change
    with pytest.raises(UserError, match=message):
        mmseg.model_spec(DESCRIPTION | {part: value})
