"""`convert`: weights written as a run's folder and as safetensors, every bit as it was."""

import json
import pathlib
import struct
import sys

import numpy as np
import pytest
import torch_writer

import jaxseg
from jaxseg import main, safetensors_file, torch_file
from tests.test_init_from import state_dict

CONFIG = """
from ml_collections import ConfigDict

def get_config(dataset="any"):
    return ConfigDict(dict(
        dtype="float32",
        model=dict(
            name="fcn", backbone=dict(name="tests.tiny_backbone"), channels=8, num_convs=1,
            concat_input=False, aux_channels=4,
        ),
        data=dict(name="jaxseg.zoo", dataset="LoveDADataset", classes=7),
        eval=dict(base_size=()),
        predict=dict(flip=True),
    ))
"""


@pytest.fixture
def files(tmp_path) -> pathlib.Path:
    """A folder with a config and weights for it."""
    (tmp_path / "net.py").write_text(CONFIG)
    state = {
        name: torch_writer.whole(array, str(i))
        for i, (name, array) in enumerate(state_dict(7).items())
    }
    (tmp_path / "weights.pth").write_bytes(torch_writer.zipped({"state_dict": state}))
    return tmp_path


def convert(*argv: str) -> int:
    return main.main(["jaxseg", "convert", *argv])


def test_there_and_back_to_the_last_bit(files, capsys):
    source = (f"--config={files}/net.py", f"--checkpoint={files}/weights.pth")
    assert convert(*source, f"--output={files}/run") == 0
    assert convert(f"--workdir={files}/run", f"--output={files}/deep/out.safetensors") == 0
    said = capsys.readouterr().out
    assert "M parameters, 7 classes" in said
    want = {k: v for k, v in state_dict(7).items() if not k.endswith("num_batches_tracked")}
    got = torch_file.read(files / "deep" / "out.safetensors")
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name].dtype == value.dtype and got[name].shape == value.shape, name
        assert got[name].tobytes() == value.tobytes(), name
    seg = jaxseg.load(files / "run")
    assert seg.classes[1] == "building" and len(seg.palette) == 7 and seg.chain["flip"] is True
    images = np.random.default_rng(0).integers(0, 256, (1, 24, 40, 3), dtype=np.uint8)
    again = jaxseg.load(f"{files}/net.py", checkpoint=files / "deep" / "out.safetensors")
    np.testing.assert_array_equal(seg.logits(images), again.logits(images))
    assert not list(files.rglob("*.part")) and not list(files.rglob("*.tmp"))


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--workdir=run"], "--output=FOLDER or FILE.safetensors"),
        (["--output=out"], "--zoo=NAME"),
        (["--checkpoint=w.pth", "--output=out"], "--zoo=NAME or --config=FILE"),
        (["--config=net.py", "--output=out"], "--workdir"),
        (["--config=net.py", "--checkpoint=weights.pth", "--output=out.pth"], "FILE.safetensors"),
        (["--config=net.py", "--checkpoint=weights.pth", "--output=net.py"], "is there already"),
        (["--config=net.py", "--checkpoint=gone.pth", "--output=out"], "gone.pth"),
    ],
)
def test_mistakes_are_told_and_leave_nothing(files, monkeypatch, capsys, argv, words):
    monkeypatch.chdir(files)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # of net.py
    before = sorted(files.rglob("*"))
    assert convert(*argv) == 2
    assert words in capsys.readouterr().err
    assert sorted(files.rglob("*")) == before


def test_what_is_written_follows_the_format(tmp_path):
    """Read by the format's description: github.com/huggingface/safetensors."""
    rng = np.random.default_rng(0)
    arrays = {
        "small": rng.integers(0, 9, 3).astype(np.uint8),
        "matrix": np.asfortranarray(rng.normal(size=(2, 3)).astype(np.float32)),
        "scalar": np.float64(2.5),
        "flags": np.array([True, False]),
        "none": np.zeros((0, 4), np.float16),
    }
    path = tmp_path / "x.safetensors"
    safetensors_file.write(path, {name: np.asarray(value) for name, value in arrays.items()})
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    assert size % 8 == 0 and header.pop("__metadata__") == {"format": "pt"}
    kinds = {"small": "U8", "matrix": "F32", "scalar": "F64", "flags": "BOOL", "none": "F16"}
    ends = []
    for name, entry in header.items():
        a, b = entry["data_offsets"]
        value = np.asarray(arrays[name])
        assert entry["dtype"] == kinds[name] and entry["shape"] == list(value.shape)
        assert data[8 + size + a : 8 + size + b] == value.tobytes("C"), name
        assert a % value.itemsize == 0
        ends.append((a, b))
    starts = [0, *(b for _, b in ends)]
    assert [a for a, _ in ends] == starts[:-1] and starts[-1] == len(data) - 8 - size
    assert header.keys() == arrays.keys()
