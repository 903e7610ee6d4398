"""Copies of datasets that are decoded faster: what is in them, and what a kill leaves behind."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from jaxseg import data
from jaxseg.data import folder, reading
from jaxseg.data.prepare import __main__ as prepare
from jaxseg.data.prepare import reencode
from jaxseg.errors import UserError

ROOT = pathlib.Path(prepare.__file__).resolve().parents[3]
CONFIG = f"--config={ROOT}/configs/deeplabv3p.py:cityscapes"
VALUES = np.array([7, 8, 11, 33, 4], np.uint8)  # road, sidewalk, building, bicycle; static: ignored


@pytest.fixture
def city(tmp_path):
    """A tiny Cityscapes: 7 frames to train, 2 to validate."""
    rng = np.random.default_rng(0)
    root = tmp_path / "city"
    for split, count in (("train", 7), ("val", 2)):
        for number in range(count):
            id = f"{'ab'[number % 2]}/{'ab'[number % 2]}_{number}"
            image = root / "leftImg8bit" / split / f"{id}_leftImg8bit.png"
            label = root / "gtFine" / split / f"{id}_gtFine_labelIds.png"
            for path in (image, label):
                path.parent.mkdir(parents=True, exist_ok=True)
            small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
            small.resize((70, 50), Image.BICUBIC).save(image)
            Image.fromarray(np.kron(rng.choice(VALUES, (5, 7)), np.ones((10, 10), np.uint8))).save(
                label
            )
    return root


def command(city, output, *more, form="bmp"):
    where = [CONFIG, f"--config.data.root={city}", f"--output={output}", f"--to={form}"]
    return prepare.run(["reencode", *where, *more])


def original(city):
    return data.get(dict(name="cityscapes", root=str(city), source="folders"))


def copy(output):
    """As a recipe of Cityscapes reads it when its name and root are changed."""
    return data.get(dict(name="reencoded", root=str(output), source="folders"))


def files(root):
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def batches(description):
    augment = ConfigDict(
        dict(crop=(30, 40), scale=(0.5, 2.0), base_size=(), cat_max_ratio=0.7, flip=True)
    )
    return data.train_batches(
        description, "train", augment, backend="threads", seed=1, batch_size=3, start_step=0,
        num_steps=6,
    )  # fmt: skip


def test_a_lossless_copy_trains_alike(city, tmp_path):
    told = command(city, tmp_path / "copy")
    assert "BMP, lossless: 7 of 7" in told and "--config.data.name=reencoded" in told
    one, two = original(city), copy(tmp_path / "copy")
    assert (two.name, two.classes, two.palette) == (one.name, one.classes, one.palette)
    assert (two.ignore_label, two.splits) == (one.ignore_label, one.splits)
    for first, second in zip(batches(one), batches(two), strict=True):
        assert first["id"] == second["id"]
        np.testing.assert_array_equal(first["image"], second["image"])
        np.testing.assert_array_equal(first["label"], second["label"])
    # What was not copied is read where it was, with the same classes.
    for first, second in zip(one.records("val"), two.records("val"), strict=True):
        assert first.id == second.id
        for x, y in zip(reading.read_pair(one, first), reading.read_pair(two, second), strict=True):
            np.testing.assert_array_equal(x, y)


def test_a_jpeg_copy_is_labelled_lossy_and_close(city, tmp_path):
    told = command(city, tmp_path / "copy", form="jpeg")
    assert "JPEG 95, LOSSY: 7 of 7" in told
    about = json.loads((tmp_path / "copy" / "manifest" / "train.json").read_text())
    assert about == {"samples": 7, "form": "jpeg", "lossy": True, "quality": 95}
    one, two = original(city), copy(tmp_path / "copy")
    for first, second in zip(one.records("train"), two.records("train"), strict=True):
        assert second.image.endswith(".jpg")
        (image, label), (near, same) = reading.read_pair(one, first), reading.read_pair(two, second)
        np.testing.assert_array_equal(label, same)
        assert 0 < np.abs(image.astype(int) - near).mean() < 6


def test_a_copy_is_a_folder_data_set(city, tmp_path):
    command(city, tmp_path / "copy")
    one, two = original(city), folder.describe(str(tmp_path / "copy"))
    assert (two.classes, two.palette) == (one.classes, one.palette)
    for first, second in zip(one.records("train"), two.records("train"), strict=True):
        assert first.id == second.id
        np.testing.assert_array_equal(
            reading.read_label(one, first), reading.read_label(two, second)
        )
    mask = Image.open(second.label)  # a viewer shows it in the classes' colours
    index = reading.read_label(two, second)[0, 0]
    if index != 255:
        assert mask.convert("RGB").getpixel((0, 0)) == one.palette[index]


def test_a_jpeg_is_not_encoded_again(city, tmp_path):
    frames = sorted((city / "leftImg8bit" / "train").rglob("*.png"))
    content = {}
    for path in frames:  # the ending does not matter to a reader
        picture = Image.open(path)
        picture.save(path, "JPEG", quality=50)
        content[path.name.removesuffix("_leftImg8bit.png")] = path.read_bytes()
    command(city, tmp_path / "copy", form="jpeg")
    copied = (tmp_path / "copy" / "images").rglob("*.jpg")
    assert {path.stem: path.read_bytes() for path in copied} == content


def test_shards_make_the_whole(city, tmp_path):
    command(city, tmp_path / "whole")
    assert "3 of 7" in command(city, tmp_path / "parts", "--shard=1/3")
    with pytest.raises(UserError, match="3 of the 7 samples .*every --shard"):
        copy(tmp_path / "parts").records("train")
    with pytest.raises(UserError, match="4 sample.s. of train, never finished"):
        prepare.run(["reencode", f"--output={tmp_path / 'parts'}", "--verify"])
    command(city, tmp_path / "parts", "--shard=3/3")
    assert "7 of 7" in command(city, tmp_path / "parts", "--shard=2/3")
    one, two = (
        {name: content for name, content in files(tmp_path / root).items() if "jsonl" not in name}
        for root in ("whole", "parts")
    )
    assert one == two
    ids = [[r.id for r in copy(tmp_path / root).records("train")] for root in ("whole", "parts")]
    assert ids[0] == ids[1] == [r.id for r in original(city).records("train")]


def test_a_killed_run_goes_on(city, tmp_path, monkeypatch):
    """Stopped at every point between two files in turn, and the next run ends with the same."""
    command(city, tmp_path / "whole")
    expected = files(tmp_path / "whole")
    root = tmp_path / "copy"
    put, calls = reencode._put, []

    def fails(root, name, content, shard):
        if len(calls) == limit:
            path = root / name  # as a kill in the middle of writing would leave it
            path.parent.mkdir(parents=True, exist_ok=True)
            (path.parent / f".{path.name}.1-of-1.tmp").write_bytes(content[: len(content) // 2])
            raise KeyboardInterrupt
        calls.append(name)
        return put(root, name, content, shard)

    for limit in (0, 1, 2, 3, 4, 9, 16):
        shutil.rmtree(root, ignore_errors=True)
        calls.clear()
        monkeypatch.setattr(reencode, "_put", fails)
        monkeypatch.setattr(reencode.threads, "num_threads", lambda: 1)
        with pytest.raises(KeyboardInterrupt):
            command(city, root)
        monkeypatch.setattr(reencode, "_put", put)
        if limit > 9:  # and a line of the manifest cut in the middle
            manifest = root / "manifest" / "train-1-of-1.jsonl"
            manifest.write_bytes(manifest.read_bytes()[:-30])
        command(city, root)
        prepare.run(["reencode", f"--output={root}", "--verify"])
        found = files(root)
        for name in expected:
            if not name.endswith("jsonl"):
                assert found[name] == expected[name], (limit, name)
        assert not [name for name in found if name.endswith(".tmp")]
        assert len(copy(root).records("train")) == 7


def test_what_is_done_is_not_done_again(city, tmp_path, monkeypatch):
    command(city, tmp_path / "copy")
    copied = []
    original_copy = reencode._copy
    monkeypatch.setattr(
        reencode, "_copy", lambda *args: copied.append(args[-1].id) or original_copy(*args)
    )
    command(city, tmp_path / "copy")
    assert copied == []
    (tmp_path / "copy" / "masks" / "train" / "b" / "b_3.png").unlink()
    image = tmp_path / "copy" / "images" / "train" / "a" / "a_2.bmp"
    image.write_bytes(image.read_bytes()[:100])
    command(city, tmp_path / "copy", "--shard=1/1")
    assert sorted(copied) == ["a/a_2", "b/b_3"]
    prepare.run(["reencode", f"--output={tmp_path / 'copy'}", "--verify"])


def test_verify_finds_a_changed_bit(city, tmp_path):
    command(city, tmp_path / "copy")
    told = prepare.run(["reencode", f"--output={tmp_path / 'copy'}", "--verify"])
    assert "train: 7 of 7 samples, 14 files" in told
    path = tmp_path / "copy" / "images" / "train" / "a" / "a_0.bmp"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    (tmp_path / "copy" / "masks" / "train" / "b" / "b_1.png").unlink()
    with pytest.raises(UserError, match="2 of the files.*a_0.bmp.*b_1.png"):
        prepare.run(["reencode", f"--output={tmp_path / 'copy'}", "--verify"])


def test_errors(city, tmp_path):
    output = tmp_path / "copy"
    for arguments, words in (
        (["--shard=0/2"], "--shard=0/2: expected i/n"),
        (["--shard=half"], "--shard=half"),
        (["--split=trian"], "'trian'.*train, val, test"),
        (["--config.data.rot=x"], "did you mean 'root'"),
    ):
        with pytest.raises(UserError, match=words):
            command(city, output, *arguments)
    with pytest.raises(UserError, match="--to: unknown form 'jpg', did you mean 'jpeg'"):
        command(city, output, form="jpg")
    with pytest.raises(UserError, match="--config is missing"):
        prepare.run(["reencode", f"--output={output}"])
    with pytest.raises(UserError, match="only `reencode` takes a config"):
        prepare.run(["sbd", "--sbd=x", "--voc=y", "--config.data.root=z"])
    with pytest.raises(UserError, match=r"dataset.json: cannot be read \(No such file"):
        prepare.run(["reencode", f"--output={output}", "--verify"])
    command(city, output)
    with pytest.raises(UserError, match="re-encoded otherwise.*another --output"):
        command(city, output, form="jpeg")
    with pytest.raises(UserError, match="another dataset is there .its name, classes"):
        prepare.run(
            ["reencode", CONFIG.replace("cityscapes", "synthetic"), f"--output={output}",
             "--to=bmp", "--config.data.train=2"]
        )  # fmt: skip
    shutil.rmtree(city / "gtFine" / "val")
    with pytest.raises(UserError, match="'val' was not re-encoded.*gtFine/val"):
        copy(output).records("val")
    (output / "dataset.json").write_text("{}")
    with pytest.raises(UserError, match="dataset.json: not of a re-encoded dataset"):
        copy(output)


def test_a_bad_sample_is_named_and_the_rest_is_kept(city, tmp_path):
    broken = city / "leftImg8bit" / "train" / "b" / "b_5_leftImg8bit.png"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(UserError, match="b_5_leftImg8bit.png.*not a complete image"):
        command(city, tmp_path / "copy")
    assert len((tmp_path / "copy/manifest/train-1-of-1.jsonl").read_text().splitlines()) >= 4


def test_data_without_files_or_labels(tmp_path):
    """Scenes that are drawn, and a split of images alone."""
    config = f"--config={ROOT}/configs/deeplabv3p.py:synthetic"
    where = ["reencode", config, "--config.data.train=3", "--config.data.size=(64,96)", "--to=bmp"]
    prepare.run([*where, f"--output={tmp_path / 'scenes'}"])
    one = data.get(dict(name="synthetic", train=3, size=(64, 96)))
    two = copy(tmp_path / "scenes")
    for first, second in zip(one.records("train"), two.records("train"), strict=True):
        for x, y in zip(reading.read_pair(one, first), reading.read_pair(two, second), strict=True):
            np.testing.assert_array_equal(x, y)
    assert two.ignore_label == one.ignore_label


def test_the_command_line_ends_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "jaxseg.data.prepare", "reencode", "--to=bmp", CONFIG,
         f"--config.data.root={tmp_path}", f"--output={tmp_path / 'copy'}"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert str(tmp_path / "leftImg8bit" / "train") in done.stderr
