"""Files of strangers: none runs code, writes outside its folder, or ends in a traceback."""

import io
import json
import os
import pathlib
import struct
import sys
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
import torch_writer as writer
from ml_collections import ConfigDict
from PIL import Image
from torch_writer import refused, saved

from jaxseg import checkpoint, config, console, main
from jaxseg.data import files, reading, reencoded
from jaxseg.data.base import Record
from jaxseg.errors import UserError, printable

DEEP = "[" * 200_000
HUGE = 2**60
ROOT = pathlib.Path(__file__).resolve().parents[1]


# ---- Weights ----


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (struct.pack("<Q", HUGE) + b'{"a"', ("truncated", str(HUGE))),
        (struct.pack("<Q", 2**64 - 1) + b"{", ("truncated",)),
        (struct.pack("<Q", len(DEEP) + 5) + b'{"a":' + DEEP.encode(), ("no JSON",)),
        (writer.safetensors({}, a={"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 0]}), ()),
        (writer.safetensors({}, a={"dtype": "F32", "shape": [1], "data_offsets": [0, HUGE]}), ()),
        (writer.safetensors({}, a={"dtype": "F32", "shape": [0] * 99, "data_offsets": [0, 0]}), ()),
    ],
)
def test_safetensors_of_impossible_sizes(tmp_path, data, words):
    refused(saved(tmp_path, data), *words)


def test_overlapping_safetensors(tmp_path):
    numbers = np.arange(4, dtype="f4")
    again = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    refused(saved(tmp_path, writer.safetensors({"a": numbers}, b=again)), "overlap")


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    record = {"archive/data.pkl": b"\x80\x02}.", "archive/data/0": bytes(1 << 24)}
    refused(saved(tmp_path, writer.archive(record, zipfile.ZIP_DEFLATED)), "compressed")


def test_a_zip_whose_parts_overlap(tmp_path):
    """A directory that names one stretch of the file many times (Fifield 2019, "zip bombs")."""
    once = writer.archive({"archive/data.pkl": b"\x80\x02}.", "archive/data/0": bytes(4096)})
    start, end = once.index(b"PK\x01\x02"), once.index(b"PK\x05\x06")
    directory, tail = once[start:end], once[end:]
    more = directory + directory.replace(b"archive/data/0", b"archive/data/1") * 50
    count = struct.pack("<H", more.count(b"PK\x01\x02"))
    tail = tail[:8] + count * 2 + struct.pack("<I", len(more)) + tail[16:]
    refused(saved(tmp_path, once[:start] + more + tail), "overlap")


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "a\\..\\evil", "C:\\evil"])
def test_names_in_a_checkpoint_are_no_paths(tmp_path, name):
    from jaxseg import torch_file

    numbers = np.arange(3, dtype="f4")
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    for content in (
        writer.safetensors({name: numbers}),
        writer.zipped({name: writer.whole(numbers, "0")}),
    ):
        before = sorted(tmp_path.rglob("*"))
        np.testing.assert_array_equal(torch_file.read(saved(folder, content))[name], numbers)
        assert set(tmp_path.rglob("*")) - set(before) <= {folder / "file.pth"}


def test_nothing_unpickles_an_npz(tmp_path):
    """The readers of weights refuse NumPy's archives, whose objects are pickles."""

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'sentinel'}",)

    path = tmp_path / "weights.npz"
    np.savez(path, a=np.array([Evil()], dtype=object))
    refused(path, "torch.save")
    assert not (tmp_path / "sentinel").exists()
    root = pathlib.Path(checkpoint.__file__).parent
    assert not [f for f in root.rglob("*.py") if "allow_pickle" in f.read_text()]


# ---- Data sets ----


@pytest.mark.parametrize(
    "id", ["../evil", "a/../../evil", "/evil", "\\evil", "a\\..\\b", "C:x", "a\0"]
)
def test_a_sample_is_not_called_by_a_way_out(id):
    with pytest.raises(UserError, match="leads out"):
        Record(id, "x.png")


def test_names_with_dots_are_fine():
    assert [Record(id, "x").id for id in ("a..b", "...", "x/.y", "ab:c", "ü")]


def write_copy(root, entry, **about):
    (root / "manifest").mkdir(parents=True)
    values = dict(
        name="copy", classes=["a"], palette=[[0, 0, 0]], splits=["train"], ignore_label=255
    )
    (root / "dataset.json").write_text(json.dumps(values | about))
    (root / "manifest" / "train.json").write_text('{"samples": 1}')
    (root / "manifest" / "train-1-of-1.jsonl").write_text(json.dumps(entry) + "\n")
    return reencoded.describe(str(root))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"index": 0, "id": "../../evil", "image": {"path": "a"}, "label": None}, "leads out"),
        ({"index": 0, "id": "x", "image": {"path": 5}, "label": None}, "manifest"),
        ({"index": 0, "id": "x", "image": 3, "label": None}, "manifest"),
        ({"index": 0, "id": "x"}, "manifest"),
    ],
)
def test_a_copied_data_set_that_lies(tmp_path, entry, words):
    description = write_copy(tmp_path / "copy", entry)
    with pytest.raises(UserError, match=words):
        description.records("train")


def test_a_copied_data_set_does_not_bring_its_own_code(tmp_path, monkeypatch):
    root = tmp_path / "copy"
    description = write_copy(root, {}, source={"name": "copy.evil"}, splits=["train", "val"])
    (root / "evil.py").write_text("raise SystemExit('run')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    with pytest.raises(UserError, match="'copy.evil' is code that lies in this very folder"):
        description.records("val")


@pytest.mark.slow
def test_archives_of_data_sets_are_unpacked_into_their_folder(tmp_path):
    """jaxseg itself unpacks none; TensorFlow Datasets does, for `prepare`: it leaves these out."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")
    inside = tmp_path / "a" / "b" / "manual"
    inside.mkdir(parents=True)
    names = ("../evil", "x/../../../evil", str(tmp_path / "evil"), "good/x.txt")
    with tarfile.open(inside / "x.tar", "w") as tar:
        link = tarfile.TarInfo("way")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        tar.addfile(link)
        for name in (*names, "way/evil"):
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"evil"))
    with zipfile.ZipFile(inside / "x.zip", "w") as packed:
        for name in names:
            packed.writestr(name, b"evil")
    manager = tfds.download.DownloadManager(
        download_dir=str(inside), extract_dir=str(inside / "out"), dataset_name="x"
    )
    for archive in ("x.tar", "x.zip"):
        root = pathlib.Path(str(manager.extract(str(inside / archive))))
        assert (root / "good" / "x.txt").read_bytes() == b"evil"
    outside = {path for path in tmp_path.rglob("*") if path.is_file()} - set(inside.rglob("*"))
    assert not outside


def test_links_in_circles_end(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / name / "x.png")
    for name, target in {"one": "..", "two": "../b", "three": "."}.items():
        (tmp_path / "a" / name).symlink_to(target, target_is_directory=True)
    (tmp_path / "b" / "back").symlink_to("../a", target_is_directory=True)
    found = files.find(str(tmp_path / "a"), layout="")
    # Each folder once on the way to it: 'one' leads to the folder above, and from there to b.
    assert {"x", "two/x", "one/b/x"} <= set(found) and len(found) < 10


def test_a_program_that_is_called_a_picture_is_not_run(tmp_path):
    """Pillow gives EPS, whatever its name, to Ghostscript, which runs it."""
    path = tmp_path / "photo.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nquit\n")
    with pytest.raises(UserError, match="photo.png.*no known format"):
        reading.read_image(Record("x", str(path)))
    with Image.open(path) as picture:  # which Pillow knows otherwise
        assert picture.format == "EPS"


def test_a_text_bomb_in_a_picture(tmp_path):
    """A PNG whose comment of some kilobytes unpacks to a hundred megabytes."""
    text = b"zTXtcomment\0\0" + zlib.compress(bytes(100 << 20), 9)
    plain = tmp_path / "x.png"
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(plain)
    content = plain.read_bytes()
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    plain.write_bytes(content[:33] + chunk + content[33:])
    with pytest.raises(UserError, match="x.png"):
        reading.read_image(Record("x", str(plain)))


# ---- What is printed ----


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü 日本\n\tx", "plain ü 日本\n\tx"),
        ("\x1b[2J\x07", r"\x1b[2J\x07"),
        ("\x9b31m\r\x7f", r"\x9b31m\r\x7f"),
        ("a\u202eb\u2066", r"a\u202eb\u2066"),
        ("caf\udce9.png", r"caf\udce9.png"),
    ],
)
def test_texts_of_strangers_do_not_steer_the_terminal(capsys, text, shown):
    assert printable(text) == shown and str(UserError(text)) == shown
    console.say(text)
    assert capsys.readouterr().out == shown + "\n"


def test_class_names_reach_no_terminal_as_they_are(tmp_path, capsys):
    root = tmp_path / "mine"
    for kind in ("images", "masks"):
        (root / kind / "train").mkdir(parents=True)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(root / "masks" / "train" / "x.png")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(root / "images" / "train" / "x.png")
    (root / "classes.txt").write_text("\x1b]0;owned\x07\n<script>alert(1)</script>\n")
    argv = [f"--config={ROOT}/configs/deeplabv3p.py:folder", f"--config.data.root={root}"]
    assert main.main(["jaxseg", "check", *argv]) == 1  # the second class occurs nowhere
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err and r"\x1b]0;owned\x07" in said.out


def test_nothing_is_written_as_a_web_page():
    """So that names of classes need no escaping; whoever adds a page tests it with such names."""
    root = pathlib.Path(checkpoint.__file__).parent
    assert not [f for f in root.rglob("*.py") if "<html" in f.read_text().lower()]


def test_config_values_are_never_evaluated_as_code(tmp_path):
    sentinel = tmp_path / "sentinel"
    attack = f"__import__('pathlib').Path({str(sentinel)!r}).touch()"
    values = ConfigDict(dict(steps=1, lr=0.1, crop=(1, 2), name="x", flag=False))
    for key in values:
        try:
            config.override(values.copy_and_resolve_references(), [f"--config.{key}={attack}"])
        except UserError:
            pass
    assert not sentinel.exists()
