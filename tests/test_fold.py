"""Folded normalisations: the same function with less to do, and none folded that may not be."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from nets import randomised

from jaxseg import fold, models
from jaxseg.models import segmenter
from jaxseg.models.common import BatchNorm, Conv
from jaxseg.models.segmenter import Segmenter
from jaxseg.models.upsample import ConvTranspose
from jaxseg.state import abstract_variables

# Depthwise convolutions; transposed ones; with a bias before the norm; and larger networks.
MODELS = {
    "deeplabv3p": dict(
        name="deeplabv3p", backbone=dict(name="tests.tiny_backbone"),
        channels=4, low_channels=4, aux_channels=0, rates=(1, 2, 3),
    ),
    "unet_fcn": dict(
        name="fcn", backbone=dict(name="unet", width=2, stages=3, upsample="transposed"),
        channels=4, num_convs=1, aux_channels=0, feature="decoder1",
    ),
    "segnet": dict(name="segnet", width=2),
    "xception": dict(
        name="deeplabv3p", channels=4, low_channels=4, aux_channels=0, rates=(1, 2, 3),
        backbone=dict(name="xception", depth=41, middle_blocks=1, width=0.03, output_stride=16),
    ),
    "lraspp": dict(name="lraspp", backbone=dict(name="mobilenetv3", width=0.25), channels=4),
}  # fmt: skip


def norms(variables) -> set:
    return {path[1:-1] for path in traverse_util.flatten_dict(variables) if path[-1] == "var"}


def draw(tree, dtype):
    return jax.tree.map(lambda x: np.asarray(x, dtype), randomised(tree))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if i > 1 else [])
        for i, name in enumerate(MODELS)
    ],
)
def test_every_norm_of_a_model_folds_and_nothing_changes(name):
    model = models.get(MODELS[name], num_classes=3)
    abstract = abstract_variables(model, (64, 64))
    folds = fold.find(model)
    assert set(folds) == norms(abstract) and len(folds) > 5
    image = np.random.default_rng(1).integers(0, 256, (2, 40, 56, 3), np.uint8)
    for dtype, tolerance in ((jnp.float32, 1e-5), (jnp.float64, 1e-12)):
        with jax.enable_x64(dtype == jnp.float64):

            @jax.jit
            def logits(variables, folded, dtype=dtype):
                def of(variables):
                    forward = segmenter.forward(model, variables, image, train=False, dtype=dtype)
                    return forward[0]["logits"]

                with fold.applied(folds):
                    fewer = of(folded)
                return of(variables), fewer

            variables = draw(abstract, dtype)
            folded = fold.fold(variables, folds)
            assert jax.tree.map(np.shape, folded) == jax.tree.map(np.shape, variables)
            want, got = logits(variables, folded)
        assert got.dtype == dtype and np.ptp(want) > 0
        # Scaled by the largest: what is small is a difference of what is large.
        assert np.abs(got - want).max() < tolerance * np.abs(want).max()


class Body(nn.Module):
    """A backbone whose convolutions and norms are joined as `kind` says."""

    kind: str

    @nn.compact
    def __call__(self, x, train):
        if self.kind == "remat":
            return nn.remat(Body, static_argnums=(2,))("twice", name="inner")(x, train)
        transposed = self.kind == "transposed"
        conv = ConvTranspose(4, 3, 1, 1, name="conv") if transposed else Conv(4, 3, name="conv")
        norm = BatchNorm(name="norm")
        if self.kind == "shortcut":  # of a residual network with pre-activation
            y = conv(x)
            x = y + nn.relu(norm(y, train))
        elif self.kind == "two norms":
            y = conv(x)
            x = norm(y, train) + BatchNorm(name="other")(y, train)
        elif self.kind == "two convolutions":
            x = norm(conv(x), train) + norm(Conv(4, name="second")(x), train)
        elif self.kind == "not normalised at times":
            x = norm(conv(x), train) + conv(2 * x)
        elif self.kind == "something between":
            x = norm(nn.relu(conv(x)), train)
        elif self.kind == "twice":  # at two scales, say
            x = norm(conv(x), train) + norm(conv(2 * x), train)
        elif self.kind == "transposed":
            x = norm(conv(x), train)
        return {"x": x}


class Head(nn.Module):
    def __call__(self, features, train):
        return {"logits": features["x"]}


@pytest.mark.parametrize(
    ("kind", "folds"),
    [
        ("shortcut", 0),
        ("two norms", 0),
        ("two convolutions", 0),
        ("not normalised at times", 0),
        ("something between", 0),
        ("twice", 1),
        ("transposed", 1),
        ("remat", 1),
    ],
)
def test_a_norm_folds_where_its_convolution_serves_it_alone(kind, folds):
    model = Segmenter(Body(kind), Head())
    found = fold.find(model, (8, 8))
    assert len(found) == folds
    variables = randomised(abstract_variables(model, (8, 8)))
    folded = fold.fold(variables, found)
    image = np.random.default_rng(1).integers(0, 256, (1, 8, 8, 3), np.uint8)

    def logits(variables):
        return segmenter.forward(model, variables, image, train=False)[0]["logits"]

    want = logits(variables)
    with fold.applied(found):
        got = logits(folded)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
    # Without `applied` too: what is left of a folded norm does nothing but add.
    np.testing.assert_allclose(logits(folded), want, atol=1e-5 * np.abs(want).max())


def test_folding_is_the_definition():
    """y = scale (conv(x) + bias - mean) / sqrt(var + epsilon) + shift, by hand for one pixel."""
    model = Segmenter(Body("transposed"), Head())
    found = fold.find(model, (8, 8))
    [(norm, (conv, axis, epsilon))] = found.items()
    assert (norm, conv, axis) == (("backbone", "norm"), ("backbone", "conv"), 2)
    variables = randomised(abstract_variables(model, (8, 8)))
    before = variables["params"]["backbone"]
    stats = variables["batch_stats"]["backbone"]["norm"]
    after = fold.fold(variables, found)["params"]["backbone"]
    x = np.arange(3.0)
    for c in range(4):
        value = before["conv"]["kernel"][1, 1, c] @ x + before["conv"]["bias"][c]
        value = (value - stats["mean"][c]) / np.sqrt(stats["var"][c] + epsilon)
        want = before["norm"]["scale"][c] * value + before["norm"]["bias"][c]
        got = after["conv"]["kernel"][1, 1, c] @ x + after["conv"]["bias"][c]
        np.testing.assert_allclose(got + after["norm"]["bias"][c], want, rtol=1e-5)
