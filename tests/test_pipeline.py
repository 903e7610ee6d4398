"""Reading records, and the batches of both back ends."""

import importlib.util
import io
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
import scipy.ndimage
from ml_collections import ConfigDict
from PIL import Image

from jaxseg import data
from jaxseg.data import plan, reading, threads
from jaxseg.data.base import Description, Record
from jaxseg.errors import UserError

CLASSES = 5
TENSORFLOW = importlib.util.find_spec("tensorflow") is not None
BACKENDS = [
    "threads",
    pytest.param("tfdata", marks=pytest.mark.skipif(not TENSORFLOW, reason="no TensorFlow")),
]


def photo(seed, size):
    """Smooth colours with some detail, as photographs have: uint8 [h, w, 3]."""
    noise = np.random.default_rng(seed).uniform(0, 255, (*size, 3))
    smooth = scipy.ndimage.gaussian_filter(noise, (3, 3, 0)) * 6 - 640
    return np.clip(smooth + noise / 8, 0, 255).astype(np.uint8)


def blocks(seed, size):
    """A label of blocks, some ignored: uint8 [h, w]."""
    values = np.random.default_rng(seed).choice([0, 1, 2, 3, 4, 255], (20, 20))
    return np.kron(values, np.ones((9, 7), int))[: size[0], : size[1]].astype(np.uint8)


def encode(array, **settings):
    file = io.BytesIO()
    settings = {"format": "PNG", **settings}
    Image.fromarray(array).save(file, **settings)
    return file.getvalue()


def rotated_exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def describe(records, **changes):
    return Description(
        **{
            "name": "toy",
            "classes": tuple("abcde"),
            "palette": tuple((i, i, i) for i in range(CLASSES)),
            "splits": ("train", "empty"),
            "records": lambda split: records if split == "train" else [],
            **changes,
        }
    )


def augment(**changes):
    settings = dict(crop=(48, 64), scale=(0.5, 2.0), base_size=None, cat_max_ratio=0.4, flip=True)
    return ConfigDict({**settings, **changes})


def train(description, config, backend, *, split="train", batch_size=3, start=0, steps=2, p=(0, 1)):
    return data.train_batches(
        description,
        split,
        config,
        backend=backend,
        seed=11,
        batch_size=batch_size,
        start_step=start,
        num_steps=steps,
        process_index=p[0],
        process_count=p[1],
    )


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """One record per way of storing a sample; two sizes, one smaller than the crop."""
    folder = tmp_path_factory.mktemp("mixed")
    large, small = (75, 101), (40, 59)
    grey = photo(90, large)[..., 0]
    turned = photo(91, large)
    files = {
        "png": encode(photo(1, large)),
        "png_small": encode(photo(2, small)),
        "jpeg_444": encode(photo(3, large), format="JPEG", quality=95, subsampling=0),
        "jpeg_420": encode(photo(4, large), format="JPEG", quality=90, subsampling=2),
        "jpeg_422": encode(photo(5, small), format="JPEG", quality=90, subsampling=1),
        "jpeg_progressive": encode(photo(6, large), format="JPEG", progressive=True),
        "jpeg_grey": encode(grey, format="JPEG"),
        "jpeg_cmyk": encode_cmyk(photo(7, large)),
        "jpeg_turned": encode(np.rot90(turned), format="JPEG", quality=90, exif=rotated_exif(6)),
        "png_turned": encode(np.rot90(turned), exif=rotated_exif(6)),
        "png_rgba": encode(np.dstack([photo(8, large), grey])),
        "png_grey": encode(grey),
        "png_16": encode(grey.astype(np.uint16) * 257),
        "png_palette": encode_palette(photo(9, large)),
        "webp": encode(photo(10, large), format="WEBP", lossless=True),
        "tiff": encode(photo(11, large), format="TIFF"),
        "bmp": encode(photo(12, small), format="BMP"),
    }
    records = []
    for seed, (name, content) in enumerate(files.items()):
        size = small if name in ("png_small", "jpeg_422", "bmp") else large
        image, label = folder / f"{name}.image", folder / f"{name}.png"
        image.write_bytes(content)
        label.write_bytes(encode(blocks(seed, size)))
        records.append(Record(name, str(image), str(label)))
    array, seed = photo(13, large), len(files)
    records.append(Record("array", lambda: array, lambda: blocks(seed, large)))
    jpeg, png = files["jpeg_420"], encode(blocks(seed + 1, large))
    records.append(Record("bytes", lambda: jpeg, lambda: png))
    return describe(records)


def encode_cmyk(array):
    file = io.BytesIO()
    Image.fromarray(array).convert("CMYK").save(file, "JPEG")
    return file.getvalue()


def encode_palette(array):
    file = io.BytesIO()
    Image.fromarray(array).quantize(64).save(file, "PNG")
    return file.getvalue()


def whole(image, size):
    """Oracle: SciPy's interpolation of the whole image at half-pixel centres, edges repeated."""
    grid = np.meshgrid(
        *((np.arange(n) + 0.5) * image.shape[i] / n - 0.5 for i, n in enumerate(size)),
        indexing="ij",
    )
    channels = [
        scipy.ndimage.map_coordinates(image[..., c].astype(float), grid, order=1, mode="nearest")
        for c in range(3)
    ]
    return np.stack(channels, -1)


def same(one, two, grey_levels=0):
    assert one["id"] == two["id"]
    np.testing.assert_array_equal(one["mask"], two["mask"])
    np.testing.assert_array_equal(one["label"], two["label"])
    difference = np.abs(one["image"].astype(int) - two["image"])
    for name, value in zip(one["id"], difference.max((1, 2, 3)), strict=True):
        assert value <= grey_levels, (name, value)


# ---- Training batches ----


@pytest.mark.parametrize("backend", BACKENDS)
def test_batches_equal_the_rule_spelled_out(mixed, backend):
    """Rescale the whole image, crop, flip, pad."""
    config = augment()
    records = mixed.records("train")
    for step, batch in enumerate(train(mixed, config, backend, batch_size=5, steps=8)):
        assert batch["image"].shape == (5, 48, 64, 3) and batch["image"].dtype == np.uint8
        assert batch["label"].shape == (5, 48, 64) and batch["label"].dtype == np.int32
        assert batch["mask"].dtype == bool and batch["mask"].all()
        rows = plan.train_rows(11, len(records), step, 5, config)
        assert batch["id"] == [records[row.index].id for row in rows]
        for row, image, label in zip(rows, batch["image"], batch["label"], strict=True):
            stored = reading.read_image(records[row.index])
            mask = reading.read_label(mixed, records[row.index])
            cut = plan.cut(row, mask, config, 255)
            expected_image = np.empty((48, 64, 3))
            expected_image[:] = 0
            expected_label = np.full((48, 64), 255)
            window = np.s_[cut.top : cut.top + 48, cut.left : cut.left + 64]
            resized = whole(stored, cut.scaled)[window]
            picture = Image.fromarray(mask.astype(np.uint8)).resize(cut.scaled[::-1], Image.NEAREST)
            resized_mask = np.asarray(picture)[window]
            if row.flip:
                resized, resized_mask = resized[:, ::-1], resized_mask[:, ::-1]
            expected_image[: resized.shape[0], : resized.shape[1]] = resized
            expected_label[: resized.shape[0], : resized.shape[1]] = resized_mask
            assert np.abs(image - expected_image).max() < 0.51, records[row.index].id
            np.testing.assert_array_equal(label, expected_label)


@pytest.mark.skipif(not TENSORFLOW, reason="no TensorFlow")
@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(scale=(1.0, 1.0), cat_max_ratio=None),
        dict(crop=(33, 70), base_size=(80, 60), scale=(0.3, 3.0)),
    ],
)
def test_back_ends_agree(mixed, changes):
    config = augment(**changes)
    pair = [
        list(train(mixed, config, name, batch_size=7, steps=6)) for name in ("threads", "tfdata")
    ]
    seen = set()
    for one, two in zip(*pair, strict=True):
        same(one, two, grey_levels=1)
        seen |= set(one["id"])
    assert len(seen) == len(mixed.records("train"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_resume_and_processes(mixed, backend):
    config = augment()
    run = list(train(mixed, config, backend, batch_size=4, steps=7))
    assert len({tuple(batch["id"]) for batch in run}) == 7
    for step, batch in enumerate(train(mixed, config, backend, batch_size=4, start=4, steps=3), 4):
        same(batch, run[step])
    shares = [list(train(mixed, config, backend, batch_size=4, steps=7, p=(p, 2))) for p in (0, 1)]
    for full, first, second in zip(run, *shares, strict=True):
        same({k: full[k][:2] for k in full}, first)
        same({k: full[k][2:] for k in full}, second)


def test_backend_names(mixed):
    with pytest.raises(UserError, match="'threads'"):
        train(mixed, augment(), "tensorflow")
    batch = next(train(mixed, augment(), "auto"))
    same(batch, next(train(mixed, augment(), "tfdata" if TENSORFLOW else "threads")))


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_splits_and_settings_are_refused_before_reading(mixed, backend):
    for split, words in (("empty", "is empty"), ("test", "no split 'test'; it has train, empty")):
        with pytest.raises(UserError, match=words):
            train(mixed, augment(), backend, split=split)
    bare = describe([Record("x", "nowhere.png"), Record("y", "nowhere.png", "nowhere.png")])
    with pytest.raises(UserError, match="1 of 2 records .* no label, the first is 'x'"):
        train(bare, augment(), backend)
    with pytest.raises(UserError, match="config.augment.scale"):
        train(mixed, augment(scale=(2.0, 1.0)), backend)
    with pytest.raises(UserError, match="batch_size=3"):
        train(mixed, augment(), backend, p=(0, 2))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("defect", "words"),
    [
        ("torn.png", ["torn.png", "'bad'", "not a complete image"]),
        ("torn.jpg", ["torn.jpg", "'bad'", "not a complete image"]),
        ("text.png", ["text.png", "not a complete image"]),
        ("flipped.png", ["flipped.png", "not a complete image"]),
        ("gone.png", ["gone.png", "cannot be read (No such file or directory)"]),
        (
            "illegal",
            ["'bad'", "values 5 (3 pixels), 200 (1 pixel) not allowed", "stores 0..4, 255."],
        ),
        ("size", ["'bad'", "59 x 40", "60 x 40"]),
        ("float", ["'bad'", "float32", "uint8 RGB [h, w, 3]"]),
        ("own error", ["out of luck"]),
    ],
)
def test_a_bad_sample_is_named(tmp_path, capfd, backend, defect, words):
    image, label = photo(1, (40, 59)), blocks(1, (40, 59))
    good = [Record(f"good{i}", lambda: image, lambda: label) for i in range(4)]
    png, jpeg = encode(image), encode(image, format="JPEG")
    middle = len(png) // 2
    contents = {
        "torn.png": png[:-200],
        "torn.jpg": jpeg[: len(jpeg) // 2],
        "text.png": b"<html>not found</html>",
        "flipped.png": png[:middle] + bytes([png[middle] ^ 0xFF]) + png[middle + 1 :],
    }
    path = tmp_path / defect
    if defect in contents:
        path.write_bytes(contents[defect])
    bad = Record("bad", str(path), lambda: label)
    if defect == "illegal":
        wrong = label.copy()
        wrong[0, :3], wrong[1, 0] = 5, 200
        bad = Record("bad", lambda: image, lambda: wrong)
    elif defect == "size":
        bad = Record("bad", lambda: image, lambda: np.zeros((40, 60), np.uint8))
    elif defect == "float":
        bad = Record("bad", lambda: image.astype(np.float32), lambda: label)
    elif defect == "own error":

        def fail():
            raise RuntimeError("out of luck")

        bad = Record("bad", fail, lambda: label)

    kind = RuntimeError if defect == "own error" else UserError
    records = [*good, bad]
    config = augment(crop=(16, 16))
    # The error comes with the batch that holds the sample, not before.
    order = plan.permutation(11, 0, len(records)).tolist()
    batches = train(describe(records), config, backend, batch_size=1, steps=5)
    for index in order[: order.index(4)]:
        assert next(batches)["id"] == [records[index].id]
    with pytest.raises(kind) as caught:
        next(batches)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "Traceback" not in capfd.readouterr().err


def reader_threads():
    return [t for t in threading.enumerate() if t.name.startswith("jaxseg-data")]


def test_reads_ahead_but_not_far_and_closes():
    calls = []
    image, label = photo(1, (30, 30)), blocks(1, (30, 30))

    def load():
        calls.append(1)
        return image

    records = [Record(str(i), load, lambda: label) for i in range(100)]
    batches = train(describe(records), augment(crop=(16, 16)), "threads", batch_size=2, steps=40)
    assert not calls and not reader_threads()
    next(batches)
    next(batches)
    assert 4 <= len(calls) <= 2 * (2 + threads.AHEAD)
    batches.close()
    assert not reader_threads()
    made = len(calls)
    assert len(list(train(describe(records), augment(), "threads", steps=3))) == 3
    assert len(calls) == made + 9 and not reader_threads()


def test_a_failed_run_leaves_no_threads():
    def fail():
        raise UserError("broken")

    records = [Record(str(i), fail, fail) for i in range(10)]
    batches = train(describe(records), augment(), "threads")
    with pytest.raises(UserError, match="broken"):
        next(batches)
    assert not reader_threads()


def test_tfds_style_streams_hold_no_files(mixed):
    """Records of callables that return encoded bytes are asked once per use, and kept nowhere."""
    count = {"image": 0, "label": 0}

    def counted(part, content):
        def read():
            count[part] += 1
            return content

        return read

    image, label = encode(photo(1, (75, 101)), format="JPEG"), encode(blocks(1, (75, 101)))
    records = [Record("x", counted("image", image), counted("label", label))]
    for backend in ("threads", "tfdata") if TENSORFLOW else ("threads",):
        count.update(image=0, label=0)
        assert len(list(train(describe(records), augment(), backend, steps=4))) == 4
        assert count == {"image": 12, "label": 12}


# ---- Evaluation batches ----


def test_eval_reads_everything_once(mixed):
    records = {record.id: record for record in mixed.records("train")}
    seen = []
    for batch in data.eval_batches(mixed, "train", batch_size=4):
        assert batch["mask"].shape == (4,) and len(batch["id"]) == 4
        for image, label, real, name in zip(
            batch["image"], batch["label"], batch["mask"], batch["id"], strict=True
        ):
            if not real:
                assert name == "" and (label == 255).all()
                continue
            seen.append(name)
            stored = reading.read_image(records[name])
            np.testing.assert_array_equal(image, stored)
            np.testing.assert_array_equal(label, reading.read_label(mixed, records[name]))
    assert sorted(seen) == sorted(records)


def test_eval_shares_join_to_the_whole(mixed):
    def run(**settings):
        return list(data.eval_batches(mixed, "train", batch_size=4, **settings))

    shares = [run(process_index=p, process_count=4) for p in range(4)]
    for full, *parts in zip(run(), *shares, strict=True):
        joined = {
            key: sum((part[key] for part in parts), [])
            if key == "id"
            else np.concatenate([part[key] for part in parts])
            for key in full
        }
        same(full, joined)


def test_eval_errors(mixed, tmp_path):
    with pytest.raises(UserError, match="is empty"):
        data.eval_batches(mixed, "empty", batch_size=2)
    gone = describe([Record("x", str(tmp_path / "gone.png"), str(tmp_path / "gone.png"))])
    with pytest.raises(UserError, match="image of 'x' .*gone.png.*cannot be read"):
        data.eval_batches(gone, "train", batch_size=2)


def test_sizes_come_from_headers(mixed):
    for record in mixed.records("train"):
        assert reading.read_size(record) == reading.read_image(record).shape[:2], record.id


# ---- Reading ----


def read_label(content, **changes):
    return reading.read_label(describe([], **changes), Record("x", "", lambda: content))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_images_are_turned_upright(orientation, kind):
    # A photo whose corners tell where it was turned; the table is the EXIF standard's.
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :16] = 255
    to_stored = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: np.rot90(x, 1),
        7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
        8: lambda x: np.rot90(x, -1),
    }[orientation]
    stored = np.ascontiguousarray(to_stored(upright))
    content = encode(stored, format=kind, exif=rotated_exif(orientation))
    record = Record("x", lambda: content)
    image = reading.read_image(record)
    assert reading.read_size(record) == (32, 48)
    np.testing.assert_allclose(image, upright, atol=3)


def test_image_modes():
    grey = np.arange(0, 256, dtype=np.uint8).reshape(16, 16)
    as_rgb = np.repeat(grey[..., None], 3, 2)

    def read(content):
        return reading.read_image(Record("x", lambda: content))

    np.testing.assert_array_equal(read(encode(grey)), as_rgb)
    np.testing.assert_array_equal(read(encode(grey.astype(np.uint16) * 257)), as_rgb)
    np.testing.assert_array_equal(read(encode(np.dstack([as_rgb, grey]))), as_rgb)
    np.testing.assert_array_equal(read(encode(as_rgb, format="WEBP", lossless=True)), as_rgb)
    np.testing.assert_array_equal(read(encode(grey > 99)), np.where(as_rgb > 99, 255, 0))
    with pytest.raises(UserError, match="floating-point"):
        read(encode(grey.astype(np.float32), format="TIFF"))


def test_decompression_bombs_are_refused(monkeypatch):
    content = encode(np.zeros((40, 40, 3), np.uint8))
    record = Record("x", lambda: content)
    for limit in (1000, 100):  # Pillow warns about the first and raises for the second
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        for read in (reading.read_image, reading.read_size):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with pytest.raises(UserError, match=f"'x': more than {limit} pixels"):
                    read(record)


def grey_png(values, depth):
    """A grey PNG of 1, 2, 4, 8 or 16 bits, written by hand: Pillow cannot write all of them."""
    height, width = values.shape
    shifts = np.arange(depth - 1, -1, -1)
    bits = (values[..., None] >> shifts & 1).reshape(height, -1).astype(np.uint8)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)

    def chunk(name, content):
        crc = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_labels_of_every_depth_keep_their_indices(depth):
    values = np.random.default_rng(0).integers(0, min(CLASSES, 2**depth), (9, 13))
    label = read_label(grey_png(values, depth))
    assert label.dtype == np.int32
    np.testing.assert_array_equal(label, values)


def test_palette_labels_are_indices_not_colours():
    values = np.random.default_rng(0).integers(0, CLASSES, (9, 13)).astype(np.uint8)
    picture = Image.fromarray(values).convert("P")
    picture.putdata(values.ravel())
    picture.putpalette([7, 200, 9, 0, 0, 0, 255, 255, 255, 1, 2, 3, 90, 80, 70])
    file = io.BytesIO()
    picture.save(file, "PNG")
    np.testing.assert_array_equal(read_label(file.getvalue()), values)
    for array in (values, values[..., None], values.astype(np.int64)):
        np.testing.assert_array_equal(read_label(array), values)


def test_label_map():
    mapping = np.array([255, 3, -1, 0], np.int32)
    stored = np.array([[0, 1, 3], [1, 1, 0]], np.uint8)
    for content in (stored, encode(stored), encode(stored.astype(np.uint16))):
        label = read_label(content, label_map=mapping)
        assert label.tolist() == [[255, 3, 0], [3, 3, 255]]
    for content, offending in [
        (np.array([[2, 2, 4, 255]], np.uint8), r"values 2 \(2 pixels\), 4 \(1 pixel\), 255"),
        (np.array([[-1, 70000]], np.int32), r"values -1 \(1 pixel\), 70000 \(1 pixel\)"),
        (np.arange(10, 20)[None], r"10 .*, 14 \(1 pixel\) and 5 more"),
    ]:
        with pytest.raises(UserError, match=offending + ".* stores 0..1, 3. "):
            read_label(content, label_map=mapping)


def test_labels_of_many_classes():
    stored = np.array([[0, 299, 65535]], np.uint16)
    many = dict(classes=tuple(map(str, range(300))), ignore_label=65535)
    assert read_label(encode(stored), **many).tolist() == [[0, 299, 65535]]
    with pytest.raises(UserError, match=r"value 300 \(1 pixel\)"):
        read_label(np.array([[300]], np.uint16), **many)


def test_colour_labels():
    colors = {(0, 0, 0): 255, (128, 0, 0): 0, (0, 128, 0): 2, (1, 2, 3): 4}
    stored = np.array([[(0, 0, 0), (128, 0, 0)], [(1, 2, 3), (0, 128, 0)]], np.uint8)
    for content in (stored, encode(stored)):
        label = read_label(content, label_colors=colors)
        assert label.dtype == np.int32 and label.tolist() == [[255, 0], [4, 2]]
    stored[0, 0] = 9, 8, 7
    with pytest.raises(UserError, match=r"value \(9, 8, 7\) \(1 pixel\) not allowed.*4 colours"):
        read_label(encode(stored), label_colors=colors)
    with pytest.raises(UserError, match="expected integers .* label_colors"):
        read_label(encode(stored))


def test_missing_label():
    with pytest.raises(UserError, match="'x' has no label"):
        reading.read_label(describe([]), Record("x", ""))


def test_real_pictures(shared):
    """CamVid's lossless WebP pictures and palette-free masks through the reader and a crop."""
    folder = shared / "data" / "camvid"
    records = [
        Record(p.stem, str(p), str(folder / "valannot" / f"{p.stem}.png"))
        for p in sorted((folder / "val").iterdir())[:3]
    ]
    description = describe(
        records,
        classes=tuple(f"class{i}" for i in range(11)),
        label_map=np.array([*range(11), 255], np.int32),
    )
    config = augment(crop=(180, 240), cat_max_ratio=0.75)
    batch = next(train(description, config, "threads"))
    share = np.mean([len(np.unique(label[label != 255])) for label in batch["label"]])
    assert share >= 3 and batch["image"].std() > 20
