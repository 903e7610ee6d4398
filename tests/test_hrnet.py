"""HRNet: published sizes, and its exchange of information against NumPy."""

import jax
import numpy as np
import pytest

from jaxseg import models
from jaxseg.errors import UserError
from jaxseg.models import hrnet
from jaxseg.models.segmenter import forward
from tests.nets import count, randomised, shapes

# Published parameter counts of the ImageNet classifiers.
IMAGENET = {18: 21_299_004, 32: 41_232_680, 40: 57_557_160, 48: 77_469_864}
BRANCHES = ("stage1", "stage2", "stage3", "stage4")


def segmenter(width=18, **backbone):
    """The paper's segmentation model."""
    return models.get(
        dict(
            name="fcn",
            backbone=dict(name="hrnet", width=width, **backbone),
            feature=BRANCHES,
            channels=15 * width,
            num_convs=1,
            kernel=1,
            concat_input=False,
            aux_channels=0,
            dropout=0.0,
        ),
        num_classes=19,
    )


def classifier_parameters(width):
    """Of the ImageNet head (arXiv:1904.04514, appendix): four bottlenecks, joined from fine to
    coarse by strided 3x3 convolutions with bias, 1x1 to 2048 channels, and a linear layer."""
    total, inner = 0, (32, 64, 128, 256)
    for i, p in enumerate(inner):
        c = width * 2**i
        total += c * p + 9 * p * p + p * 4 * p + 2 * (p + p + 4 * p)  # bottleneck
        total += c * 4 * p + 2 * 4 * p  # its shortcut
    for p, q in zip(inner[:-1], inner[1:], strict=True):
        total += 9 * 4 * p * 4 * q + 4 * q + 2 * 4 * q
    return total + (1024 * 2048 + 2048 + 2 * 2048) + 2049 * 1000


@pytest.mark.parametrize("width", IMAGENET)
def test_published_parameter_counts(width):
    backbone = shapes(hrnet.Backbone(width), jax.ShapeDtypeStruct((1, 64, 64, 3), "f4"))
    assert count(backbone["params"]) + classifier_parameters(width) == IMAGENET[width]


def test_published_parameter_counts_of_the_segmentation_models():
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), "u1")
    for model, millions in (
        (segmenter(modules=(1, 3, 2), blocks=2), 3.9),
        (segmenter(width=48), 65.9),
    ):
        assert round(count(shapes(model, image)["params"]) / 1e6, 1) == millions


@pytest.mark.parametrize(("h", "w"), [(64, 128), (129, 193), (33, 50)])
def test_branches_keep_their_resolution(h, w):
    backbone = hrnet.Backbone(5, (1, 2, 1), 1)
    x = jax.ShapeDtypeStruct((2, h, w, 3), "f4")
    features, _ = jax.eval_shape(
        lambda x: backbone.init_with_output(jax.random.key(0), x, False), x
    )
    assert {name: x.shape for name, x in features.items()} == {
        name: (2, -(-h // stride), -(-w // stride), 5 * stride // 4)
        for name, stride in zip(BRANCHES, (4, 8, 16, 32), strict=True)
    }


def enlarged(x, size):
    """[b, h, w, c] -> [b, *size, c], linearly between pixel centres, one axis after the other."""
    for axis, m in ((1, size[0]), (2, size[1])):
        n = x.shape[axis]
        at = (np.arange(m) + 0.5) * n / m - 0.5
        x = np.apply_along_axis(
            lambda line, at=at: np.interp(at, np.arange(len(line)), line), axis, x
        )
    return x


def test_exchange_sums_every_branch_at_every_resolution():
    """Strided convolutions that see their centre alone only pick pixels, so NumPy can follow."""
    rng = np.random.default_rng(0)
    sizes, widths = [(17, 25), (9, 13), (5, 7), (3, 4)], (2, 4, 8, 16)
    maps = [
        rng.normal(size=(1, *size, c)).astype(np.float32)
        for size, c in zip(sizes, widths, strict=True)
    ]
    module = hrnet.Module(blocks=0)
    variables = randomised(shapes(module, maps))
    for path, leaf in jax.tree.leaves_with_path(variables):
        name = path[-1].key
        if name in ("scale", "var"):
            leaf[:] = 1
        elif name in ("bias", "mean"):
            leaf[:] = 0
        elif leaf.shape[0] == 3:
            centre = leaf[1, 1].copy()
            leaf[:] = 0
            leaf[1, 1] = centre
    kernels = variables["params"]

    def mix(x, name):
        kernel = kernels[name]["conv"]["kernel"]
        return x @ kernel[kernel.shape[0] // 2, kernel.shape[1] // 2] / np.sqrt(1 + 1e-5)

    exchanged = jax.jit(lambda variables, maps: module.apply(variables, maps, False))
    for i, got in enumerate(exchanged(variables, maps)):
        want = maps[i].astype(np.float64)
        for j, x in enumerate(maps):
            if j > i:
                double = tuple(2 ** (j - i) * n for n in sizes[j])
                want = want + enlarged(enlarged(mix(x, f"fuse{i}_{j}"), double), sizes[i])
            for k in range(i - j):
                x = mix(x[:, ::2, ::2], f"fuse{i}_{j}_{k}")
                x = np.maximum(x, 0) if k < i - j - 1 else x
            if j < i:
                want = want + x
        np.testing.assert_allclose(got, np.maximum(want, 0), atol=1e-4)


@pytest.mark.slow
def test_training_reaches_every_parameter_and_statistic():
    model = segmenter(4, modules=(1, 1, 1), blocks=1)
    image = np.random.default_rng(0).integers(0, 256, (2, 65, 97, 3), np.uint8)
    variables = randomised(shapes(model, image))

    @jax.jit
    def run(variables, image):
        def loss(params):
            outputs, new = forward(model, {**variables, "params": params}, image, train=True)
            return ((outputs["logits"] - 1) ** 2).mean(), new

        return jax.grad(loss, has_aux=True)(variables["params"])

    grads, new = run(variables, image)
    for path, grad in jax.tree.leaves_with_path(grads):
        assert np.isfinite(grad).all() and np.abs(grad).max() > 0, jax.tree_util.keystr(path)
    old, new = variables["batch_stats"], new["batch_stats"]
    assert jax.tree.structure(new) == jax.tree.structure(old)
    for before, after in zip(*map(jax.tree.leaves, (old, new)), strict=True):
        assert (before != after).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(width=0), r"backbone\.width=0"),
        (dict(blocks=0), r"backbone\.blocks=0"),
        (dict(modules=(1, 4)), r"backbone\.modules=\(1, 4\).*three"),
        (dict(modules=(1, 0, 3)), r"backbone\.modules=\(1, 0, 3\)"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        hrnet.Backbone(**arguments)
