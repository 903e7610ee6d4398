"""UPerNet's head against NumPy, how far each of its levels is seen, and what a config may say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import models
from jaxseg.errors import UserError
from jaxseg.models.upernet import STAGES, UPerHead
from tests.nets import check_gradients, randomised, shapes

TINY = dict(name="tests.tiny_backbone")
SIZES, WIDTHS = ((13, 17), (7, 9), (4, 5), (2, 3)), (3, 4, 5, 6)


def pyramid(seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=(2, *size, c)).astype(np.float32)
        for name, size, c in zip(STAGES, SIZES, WIDTHS, strict=True)
    }


def convolved(x, variables, *path):
    """Half-padded convolution, batch normalisation by the running statistics, ReLU."""
    params, stats = variables["params"], variables["batch_stats"]
    for name in path:
        params, stats = params[name], stats[name]
    kernel = params["conv"]["kernel"].astype(np.float64)
    k, (h, w) = kernel.shape[0], x.shape[1:3]
    padded = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    y = sum(padded[:, i : i + h, j : j + w] @ kernel[i, j] for i, j in np.ndindex(k, k))
    y = (y - stats["bn"]["mean"]) / np.sqrt(stats["bn"]["var"] + 1e-5)
    return np.maximum(y * params["bn"]["scale"] + params["bn"]["bias"], 0)


def pooled(x, k):
    """Means over k x k bins that share the pixels on their borders."""
    (h, w), i = x.shape[1:3], np.arange(k)
    rows = list(zip(i * h // k, -(-(i + 1) * h // k), strict=True))
    cols = list(zip(i * w // k, -(-(i + 1) * w // k), strict=True))
    cells = [[x[:, a:b, c:d].mean((1, 2)) for c, d in cols] for a, b in rows]
    return np.array(cells).transpose(2, 0, 1, 3)


def enlarged(x, size, align_corners):
    """Linearly between pixels, one axis after the other."""
    for axis, m in ((1, size[0]), (2, size[1])):
        n = x.shape[axis]
        at = (np.arange(m) + 0.5) * n / m - 0.5
        if align_corners:
            at = np.linspace(0, n - 1, m)
        x = np.apply_along_axis(
            lambda line, at=at: np.interp(at, np.arange(len(line)), line), axis, x
        )
    return x


@pytest.mark.parametrize("align_corners", [False, True])
def test_head_against_numpy(align_corners):
    x = pyramid()
    head = UPerHead(5, channels=4, bins=(1, 2, 3), align_corners=align_corners)
    variables = randomised(shapes(head, x))
    got = jax.jit(lambda v, x: head.apply(v, x, False)["logits"])(variables, x)

    top = x["stage4"]
    size = top.shape[1:3]
    levels = [
        enlarged(convolved(pooled(top, k), variables, "pyramid", f"level{i}"), size, align_corners)
        for i, k in enumerate((1, 2, 3))
    ]
    path = [convolved(np.concatenate([top, *levels], -1), variables, "project")]
    for i in (2, 1, 0):  # top-down
        lateral = convolved(x[STAGES[i]], variables, f"lateral{i}")
        path.insert(0, lateral + enlarged(path[0], lateral.shape[1:3], align_corners))
    outputs = [convolved(path[i], variables, f"output{i}") for i in range(3)] + [path[3]]
    joined = np.concatenate([enlarged(y, SIZES[0], align_corners) for y in outputs], -1)
    fused = convolved(joined, variables, "fuse")
    classifier = variables["params"]["classifier"]["conv"]
    want = fused @ classifier["kernel"][0, 0] + classifier["bias"]
    np.testing.assert_allclose(got, want, atol=1e-4 * want.std())


def test_coarse_levels_inform_and_fine_ones_locate():
    """The last level is seen everywhere; a pixel of the first, in the 5x5 of two convolutions."""
    x = {name: np.ones_like(value) for name, value in pyramid().items()}
    head = UPerHead(2, channels=4)
    abstract = shapes(head, x)
    variables = jax.tree.map_with_path(
        lambda path, leaf: np.full(leaf.shape, path[-1].key in ("kernel", "scale", "var"), "f4"),
        abstract,
    )  # no sign and no zero loses what is seen
    run = jax.jit(lambda x: head.apply(variables, x, False)["logits"])
    before, seen = run(x), {}
    for name, value in x.items():
        touched = value.copy()
        touched[0, value.shape[1] // 2, value.shape[2] // 2] += 1
        moved = np.abs(run(x | {name: touched}) - before) > 0
        assert not moved[1:].any()
        seen[name] = moved[0].any(-1)
    assert seen["stage4"].all()
    assert np.argwhere(seen["stage1"]).tolist() == [
        [i, j] for i in range(4, 9) for j in range(6, 11)
    ]
    assert 25 < seen["stage2"].sum() < seen["stage3"].sum() < 13 * 17


@pytest.mark.parametrize(("h", "w"), [(64, 128), (129, 193), (33, 50)])
def test_logits_have_the_size_of_the_finest_level(h, w):
    spec = dict(name="upernet", backbone=dict(name="resnet", depth=18, output_stride=32))
    image = jax.ShapeDtypeStruct((2, h, w, 3), jnp.uint8)
    model = models.get(spec | dict(channels=8, aux_channels=4), 7)
    keys = dict.fromkeys(("params", "dropout"), jax.random.key(0))
    outputs, _ = jax.eval_shape(lambda x: model.init_with_output(keys, x, True), image)
    assert outputs["logits"].shape == (2, -(-h // 4), -(-w // 4), 7)
    assert outputs["aux_logits"].shape == (2, -(-h // 16), -(-w // 16), 7)


def test_features_go_by_name():
    """Any two or more features of any backbone make a pyramid; the others are not read."""
    spec = dict(name="upernet", backbone=TINY, channels=8, aux_channels=0)
    image = jax.ShapeDtypeStruct((1, 65, 49, 3), jnp.uint8)
    model = models.get(spec | dict(features=("stage0", "stage3")), 5)
    outputs, variables = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, False), image
    )
    assert outputs["logits"].shape == (1, 33, 25, 5) and "aux_logits" not in outputs
    head = variables["params"]["head"]
    assert head["fuse"]["conv"]["kernel"].shape == (3, 3, 2 * 8, 8)
    assert {name for name in head if name[-1].isdigit()} == {"lateral0", "output0"}
    with pytest.raises(UserError, match=r"feature 'stage5'.*stage4"):
        shapes(models.get(spec | dict(features=("stage1", "stage5")), 5), image)


@pytest.mark.parametrize("features", [("stage4",), ()])
def test_a_pyramid_has_two_levels(features):
    with pytest.raises(UserError, match=r"config\.model\.features=\(.*two levels.*stage4"):
        models.get(dict(name="upernet", backbone=TINY, features=features), 5)


def test_training_reaches_every_parameter():
    model = models.get(
        dict(name="upernet", backbone=TINY, channels=4, bins=(1, 2), aux_channels=0), 3
    )
    image = np.random.default_rng(0).integers(0, 256, (2, 24, 40, 3), np.uint8)
    check_gradients(model, randomised(shapes(model, image)), image)
