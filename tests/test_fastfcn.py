"""Joint pyramid upsampling, and other models' heads on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import mmseg, models
from jaxseg.errors import UserError
from jaxseg.models.fastfcn import JPU
from tests.nets import randomised, shapes

CLASSES = 5
RESNET = dict(name="resnet", depth=18, output_stride=32)
HEAD = dict(name="encnet", channels=8, codes=3, aux_channels=4, dropout=0.0)
SPEC = dict(name="fastfcn", backbone=RESNET, head=HEAD, neck_channels=6)
HEADS = {
    "pspnet": dict(),
    "deeplabv3": dict(rates=(2, 4)),
    "encnet": dict(),
    "fcn": dict(),
    "deeplabv3p": dict(rates=(2, 4), low_channels=4),
}


@pytest.mark.parametrize(("h", "w"), [(65, 97), (64, 128), (107, 83)])
def test_sizes(h, w):
    """A result at stride 8, whatever the size, from a backbone that goes to stride 32."""
    model = models.get(SPEC, CLASSES)
    x = jax.ShapeDtypeStruct((2, h, w, 3), jnp.uint8)
    outputs = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, False)[0], x)
    at = {stride: (2, -(-h // stride), -(-w // stride)) for stride in (8, 16, 32)}
    assert outputs["logits"].shape == (*at[8], CLASSES)
    assert outputs["aux_logits"].shape == (*at[16], CLASSES)
    assert outputs["stage4"].shape == (*at[32], 512)  # the backbone's own


def levels(sizes=((12, 20), (6, 10), (3, 5)), c=2):
    return {
        f"stage{i}": np.ones((1, h, w, c), np.float32) for i, (h, w) in enumerate(sizes, start=2)
    }


def neck(**changes):
    """A neck all of whose weights are alike, so that nothing cancels what passes; as a function."""
    module = JPU(**dict(channels=2, rates=(1, 2, 4)) | changes)
    abstract = shapes(module, levels())

    def fill(path, leaf):
        zero = path[-1].key in ("bias", "mean")
        return np.full(leaf.shape, 0.0 if zero else 0.5, np.float32)

    variables = jax.tree.map_with_path(fill, abstract)
    return jax.jit(lambda x: module.apply(variables, x, False))


def test_the_last_level_alone_is_made_anew():
    x = levels() | {"stage1": np.zeros((1, 24, 40, 2), np.float32)}
    y = neck()(x)
    assert y.keys() == x.keys()
    for name in ("stage1", "stage2", "stage3"):
        np.testing.assert_array_equal(y[name], x[name])
    assert y["stage4"].shape == (1, 12, 20, 6)


def test_each_branch_looks_as_far_as_its_rate():
    """From a pixel of the finest level: its own 3x3 window, then 3x3 taps `rate` apart."""
    run, x = neck(), levels(((31, 31), (16, 16), (8, 8)))
    touched = {name: level.copy() for name, level in x.items()}
    touched["stage2"][0, 15, 15] += 1
    difference = np.abs(np.asarray(run(touched)["stage4"] - run(x)["stage4"]))[0] > 1e-6
    for i, rate in enumerate((1, 2, 4)):
        taps = [t * rate + d for t in (-1, 0, 1) for d in (-1, 0, 1)]
        want = np.zeros((31, 31), bool)
        want[np.ix_([15 + t for t in taps], [15 + t for t in taps])] = True
        for channel in (2 * i, 2 * i + 1):
            np.testing.assert_array_equal(difference[..., channel], want)


@pytest.mark.parametrize(("level", "stride"), [("stage3", 2), ("stage4", 4)])
def test_coarser_levels_are_enlarged_to_the_finest(level, stride):
    """A step in a coarse level arrives at the same place of the image."""
    run, flat = neck(rates=(1,)), levels(((16, 64), (8, 32), (4, 16)))
    step = flat[level].copy()
    step[:, :, step.shape[2] // 2 :] += 1
    y = np.asarray(run(flat | {level: step})["stage4"] - run(flat)["stage4"])[0, 8, 12:52, 0]
    rise = np.diff(y)  # about the middle of the map, which is that of the image
    assert abs(y[0]) < 1e-5 and (rise > -1e-5).all()
    np.testing.assert_allclose(rise, rise[::-1], atol=1e-4)
    # Two pixels of the coarse level from nothing to all, and two more for its 3x3 windows.
    assert 2 * stride <= (rise > 1e-5).sum() <= 4 * stride + 2


@pytest.mark.parametrize("name", HEADS)
def test_any_head_of_a_dilated_model_fits(name):
    """With the very parameters that it has on as wide a map of the backbone's own."""
    spec = SPEC | dict(head=dict(name=name, channels=8, aux_channels=4) | HEADS[name])
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8)
    got = shapes(models.get(spec | dict(neck_channels=128), CLASSES), image)["params"]
    want = shapes(models.get(spec["head"] | dict(backbone=RESNET), CLASSES), image)["params"]
    assert jax.tree.leaves(got.pop("neck"))
    assert jax.tree.map(lambda x: x.shape, got) == jax.tree.map(lambda x: x.shape, want)


def test_training_reaches_every_parameter():
    module, rng = JPU(channels=4, rates=(1, 2)), np.random.default_rng(3)
    x = {name: rng.normal(size=(2, *v.shape[1:])).astype("f4") for name, v in levels().items()}
    variables = randomised(shapes(module, x))

    @jax.jit
    def gradients(params):
        def loss(params):
            y, _ = module.apply(variables | {"params": params}, x, True, mutable=["batch_stats"])
            return jnp.square(y["stage4"] - 1).mean()

        return jax.grad(loss)(params)

    for path, grad in jax.tree.leaves_with_path(gradients(variables["params"])):
        name, size = jax.tree_util.keystr(path), np.abs(grad).max()
        assert np.isfinite(grad).all(), name
        # What the norm between the halves of a separable convolution adds, the next one takes off.
        assert size < 1e-5 if "depthwise" in name and "bias" in name else size > 1e-4, name


def test_pointrend_goes_on_top():
    coarse = {key: value for key, value in SPEC.items() if key != "backbone"}
    spec = dict(
        name="pointrend", backbone=RESNET, coarse=coarse, fine_features=("stage1",), channels=8
    )
    model = models.get(spec, CLASSES)
    assert isinstance(model.neck, JPU)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8)
    outputs = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, False)[0], image
    )
    assert outputs["coarse_logits"].shape == (1, 8, 8, CLASSES)
    assert outputs["logits"].shape == (1, 32, 32, CLASSES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(head=dict(name="psp")), r"config\.model\.head\.name.*'psp'.*pspnet"),
        (dict(head=dict()), r"config\.model\.head\.name.*None.*pspnet"),
        (dict(head=HEAD | dict(codes=0)), r"config\.model\.head\.codes=0"),
        (dict(head=HEAD | dict(width=3)), r"config\.model\.head\.width.*argument of encnet"),
        (dict(head=HEAD | dict(align_corners=True)), r"head\.align_corners: give it by config"),
        (dict(head=dict(name="sem_fpn")), r"head\.name='sem_fpn'.*neck of its own.*pspnet"),
        (dict(backbone=dict(name="resnet", depth=19)), r"config\.model\.backbone\.depth=19"),
        (dict(features=("stage4",)), r"config\.model\.features=\('stage4',\).*two or more"),
        (dict(rates=()), r"config\.model\.rates=\(\).*at least 1"),
        (dict(rates=(1, 0)), r"config\.model\.rates=\(1, 0\).*at least 1"),
    ],
)
def test_mistakes_in_a_spec_are_named(change, message):
    with pytest.raises(UserError, match=message):
        models.get(SPEC | change, CLASSES)


def test_a_level_that_the_backbone_lacks_is_named():
    model = models.get(SPEC | dict(features=("stage2", "stage5")), CLASSES)
    with pytest.raises(UserError, match=r"feature 'stage5'.*stage4"):
        shapes(model, jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8))


FCN_HEAD = dict(num_classes=4, align_corners=False, dropout_ratio=0.1)
DESCRIPTION = dict(
    type="EncoderDecoder",
    backbone=dict(
        type="ResNetV1c", depth=18, strides=[1, 2, 2, 2], dilations=[1, 1, 2, 4],
        contract_dilation=True, out_indices=[1, 2, 3],
    ),
    neck=dict(type="JPU", in_channels=[128, 256, 512], mid_channels=96, dilations=[1, 3]),
    decode_head=dict(
        type="EncHead", in_index=[0, 1, 2], channels=24, num_codes=7, use_se_loss=True, **FCN_HEAD
    ),
    auxiliary_head=dict(
        type="FCNHead", in_index=1, channels=8, num_convs=1, concat_input=False, **FCN_HEAD
    ),
    data_preprocessor=dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0]),
)  # fmt: skip


def test_a_description_becomes_a_model():
    model = models.get(mmseg.model_spec(DESCRIPTION))
    assert model.neck == JPU(("stage2", "stage3", "stage4"), 96, (1, 3))
    assert model.backbone.dilations == (1, 1, 2, 4) and model.backbone.output_stride == 32
    assert (model.head.feature, model.head.channels, model.head.codes) == ("stage4", 24, 7)
    assert (model.aux_head.feature, model.aux_head.channels) == ("stage3", 8)
    assert model.mean == (1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("neck", dict(start_level=1), r"neck\.start_level=1"),
        ("neck", dict(end_level=2), r"neck\.end_level=2"),
        ("neck", dict(align_corners=True), r"neck\.align_corners=True"),
        ("neck", dict(act_cfg=None), r"neck\.act_cfg"),
        ("neck", dict(type="MLANeck"), r"neck="),
        ("decode_head", dict(type="FPNHead"), r"decode_head\.num_codes"),
        ("decode_head", dict(add_lateral=True), r"decode_head\.add_lateral=True"),
        ("decode_head", dict(use_se_loss=False), r"decode_head\.use_se_loss=False"),
        ("auxiliary_head", dict(num_convs=2), r"auxiliary_head\.num_convs=2"),
    ],
)
def test_what_a_description_says_and_the_model_lacks_is_named(part, change, message):
    with pytest.raises(UserError, match=message):
        mmseg.model_spec(DESCRIPTION | {part: DESCRIPTION[part] | change})
