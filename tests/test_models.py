"""Properties that every model has, and published parameter counts."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxseg import models
from jaxseg.errors import UserError
from jaxseg.models import common, segmenter
from jaxseg.models.deeplabv3p import DeepLabV3PlusHead
from jaxseg.models.resnet import Backbone
from tests.nets import count, randomised, shapes

CITYSCAPES = 19


def resnet(depth=50, **arguments):
    return dict(name="resnet", depth=depth, output_stride=8) | arguments


VGG_FCN = dict(name="vgg", padding=100)
VGG_DEEPLAB = dict(name="vgg", pool=3, output_stride=8)
MOBILE = dict(name="mobilenetv2", output_stride=8)
XCEPTION = dict(name="xception", output_stride=16)
HEAD_18 = dict(channels=128, aux_channels=64)
FPN = dict(name="resnet", output_stride=32)
RESNEST = dict(name="resnest", depth=101, output_stride=8)


def hrnet(width, **arguments):
    """HRNet's head: one 1x1 convolution over its four branches."""
    return dict(
        backbone=dict(name="hrnet", width=width, **arguments),
        feature=("stage1", "stage2", "stage3", "stage4"),
        channels=15 * width,
        num_convs=1,
        kernel=1,
        concat_input=False,
        aux_channels=0,
    )


def ocr_on_hrnet(width, **arguments):
    """OCRNet, whose coarse head on HRNet is HRNet's own."""
    head = hrnet(width, **arguments)
    return dict(
        backbone=head["backbone"],
        feature=head["feature"],
        coarse_feature=head["feature"],
        coarse_channels=head["channels"],
        coarse_kernel=head["kernel"],
    )


# Parameters of each model with 19 classes, auxiliary head included. Those of networks that have
# reference outputs are also the sizes of the state dicts there; at the right what was published.
COUNTS = {
    "bisenetv1": [
        (dict(backbone=FPN | dict(depth=18, stem="plain")), 13_425_721),
        (
            dict(
                backbone=FPN | dict(depth=50, stem="plain"), context_channels=512, channels=1024,
                spatial_channels=(256, 256, 256, 512), aux_channels=256,
            ),
            59_243_385,
        ),
    ],
    "bisenetv2": [(dict(), 14_804_255)],
    "cgnet": [(dict(), 496_325)],  # 0.5 M
    "deeplabv1": [
        (dict(backbone=VGG_DEEPLAB), 20_503_379),  # 20.5 M
        (dict(backbone=VGG_DEEPLAB, kernel=7, dilation=4, channels=4096), 134_338_387),  # 134.3 M
        (dict(backbone=VGG_DEEPLAB, kernel=4, dilation=8, channels=4096), 65_132_371),  # 65.1 M
    ],
    "deeplabv2": [(dict(backbone=resnet(101, stem="plain")), 43_901_068)],
    "deeplabv3": [
        (dict(backbone=resnet(18), **HEAD_18), 13_986_374),
        (dict(backbone=resnet(50)), 68_113_030),
        (dict(backbone=resnet(101)), 87_105_158),
        (dict(backbone=RESNEST), 90_811_782),
        (dict(backbone=MOBILE), 18_602_022),
    ],
    "deeplabv3p": [
        (dict(backbone=resnet(50)), 43_589_878),  # 43.6 M
        (dict(backbone=resnet(101)), 62_582_006),  # 62.6 M
        (dict(backbone=RESNEST), 66_288_630),
        (dict(backbone=resnet(18), low_channels=12, **HEAD_18), 12_468_962),
        (dict(backbone=resnet(50), aux_channels=0), 41_225_187),
        (dict(backbone=MOBILE), 15_244_374),
        (
            dict(backbone=XCEPTION, rates=(6, 12, 18), channels=256, aux_channels=0, project=1),
            41_054_899,
        ),
    ],
    "ddrnet": [
        (dict(), 5_734_278),  # 5.7 M
        (dict(channels=64, head_channels=128), 20_299_238),
    ],
    "encnet": [
        (dict(backbone=resnet(50)), 35_891_961),
        (dict(backbone=resnet(101)), 54_884_089),
    ],
    "erfnet": [(dict(), 2_084_095)],  # 2.1 M
    "fastfcn": [
        (dict(backbone=FPN | dict(depth=50), head=dict(name="deeplabv3")), 87_848_582),
        (dict(backbone=FPN | dict(depth=50), head=dict(name="encnet")), 55_627_513),
        (dict(backbone=FPN | dict(depth=50), head=dict(name="pspnet")), 68_711_046),
    ],
    "fastscnn": [(dict(), 1_456_617)],
    "fcn": [
        (dict(backbone=resnet(18), **HEAD_18), 12_822_342),
        (dict(backbone=resnet(50)), 49_497_734),
        (dict(backbone=resnet(101)), 68_489_862),
        (dict(backbone=RESNEST), 72_196_486),
        (dict(backbone=MOBILE), 9_718_822),
        (hrnet(18, modules=(1, 3, 2), blocks=2), 3_939_309),  # 3.9 M
        (hrnet(18), 9_640_849),
        (hrnet(48), 65_858_659),  # 65.9 M
        (
            dict(
                backbone=dict(name="unet"), feature="decoder1", channels=64, num_convs=1,
                concat_input=False, aux_feature="decoder2", aux_channels=64,
            ),
            29_062_886,
        ),
    ],
    "fcn_vgg": [
        (dict(stride=32, backbone=VGG_FCN), 135_817_043),
        (dict(stride=16, backbone=VGG_FCN), 134_723_574),
        (dict(stride=8, backbone=VGG_FCN), 134_456_985),
        (dict(stride=32, backbone=VGG_FCN, upsample="bilinear"), 134_338_387),  # 134 M
    ],
    "icnet": [
        (dict(depth=18), 25_174_393),
        (dict(depth=50), 47_827_833),
        (dict(depth=101), 66_819_961),
    ],
    "lraspp": [
        (dict(backbone=dict(name="mobilenetv3", size="large")), 3_284_547),
        (dict(backbone=dict(name="mobilenetv3", size="small")), 1_140_787),
    ],
    "ocrnet": [
        (ocr_on_hrnet(18, modules=(1, 3, 2), blocks=2), 6_378_496),
        (ocr_on_hrnet(18), 12_080_036),
        (ocr_on_hrnet(48), 70_371_446),
        (dict(backbone=resnet(101)), 55_516_294),
    ],
    "pidnet": [
        (dict(), 7_720_871),
        (dict(channels=64), 28_762_983),
        (
            dict(
                channels=64, ppm_channels=112, head_channels=256, stem_blocks=3, branch_blocks=4,
                light=False,
            ),
            37_314_183,
        ),
    ],
    "pointrend": [
        (dict(backbone=FPN | dict(depth=50), coarse=dict(name="sem_fpn")), 28_715_119),
        (dict(backbone=FPN | dict(depth=101), coarse=dict(name="sem_fpn")), 47_707_247),
    ],
    "pspnet": [
        (dict(backbone=resnet(18), **HEAD_18), 12_790_086),
        (dict(backbone=resnet(50)), 48_975_494),
        (dict(backbone=resnet(101)), 67_967_622),
        (dict(backbone=RESNEST), 71_674_246),
        (dict(backbone=resnet(50), reduce=False), 73_088_646),
        (dict(backbone=resnet(269)), 125_491_846),
        (dict(backbone=MOBILE), 13_620_262),
    ],
    "segnet": [(dict(), 29_453_971)],
    "segnet_basic": [(dict(), 1_416_595)],
    "sem_fpn": [
        (dict(backbone=FPN | dict(depth=50)), 28_497_907),
        (dict(backbone=FPN | dict(depth=101)), 47_490_035),
    ],
    "stdc": [(dict(), 8_573_019), (dict(blocks=(4, 5, 3)), 12_603_483)],
    "unet": [(dict(), 31_032_915)],
    "upernet": [
        (dict(backbone=FPN | dict(depth=50)), 66_415_238),
        (dict(backbone=FPN | dict(depth=101)), 85_407_366),
    ],
    "unet_resnet": [  # segmentation_models.pytorch's, whose ResNet has a plain stem
        (dict(backbone=resnet(18, stem="plain")), 14_330_819),
        (dict(backbone=resnet(50, stem="plain")), 32_523_715),
    ],
}  # fmt: skip
# torchvision's documented counts for 1000 classes, less the last layer's 1001 per feature.
TORCHVISION = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032, 101: 44_549_160, 152: 60_192_808}

# Small enough to compile in seconds, with everything that the large ones have.
SMALL = dict(
    name="deeplabv3p",
    backbone=dict(name="resnet", depth=18, stem="v1c", output_stride=16),
    rates=(2, 4),
    channels=8,
    low_channels=4,
    aux_channels=8,
)


def small(**changes):
    backbone = SMALL["backbone"] | changes.pop("backbone", {})
    return models.get(SMALL | dict(backbone=backbone) | changes, num_classes=5)


def image(h=64, w=64, b=1):
    return jax.ShapeDtypeStruct((b, h, w, 3), jnp.uint8)


def pixels(h, w, b=1):
    return np.random.default_rng(0).integers(0, 256, (b, h, w, 3), np.uint8)


def test_parameter_counts_are_known_for_every_model():
    assert sorted(COUNTS) == models.available("Model")


@pytest.mark.parametrize(
    ("name", "arguments", "want"),
    [(n, *entry) for n, entries in COUNTS.items() for entry in entries],
)
def test_parameter_count(name, arguments, want):
    model = models.get(dict(name=name, **arguments), num_classes=CITYSCAPES)
    assert count(shapes(model, image())["params"]) == want


@pytest.mark.parametrize("depth", TORCHVISION)
def test_resnet_parameter_count(depth):
    features = 512 if depth < 50 else 2048
    variables = shapes(Backbone(depth, stem="plain"), jax.ShapeDtypeStruct((1, 64, 64, 3), "f4"))
    assert count(variables["params"]) == TORCHVISION[depth] - 1000 * (features + 1)


@pytest.mark.parametrize("stem", ["plain", "v1c", "v1d"])
@pytest.mark.parametrize("stride", [8, 32])
@pytest.mark.parametrize(("h", "w"), [(64, 128), (97, 131), (33, 50)])
def test_feature_sizes(stem, stride, h, w):
    backbone = Backbone(50, stem, stride)
    x = jax.ShapeDtypeStruct((2, h, w, 3), "f4")
    features = jax.eval_shape(lambda x: backbone.init_with_output({"params": key()}, x, False), x)[
        0
    ]
    strides = dict(stem=2, stage1=4, stage2=8, stage3=min(16, stride), stage4=min(32, stride))
    widths = dict(stem=64, stage1=256, stage2=512, stage3=1024, stage4=2048)
    assert {name: x.shape for name, x in features.items()} == {
        name: (2, -(-h // s), -(-w // s), widths[name]) for name, s in strides.items()
    }


def key():
    return jax.random.key(0)


def close(got, want):
    np.testing.assert_allclose(got / want.std(), want / want.std(), rtol=0, atol=1e-4)


@functools.cache
def atrous(output_stride, multi_grid=None):
    """Stage 4 of one ResNet-50, always with the same weights, at some output stride."""
    backbone = Backbone(50, "plain", output_stride, multi_grid)
    x = np.random.default_rng(1).normal(size=(1, 65, 88, 3)).astype(np.float32)
    variables = randomised(shapes(backbone, x))
    return np.asarray(jax.jit(lambda v, x: backbone.apply(v, x, False)["stage4"])(variables, x))


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_dilation_replaces_stride_exactly(output_stride):
    """Dense features, subsampled, are the strided ones: borders included, whatever the size."""
    dense, coarse = atrous(4), atrous(output_stride)
    step = output_stride // 4
    close(coarse, dense[:, ::step, ::step])


def test_multi_grid_rates_are_those_of_stage_4():
    close(atrous(16, (1, 2, 2)), atrous(16))
    assert np.abs(atrous(16, (1, 2, 4)) - atrous(16)).max() > 0.1 * atrous(16).std()


@pytest.mark.slow
def test_initial_parameters_do_not_depend_on_train():
    model = small()

    @jax.jit
    def init():
        quick = jax.random.key(0, impl="rbg")  # compiles faster than the default generator
        return [
            model.init({"params": quick, "dropout": quick}, pixels(32, 32), train)
            for train in (True, False)
        ]

    training, evaluation = init()
    jax.tree.map(np.testing.assert_array_equal, training, evaluation)
    params = training["params"]
    # Kaiming's variance by fan-out; blocks start as the identity; the classifier near zero.
    kernel = params["backbone"]["stage4_1"]["conv1"]["conv"]["kernel"]
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 512)), rtol=0.02)
    assert not params["backbone"]["stage4_1"]["conv2"]["bn"]["scale"].any()
    classifier = params["head"]["classifier"]["conv"]["kernel"]
    np.testing.assert_allclose(classifier.std(), 0.01, rtol=0.3)


@functools.cache
def trained(dtype="float32", **changes):
    """One training-mode pass of the small model: (outputs, new state, gradients), variables."""
    model = small(backbone=changes, dropout=0.0)
    variables = randomised(shapes(model, image()))

    @jax.jit
    def run(params, state, x):
        def loss(params):
            outputs, new = segmenter.forward(
                model, {"params": params, **state}, x, train=True, dtype=dtype
            )
            total = sum(
                jnp.square(outputs[name].astype(jnp.float32) - 1).mean()
                for name in ("logits", "aux_logits")
            )
            return total, (outputs, new)

        grads, (outputs, new) = jax.grad(loss, has_aux=True)(params)
        return outputs, new, grads

    state = {"batch_stats": variables["batch_stats"]}
    return jax.device_get(run(variables["params"], state, pixels(65, 97, 2))), variables


def test_training_reaches_every_parameter_and_statistic():
    (outputs, new, grads), variables = trained()
    assert outputs["logits"].shape == (2, 17, 25, 5)
    assert outputs["aux_logits"].shape == (2, 5, 7, 5)
    for path, grad in jax.tree.leaves_with_path(grads):
        assert np.isfinite(grad).all() and np.abs(grad).max() > 0, jax.tree_util.keystr(path)
    old = variables["batch_stats"]
    assert jax.tree.structure(new["batch_stats"]) == jax.tree.structure(old)
    for before, after in zip(*map(jax.tree.leaves, (old, new["batch_stats"])), strict=True):
        assert (before != after).all()


def test_bfloat16_keeps_statistics_and_gradients_in_float32():
    (want, _, _), _ = trained()
    (outputs, new, grads), _ = trained(dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(outputs)} == {np.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves((new, grads))} == {np.dtype("float32")}
    for name in ("logits", "aux_logits"):
        got = outputs[name].astype(np.float32)
        assert np.isfinite(got).all()
        assert np.sqrt(np.square(got - want[name]).mean()) < 0.2 * want[name].std()


def test_frozen_norms_stay():
    backbone = Backbone(18, freeze_norm=True)
    x = np.float32(pixels(40, 40)) / 255
    variables = randomised(shapes(backbone, x))

    @functools.partial(jax.jit, static_argnums=1)
    def run(variables, train):
        return backbone.apply(variables, x, train, mutable=["batch_stats"])

    (training, new), (evaluation, _) = run(variables, True), run(variables, False)
    jax.tree.map(np.testing.assert_array_equal, new["batch_stats"], variables["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, training, evaluation)


def test_evaluation_leaves_the_state_and_needs_no_key():
    model = small()
    variables = randomised(shapes(model, image()))
    run = jax.jit(lambda v, x: segmenter.forward(model, v, x, train=False))
    outputs, state = run(variables, pixels(33, 47))
    jax.tree.map(np.testing.assert_array_equal, state, {"batch_stats": variables["batch_stats"]})
    assert outputs["logits"].shape == (1, 9, 12, 5)
    assert {"stem", "stage1", "stage4", "aux_logits"} <= outputs.keys()
    # Floats and bytes of the same image are the same image.
    again, _ = run(variables, np.float32(pixels(33, 47)))
    np.testing.assert_allclose(outputs["logits"], again["logits"], atol=1e-5)


def test_batch_norm_is_that_of_the_global_batch():
    norm = common.BatchNorm()
    rng = np.random.default_rng(0)
    # Far from zero for its spread: E[x^2] - E[x]^2 in float32 would be off by more than it is.
    x = (300 + rng.normal(size=(8, 3, 5, 4)) * np.arange(1, 5)).astype(np.float32)
    variables = norm.init(key(), x, False)
    variables["batch_stats"]["mean"] += 299  # as it is after some steps of training
    apply = jax.jit(lambda v, x: norm.apply(v, x, True, mutable=["batch_stats"]))
    mesh = Mesh(np.array(jax.devices()), ("data",))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    assert len(sharded.sharding.device_set) == 8
    flat = x.astype(np.float64).reshape(-1, 4)
    want = (x - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
    for inputs in (x, sharded):
        y, new = apply(variables, inputs)
        np.testing.assert_allclose(y, want, atol=2e-4)
        stats = new["batch_stats"]
        np.testing.assert_allclose(stats["mean"], 0.9 * 299 + 0.1 * flat.mean(0), rtol=1e-6)
        # PyTorch keeps the unbiased variance.
        np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)


def test_dropout_drops_whole_channels():
    classifier = common.Classifier(num_classes=64, dropout=0.5)
    x = np.ones((2, 4, 4, 64), np.float32)
    params = {"conv": {"kernel": np.eye(64, dtype="f4")[None, None], "bias": np.zeros(64, "f4")}}
    y = np.asarray(classifier.apply({"params": params}, x, True, rngs={"dropout": key()}))
    assert set(np.unique(y)) == {0.0, 2.0}
    assert (y == y[:, :1, :1]).all() and 0.3 < (y > 0).mean() < 0.7
    np.testing.assert_array_equal(classifier.apply({"params": params}, x, False), x)


def test_heads_may_not_shadow_features():
    class Head(nn.Module):
        def __call__(self, features, train):
            return {"logits": features["stage4"], "stage1": features["stage1"]}

    model = segmenter.Segmenter(backbone=Backbone(18), head=Head())
    with pytest.raises(AssertionError, match="stage1"):
        shapes(model, image())


def test_align_corners_reaches_the_head():
    model = small(align_corners=True)
    assert model.align_corners and model.head.align_corners
    assert isinstance(model.head, DeepLabV3PlusHead)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (dict(name="deeplabv4"), r"config\.model\.name.*deeplabv3p"),
        (dict(), r"config\.model\.name.*deeplabv3p"),
        (dict(name="segmenter"), r"config\.model\.name.*deeplabv3p"),
        (dict(name="no.such.module"), r"no\.such\.module.*importable"),
        (dict(name="math.x"), r"math\.x.*Model"),
        (SMALL | dict(rate=(1, 2)), r"config\.model\.rate.*'rates'"),
        (SMALL | dict(backbone=dict(name="resnext")), r"config\.model\.backbone\.name.*resnet"),
        (SMALL | dict(backbone=dict(name="resnet", dept=50)), r"backbone\.dept.*depth"),
        (SMALL | dict(backbone=dict(name="resnet", depth=51)), r"depth=51.*18, 34, 50, 101, 152"),
        (SMALL | dict(backbone=dict(name="resnet", stem="v2")), r"stem='v2'.*v1c"),
        (SMALL | dict(backbone=resnet(output_stride=7)), r"output_stride=7.*\(4, 8, 16, 32\)"),
        (SMALL | dict(backbone=resnet(multi_grid=(1, 2))), r"multi_grid=\(1, 2\).*3 blocks"),
        (SMALL | dict(num_classes=7), r"num_classes=7.*5"),
    ],
)
def test_mistakes_in_a_spec_are_named(spec, message):
    with pytest.raises(UserError, match=message):
        models.get(spec, num_classes=5)
