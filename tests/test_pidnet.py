"""PIDNet: sizes, and what its three kinds of fusion let through."""

import jax
import numpy as np
import pytest

from jaxseg import mmseg, models
from jaxseg.errors import UserError
from jaxseg.models import pidnet
from tests.nets import check_gradients, randomised, shapes

SPEC = dict(
    name="pidnet", channels=4, ppm_channels=6, stem_blocks=1, branch_blocks=1, head_channels=4
)
OUTPUTS = ("logits", "aux_logits", "boundary_logits")


def image(h, w, b=1):
    return np.random.default_rng(0).integers(0, 256, (b, h, w, 3), np.uint8)


def maps(*sizes, c=4, seed=1):
    rng = np.random.default_rng(seed)
    return [rng.normal(0, 2, (1, *size, c)).astype(np.float32) for size in sizes]


def built(module, *inputs):
    """The module at test time, as a function, and its variables."""
    variables = randomised(shapes(module, *inputs))
    return lambda *x: np.asarray(module.apply(variables, *x, False)), variables


def embedded(variables, name, x):
    """1x1 convolution and normalisation `name`, in float64."""
    p, stats = variables["params"][name], variables["batch_stats"][name]["bn"]
    x = x.astype(np.float64) @ p["conv"]["kernel"][0, 0]
    return (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * p["bn"]["scale"] + p["bn"]["bias"]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("light", [True, False])
@pytest.mark.parametrize(("h", "w"), [(128, 192), (65, 97), (8, 9)])
def test_sizes(h, w, light):
    """MMSegmentation takes multiples of 8 only; here the small maps follow the large ones."""
    model = models.get(SPEC | dict(light=light), 5)
    outputs, _ = jax.eval_shape(
        lambda x: model.init_with_output(
            {"params": jax.random.key(0), "dropout": jax.random.key(1)}, x, True
        ),
        image(h, w, 2),
    )
    size = 2, -(-h // 8), -(-w // 8)
    channels = dict(detail=8, boundary=8, fused=16, logits=5, aux_logits=5, boundary_logits=1)
    assert {name: x.shape for name, x in outputs.items()} == {
        name: (*size, c) for name, c in channels.items()
    }


def test_context_is_taken_up_where_it_agrees_with_the_detail():
    detail, context = maps((6, 8), (6, 8))
    run, variables = built(pidnet.Pag(3), detail, context)
    share = sigmoid(
        (embedded(variables, "detail", detail) * embedded(variables, "context", context)).sum(
            -1, keepdims=True
        )
    )
    assert share.min() < 0.1 and share.max() > 0.9
    got = run(detail, context)
    np.testing.assert_allclose(got, share * context + (1 - share) * detail, atol=1e-4)


def test_context_of_another_size_is_enlarged():
    """A constant context, whatever its size."""
    detail, context = maps((6, 8), (1, 1))
    run, _ = built(pidnet.Pag(3), detail, context)
    large = np.broadcast_to(context, detail.shape)
    np.testing.assert_allclose(run(detail, context), run(detail, large), atol=1e-5)


def test_the_boundary_decides_between_detail_and_context():
    detail, context, other = maps((6, 8), (6, 8), (6, 8))
    sure = np.full_like(detail, 50.0)
    run, _ = built(pidnet.Bag(5), detail, context, sure)
    np.testing.assert_array_equal(run(detail, context, sure), run(detail, other, sure))
    np.testing.assert_array_equal(run(detail, context, -sure), run(other, context, -sure))
    assert np.abs(run(detail, context, sure) - run(other, context, sure)).max() > 1
    np.testing.assert_allclose(
        run(detail, context, 0 * sure), run(context, detail, 0 * sure), atol=1e-4
    )


def test_the_light_fusion_is_its_definition():
    detail, context, boundary = maps((6, 8), (6, 8), (6, 8))
    run, variables = built(pidnet.LightBag(5), detail, context, boundary)
    share = sigmoid(boundary.astype(np.float64))
    want = embedded(variables, "detail", detail + (1 - share) * context)
    want += embedded(variables, "context", context + share * detail)
    np.testing.assert_allclose(run(detail, context, boundary), want, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("light", [True, False])
def test_every_parameter_is_trained_by_one_of_the_outputs(light):
    model = models.get(SPEC | dict(light=light), 5)
    x = image(64, 64)
    check_gradients(model, randomised(shapes(model, x)), x, OUTPUTS, train=False)


@pytest.mark.parametrize("name", ["stem_blocks", "branch_blocks"])
def test_a_branch_has_blocks(name):
    with pytest.raises(UserError, match=f"config.model.{name}=0: expected at least 1"):
        models.get(SPEC | {name: 0}, 5)


DESCRIPTION = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], bgr_to_rgb=True),
    backbone=dict(
        type="PIDNet", channels=64, ppm_channels=112, num_stem_blocks=3, num_branch_blocks=4,
        align_corners=False, act_cfg=dict(type="ReLU", inplace=True),
    ),
    decode_head=dict(type="PIDHead", channels=256, num_classes=19, align_corners=True),
)  # fmt: skip


def test_description_is_understood():
    want = dict(
        name="pidnet", num_classes=19, channels=64, ppm_channels=112, stem_blocks=3,
        branch_blocks=4, light=False, head_channels=256, dropout=0.1, align_corners=True,
        mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0),
    )  # fmt: skip
    assert mmseg.model_spec(DESCRIPTION) == want
    small = DESCRIPTION["backbone"] | dict(num_stem_blocks=2)
    want.update(stem_blocks=2, light=True)
    assert mmseg.model_spec(DESCRIPTION | dict(backbone=small)) == want


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("backbone", dict(align_corners=True), "backbone.align_corners=True"),
        ("backbone", dict(act_cfg=dict(type="GELU")), "backbone.act_cfg=.*GELU"),
        ("backbone", dict(num_blocks=2), "backbone.num_blocks=2"),
        ("decode_head", dict(in_index=2), "decode_head.in_index=2"),
        ("decode_head", dict(type="DDRHead"), "decode_head.type='DDRHead'"),
        ("neck", dict(type="FPN"), "neck="),
    ],
)
def test_what_is_not_supported_is_named(part, change, message):
    with pytest.raises(UserError, match=message):
        mmseg.model_spec(DESCRIPTION | {part: DESCRIPTION.get(part, {}) | change})
