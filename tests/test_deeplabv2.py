"""DeepLabv2: branches that add up, scales that share weights and whose maximum wins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import convert, models
from jaxseg.errors import UserError
from jaxseg.models import segmenter
from jaxseg.models.deeplabv2 import SumASPPHead
from jaxseg.models.resnet import Backbone

TINY = dict(name="tests.tiny_backbone")


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def shapes(module, *inputs):
    return jax.eval_shape(lambda *x: module.init_with_output(jax.random.key(0), *x, False), *inputs)


def test_a_pixel_is_scored_by_the_sum_of_the_branches():
    """Against the sum written out, tap by tap."""
    rates, n, middle = (1, 3, 4), 11, 5
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, n, n, 3)).astype(np.float32)
    head = SumASPPHead(2, "x", rates)
    params, want = {}, np.zeros(2)
    for i, rate in enumerate(rates):
        kernel = rng.normal(size=(3, 3, 3, 2)).astype(np.float32)
        params[f"branch{i}"] = {"fc8": {"kernel": kernel, "bias": np.full(2, i, np.float32)}}
        want += i
        for dy, dx in np.ndindex(3, 3):
            pixel = x[0, middle + (dy - 1) * rate, middle + (dx - 1) * rate]
            want += pixel @ kernel[dy, dx]
    outputs = head.apply({"params": params}, {"x": x}, False)
    assert outputs.keys() == {"logits"} and outputs["logits"].shape == (1, n, n, 2)
    np.testing.assert_allclose(outputs["logits"][0, middle, middle], want, rtol=1e-4, atol=1e-4)


def test_the_largest_score_over_the_scales_wins():
    head = SumASPPHead(2, "x", (2,), scales=(0.5, 1.0))
    kernel = np.zeros((3, 3, 2, 2), np.float32)
    kernel[1, 1] = np.eye(2)  # scores are the features
    params = {"branch0": {"fc8": {"kernel": kernel, "bias": np.zeros(2, np.float32)}}}
    small = np.broadcast_to(np.float32([1, -1]), (1, 4, 4, 2))
    large = np.array(np.broadcast_to(np.float32([0, 0]), (1, 7, 7, 2)))
    large[0, 3, 3] = (5, 5)
    outputs = head.apply({"params": params}, {"x_050": small, "x_100": large}, False)
    assert outputs.keys() == {"logits", "logits_050", "logits_100"}
    want = np.array(np.broadcast_to(np.float32([1, 0]), (1, 7, 7, 2)))
    want[0, 3, 3] = (5, 5)
    np.testing.assert_allclose(outputs["logits"], want, atol=1e-6)
    np.testing.assert_array_equal(outputs["logits_050"], small)


def test_sizes_and_parameters_of_the_voc_model():
    """Crops of 321 are scored on 41x41 at full scale (the authors' release)."""
    spec = dict(name="deeplabv2", backbone=dict(name="resnet", depth=101, stem="plain"))
    spec["backbone"]["output_stride"] = 8
    image = jax.ShapeDtypeStruct((1, 321, 321, 3), jnp.uint8)
    outputs, variables = shapes(models.get(spec, num_classes=21), image)
    sides = {name: outputs[name].shape[1] for name in outputs if name.startswith("logits")}
    assert sides == {"logits": 41, "logits_050": 21, "logits_075": 31, "logits_100": 41}
    assert outputs["logits"].shape == (1, 41, 41, 21)
    # The weights of one ResNet-101 without its classifier, and four 3x3 layers: 44.0 M.
    classifiers = 4 * (9 * 2048 * 21 + 21)
    assert count(variables["params"]) == 44_549_160 - 1000 * 2049 + classifiers == 44_048_532


def test_vgg_form_has_the_published_size():
    """LargeFOV has 20.5 M parameters (DeepLab, arXiv:1412.7062, section 3.2 and its table)."""
    spec = dict(
        name="deeplabv2", backbone=dict(name="vgg", pool=3, output_stride=8), feature="pool5",
        rates=(12,), hidden=1024, scales=(),
    )  # fmt: skip
    image = jax.ShapeDtypeStruct((1, 321, 321, 3), jnp.uint8)
    outputs, variables = shapes(models.get(spec, num_classes=21), image)
    assert outputs["logits"].shape == (1, 41, 41, 21)
    assert round(count(variables["params"]) / 1e6, 1) == 20.5
    branch = variables["params"]["head"]["branch0"]
    kernels = [branch[name]["kernel"].shape for name in ("fc6", "fc7", "fc8")]
    assert kernels == [(3, 3, 512, 1024), (1, 1, 1024, 1024), (1, 1, 1024, 21)]


def test_training_at_several_scales():
    """One set of weights and statistics: every parameter has a gradient, every statistic moves."""
    spec = dict(name="deeplabv2", backbone=TINY, rates=(1, 2), hidden=6, align_corners=True)
    model, single = (models.get(spec | dict(scales=s), num_classes=3) for s in ((0.5, 0.8), ()))
    image = np.random.default_rng(0).integers(0, 256, (2, 65, 49, 3), np.uint8)
    variables = jax.jit(lambda x: model.init(jax.random.key(0), x, False))(image)
    params = variables["params"]
    _, without = shapes(single, image)
    assert count(without) == count(variables)
    assert jax.tree.structure(params["backbone"]["backbone"]) == jax.tree.structure(
        without["params"]["backbone"]
    )

    @jax.jit
    def run(params, key):
        def loss(params):
            outputs, new = segmenter.forward(
                model, variables | {"params": params}, image, train=True, rngs={"dropout": key}
            )
            scores = [y for name, y in outputs.items() if name.startswith("logits")]
            return sum(jnp.square(y - 1).mean() for y in scores), (outputs, new)

        return jax.grad(loss, has_aux=True)(params)

    grads, (outputs, new) = run(params, jax.random.key(1))
    assert outputs["logits"].shape == outputs["logits_080"].shape == (2, 7, 5, 3)
    assert outputs["logits_050"].shape == (2, 5, 4, 3)
    assert outputs["stage4_050"].shape == (2, 5, 4, 16)
    for path, grad in jax.tree.leaves_with_path(grads):
        assert np.isfinite(grad).all() and np.abs(grad).max() > 0, jax.tree_util.keystr(path)
    for before, after in zip(
        *map(jax.tree.leaves, (variables["batch_stats"], new["batch_stats"])), strict=True
    ):
        assert (before != after).any()


def test_weights_of_the_backbone_find_their_place():
    """A scale more or less, names of ImageNet weights stay those of the backbone."""
    spec = dict(name="deeplabv2", backbone=dict(name="resnet", depth=18, stem="plain"))
    single, several = (models.get(spec | dict(scales=s), num_classes=3) for s in ((), (0.5, 1.0)))
    key = "backbone.layer3.1.bn2.running_var"
    place = convert.place(key, 1, convert.torch_names(single))
    assert place == "batch_stats/backbone/stage3_1/conv2/bn/var"
    there = convert.place(key, 1, convert.torch_names(several))
    assert there == "batch_stats/backbone/backbone/stage3_1/conv2/bn/var"
    key = "decode_head.conv2d_list.2.weight"
    assert convert.place(key, 4, convert.torch_names(several)) == "params/head/branch2/fc8/kernel"
    assert isinstance(single.backbone, type(Backbone(18)))


@pytest.mark.parametrize("scales", [(0.5, 0.0), (-1.0,), (1.0, 0.5, 1.0)])
def test_scales_that_make_no_sense_are_named(scales):
    with pytest.raises(UserError, match=r"config\.model\.scales=.*positive"):
        models.get(dict(name="deeplabv2", backbone=TINY, scales=scales), num_classes=2)
