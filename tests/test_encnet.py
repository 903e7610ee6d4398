"""EncNet: the encoding layer by its definition, and what the whole image tells each pixel."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import convert, losses, models
from jaxseg.errors import UserError
from jaxseg.models import segmenter
from jaxseg.models.encnet import ContextEncoding, Encoding
from tests.nets import randomised, shapes

CLASSES = 5
SPEC = dict(
    name="encnet", backbone=dict(name="tests.tiny_backbone"), channels=8, codes=3, aux_channels=4,
    dropout=0.0,
)  # fmt: skip


def encoding(x, codewords, scale):
    """Equation 1 of the paper, pixel by pixel and codeword by codeword: [c, codes]."""
    found = np.zeros(codewords.shape)
    for pixel in np.float64(x).reshape(-1, x.shape[-1]):
        residuals = pixel[:, None] - codewords  # [c, codes]
        logits = scale * np.square(residuals).sum(0)
        weights = np.exp(logits - logits.max())
        found += residuals * weights / weights.sum()
    return found


def example(codes=3, c=4, far=0.0):
    rng = np.random.default_rng(0)
    x = (far + rng.normal(size=(2, 5, 7, c))).astype(np.float32)
    codewords = (far + rng.normal(size=(c, codes))).astype(np.float32)
    return x, {"codewords": codewords, "scale": -np.linspace(0.1, 0.9, codes, dtype=np.float32)}


encode = jax.jit(lambda x, params: Encoding(params["scale"].size).apply({"params": params}, x))


# Far from zero, distances are small differences of large squares.
@pytest.mark.parametrize(("codes", "far"), [(3, 0.0), (1, 0.0), (3, 20.0)])
def test_encoding_by_its_definition(codes, far):
    x, params = example(codes, far=far)
    want = [encoding(image, **params) for image in x]
    np.testing.assert_allclose(encode(x, params), want, atol=1e-5 * max(far, 1) ** 2)


def test_a_pixel_adds_to_the_nearest_codeword_alone_where_the_factors_are_large():
    x, params = example()
    got = encode(x, params | {"scale": np.full(3, -1e4, np.float32)})
    residuals = x[..., None] - params["codewords"]  # [b, h, w, c, codes]
    nearest = np.square(residuals).sum(-2).argmin(-1)
    chosen = np.where(nearest[..., None, None] == np.arange(3), residuals, 0)
    np.testing.assert_allclose(got, chosen.sum((1, 2)), atol=1e-4)


def test_encoding_does_not_see_where_a_pixel_is():
    x, params = example()
    shuffled = np.random.default_rng(1).permutation(x.reshape(2, 35, 4), axis=1)
    got = encode(shuffled.reshape(2, 7, 5, 4), params)
    np.testing.assert_allclose(got, encode(x, params), atol=1e-5)


def test_encoding_is_exact_in_bfloat16_too():
    """Of what comes in, that is: distances are long sums, and what counts is their differences."""
    x, params = example(c=64, far=3.0)
    x = jnp.asarray(x, jnp.bfloat16)
    got = encode(x, params)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, [encoding(image, **params) for image in x], atol=1e-2)
    # So the layer's own parameters are not rounded either.
    kept = segmenter.cast_params({"encoding": params}, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {np.dtype("float32")}


def test_attention_scales_each_channel_of_an_image_by_one_factor():
    module = ContextEncoding(codes=3)
    x = np.random.default_rng(2).uniform(0.1, 1, (2, 6, 7, 8)).astype(np.float32)
    variables = randomised(shapes(module, x))
    y, encoded = jax.jit(lambda x: module.apply(variables, x, False))(x)
    ratio = np.asarray(y) / x
    assert encoded.shape == (2, 8)
    factors = ratio[:, :1, :1]
    np.testing.assert_allclose(ratio, np.broadcast_to(factors, ratio.shape), rtol=1e-5)
    assert (factors > 1).all() and (factors < 2).all()  # 1 and a sigmoid
    assert np.ptp(factors, axis=0).max() > 1e-3  # each image has its own


@functools.cache
def trained(**weights):
    """Gradients of the losses of the named outputs, and the outputs, of one training step."""
    run, params = training_step()
    weights = dict(logits=0.0, aux_logits=0.0, presence_logits=0.0) | weights
    return jax.device_get(run(params, weights))


@functools.cache
def training_step():
    model = models.get(SPEC, CLASSES)
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (2, 65, 49, 3), np.uint8)
    batch = {"label": rng.integers(0, 3, (2, 65, 49)).astype(np.int32), "mask": np.ones(2, bool)}
    variables = randomised(shapes(model, image))
    state = {"batch_stats": variables["batch_stats"]}
    names = dict.fromkeys(("logits", "aux_logits"), "cross_entropy")
    names["presence_logits"] = "presence_cross_entropy"

    def loss(params, weights):
        outputs, _ = segmenter.forward(model, {"params": params, **state}, image, train=True)
        spec = {output: dict(name=names[output], weight=w) for output, w in weights.items()}
        total, _ = losses.total(outputs, batch, spec, ignore_label=255, align_corners=False)
        return total, outputs

    return jax.jit(jax.grad(loss, has_aux=True)), variables["params"]


def test_training_reaches_every_parameter_through_the_three_outputs():
    grads, outputs = trained(logits=1.0, aux_logits=0.4, presence_logits=0.2)
    assert outputs["logits"].shape == outputs["aux_logits"].shape == (2, 9, 7, CLASSES)
    assert outputs["presence_logits"].shape == (2, CLASSES)
    for path, grad in jax.tree.leaves_with_path(grads):
        assert np.isfinite(grad).all() and np.abs(grad).max() > 0, jax.tree_util.keystr(path)


def test_presence_reaches_the_encoding_and_nothing_beside_it():
    grads, _ = trained(presence_logits=1.0)
    moved = {name: np.abs(leaf).max() > 0 for name, leaf in flat(grads["head"]).items()}
    left_out = {name for name in moved if name.startswith(("classifier", "context/fc"))}
    assert left_out and not any(moved[name] for name in left_out)
    assert all(moved[name] for name in moved.keys() - left_out)


def flat(tree):
    leaves = jax.tree.leaves_with_path(tree)
    return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


def test_codewords_have_rows_of_their_own_in_the_table():
    names = convert.torch_names(models.get(SPEC, CLASSES))
    theirs, ours = "decode_head.enc_module.encoding", "head/context"
    assert convert.place(f"{theirs}.0.codewords", 2, names) == f"params/{ours}/encoding/codewords"
    assert convert.place(f"{theirs}.0.scale", 1, names) == f"params/{ours}/encoding/scale"
    assert convert.place(f"{theirs}.1.weight", 1, names) == f"params/{ours}/bn/scale"
    assert convert.place(f"{theirs}.0.gamma", 1, names) is None


def test_a_model_without_codewords_is_refused():
    with pytest.raises(UserError, match=r"config\.model\.codes=0.*at least 1"):
        models.get(SPEC | dict(codes=0), CLASSES)
