"""Recomputation in the backward pass: less is kept, and nothing else changes."""

import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import config as configs
from jaxseg import models, remat
from jaxseg.errors import UserError
from jaxseg.models import resnet, segmenter

ROOT = pathlib.Path(__file__).resolve().parents[1]


@functools.cache
def model(backbone: str, **changes):
    config = configs.from_file(str(ROOT / "configs" / "fcn_resnet.py:synthetic"))
    config.model.backbone.update(name=backbone, **changes)
    config.model.update(channels=24, aux_channels=8, dropout=0.3)  # 24 is wide for a map of 16
    return models.get(config.model, num_classes=5)


def loss(policy: str, model, params, state, image):
    """(loss, new batch statistics) of one training pass, with dropout."""
    outputs, new = remat.recompute(segmenter.forward, policy)(
        model,
        {"params": params, **state},
        image,
        train=True,
        rngs={"dropout": jax.random.key(3)},
    )
    return sum(jnp.square(outputs[name] - 1).mean() for name in ("logits", "aux_logits")), new


def initial(model, size):
    image = jnp.zeros((1, *size, 3), jnp.uint8)
    variables = dict(jax.jit(lambda: model.init(jax.random.key(0), image, False))())
    # Blocks of a ResNet start as the identity: let every parameter matter.
    params = jax.tree.map(lambda x: x + 0.1, variables.pop("params"))
    return params, variables


def test_gradients_statistics_and_dropout_are_the_same():
    net, size = model("tests.tiny_backbone"), (48, 64)
    params, state = initial(net, size)
    image = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    run = {
        policy: jax.jit(jax.value_and_grad(functools.partial(loss, policy, net), has_aux=True))
        for policy in remat.POLICIES
    }
    want = jax.device_get(run["none"](params, state, image))
    for policy in ("wide", "blocks"):
        got = jax.device_get(run[policy](params, state, image))
        assert jax.tree.structure(got) == jax.tree.structure(want)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


def kept(policy: str, net, size) -> int:
    """Bytes that the forward pass leaves for the backward pass, but for parameters."""
    image = jax.ShapeDtypeStruct((2, *size, 3), jnp.uint8)
    variables = jax.eval_shape(lambda x: net.init(jax.random.key(0), x, False), image)
    state = {"batch_stats": variables["batch_stats"]}

    def forward(params, state, image):
        return jax.vjp(lambda p: loss(policy, net, p, state, image)[0], params)[1]

    residuals = jax.eval_shape(forward, variables["params"], state, image)
    return size_of(residuals) - size_of(variables["params"])


def size_of(tree) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def test_less_is_kept(monkeypatch):
    monkeypatch.setitem(resnet.BLOCKS, 50, (resnet.Bottleneck, (2, 2, 2, 2)))
    net = model("resnet", depth=50, output_stride=8)
    none, wide, blocks = (kept(policy, net, (256, 256)) for policy in ("none", "wide", "blocks"))
    assert wide < 0.6 * none
    assert blocks < 0.75 * wide


def test_an_unknown_policy_is_named():
    with pytest.raises(UserError, match=r"config\.remat: unknown policy 'block', did you mean"):
        remat.recompute(segmenter.forward, "block")
