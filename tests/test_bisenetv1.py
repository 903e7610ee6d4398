"""BiSeNet V1: sizes, what each path sees, any backbone, and what a description may not say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import mmseg, models
from jaxseg.errors import UserError
from jaxseg.models.bisenetv1 import AttentionRefinement, ContextPath, SpatialPath
from tests.nets import check_gradients, randomised, shapes

RESNET = dict(name="resnet", depth=18, stem="plain", output_stride=32)
NARROW = dict(
    name="bisenetv1", backbone=dict(name="tests.tiny_backbone"), spatial_channels=(4, 4, 4, 8),
    context_channels=8, channels=8, aux_channels=8,
)  # fmt: skip
IMAGE = jax.ShapeDtypeStruct((1, 65, 98, 3), jnp.uint8)


@pytest.mark.parametrize(("h", "w"), [(64, 96), (65, 97), (90, 33)])
def test_sizes(h, w):
    model = models.get(NARROW | dict(backbone=RESNET), 5)
    image = jax.ShapeDtypeStruct((2, h, w, 3), jnp.uint8)
    got = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, False)[0], image)
    at8, at16 = ((-(-h // s), -(-w // s)) for s in (8, 16))
    assert {name: x.shape for name, x in got.items()} == {
        "fused": (2, *at8, 8),
        "context8": (2, *at8, 8),
        "context16": (2, *at16, 8),
        "logits": (2, *at8, 5),
        "aux_logits_0": (2, *at8, 5),
        "aux_logits_1": (2, *at16, 5),
    }


def test_spatial_path_sees_nineteen_pixels():
    """7, and by 3x3 at strides 2 and 4 another 2 * 2 and 2 * 4: it is the detail alone."""
    path = SpatialPath((2, 2, 2, 2))
    x = np.ones((1, 64, 64, 3), np.float32)
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes(path, x))
    centre = jax.jit(jax.grad(lambda x: path.apply(ones, x, False)[0, 4, 4].sum()))(x)
    rows, cols = (np.flatnonzero(np.any(centre[0] != 0, axis)) for axis in ((1, 2), (0, 2)))
    assert (rows[0], rows[-1], cols[0], cols[-1]) == (32 - 9, 32 + 9, 32 - 9, 32 + 9)


def test_context_reaches_every_pixel():
    """Its global means do: the map at stride 8 changes far from where its deepest input does."""
    path = ContextPath(4)
    rng = np.random.default_rng(0)
    x8, x16, x32 = (rng.normal(size=(1, n, n, 2)).astype(np.float32) for n in (32, 16, 8))
    variables = randomised(shapes(path, x8, x16, x32))
    run = jax.jit(lambda x32: path.apply(variables, x8, x16, x32, False))
    touched = x32.copy()
    touched[0, 0, 0] += 5
    for before, after in zip(run(x32), run(touched), strict=True):
        assert np.all(np.any(before != after, -1)[0, -4:, -4:])


def test_refinement_gates_channels_alike_at_every_pixel():
    refine = AttentionRefinement(6)
    x = np.random.default_rng(1).normal(size=(2, 5, 7, 3)).astype(np.float32)
    variables = randomised(shapes(refine, x))
    without = jax.tree.map(lambda leaf: leaf, variables)
    gate = without["params"]["gate"]["bn"]
    gate["scale"], gate["bias"] = np.zeros(6), np.full(6, 50.0)  # open

    run = jax.jit(lambda v: refine.apply(v, x, False))
    gated, convolved = np.asarray(run(variables)), np.asarray(run(without))
    ratio = (gated.sum((1, 2)) / convolved.sum((1, 2)))[:, None, None]
    assert (0 < ratio).all() and (ratio < 1).all() and ratio.std() > 0.05
    np.testing.assert_allclose(gated, ratio * convolved, rtol=1e-5)


def test_training_reaches_every_parameter():
    model = models.get(NARROW, 3)
    image = np.random.default_rng(0).integers(0, 256, (2, 64, 72, 3), np.uint8)
    outputs = ("logits", "aux_logits_0", "aux_logits_1")
    check_gradients(model, randomised(shapes(model, IMAGE)), image, outputs)


def test_without_auxiliary_heads():
    model = models.get(NARROW | dict(aux_channels=0), 3)
    assert model.aux_head is None and "aux_head_0" not in shapes(model, IMAGE)["params"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(spatial_channels=(8, 8, 8)), r"config\.model\.spatial_channels=\(8, 8, 8\).*four"),
        (dict(backbone=dict(name="vgg")), r"unknown feature 'stage2'.*pool1"),
        (dict(backbone=RESNET | dict(output_stride=4)), r"'stage2' of 65x98.*17x25.*9x13"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(UserError, match=message):
        shapes(models.get(NARROW | change, 3), IMAGE)


def described(**changes):
    """MMSegmentation's description, each part with `changes` of that name."""
    scoring = dict(
        type="FCNHead", num_convs=1, concat_input=False, num_classes=4, align_corners=False
    )
    first = dict(in_channels=128, channels=64, in_index=1)
    parts = dict(
        backbone=dict(
            type="BiSeNetV1", in_channels=3, out_indices=[0, 1, 2], align_corners=False,
            context_channels=[128, 256, 512], spatial_channels=[64, 64, 64, 128],
            out_channels=256, backbone_cfg=dict(type="ResNet", depth=18),
        ),
        decode_head=scoring | dict(channels=256, in_index=0, dropout_ratio=0.1),
        first=scoring | first,
        second=scoring | first | dict(in_index=2),
    )  # fmt: skip
    parts = {name: part | changes.get(name, {}) for name, part in parts.items()}
    heads = [parts.pop("first"), parts.pop("second")]
    preprocessor = dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], bgr_to_rgb=True)
    return parts | dict(type="EncoderDecoder", auxiliary_head=heads, data_preprocessor=preprocessor)


def test_a_description_is_read():
    spec = mmseg.model_spec(
        described(
            backbone=dict(spatial_channels=[8, 8, 8, 16], context_channels=[32, 256, 512]),
            first=dict(channels=24),
            second=dict(channels=24),
        )
    )
    model = models.get(spec)
    assert model.backbone.spatial_channels == (8, 8, 8, 16)
    assert (model.backbone.context_channels, model.backbone.channels) == (32, 256)
    assert (model.backbone.trunk.depth, model.backbone.trunk.stem) == (18, "plain")
    assert [head.feature for head in model.aux_head] == ["context8", "context16"]
    assert [head.channels for head in (model.head, *model.aux_head)] == [256, 24, 24]
    assert model.mean == (1.0, 2.0, 3.0) and spec["num_classes"] == 4


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("backbone", dict(gain=2), r"backbone\.gain=2"),
        ("backbone", dict(out_indices=[0]), r"backbone\.out_indices=\[0\]"),
        ("backbone", dict(out_channels=128), r"decode_head\.channels=256.*128"),
        ("backbone", dict(backbone_cfg=dict(type="VGG")), r"backbone_cfg\.type='VGG'"),
        ("decode_head", dict(num_convs=2), r"decode_head\.num_convs=2"),
        ("first", dict(in_index=0), r"auxiliary_head\[0\]\.in_index=0"),
        ("second", dict(dropout_ratio=0.2), r"auxiliary_head\[1\]\.dropout_ratio=0\.2"),
        ("second", dict(channels=32), r"auxiliary_head\[1\]\.channels=32.*64"),
        ("decode_head", dict(dropout_ratio=0.2), r"auxiliary_head\[0\]\.dropout_ratio=0\.1"),
    ],
)
def test_what_is_not_supported_is_named(part, change, message):
    with pytest.raises(UserError, match=message):
        mmseg.model_spec(described(**{part: change}))


def test_one_auxiliary_head_is_refused():
    description = described()
    with pytest.raises(UserError, match="auxiliary_head=.*a list of 2"):
        mmseg.model_spec(description | dict(auxiliary_head=description["auxiliary_head"][:1]))
