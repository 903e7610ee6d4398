"""The predict chain against NumPy, and files: names, colours, failures."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from PIL import Image

from jaxseg import predict, predict_files
from jaxseg.errors import UserError
from jaxseg.models.segmenter import Segmenter

CLASSES = ("dark", "middle", "bright")
PALETTE = ((10, 0, 0), (0, 120, 0), (200, 200, 250))


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
    logits = predict.forward(model, "float32")
    tiled = jax.jit(predict.slide(logits, crop=(12, 16), stride=(12, 16), batch=4))
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
    slid = jax.jit(predict.slide(predict.forward(model, "float32"), (16, 24), (12, 16), batch))
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
    logits = predict.forward(model, "float32")
    slid = predict.slide(logits, (64, 64), (32, 32))
    np.testing.assert_allclose(slid(variables, image), logits(variables, image), atol=1e-6)


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


def test_the_chain_is_the_same_over_eight_devices():
    model, variables = make_model()
    image = pictures(8, 24, 24)
    config = ConfigDict({"flip": True, "slide": {"crop": (16, 16), "stride": (8, 8)}})
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
    ],
)
def test_a_mistake_in_config_predict_is_told(config, words):
    with pytest.raises(UserError) as error:
        predict.make_scores(make_model()[0], ConfigDict(config), dtype="float32")
    assert words in str(error.value)


# ---- files ----


@dataclasses.dataclass
class ByBrightness:
    """Stands for a Segmentation: the class is the third of the range that green falls in."""

    classes = CLASSES
    palette = PALETTE
    chain = {}

    def segment(self, images):
        assert images.dtype == np.uint8 and images.ndim == 4
        return images[..., 1].astype(np.int32) // 86


def save(path, array, **arguments):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **arguments)
    return array


def test_each_result_is_named_after_its_input_and_holds_its_labels(tmp_path):
    root, output = tmp_path / "in", tmp_path / "out"
    arrays = {
        "a": save(root / "a.png", pictures(20, 30)),
        "day/b": save(root / "day" / "b.bmp", pictures(25, 20)),
        "day/v1.2": save(root / "day" / "v1.2.tiff", pictures(20, 30)),
    }
    (root / "notes.txt").write_text("no image")
    for given in (str(root), f"{root}/**/*", f"{root}/*", str(root / "day" / "b.bmp")):
        number = predict_files.predict_files([given], str(output), ByBrightness())
        names = sorted(p.relative_to(output).as_posix() for p in output.rglob("*.png"))
        expected = ["a", "day/b", "day/v1.2"]
        expected = ["a"] if given.endswith("in/*") else expected
        expected = ["b"] if given.endswith("b.bmp") else expected
        assert number == len(expected)
        assert names == sorted(f"{e}{s}.png" for e in expected for s in ("", "_overlay"))
        for name in expected:
            array = arrays.get(name, arrays["day/b"])
            with Image.open(output / f"{name}.png") as picture:
                assert picture.mode == "P"
                np.testing.assert_array_equal(np.asarray(picture), array[..., 1] // 86)
                assert tuple(picture.getpalette()[:9]) == sum(PALETTE, ())
            with Image.open(output / f"{name}_overlay.png") as picture:
                assert picture.width > array.shape[1]
        for path in output.rglob("*.png"):
            path.unlink()


def test_an_image_on_its_side_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees clockwise to view
    array = np.repeat(np.repeat(pictures(4, 6), 8, 0), 8, 1)
    save(tmp_path / "in" / "x.png", array, exif=exif)
    predict_files.predict_files([str(tmp_path / "in")], str(tmp_path / "out"), ByBrightness())
    labels = np.asarray(Image.open(tmp_path / "out" / "x.png"))
    np.testing.assert_array_equal(labels, np.rot90(array[..., 1] // 86, -1))


def test_unreadable_images_are_named_and_the_others_done(tmp_path, capsys):
    save(tmp_path / "in" / "good.png", pictures(20, 30))
    save(tmp_path / "in" / "short.png", pictures(200, 300))
    whole = (tmp_path / "in" / "short.png").read_bytes()
    (tmp_path / "in" / "short.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in" / "fake.jpg").write_text("hello")
    output = tmp_path / "out"
    with pytest.raises(UserError, match="2 of 3 images could not be read") as error:
        predict_files.predict_files([str(tmp_path / "in")], str(output), ByBrightness())
    assert "short.png" in str(error.value) and "fake.jpg" in str(error.value)
    assert sorted(p.name for p in output.iterdir()) == ["good.png", "good_overlay.png"]
    said = capsys.readouterr().out
    assert "1 of 3 images segmented" in said and "left out" in said


def test_an_output_that_cannot_be_written_is_told(tmp_path):
    save(tmp_path / "x.bmp", pictures(8, 8))
    (tmp_path / "out").write_text("a file is in the way")
    with pytest.raises(UserError, match="cannot write the results of .*x.bmp"):
        predict_files.predict_files(
            [str(tmp_path / "x.bmp")], str(tmp_path / "out"), ByBrightness()
        )


@pytest.mark.parametrize("given", ["nothing/*.jpg", "nowhere", "empty", "x.txt/*"])
def test_inputs_without_images_are_an_error(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image found") as error:
        predict_files.find_images([given], "out")
    assert given in str(error.value)


def test_results_that_would_meet_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/x.png", "b/x.png", "b/x.bmp", "c/y.png", "c/y_overlay.png"):
        save(tmp_path / name, pictures(4, 4))
    for inputs in (["a", "b/x.png"], ["b"], ["c"]):
        with pytest.raises(UserError, match="would both be written to"):
            predict_files.find_images(inputs, "out")
    with pytest.raises(UserError, match="overwrite the input"):
        predict_files.find_images(["a"], "a")
    assert list(predict_files.find_images(["a", "a/x.png", "a/*"], "out")) == ["x"]


def test_results_within_the_searched_folder_are_no_inputs(tmp_path):
    save(tmp_path / "x.bmp", pictures(8, 8))
    output = tmp_path / "out"
    for _ in range(2):
        predict_files.predict_files([str(tmp_path)], str(output), ByBrightness())
        assert sorted(p.name for p in output.rglob("*")) == ["x.png", "x_overlay.png"]
