"""BiSeNet V2: sizes, what its layers do to a map, and what a description may not say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import mmseg, models
from jaxseg.errors import UserError
from jaxseg.models.bisenetv2 import ContextEmbedding, GatherExpansion, GuidedAggregation, Stem
from tests.nets import check_gradients, randomised, shapes

NARROW = dict(
    name="bisenetv2", detail_channels=(4, 4, 8), semantic_channels=(4, 4, 4, 8), expansion=2,
    channels=8, aux_channels=(4, 4, 4, 8),
)  # fmt: skip
IMAGE = jax.ShapeDtypeStruct((1, 65, 98, 3), jnp.uint8)
AUX = tuple(f"aux_logits_{i}" for i in range(4))


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("h", "w"), [(64, 96), (65, 97), (90, 33)])
def test_sizes(h, w):
    model = models.get(NARROW, 5)
    image = jax.ShapeDtypeStruct((2, h, w, 3), jnp.uint8)
    got = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, False)[0], image)
    at4, at8, at16, at32 = ((-(-h // s), -(-w // s)) for s in (4, 8, 16, 32))
    assert {name: x.shape for name, x in got.items()} == {
        "fused": (2, *at8, 8),
        "stem": (2, *at4, 4),
        "stage3": (2, *at8, 4),
        "stage4": (2, *at16, 4),
        "stage5": (2, *at32, 8),
        "logits": (2, *at8, 5),
        "aux_logits_0": (2, *at4, 5),
        "aux_logits_1": (2, *at8, 5),
        "aux_logits_2": (2, *at16, 5),
        "aux_logits_3": (2, *at32, 5),
    }


def test_stem_takes_the_maxima_beside_what_it_convolves():
    """With the left branch at zero and convolutions that copy, it is a max-pool of the image."""
    stem = Stem(2)
    x = np.abs(draw(1, 13, 18, 2))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes(stem, x))
    for name, inputs in (("first", (0, 1)), ("join", (2, 3))):
        unit = variables["params"][name]
        unit["conv"]["kernel"][1, 1, inputs, (0, 1)] = 1
        unit["bn"]["scale"] += 1
    for stat in jax.tree.leaves(variables["batch_stats"], is_leaf=lambda s: "var" in s):
        stat["var"] += 1
    got = jax.jit(lambda v, x: stem.apply(v, x, False))(variables, x)
    halved = np.pad(x[0, ::2, ::2], ((1, 1), (1, 1), (0, 0)))  # all positive: zeros never win
    want = [
        [halved[2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((0, 1)) for j in range(5)]
        for i in range(4)
    ]
    np.testing.assert_allclose(got[0], want, rtol=1e-4)


def test_an_expansion_that_projects_to_nothing_is_a_relu():
    layer = GatherExpansion(3, 6)
    x = draw(2, 5, 8, 3)
    variables = randomised(shapes(layer, x))
    assert variables["params"]["expand"]["conv"]["kernel"].shape == (3, 3, 1, 18)
    project = variables["params"]["project"]["bn"]
    project["scale"], project["bias"] = np.zeros(3), np.zeros(3)
    got = jax.jit(lambda x: layer.apply(variables, x, False))(x)
    np.testing.assert_allclose(got, np.maximum(x, 0), atol=1e-6)


def test_embedding_tells_every_pixel_of_the_whole_map():
    embedding = ContextEmbedding()
    x = draw(1, 12, 12, 4)
    variables = randomised(shapes(embedding, x))
    variables["params"]["last"]["bn"]["bias"] += 50  # so that the ReLU hides nothing
    run = jax.jit(lambda x: embedding.apply(variables, x, False))
    touched = x.copy()
    touched[0, 0, 0] += 20
    assert np.all(np.any(run(touched) != run(x), -1)[0, 6:, 6:])


def test_branches_gate_each_other():
    """Where a gate is shut, what it gates has no say; a half-open one lets half through."""
    layer = GuidedAggregation()
    detail, semantic = draw(1, 16, 24, 4), draw(1, 4, 6, 4, seed=1)
    variables = randomised(shapes(layer, detail, semantic))

    @jax.jit
    def run(of_semantic, of_detail, detail, semantic):
        params = variables["params"] | dict(
            # Each gate's last layer gives that constant: -50 is shut.
            semantic_gate=constant("semantic_gate", of_semantic),
            semantic_pointwise=dict(kernel=jnp.zeros((1, 1, 4, 4)), bias=jnp.full(4, of_detail)),
        )
        return layer.apply({**variables, "params": params}, detail, semantic, False)

    def constant(name, value):
        unit = variables["params"][name]
        return unit | dict(bn=dict(scale=jnp.zeros(4), bias=jnp.full(4, value)))

    shut = run(-50.0, -50.0, detail, semantic)
    assert np.ptp(shut[0, 1:-1, 1:-1], (0, 1)).max() == 0  # borders aside, nothing is left
    # The gates are all that the semantic branch has here.
    np.testing.assert_array_equal(
        run(0.0, 0.0, detail, semantic), run(0.0, 0.0, detail, semantic[:, ::-1])
    )
    assert np.any(run(0.0, -50.0, detail, semantic) != shut)
    assert np.any(run(-50.0, 0.0, detail, semantic) != shut)


@pytest.mark.slow  # compiles for half a minute; `test_overfit` sees that all parameters move
def test_training_reaches_every_parameter():
    model = models.get(NARROW, 3)
    image = np.random.default_rng(0).integers(0, 256, (2, 64, 72, 3), np.uint8)
    # Not in training: the biases of norms right before a convolution and a norm have none there.
    variables = randomised(shapes(model, IMAGE))
    check_gradients(model, variables, image, ("logits", *AUX), train=False)


def test_without_the_booster():
    model = models.get(NARROW | dict(aux_channels=()), 3)
    assert model.aux_head is None and "aux_head_0" not in shapes(model, IMAGE)["params"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(detail_channels=(8, 8)), r"config\.model\.detail_channels=\(8, 8\).*3 numbers"),
        (dict(semantic_channels=(8, 8, 8)), r"semantic_channels=\(8, 8, 8\).*4 numbers"),
        (dict(aux_channels=(8,)), r"config\.model\.aux_channels=\(8,\).*0 or 4 numbers"),
        (dict(semantic_channels=(4, 4, 4, 4)), r"semantic_channels=\(4, 4, 4, 4\).*detail"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(UserError, match=message):
        models.get(NARROW | change, 3)


def described(**changes):
    """MMSegmentation's description with `changes` of its backbone and of some heads."""
    scoring = dict(
        type="FCNHead", num_convs=2, concat_input=False, num_classes=4, align_corners=False
    )
    heads = [scoring | dict(channels=8 * i, in_index=i) for i in range(1, 5)]
    heads[2] |= changes.get("third", {})
    return dict(
        type="EncoderDecoder",
        backbone=dict(type="BiSeNetV2", align_corners=False) | changes.get("backbone", {}),
        decode_head=scoring
        | dict(channels=256, in_index=0, num_convs=1, dropout_ratio=0.1)
        | changes.get("decode_head", {}),
        auxiliary_head=heads,
        data_preprocessor=dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], bgr_to_rgb=True),
    )


def test_a_description_is_read():
    backbone = dict(detail_channels=[8, 8, 16], bga_channels=16, semantic_expansion_ratio=4)
    model = models.get(
        mmseg.model_spec(described(backbone=backbone | dict(semantic_channels=[4, 8, 12, 16])))
    )
    assert model.backbone.detail_channels == (8, 8, 16) and model.backbone.expansion == 4
    assert model.backbone.semantic_channels == (4, 8, 12, 16)
    assert [head.channels for head in (model.head, *model.aux_head)] == [256, 8, 16, 24, 32]
    assert [head.feature for head in model.aux_head] == ["stem", "stage3", "stage4", "stage5"]
    assert [head.num_convs for head in (model.head, *model.aux_head)] == [1, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("backbone", dict(gain=2), r"backbone\.gain=2"),
        ("backbone", dict(bga_channels=64), r"backbone\.bga_channels=64.*128"),
        ("backbone", dict(detail_channels=[8, 8, 8]), r"backbone\.bga_channels=128.*8"),
        ("backbone", dict(align_corners=True), r"backbone\.align_corners=True"),
        ("decode_head", dict(align_corners=True), r"backbone\.align_corners=False"),
        ("decode_head", dict(in_index=1), r"decode_head\.in_index=1"),
        ("third", dict(num_convs=1), r"auxiliary_head\[2\]\.num_convs=1"),
        ("third", dict(num_classes=5), r"auxiliary_head\[2\]\.num_classes=5"),
    ],
)
def test_what_is_not_supported_is_named(part, change, message):
    with pytest.raises(UserError, match=message):
        mmseg.model_spec(described(**{part: change}))
