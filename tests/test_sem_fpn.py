"""The feature pyramid, and the semantic head on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import models
from jaxseg.errors import UserError
from jaxseg.models import fpn

SPEC = dict(name="sem_fpn", backbone=dict(name="resnet", depth=18, output_stride=32))


def levels(sizes=((9, 13), (5, 7), (3, 4)), c=2):
    rng = np.random.default_rng(3)
    return {
        f"stage{i}": rng.normal(size=(1, h, w, c)).astype(np.float32)
        for i, (h, w) in enumerate(sizes, 1)
    }


def test_pyramid_adds_what_is_above():
    """With convolutions that copy, a level is itself and the coarser ones, by nearest pixels."""
    x = levels()
    neck = fpn.FPN(tuple(x), channels=2)
    copy = np.zeros((3, 3, 2, 2), np.float32)
    copy[1, 1] = np.eye(2)
    params = {f"lateral{i}": {"kernel": copy[1:2, 1:2], "bias": np.zeros(2)} for i in range(3)}
    params |= {f"output{i}": {"kernel": copy, "bias": np.zeros(2)} for i in range(3)}
    got = neck.apply({"params": params}, x, False)
    want = {"p3": x["stage3"]}
    for name, fine, above in (("p2", "stage2", "p3"), ("p1", "stage1", "p2")):
        (h, w), coarse = x[fine].shape[1:3], want[above]
        rows = np.arange(h) * coarse.shape[1] // h
        cols = np.arange(w) * coarse.shape[2] // w
        want[name] = x[fine] + coarse[:, rows][:, :, cols]
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_allclose(got[name], want[name], atol=1e-5)


@pytest.mark.parametrize("upsample", fpn.METHODS)
def test_pyramid_grows_by_each_method(upsample):
    neck = fpn.FPN(("stage1", "stage2", "stage3"), 5, upsample)
    got = jax.eval_shape(lambda x: neck.init_with_output(jax.random.key(0), x, True)[0], levels())
    assert {name: x.shape for name, x in got.items()} == {
        "p1": (1, 9, 13, 5),
        "p2": (1, 5, 7, 5),
        "p3": (1, 3, 4, 5),
    }


def test_semantic_fpn_takes_as_many_convolutions_as_doublings():
    model = models.get(SPEC, 3)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), False))
    names = sorted(name for name in params["params"]["head"] if name.startswith("level"))
    assert names == ["level0_0", "level1_0", "level2_0", "level2_1"] + [
        f"level3_{k}" for k in range(3)
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(strides=(4, 8)), r"config\.model\.strides=\(4, 8\).*4 features"),
        (dict(strides=(4, 8, 12, 32)), r"strides=\(4, 8, 12, 32\).*power of two"),
        (dict(strides=()), r"strides=\(\).*4 features"),
        (dict(upsample="cubic"), r"config\.model\.upsample.*cubic.*nearest"),
    ],
)
def test_mistakes_in_a_spec_are_named(change, message):
    with pytest.raises(UserError, match=message):
        models.get(SPEC | change, 3)
