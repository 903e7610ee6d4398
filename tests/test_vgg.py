"""VGG: published parameter counts, sizes and alignment of its maps, names of its weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import convert
from jaxseg.errors import UserError
from jaxseg.models.vgg import Backbone, torch_names

# torchvision's documented counts for 1000 classes, less its three linear layers.
LINEAR = (512 * 49 + 1) * 4096 + 4097 * 4096 + 4097 * 1000
TORCHVISION = {11: 132_863_336, 13: 133_047_848, 16: 138_357_544, 19: 143_667_240}
TORCHVISION_BN = {11: 132_868_840, 13: 133_053_736, 16: 138_365_992, 19: 143_678_248}
# Their layers with parameters in `features`: vgg16 and vgg16_bn.
CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
CONVOLUTIONS_BN = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)


def shapes(backbone, h=32, w=32):
    x = jax.ShapeDtypeStruct((1, h, w, 3), jnp.float32)
    return jax.eval_shape(lambda x: backbone.init_with_output(jax.random.key(0), x, False), x)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("depth", TORCHVISION)
def test_parameter_counts(depth):
    for norm, published in ((False, TORCHVISION), (True, TORCHVISION_BN)):
        _, variables = shapes(Backbone(depth, norm=norm))
        assert count(variables["params"]) == published[depth] - LINEAR
    assert depth != 16 or published[depth] - LINEAR == 14_714_688 + 2 * 4224


@pytest.mark.parametrize(("h", "w"), [(64, 96), (33, 47), (1, 31)])
def test_feature_sizes(h, w):
    features, _ = shapes(Backbone(width=2), h, w)
    assert {name: x.shape[1:] for name, x in features.items()} == {
        "conv1": (h, w, 2),
        "pool1": (-(-h // 2), -(-w // 2), 2),
        "pool2": (-(-h // 4), -(-w // 4), 4),
        "pool3": (-(-h // 8), -(-w // 8), 8),
        "pool4": (-(-h // 16), -(-w // 16), 16),
        "pool5": (-(-h // 32), -(-w // 32), 16),
    }


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_sizes_with_padded_pools(output_stride):
    """Sizes of DeepLab's released networks; pixel i of a map is on pixel s i of the image."""
    for n, halved in ((321, (161, 81, 41, 21, 11)), (320, (161, 81, 41, 21, 11))):
        features, _ = shapes(Backbone(width=1, pool=3, output_stride=output_stride), n, 65)
        rows = [features[f"pool{i}"].shape[1] for i in range(1, 6)]
        assert rows == [max(m, halved[int(np.log2(output_stride)) - 1]) for m in halved]
        assert features["pool5"].shape[2] == 64 // output_stride + 1


def test_padding_of_the_image():
    features, _ = shapes(Backbone(width=1, padding=100), 500, 375)
    # 500 + 198 pixels, halved and rounded up five times: the released FCNs on PASCAL VOC.
    assert features["conv1"].shape[1:3] == (698, 573)
    assert [features[f"pool{i}"].shape[1] for i in range(1, 6)] == [349, 175, 88, 44, 22]


def test_pools_without_stride_hold_the_strided_ones():
    """The same windows at every place instead of every other: borders and odd sizes included."""
    x = np.random.default_rng(0).normal(size=(1, 33, 66, 3)).astype("f4")
    coarse, middle, fine = (Backbone(11, width=2, pool=3, output_stride=s) for s in (32, 16, 8))
    variables = coarse.init(jax.random.key(1), x, False)
    run = jax.jit(lambda v, x: [b.apply(v, x, False) for b in (coarse, middle, fine)])
    coarse, middle, fine = run(variables, x)
    for have, want in ((fine["pool4"], middle["pool4"]), (middle["pool5"], coarse["pool5"])):
        rows, cols = want.shape[1:3]
        have = np.asarray(have)[:, ::2, ::2]
        np.testing.assert_allclose(have, want[:, : have.shape[1], : have.shape[2]], rtol=1e-5)
        assert 0 <= rows - have.shape[1] <= 1 and 0 <= cols - have.shape[2] <= 1


@pytest.mark.parametrize(("norm", "places"), [(False, CONVOLUTIONS), (True, CONVOLUTIONS_BN)])
def test_weights_by_torchvisions_names(norm, places):
    backbone = Backbone(width=1, norm=norm)
    _, abstract = shapes(backbone)
    kernels = sorted(name for name in abstract["params"] if name.startswith("conv"))
    rng, state = np.random.default_rng(0), {}
    for name, place in zip(kernels, places, strict=True):
        kh, kw, inputs, features = abstract["params"][name]["kernel"].shape
        state[f"features.{place}.weight"] = rng.normal(size=(features, inputs, kh, kw))
        state[f"features.{place}.bias"] = rng.normal(size=features)
        if norm:
            for leaf in ("weight", "bias", "running_mean", "running_var"):
                state[f"features.{place + 1}.{leaf}"] = rng.normal(size=features)
            state[f"features.{place + 1}.num_batches_tracked"] = np.zeros(())
    variables = convert.from_torch(state, abstract, torch_names(backbone))
    assert jax.tree.structure(variables) == jax.tree.structure(abstract)
    last = state[f"features.{places[-1]}.weight"]
    np.testing.assert_array_equal(
        variables["params"]["conv5_3"]["kernel"], last.transpose(2, 3, 1, 0).astype("f4")
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(depth=12), r"depth=12.*\(11, 13, 16, 19\)"),
        (dict(pool=4), r"pool=4.*\(2, 3\)"),
        (dict(pool=3, output_stride=4), r"output_stride=4.*\(8, 16, 32\)"),
        (dict(output_stride=8), r"output_stride=8.*pool=3"),
        (dict(width=0), r"width=0.*1 or more"),
        (dict(padding=0), r"padding=0.*1 or more"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        Backbone(**arguments)
