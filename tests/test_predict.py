"""The predict chain against NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from jaxseg import links, predict
from jaxseg.errors import UserError
from jaxseg.models.segmenter import Segmenter
from jaxseg.ops import opencv
from jaxseg.ops.dense_crf import dense_crf


class Pooled(nn.Module):
    """Features: the mean of each `stride` x `stride` cell."""

    stride: int

    def __call__(self, x, train):
        size = (self.stride, self.stride)
        return {"stage1": nn.avg_pool(x, size, size)}


class Classifier(nn.Module):
    """A 3x3 convolution, so that what is next to a pixel matters."""

    @nn.compact
    def __call__(self, features, train):
        x = nn.Conv(3, (3, 3), padding=1)(features["stage1"])
        return {"logits": x}


def make_model(stride=4, align_corners=False):
    model = Segmenter(
        backbone=Pooled(stride),
        head=Classifier(),
        mean=(120.0, 110.0, 100.0),
        std=(60.0, 50.0, 40.0),
        align_corners=align_corners,
    )
    return model, model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3), jnp.uint8), False)


def pictures(*shape):
    return np.random.default_rng(sum(shape)).integers(0, 256, (*shape, 3), dtype=np.uint8)


def numpy_logits(variables, image, stride):
    """The stand-in model at its own resolution, in float64 NumPy."""
    x = (image.astype(np.float64) - (120, 110, 100)) / (60, 50, 40)
    b, h, w, _ = x.shape
    x = x.reshape(b, h // stride, stride, w // stride, stride, 3).mean((2, 4))
    (conv,) = variables["params"]["head"].values()
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    h, w = h // stride, w // stride
    kernel = np.asarray(conv["kernel"], np.float64)
    taps = [x[:, i : i + h, j : j + w] @ kernel[i, j] for i in range(3) for j in range(3)]
    return sum(taps) + np.asarray(conv["bias"], np.float64)


def resize_matrix(new, old, align_corners):
    """[new, old] weights of linear interpolation."""
    if align_corners:
        at = np.arange(new) * (old - 1) / max(new - 1, 1)
    else:
        at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(old)))


def numpy_resize(x, size, align_corners=False):
    rows = resize_matrix(size[0], x.shape[1], align_corners)
    columns = resize_matrix(size[1], x.shape[2], align_corners)
    return np.einsum("Hh,Ww,bhwc->bHWc", rows, columns, x)


@pytest.mark.parametrize("align_corners", [False, True])
def test_logits_go_to_the_image_size_and_then_to_the_original_size(align_corners):
    model, variables = make_model(4, align_corners)
    image = pictures(2, 24, 32)
    scores = jax.jit(predict.make_scores(model, ConfigDict(), dtype="float32"), static_argnums=2)
    full = numpy_resize(numpy_logits(variables, image, 4), (24, 32), align_corners)
    for size in ((24, 32), (37, 51)):
        expected = numpy_resize(full, size, align_corners)
        got = scores(variables, image, size)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, atol=1e-4)
    # The two steps are not one: the oracle tells them apart.
    assert np.abs(numpy_resize(numpy_logits(variables, image, 4), size, align_corners)
                  - expected).max() > 1e-3  # fmt: skip
    labels = predict.make_predict(model, None, dtype="float32")(variables, image, size)
    assert labels.dtype == jnp.int32
    clear = np.diff(np.sort(expected, axis=-1))[..., -1] > 1e-3
    np.testing.assert_array_equal(labels[clear], expected.argmax(-1)[clear])
    assert clear.mean() > 0.95


def test_slide_with_stride_equal_to_crop_tiles_the_image():
    model, variables = make_model()
    image = pictures(2, 24, 48)
    logits = links.forward(model, "float32")
    tiled = jax.jit(links.slide(logits, crop=(12, 16), stride=(12, 16), batch=4))
    logits = links.whole(logits)
    expected = np.concatenate(
        [
            np.concatenate([logits(variables, image[:, y : y + 12, x : x + 16])
                            for x in (0, 16, 32)], axis=2)
            for y in (0, 12)
        ],
        axis=1,
    )  # fmt: skip
    np.testing.assert_allclose(tiled(variables, image), expected, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 4])
def test_slide_averages_windows_that_end_at_the_border(batch):
    """Against loops over windows; neither 40 nor 52 is reached by whole strides."""
    model, variables = make_model()
    image = pictures(1, 40, 52)
    slid = jax.jit(links.slide(links.forward(model, "float32"), (16, 24), (12, 16), batch))
    total, count = np.zeros((1, 40, 52, 3)), np.zeros((40, 52, 1))
    for y in (0, 12, 24):
        for x in (0, 16, 28):
            window = numpy_logits(variables, image[:, y : y + 16, x : x + 24], 4)
            total[:, y : y + 16, x : x + 24] += numpy_resize(window, (16, 24))
            count[y : y + 16, x : x + 24] += 1
    np.testing.assert_allclose(slid(variables, image), total / count, atol=1e-4)


def test_slide_takes_an_image_smaller_than_the_window_whole():
    model, variables = make_model()
    image = pictures(1, 12, 16)
    logits = links.forward(model, "float32")
    slid = links.slide(logits, (64, 64), (32, 32))
    whole = links.whole(logits)(variables, image)
    np.testing.assert_allclose(slid(variables, image), whole, atol=1e-6)


def test_flip_of_a_mirrored_image_is_the_mirrored_result():
    model, variables = make_model()
    image = pictures(2, 16, 24)
    scores = jax.jit(
        predict.make_scores(model, ConfigDict({"flip": True}), dtype="float32"), static_argnums=2
    )
    straight = np.asarray(scores(variables, image, (20, 30)))
    mirrored = np.asarray(scores(variables, image[:, :, ::-1], (20, 30)))
    np.testing.assert_allclose(mirrored, straight[:, :, ::-1], atol=1e-6)
    np.testing.assert_allclose(straight.sum(-1), 1, atol=1e-5)
    plain = predict.make_scores(model, None, dtype="float32")(variables, image, (20, 30))
    assert np.abs(straight - jax.nn.softmax(plain)).max() > 1e-3  # the second look matters


@pytest.mark.parametrize(
    ("factors", "box", "sizes"),
    [
        ((0.5, 1.0, 1.5), (), ((12, 16), (24, 32), (36, 48))),
        ((0.5, 1.0), (48, 30), ((15, 20), (30, 40))),  # each from the image, not from another
        ((), (31, 90), ((31, 41),)),
    ],
)
def test_scales_average_the_probabilities_of_resized_images(factors, box, sizes):
    """Against NumPy: each look is the plain chain of an image of that size."""
    model, variables = make_model()
    image = pictures(2, 24, 32)
    config = ConfigDict({"scales": factors})
    got = predict.make_probabilities(model, config, dtype="float32", base_size=box)
    got = got(variables, image, (30, 40))
    plain = predict.make_scores(model, None, dtype="float32")
    total = 0
    for size in sizes:
        resized = numpy_resize(image.astype(np.float64), size)
        seen = np.asarray(opencv.resize(image, size))
        assert np.abs(seen - resized).max() < 1  # equal to OpenCV's: tests/test_eval_zoo.py
        logits = np.asarray(plain(variables, seen, (30, 40)), np.float64)
        total += np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(got, total / len(sizes), atol=1e-5)


def test_fitting_into_a_box_leaves_scores_logits():
    model, variables = make_model()
    image = pictures(1, 24, 32)
    fitted = predict.make_scores(model, None, dtype="float32", base_size=(64, 12))
    plain = predict.make_scores(model, None, dtype="float32")
    expected = plain(variables, np.asarray(opencv.resize(image, (12, 16))), (24, 32))
    np.testing.assert_allclose(fitted(variables, image, (24, 32)), expected, atol=1e-5)
    with pytest.raises(UserError, match="config.eval.base_size"):
        predict.make_scores(model, None, dtype="float32", base_size=(5,))


def test_one_scale_without_flip_is_the_plain_forward():
    model, variables = make_model()
    image = pictures(1, 24, 32)
    plain, one = (
        predict.make_scores(model, config, dtype="float32")(variables, image, (24, 32))
        for config in (None, ConfigDict({"scales": (1.0,), "flip": False}))
    )
    np.testing.assert_array_equal(plain, one)


@pytest.mark.parametrize(
    "config",
    [None, {"flip": True}, {"scales": (0.5, 1.0)}, {"slide": {"crop": (16, 16), "stride": (8, 8)}}],
)
def test_probabilities_sum_to_one_and_agree_with_the_labels(config):
    model, variables = make_model()
    image = pictures(2, 24, 24)
    p = predict.make_probabilities(model, config, dtype="float32")(variables, image, (24, 24))
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-5)
    labels = predict.make_predict(model, config, dtype="float32")(variables, image, (24, 24))
    np.testing.assert_array_equal(labels, p.argmax(-1))


def test_the_crf_refines_what_the_links_before_it_say():
    """By the op's own definition, on the picture at the size asked for."""
    model, variables = make_model()
    image = pictures(2, 24, 24)
    settings = dict(iterations=3, bilateral_sxy=8.0, bilateral_srgb=40.0, method="exact")
    config = ConfigDict({"flip": True, "crf": settings})
    got = predict.make_scores(model, config, dtype="float32")(variables, image, (12, 18))
    before = predict.make_scores(model, {"flip": True}, dtype="float32")
    before = before(variables, image, (12, 18))
    picture = numpy_resize(image.astype(np.float64), (12, 18))
    np.testing.assert_allclose(got, dense_crf(before, picture, **settings), atol=1e-5)
    assert np.abs(got - before).max() > 1e-2
    none = ConfigDict({"flip": True, "crf": settings | {"iterations": 0}})
    none = predict.make_scores(model, none, dtype="float32")(variables, image, (12, 18))
    np.testing.assert_array_equal(none, before)


def test_the_chain_is_the_same_over_eight_devices():
    model, variables = make_model()
    image = pictures(8, 24, 24)
    config = ConfigDict(
        {
            "flip": True,
            "slide": {"crop": (16, 16), "stride": (8, 8)},
            "scales": (0.75, 1.0),
            "crf": {"iterations": 2},
        }
    )
    labels = predict.make_predict(model, config, dtype="float32")
    expected = labels(variables, image, (24, 24))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(image, NamedSharding(mesh, PartitionSpec("data")))
    replicated = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
    assert (labels(replicated, sharded, (24, 24)) == np.asarray(expected)).mean() > 0.999


@pytest.mark.parametrize(
    "config, words",
    [
        ({"flipp": True}, "did you mean 'flip'"),
        ({"slide": {"crop": (8, 8)}}, "both crop"),
        ({"slide": {"crop": (8, 8), "strides": (8, 8)}}, "did you mean 'stride'"),
        ({"slide": {"crop": (8, 8), "stride": (9, 8)}}, "cover each pixel"),
        ({"slide": {"crop": (8, 8), "stride": (8,)}}, "(height, width)"),
        ({"scales": (1.0, 0.0)}, "factors of the image's size"),
        ({"scales": ("1",)}, "factors of the image's size"),
        ({"crf": {"iterations": -1}}, "crf.iterations=-1"),
        ({"crf": {"iterations": 5, "sxy": 3}}, "unknown argument 'sxy'"),
    ],
)
def test_a_mistake_in_config_predict_is_told(config, words):
    with pytest.raises(UserError) as error:
        predict.make_scores(make_model()[0], ConfigDict(config), dtype="float32")
    assert words in str(error.value)
