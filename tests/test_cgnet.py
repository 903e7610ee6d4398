"""CGNet: its block part by part, and the image that it is given again and again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import mmseg, models
from jaxseg.errors import UserError
from jaxseg.models import cgnet, segmenter
from tests.nets import check_gradients, randomised, shapes

SMALL = dict(name="cgnet", blocks=(1, 2))


def test_prelu_is_its_definition_in_any_precision():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    scale = np.linspace(-0.5, 1.5, 5, dtype=np.float32)
    got = cgnet.PReLU().apply({"params": {"scale": scale}}, x)
    np.testing.assert_allclose(got, np.maximum(x, 0) + scale * np.minimum(x, 0), atol=1e-7)
    low = cgnet.PReLU().apply({"params": {"scale": scale}}, jnp.asarray(x, jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    # As initialised it is ReLU, and can be learned.
    params = cgnet.PReLU().init(jax.random.key(0), x)
    np.testing.assert_array_equal(cgnet.PReLU().apply(params, x), np.maximum(x, 0))
    grad = jax.grad(lambda p: cgnet.PReLU().apply(p, x).sum())(params)["params"]["scale"]
    np.testing.assert_allclose(grad, np.minimum(x, 0).sum((0, 1, 2)), rtol=1e-5)


def test_channels_are_weighed_by_the_means_of_the_image():
    x = np.random.default_rng(1).normal(size=(2, 5, 7, 8)).astype(np.float32)
    module = cgnet.GlobalContext(reduction=4)
    params = randomised(jax.eval_shape(module.init, jax.random.key(0), x))["params"]
    hidden = x.mean((1, 2)) @ params["reduce"]["kernel"] + params["reduce"]["bias"]  # [2, 2]
    gate = np.maximum(hidden, 0) @ params["expand"]["kernel"] + params["expand"]["bias"]
    want = x / (1 + np.exp(-gate[:, None, None]))
    np.testing.assert_allclose(module.apply({"params": params}, x), want, atol=1e-5)


def test_a_block_sees_its_neighbours_its_surroundings_and_all_the_image():
    x = np.ones((1, 15, 15, 4), np.float32)
    touched = x.copy()
    touched[0, 7, 7] += 1
    block = cgnet.ContextGuidedBlock(4, dilation=4, reduction=2)
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.3, np.float32), shapes(block, x))

    run = jax.jit(lambda v, x: block.apply(v, x, False)[0])

    def moved(variables):
        out = [run(variables, image) for image in (x, touched)]
        return {tuple(i) for i in np.argwhere(np.abs(out[1] - out[0]).max(-1) > 1e-6) - 7}

    everywhere = {(i, j) for i in range(-7, 8) for j in range(-7, 8)}
    assert moved(variables) == everywhere
    # With gates that do not look at the image: a 3x3 window, and one of the rate.
    variables["params"]["global"]["reduce"]["kernel"] *= 0
    windows = {(r * i, r * j) for r in (1, 4) for i in (-1, 0, 1) for j in (-1, 0, 1)}
    assert moved(variables) == windows


@pytest.mark.parametrize(("h", "w"), [(64, 96), (75, 101), (33, 1)])
def test_feature_sizes(h, w):
    x = jax.ShapeDtypeStruct((2, h, w, 3), jnp.float32)
    net = cgnet.CGNet((1, 2))
    features = jax.eval_shape(lambda x: net.init_with_output(jax.random.key(0), x, False)[0], x)
    assert {name: x.shape for name, x in features.items()} == {
        f"stage{i}": (2, -(-h // 2**i), -(-w // 2**i), c) for i, c in enumerate((35, 131, 256), 1)
    }


def test_the_image_is_averaged_into_stages_1_and_2():
    """Of a flat image, border pixels apart, the last three channels are the image itself."""
    net = cgnet.CGNet((1, 1))
    x = np.full((1, 32, 32, 3), (5.0, 6.0, 7.0), np.float32)
    variables = randomised(shapes(net, x))
    for stage in ("stage1_norm", "stage2_norm"):
        norm, stats = variables["params"][stage]["bn"], variables["batch_stats"][stage]["bn"]
        norm.update(scale=np.sqrt(stats["var"] + 1e-3), bias=stats["mean"])
    features = jax.jit(lambda v, x: net.apply(v, x, False))(variables, x)
    for stage in ("stage1", "stage2"):
        inner = features[stage][:, 2:-2, 2:-2, -3:]
        np.testing.assert_allclose(inner, np.broadcast_to(x[0, 0, 0], inner.shape), rtol=1e-5)


def test_gradients_reach_everything():
    model = models.get(SMALL, num_classes=3)
    image = np.random.default_rng(2).integers(0, 256, (2, 33, 49, 3), np.uint8)
    check_gradients(model, randomised(shapes(model, image)), image)


def test_bfloat16_stays_bfloat16():
    model = models.get(SMALL, num_classes=3)
    image = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.uint8)
    outputs = jax.eval_shape(
        lambda v, x: segmenter.forward(model, v, x, train=False, dtype="bfloat16")[0],
        shapes(model, image),
        image,
    )
    assert {x.dtype for x in outputs.values()} == {np.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("blocks", [(3,), (3, 0), ()])
def test_blocks_are_two_positive_numbers(blocks):
    with pytest.raises(UserError, match=r"config\.model\.blocks=.*\(3, 21\)"):
        models.get(dict(name="cgnet", blocks=blocks), num_classes=3)


DESCRIPTION = dict(
    type="EncoderDecoder",
    backbone=dict(
        type="CGNet", num_blocks=[3, 15], norm_cfg=dict(type="SyncBN", eps=1e-3), in_channels=3
    ),
    decode_head=dict(
        type="FCNHead", channels=256, in_index=2, num_convs=0, concat_input=False, num_classes=4,
        dropout_ratio=0, norm_cfg=dict(type="SyncBN", eps=1e-3),
    ),
    data_preprocessor=dict(mean=[72.0, 83.0, 73.0], std=[1, 1, 1], bgr_to_rgb=True),
)  # fmt: skip


def test_a_description_of_the_toolbox():
    model = models.get(mmseg.model_spec(DESCRIPTION))
    assert model.backbone.blocks == (3, 15) and model.head.dropout == 0
    assert model.mean == (72.0, 83.0, 73.0) and model.std == (1, 1, 1)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("backbone", dict(num_channels=[16, 32, 64]), r"backbone\.num_channels"),
        ("backbone", dict(norm_cfg=dict(type="BN")), r"norm_cfg.*eps=0\.001"),
        ("backbone", dict(norm_eval=True), r"backbone\.norm_eval=True"),
        ("decode_head", dict(num_convs=1), r"decode_head\.num_convs=1"),
        ("decode_head", dict(in_index=1), r"decode_head\.in_index=1"),
    ],
)
def test_what_is_not_supported_is_named(part, change, message):
    with pytest.raises(UserError, match=message):
        mmseg.model_spec(DESCRIPTION | {part: DESCRIPTION[part] | change})
