"""STDC: sizes, the fields of view of its module, its constants, what a description may not say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import convert, mmseg, models
from jaxseg.errors import UserError
from jaxseg.models.stdc import STDCModule
from jaxseg.state import abstract_variables
from tests import references
from tests.nets import check_gradients, randomised, shapes

NARROW = dict(
    name="stdc", blocks=(1, 1, 1), widths=(4, 4, 8, 8, 16), context_channels=8, channels=8,
    aux_channels=8,
)  # fmt: skip
IMAGE = jax.ShapeDtypeStruct((1, 65, 98, 3), jnp.uint8)


@pytest.mark.parametrize(("h", "w"), [(64, 96), (65, 97), (90, 33)])
def test_sizes(h, w):
    model = models.get(NARROW, 5)
    image = jax.ShapeDtypeStruct((2, h, w, 3), jnp.uint8)
    got = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, False)[0], image)
    at8, at16 = ((-(-h // s), -(-w // s)) for s in (8, 16))
    assert {name: x.shape for name, x in got.items()} == {
        "stage3": (2, *at8, 8),
        "context8": (2, *at8, 8),
        "context16": (2, *at16, 8),
        "fused": (2, *at8, 8),
        "logits": (2, *at8, 5),
        "aux_logits_0": (2, *at8, 5),
        "aux_logits_1": (2, *at16, 5),
        "aux_logits_2": (2, *at8, 2),  # edge or none
    }


@pytest.mark.parametrize(("strides", "sides"), [(1, (1, 3, 5, 7)), (2, (3, 7, 11, 15))])
def test_a_module_joins_growing_fields_of_view(strides, sides):
    """Half of its channels see the least, then a quarter, an eighth, an eighth (table 1)."""
    module = STDCModule(16, strides)
    x = np.ones((1, 32, 32, 2), np.float32)
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes(module, x))
    middle = 16 // strides
    pixel = jax.jit(jax.jacobian(lambda x: module.apply(ones, x, False)[0, middle, middle]))(x)
    seen = np.any(pixel[:, 0] != 0, -1)  # [channels, h, w]
    places = [np.argwhere(channel) for channel in seen]
    extent = [tuple(np.ptp(place, 0) + 1) for place in places]
    want = [side for side, n in zip(sides, (8, 4, 2, 2), strict=True) for _ in range(n)]
    assert extent == [(side, side) for side in want]
    for place, side in zip(places, want, strict=True):
        assert len(place) == side**2 and tuple(place.mean(0)) == (16, 16)


def test_training_reaches_every_parameter():
    model = models.get(NARROW, 3)
    image = np.random.default_rng(0).integers(0, 256, (2, 64, 72, 3), np.uint8)
    outputs = ("logits", "aux_logits_0", "aux_logits_1", "aux_logits_2")
    check_gradients(model, randomised(shapes(model, IMAGE)), image, outputs, train=False)


def test_without_auxiliary_heads():
    model = models.get(NARROW | dict(aux_channels=0), 3)
    assert model.aux_head is None and "aux_head_0" not in shapes(model, IMAGE)["params"]


def test_the_constants_of_the_detail_target_have_no_place():
    """A released state dict holds them; they are no parameters, and others are still refused."""
    [path] = references.GOLDEN.glob("stdc1*.npz")
    state_dict = references.state_dict(np.load(path))
    constants = {"auxiliary_head.2.laplacian_kernel", "auxiliary_head.2.fusion_kernel"}
    assert constants <= state_dict.keys()
    model = models.get(dict(name="stdc"), 19)
    names = convert.torch_names(model)
    abstract = abstract_variables(model, (64, 64))
    got = convert.from_torch(state_dict, abstract, names)
    assert jax.tree.structure(got) == jax.tree.structure(abstract)
    without = {key: value for key, value in state_dict.items() if key not in constants}
    convert.from_torch(without, abstract, names)
    with pytest.raises(UserError, match=r"auxiliary_head\.2\.other_kernel"):
        convert.from_torch(without | {"auxiliary_head.2.other_kernel": 0}, abstract, names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(blocks=(2, 2)), r"config\.model\.blocks=\(2, 2\).*three"),
        (dict(blocks=(2, 0, 2)), r"config\.model\.blocks=\(2, 0, 2\).*three"),
        (dict(widths=(8, 8, 8, 8)), r"config\.model\.widths=\(8, 8, 8, 8\).*five"),
        (dict(widths=(8, 8, 8, 12, 8)), r"config\.model\.widths=.*multiples of 8"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(UserError, match=message):
        models.get(NARROW | change, 3)


def described(**changes):
    """MMSegmentation's description, each part with `changes` of that name."""
    scoring = dict(type="FCNHead", num_convs=1, concat_input=False, num_classes=4, channels=64)
    network = dict(
        type="STDCNet", stdc_type="STDCNet2", in_channels=3, bottleneck_type="cat",
        channels=[32, 64, 256, 512, 1024], act_cfg=dict(type="ReLU"), num_convs=4,
    )  # fmt: skip
    parts = dict(
        backbone=dict(
            type="STDCContextPathNet", last_in_channels=[1024, 512], out_channels=96,
            ffm_cfg=dict(in_channels=352, out_channels=256, scale_factor=4),
            backbone_cfg=network | changes.pop("network", {}),
        ),
        decode_head=scoring
        | dict(channels=256, in_index=3, dropout_ratio=0.1, align_corners=True),
        first=scoring | dict(in_index=2, align_corners=False),
        second=scoring | dict(in_index=1, align_corners=False),
        detail=scoring
        | dict(
            type="STDCHead", boundary_threshold=0.1, num_classes=2, in_index=0, align_corners=True
        ),
    )  # fmt: skip
    parts = {name: part | changes.get(name, {}) for name, part in parts.items()}
    heads = [parts.pop(name) for name in ("first", "second", "detail")]
    preprocessor = dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], bgr_to_rgb=True)
    return parts | dict(type="EncoderDecoder", auxiliary_head=heads, data_preprocessor=preprocessor)


def test_a_description_is_read():
    model = models.get(mmseg.model_spec(described()))
    assert model.backbone.blocks == (4, 5, 3) and model.backbone.context_channels == 96
    assert model.align_corners
    heads = (model.head, *model.aux_head)
    assert [head.feature for head in heads] == ["fused", "context8", "context16", "stage3"]
    assert [head.num_classes for head in heads] == [4, 4, 4, 2]
    assert [head.channels for head in heads] == [256, 64, 64, 64]


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("backbone", dict(upsample_mode="bilinear"), r"upsample_mode='bilinear'"),
        ("backbone", dict(ffm_cfg=dict(scale_factor=2)), r"ffm_cfg\.scale_factor=2"),
        ("backbone", dict(ffm_cfg=dict(out_channels=64)), r"ffm_cfg\.out_channels=64.*256"),
        ("backbone", dict(gain=2), r"backbone\.gain=2"),
        ("network", dict(stdc_type="STDCNet3"), r"stdc_type='STDCNet3'.*STDCNet1"),
        ("network", dict(bottleneck_type="add"), r"bottleneck_type='add'"),
        ("network", dict(with_final_conv=True), r"with_final_conv=True"),
        ("first", dict(align_corners=True), r"auxiliary_head\[0\]\.align_corners=True"),
        ("second", dict(in_index=2), r"auxiliary_head\[1\]\.in_index=2"),
        ("detail", dict(type="FCNHead"), r"auxiliary_head\[2\]\.type='FCNHead'"),
        ("detail", dict(boundary_threshold=0.2), r"auxiliary_head\[2\]\.boundary_threshold=0\.2"),
        ("detail", dict(num_classes=1), r"auxiliary_head\[2\]\.num_classes=1"),
        ("detail", dict(channels=32), r"auxiliary_head's channels=\(64, 64, 32\)"),
    ],
)
def test_what_is_not_supported_is_named(part, change, message):
    with pytest.raises(UserError, match=message):
        mmseg.model_spec(described(**{part: change}))
