"""From files to results: what inputs stand for, names, whatever can be wrong with an image."""

import pathlib
import struct
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageCms

from jaxseg import inputs, predict_files
from jaxseg.errors import UserError
from jaxseg.models.segmenter import Segmenter
from jaxseg.segmentation import Segmentation
from tests.stubs import CLASSES, PALETTE, ByBrightness, pictures


def save(path, array, **arguments):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **arguments)
    return array


def run(given, output, **arguments):
    return predict_files.predict_files([str(given)], str(output), ByBrightness(), **arguments)


# ---- names ----


def test_each_result_is_named_after_its_input_and_holds_its_labels(tmp_path):
    root, output = tmp_path / "in", tmp_path / "out"
    arrays = {
        "a": save(root / "a.png", pictures(20, 30)),
        "day/b": save(root / "day" / "b.bmp", pictures(25, 20)),
        "day/v1.2": save(root / "day" / "v1.2.tiff", pictures(20, 30)),
    }
    (root / "notes.txt").write_text("no image")
    for given in (str(root), f"{root}/**/*", f"{root}/*", str(root / "day" / "b.bmp")):
        number = run(given, output)
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


@pytest.mark.parametrize("given", ["nothing/*.jpg", "nowhere", "empty", "x.txt/*"])
def test_inputs_without_images_are_an_error(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image found") as error:
        inputs.find([given], "out")
    assert given in str(error.value)


def test_results_that_would_meet_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/x.png", "b/x.png", "b/x.bmp", "c/y.png", "c/y_overlay.png", "d/z_entropy.bmp"):
        save(tmp_path / name, pictures(4, 4))
    save(tmp_path / "d" / "z.bmp", pictures(4, 4))
    for given in (["a", "b/x.png"], ["b"], ["c"]):
        with pytest.raises(UserError, match="would both be written to"):
            inputs.find(given, "out")
    with pytest.raises(UserError, match="overwrite the input"):
        inputs.find(["a"], "a")
    assert list(inputs.find(["a", "a/x.png", "a/*"], "out")[0]) == ["x"]
    assert list(inputs.find(["c"], "out", ("labels",))[0]) == ["y", "y_overlay"]
    assert list(inputs.find(["d"], "out")[0]) == ["z", "z_entropy"]
    with pytest.raises(UserError, match="z_entropy.png"):
        inputs.find(["d"], "out", ("labels", "entropy"))


def test_results_of_videos_take_part(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "in" / "clip" / "000000.bmp", pictures(4, 4))
    save(tmp_path / "in" / "clip.bmp", pictures(4, 4))
    (tmp_path / "in" / "clip.mp4").write_bytes(b"")
    with pytest.raises(UserError, match="would both be written to .*out/clip") as error:
        inputs.find(["in"], "out")
    assert "in/clip.mp4" in str(error.value) and "in/clip/000000.bmp" in str(error.value)
    # Without files of the frames there is the film alone, which is in nobody's way.
    images, videos = inputs.find(["in"], "out", ("overlay", "shares"))
    assert list(images) == ["clip", "clip/000000"] and list(videos) == ["clip"]
    (tmp_path / "in" / "clip.MOV").write_bytes(b"")
    with pytest.raises(UserError, match="would both be written to .*clip_overlay.mp4"):
        inputs.find(["in/clip.mp4", "in/clip.MOV"], "out")
    with pytest.raises(UserError, match="overwrite the input .*in/clip"):
        inputs.find(["in/clip.mp4", "in/clip/000000.bmp"], "in")


def test_results_within_the_searched_folder_are_no_inputs(tmp_path):
    save(tmp_path / "x.bmp", pictures(8, 8))
    output = tmp_path / "out"
    for _ in range(2):
        run(tmp_path, output)
        assert sorted(p.name for p in output.rglob("*")) == ["x.png", "x_overlay.png"]


def test_results_of_an_earlier_call_beside_the_inputs_are_told(tmp_path):
    save(tmp_path / "x.bmp", pictures(8, 8))
    run(tmp_path, tmp_path, write=("labels",))
    with pytest.raises(UserError, match="x.png: .* result of an earlier call, give another"):
        run(tmp_path, tmp_path, write=("labels",))


# ---- what can be the matter with an image ----

STRIPES = np.repeat(np.arange(3), 8)[None].repeat(12, 0)  # the labels of what follows, [12, 24]
GREY = np.array([20, 130, 240], np.uint8)[STRIPES]
COLORS = np.array([(200, 20, 90), (40, 130, 10), (250, 240, 30)], np.uint8)[STRIPES]


def of_mode(mode):
    return Image.fromarray(COLORS).convert(mode)


def with_alpha():
    """Transparent all over: what the colours are does not depend on it."""
    return Image.fromarray(np.dstack([COLORS, np.zeros_like(GREY)]))


def sixteen_bits():
    return Image.fromarray(GREY.astype(np.uint16) * 257)


def png_of_chunks(path, *chunks):
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        data += struct.pack(">I", len(body)) + kind + body
        data += struct.pack(">I", zlib.crc32(kind + body))
    path.write_bytes(data)


def png_of_48_bits(path):
    """Pillow writes no RGB of 16 bits per channel."""
    rows = [b"\0" + row.astype(">u2").tobytes() for row in COLORS.astype(np.uint16) * 257]
    header = struct.pack(">IIBBBBB", 24, 12, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"".join(rows))
    png_of_chunks(path, (b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))


def lab(path):
    profiles = (ImageCms.createProfile(name) for name in ("sRGB", "LAB"))
    transform = ImageCms.buildTransform(*profiles, "RGB", "LAB")
    ImageCms.applyTransform(Image.fromarray(COLORS), transform).save(path)


def animated(path):
    frames = [Image.fromarray(COLORS), Image.fromarray(255 - COLORS)]
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)


ODD = {
    "grey.png": lambda path: Image.fromarray(GREY).save(path),
    "grey_alpha.png": lambda path: with_alpha().convert("LA").save(path),
    "rgba.png": lambda path: with_alpha().save(path),
    "rgba.webp": lambda path: with_alpha().save(path, lossless=True, exact=True),
    "palette.png": lambda path: of_mode("P").save(path),
    "palette_transparent.png": lambda path: of_mode("P").save(path, transparency=b"\0\x80\xff"),
    "sixteen_grey.png": lambda path: sixteen_bits().save(path),
    "sixteen_grey.tiff": lambda path: sixteen_bits().save(path),
    "sixteen_rgb.png": png_of_48_bits,
    "cmyk.jpg": lambda path: of_mode("CMYK").save(path, quality=100),
    "cmyk.tiff": lambda path: of_mode("CMYK").save(path),
    "ycbcr.tiff": lambda path: of_mode("YCbCr").save(path),
    "lab.tiff": lab,
    "animated.gif": animated,
    "animated.webp": animated,
    "wrong_suffix.jpg": lambda path: Image.fromarray(COLORS).save(path, format="PNG"),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.filterwarnings("error")
def test_unusual_images_are_read_as_what_they_show(tmp_path, name):
    ODD[name](tmp_path / name)
    assert run(tmp_path / name, tmp_path / "out", write=("labels",)) == 1
    labels = np.asarray(Image.open(tmp_path / "out" / f"{pathlib.Path(name).stem}.png"))
    np.testing.assert_array_equal(labels, STRIPES)


# How the stored pixels are turned for each EXIF orientation to stand upright, from the standard's
# words for where the first row and the first column of an upright picture are stored.
UPRIGHT = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.T,
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].T,
    8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_an_image_on_its_side_is_turned_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    array = np.repeat(np.repeat(pictures(4, 6), 8, 0), 8, 1)
    save(tmp_path / "in" / "x.png", array, exif=exif)
    run(tmp_path / "in", tmp_path / "out")
    labels = np.asarray(Image.open(tmp_path / "out" / "x.png"))
    np.testing.assert_array_equal(labels, UPRIGHT[orientation](array[..., 1] // 86))


def test_damaged_exif_does_not_cost_the_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "x.webp", COLORS, exif=exif, lossless=True)
    data = (tmp_path / "x.webp").read_bytes()
    assert data.count(b"MM\0*") == 1
    (tmp_path / "x.webp").write_bytes(data.replace(b"MM\0*", b"XX\0*"))
    run(tmp_path / "x.webp", tmp_path / "out")
    labels = np.asarray(Image.open(tmp_path / "out" / "x.png"))
    np.testing.assert_array_equal(labels, STRIPES)


def bomb(path):
    """A PNG of 45 bytes that says it is 50,000 x 50,000."""
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    png_of_chunks(path, (b"IHDR", header), (b"IEND", b""))


def truncated(path):
    save(path, pictures(200, 300))
    path.write_bytes(path.read_bytes()[:60_000])


BAD = {
    "truncated.png": (truncated, "not a complete image file"),
    "zero.png": (lambda path: path.write_bytes(b""), "of no known format"),
    "text.png": (lambda path: path.write_text("hello"), "of no known format"),
    "bomb.png": (bomb, "more than 89478485 pixels"),
    "float.tiff": (lambda path: save(path, GREY.astype(np.float32)), "floating-point"),
    "int32.tiff": (lambda path: save(path, GREY.astype(np.int32) * 1000), "expected 8 or 16 bits"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_unreadable_images_are_named_and_the_others_done(tmp_path, capsys):
    folder, output = tmp_path / "in", tmp_path / "out"
    save(folder / "good.png", pictures(20, 30))
    save(folder / "zzz.png", pictures(20, 30))
    for name, (make, _) in BAD.items():
        make(folder / name)
    with pytest.raises(UserError, match="6 of 8 images could not be segmented:") as error:
        run(folder, output, write=("labels", "shares"))
    lines = str(error.value).splitlines()[1:]
    assert len(lines) == len(BAD)
    for name, (_, words) in BAD.items():
        [line] = [line for line in lines if name in line]
        assert words in line
    names = sorted(p.name for p in output.iterdir())
    assert names == ["good.png", "shares.csv", "shares.json", "zzz.png"]
    assert (output / "shares.csv").read_text().count("\n") == 3
    said = capsys.readouterr().out
    assert "2 of 8 images segmented" in said and said.count("left out") == len(BAD)


def test_an_output_that_cannot_be_made_is_told_before_any_work(tmp_path):
    save(tmp_path / "x.bmp", pictures(8, 8))
    (tmp_path / "out").write_text("a file is in the way")
    with pytest.raises(UserError, match="--output .*out/here: the folder cannot be made"):
        run(tmp_path / "x.bmp", tmp_path / "out" / "here")


def test_a_result_that_cannot_be_written_is_told(tmp_path):
    save(tmp_path / "in" / "x.bmp", pictures(8, 8))
    (tmp_path / "out" / "x.png").mkdir(parents=True)
    with pytest.raises(UserError, match="cannot write .*x.png: Is a directory.*--output"):
        run(tmp_path / "in", tmp_path / "out")


def test_an_image_that_the_model_does_not_take_is_left_out(tmp_path):
    for name, size in (("a", (20, 30)), ("b", (21, 30)), ("c", (20, 30))):
        save(tmp_path / "in" / f"{name}.png", pictures(*size))

    class OnlyEven(ByBrightness):
        def segment(self, images):
            if images.shape[1] % 2:
                raise UserError(f"images: {images.shape[1]} rows, expected multiples of 2")
            return super().segment(images)

    with pytest.raises(UserError, match="1 of 3 images .*:\n  b: images: 21 rows"):
        predict_files.predict_files([str(tmp_path / "in")], str(tmp_path / "out"), OnlyEven())
    assert sorted(p.name for p in (tmp_path / "out").glob("?.png")) == ["a.png", "c.png"]


def test_large_images_are_written_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(predict_files, "LARGE", 100)
    arrays = {f"{i}": save(tmp_path / "in" / f"{i}.png", pictures(20, 30 + i)) for i in range(3)}
    done = []

    class Watching(ByBrightness):
        def segment(self, images):
            done.append(len(list((tmp_path / "out").glob("?.png"))))
            return super().segment(images)

    predict_files.predict_files([str(tmp_path / "in")], str(tmp_path / "out"), Watching())
    assert done == [0, 1, 2]
    for name, array in arrays.items():
        labels = np.asarray(Image.open(tmp_path / "out" / f"{name}.png"))
        np.testing.assert_array_equal(labels, array[..., 1] // 86)


def test_an_interruption_loses_nothing_that_was_done(tmp_path):
    for i in range(6):
        save(tmp_path / "in" / f"{i}.png", pictures(20, 30))

    class Interrupted(ByBrightness):
        left = 4

        def segment(self, images):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().segment(images)

    with pytest.raises(KeyboardInterrupt):
        predict_files.predict_files(
            [str(tmp_path / "in")], str(tmp_path / "out"), Interrupted(), write=("labels", "shares")
        )
    rows = (tmp_path / "out" / "shares.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["0", "1", "2", "3"]
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == [
        f"{i}.png" for i in range(4)
    ]
    for path in (tmp_path / "out").glob("*.png"):
        Image.open(path).load()


# ---- small images, through a model ----


class Identity(nn.Module):
    def __call__(self, x, train):
        return {"stage1": x}


class Colors(nn.Module):
    """Logits: ten times the colour, so that the brightest channel is the class."""

    @nn.compact
    def __call__(self, features, train):
        weight = self.param("weight", nn.initializers.constant(10.0), ())
        return {"logits": features["stage1"] * weight}


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (12, 16), (40, 50)])
def test_images_smaller_than_the_window_are_segmented_whole(tmp_path, size):
    model = Segmenter(backbone=Identity(), head=Colors(), mean=(0.0,) * 3, std=(255.0,) * 3)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3), jnp.uint8), False)
    chain = {"slide": {"crop": (32, 32), "stride": (16, 16)}}
    segmentation = Segmentation(model, variables, CLASSES, PALETTE, chain)
    array = save(tmp_path / "in" / "x.png", pictures(*size))
    predict_files.predict_files([str(tmp_path / "in")], str(tmp_path / "out"), segmentation)
    labels = np.asarray(Image.open(tmp_path / "out" / "x.png"))
    np.testing.assert_array_equal(labels, array.argmax(-1))
