"""Reading PyTorch's files without PyTorch: every format, and every lie about numbers."""

import collections
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch_writer as writer
from torch_writer import Do, Name, refused, saved, store, tensor, whole

from jaxseg import torch_file

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((2, 3, 4)).astype("f4")


def same(got, want):
    assert list(got) == list(want)
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array, strict=True)
        assert got[name].flags.c_contiguous and not got[name].flags.writeable


# What is read.


@pytest.mark.parametrize("dtype", sorted(writer.KINDS))
def test_every_dtype_is_kept(write, dtype):
    array = RNG.integers(0, 2, (3, 2)) if dtype == "b1" else RNG.integers(-100, 100, (3, 2))
    array = array.astype(dtype)
    same(torch_file.read(write({"a": whole(array, "0")})), {"a": array})


def test_bfloat16_becomes_float32(write):
    exact = np.array([1.0, -2.5, 2.0**-120, np.inf], "f4")  # numbers that bfloat16 has
    halves = (exact.view("u4") >> 16).astype("u2")
    got = torch_file.read(write({"a": tensor(store(halves, "0", "BFloat16"), (2, 2), (2, 1))}))
    same(got, {"a": exact.reshape(2, 2)})


def test_views_of_one_storage(write):
    values = store(np.arange(24, dtype="f4"), "0")
    base = np.arange(24, dtype="f4").reshape(2, 3, 4)
    got = torch_file.read(
        write(
            {
                "all": tensor(values, (2, 3, 4), (12, 4, 1)),
                "transposed": tensor(values, (4, 2, 3), (1, 12, 4)),
                "part": tensor(values, (2, 2), (12, 2), 5),
                "repeated": tensor(values, (3, 2), (0, 1), 7),
                "scalar": tensor(values, (), (), 23),
                "none": tensor(values, (0, 3), (3, 1)),
                "one": tensor(values, (1,), (10**9,)),
            }
        )
    )
    want = {
        "all": base,
        "transposed": base.transpose(2, 0, 1),
        "part": base[:, 1:, 1][:, :1].repeat(2, 1) + np.array([[0, 2]], "f4"),
        "repeated": np.broadcast_to(np.array([7, 8], "f4"), (3, 2)),
        "scalar": np.array(23, "f4"),
        "none": np.zeros((0, 3), "f4"),
        "one": np.array([0], "f4"),
    }
    same(got, want)


def test_parameters_and_older_tensors(write):
    parameter = Name("torch._utils", "_rebuild_parameter")
    older = Do(Name("torch._utils", "_rebuild_tensor"), (store(WEIGHT, "1"), 0, (24,), (1,)))
    subclass = Do(
        Name("torch._tensor", "_rebuild_from_type_v2"),
        (
            Name("torch._utils", "_rebuild_tensor_v2"),
            Name("torch.nn.parameter", "Parameter"),
            whole(WEIGHT, "2").args,
            {},
        ),
    )
    value = {
        "parameter": Do(parameter, (whole(WEIGHT, "0"), True, {})),
        "older": older,
        "subclass": subclass,
    }
    want = {"parameter": WEIGHT, "older": WEIGHT.reshape(-1), "subclass": WEIGHT}
    same(torch_file.read(write(value)), want)


def test_old_views_of_storages(tmp_path):
    """PyTorch 0.3 named the part of a storage in the reference to it."""
    values = store(np.arange(10, dtype="f4"), "0")
    data, stores = writer.pickled({"a": tensor(values, (3,), (1,), 1)}, ("view", 4, 5))
    path = saved(tmp_path, writer.stream({"a": tensor(values, (3,), (1,))}))
    plain = writer.pickled({"a": tensor(values, (3,), (1,))}, None)[0]
    path.write_bytes(path.read_bytes().replace(plain, data))
    same(torch_file.read(path), {"a": np.array([5, 6, 7], "f4")})


def test_big_endian_zip(tmp_path):
    swapped = store(WEIGHT.astype(">f4"), "0", "Float")
    data = writer.zipped({"a": tensor(swapped, (2, 3, 4), (12, 4, 1))}, order="big")
    same(torch_file.read(saved(tmp_path, data)), {"a": WEIGHT})


def numpy_dtype(code: str) -> Do:
    state = (3, "<", None, None, None, -1, -1, 0)
    return Do(Name("numpy", "dtype"), (code, False, True), state)


def numpy_array(array: np.ndarray, core: str = "core") -> Do:
    raw = Do(Name("_codecs", "encode"), (array.tobytes("A").decode("latin-1"), "latin1"))
    empty = Do(Name(f"numpy.{core}.multiarray", "_reconstruct"), (Name("numpy", "ndarray"), (0,)))
    by_columns = not array.flags.c_contiguous
    state = (1, array.shape, numpy_dtype(array.dtype.str[1:]), by_columns, raw)
    return Do(empty.callee, empty.args, state)


def test_a_checkpoint_as_mmsegmentation_writes_it(write):
    state = collections.OrderedDict({"backbone.w": whole(WEIGHT, "0")})
    state._metadata = {"": {"version": 1}}
    scalar = Do(Name("numpy.core.multiarray", "scalar"), (numpy_dtype("f8"), b"\0" * 8))
    history = Do(
        Name("mmengine.logging.history_buffer", "HistoryBuffer"),
        (),
        {"max_length": 10, "_log_history": numpy_array(np.arange(3.0))},
    )
    meta = {
        "mmseg_version": "0.8.0+",
        "config": "norm_cfg = dict(type='SyncBN')\n# ünïcode \U0001f600",
        "CLASSES": ("road", "sidewalk"),
        "PALETTE": [[128, 64, 128], [244, 35, 232]],
        "seed": None,
        "best": scalar,
        "iter": -(2**40),
        "options": Do(Name("argparse", "Namespace"), (), {"lr": 0.01}),
        "hub": {"log_scalars": {"train/loss": history}},
    }
    optimizer = {"state": {0: {"momentum_buffer": whole(WEIGHT + 1, "1")}}, "param_groups": []}
    got = torch_file.read(write({"meta": meta, "state_dict": state, "optimizer": optimizer}))
    same(got, {"backbone.w": WEIGHT})


@pytest.mark.parametrize("core", ["core", "_core"])
def test_numpy_arrays_as_weights(write, core):
    counts = np.arange(6, dtype="i8").reshape(2, 3)
    columns = np.asfortranarray(counts.astype("f4") / 2)
    value = {"a": whole(WEIGHT, "0"), "b": numpy_array(counts, core)}
    got = torch_file.read(write(value | {"c": numpy_array(columns, core)}))
    same(got, {"a": WEIGHT, "b": counts, "c": columns})


def test_where_the_state_dict_lies(write):
    state, other = {"a": whole(WEIGHT, "0")}, {"a": whole(WEIGHT + 1, "1")}
    for value in (
        {"model": {"state_dict": state}, "epoch": 3},
        {"ema": other, "state_dict": state},
        {"optimizer": other, "model": state},
        {"anything": state, "epoch": 3},
        {"state_dict": {"module.a": whole(WEIGHT, "0")}},
        {"a": whole(WEIGHT, "0"), "b._extra_state": {"x": 1}, "c": None},
    ):
        same(torch_file.read(write(value)), {"a": WEIGHT})
    mixed = {"module.a": whole(WEIGHT, "0"), "b": whole(WEIGHT, "1")}
    same(torch_file.read(write(mixed)), {"module.a": WEIGHT, "b": WEIGHT})


def test_no_state_dict_or_several(write):
    state = {"a": whole(WEIGHT, "0")}
    refused(write({"teacher": state, "student": {"a": whole(WEIGHT, "1")}}), "'teacher', 'student'")
    refused(write({"epoch": 3, "log": "text"}), "no state dict", "'epoch', 'log'")
    refused(write({}), "no state dict")
    refused(write([1, 2]), "a list")
    refused(write(whole(WEIGHT, "0")), "a single tensor")


# safetensors


def test_safetensors(tmp_path):
    arrays = {
        "w": WEIGHT,
        "n": np.array(7, "i8"),
        "empty": np.zeros((0, 2), "f2"),
        "mask": np.array([True, False]),
        "big": np.array([2**63], "u8"),
    }
    same(torch_file.read(saved(tmp_path, writer.safetensors(arrays))), arrays)


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        ({"dtype": "F32", "shape": [2, 3, 4], "data_offsets": [0, 97]}, "truncated"),
        ({"dtype": "F32", "shape": [2, 3, 4], "data_offsets": [0, 92]}, "4 bytes behind"),
        ({"dtype": "F32", "shape": [2, 3, 5], "data_offsets": [0, 96]}, "does not fit"),
        ({"dtype": "F32", "shape": [-2, -12], "data_offsets": [0, 96]}, "shape"),
        ({"dtype": "F32", "shape": [True, 24], "data_offsets": [0, 96]}, "shape"),
        ({"dtype": "F8_E4M3", "shape": [96], "data_offsets": [0, 96]}, "F8_E4M3"),
        ({"dtype": "F32", "shape": [24], "data_offsets": [4, 96]}, "overlap"),
        ({"dtype": "F32", "shape": [24], "data_offsets": [96, 0]}, "overlap"),
        ({"dtype": "F32", "shape": [24]}, "no tensor"),
        ("text", "no tensor"),
    ],
)
def test_safetensors_that_lie(tmp_path, entry, word):
    refused(saved(tmp_path, writer.safetensors({"w": WEIGHT}, w=entry)), word)


def test_damaged_safetensors(tmp_path):
    data = writer.safetensors({"w": WEIGHT})
    refused(saved(tmp_path, data[:-1]), "truncated", "'w'")
    refused(saved(tmp_path, data[:40]), "truncated")
    refused(saved(tmp_path, struct.pack("<Q", 2**63) + data[8:]), "header")
    twice = b'{"w":{},"w":{}}'
    refused(saved(tmp_path, struct.pack("<Q", len(twice)) + twice), "twice")
    deep = b'{"w":' + b"[" * 100_000
    refused(saved(tmp_path, struct.pack("<Q", len(deep)) + deep), "no JSON")


# Other files, and damage.


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"\x1f\x8b\x08" + b"\0" * 20, "gzip"),
        (b"a" * 257 + b"ustar" + b"\0" * 50, "tar archive"),
        (b"just some text that is long enough", "not a checkpoint"),
        (b"PK\x03\x04", "zip"),
        (writer.archive({"a.txt": b"x"}), "not one that torch.save wrote"),
        (writer.archive({"m/data.pkl": b"\x80\x02}.", "m/constants.pkl": b""}), "TorchScript"),
        (pickle.dumps({"a": 1}, 2), "not one that torch.save wrote"),
    ],
)
def test_other_files(tmp_path, data, word):
    refused(saved(tmp_path, data), word)


def test_missing_files_and_folders(tmp_path):
    refused(tmp_path / "absent.pth", "cannot be read")
    refused(tmp_path, "cannot be read")


def test_truncated(write):
    path = write({"a": whole(WEIGHT, "0")})
    data = path.read_bytes()
    for length in (20, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        refused(path, "ownload it again")


def test_altered_zips(tmp_path):
    data = writer.zipped({"a": whole(WEIGHT, "0")})
    flipped = bytearray(data)
    flipped[data.index(WEIGHT.tobytes()) + 5] ^= 1
    refused(saved(tmp_path, flipped), "CRC")
    bomb = store(np.zeros(10**6, "f4"), "0")
    packed = writer.zipped({"a": tensor(bomb, (4,), (1,))}, compression=zipfile.ZIP_DEFLATED)
    refused(saved(tmp_path, packed), "compressed")
    with zipfile.ZipFile(saved(tmp_path, data), "a") as archive, pytest.warns(UserWarning):
        archive.writestr("archive/data/0", bytes(96))
    refused(tmp_path / "file.pth", "twice")


# Tensors that claim what is not so.


@pytest.mark.parametrize(
    "args",
    [
        ((24,), (1,), 1),  # one behind the end
        ((2, 3, 5), (12, 4, 1), 0),
        ((2,), (24,), 0),
        ((2,), (-1,), 5),
        ((-2,), (1,), 0),
        ((24,), (1,), -1),
        ((24,), (1, 1), 0),
        ((2.0,), (1,), 0),
        ((True,), (1,), 0),
        (("2",), (1,), 0),
        ((1 << 70,), (0,), 0),
        ((1 << 30, 1 << 30, 0), (0, 0, 0), 0),
        ((1,) * 40, (1,) * 40, 0),
        ((1 << 40,), (0,), 0),  # four numbers that become a terabyte
    ],
)
def test_views_beyond_their_storage(write, args):
    refused(write({"layer": tensor(store(WEIGHT, "0"), *args)}), "'layer'")


def test_storages_that_are_not_as_announced(write):
    for count in (23, 25, 2**40):
        refused(write({"a": tensor(store(WEIGHT, "0", count=count), (1,), (1,))}))


def test_a_storage_that_is_missing(tmp_path):
    data, _ = writer.pickled({"a": whole(WEIGHT, "0")})
    refused(saved(tmp_path, writer.zipped(data)), "storage '0' are missing")


FLOATS = Name("torch", "FloatStorage")


@pytest.mark.parametrize(
    "reference",
    [
        ("storage", FLOATS, 0, "cpu", 4),
        ("storage", FLOATS, "0", "cpu", -1),
        ("storage", FLOATS, "0", "cpu", "4"),
        ("storage", FLOATS, "0", "cpu"),
        ("storage", FLOATS, "0", "cpu", 4, ("v", 2, 3)),
        ("storage", FLOATS, "0", "cpu", 4, ("v", -1, 3)),
        ("storage", FLOATS, "0", "cpu", 4, 1),
        ("storage", Name("torch", "device"), "0", "cpu", 4),
        ("storage", "torch.FloatStorage", "0", "cpu", 4),
        ("module", FLOATS, "model.py", "source"),
        "storage",
        None,
        [],
    ],
)
def test_references_of_the_wrong_kind(write, reference):
    data = writer.pickled(reference)[0].removesuffix(b".") + b"Q."
    refused(write(data))


def test_tensors_of_other_kinds(write):
    qtensor = Do(Name("torch._utils", "_rebuild_qtensor"), ())
    refused(write({"a": qtensor}), "torch._utils._rebuild_qtensor")
    for args in ((), (1, 2, 3, 4), (store(WEIGHT, "0"), 0, None, None), (None,) * 7):
        refused(write({"a": Do(Name("torch._utils", "_rebuild_tensor_v2"), args)}), "'a'")
        refused(write({"a": Do(Name("torch._utils", "_rebuild_parameter"), args)}), "'a'")
    objects = numpy_array(np.arange(2.0))
    objects.state[2].__init__(Name("numpy", "dtype"), ("O8", False, True))
    refused(write({"a": objects}), "other than numbers")


# Files of PyTorch's own, where it is installed.


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("new", [True, False])
def test_files_of_pytorch(tmp_path, new, protocol):
    torch = pytest.importorskip("torch")
    base = torch.arange(108.0).reshape(4, 3, 3, 3)
    state = collections.OrderedDict(
        base=base,
        transposed=base.transpose(0, 1),
        part=base[1:3, 1],
        channels_last=base.to(memory_format=torch.channels_last),
        parameter=torch.nn.Parameter(torch.randn(3)),
        bfloat=torch.randn(5).bfloat16(),
        half=torch.randn(3).half(),
        empty=torch.zeros(0, 3),
        scalar=torch.tensor(7),
        mask=torch.tensor([True, False]),
        expanded=torch.ones(1).expand(3, 4),
        unsigned=torch.arange(4).to(torch.uint16),
    )
    meta = {
        "best": np.float64(3),
        "counts": np.arange(3),
        "names": {"a"},
        "frozen": frozenset("b"),
        "raw": b"bytes",
    }
    optimizer = torch.optim.SGD([state["parameter"]], 0.1).state_dict()
    torch.save(
        {"meta": meta, "state_dict": state, "optimizer": optimizer},
        tmp_path / "file.pth",
        _use_new_zipfile_serialization=new,
        pickle_protocol=protocol,
    )
    wide = {name: t.float() if t.dtype == torch.bfloat16 else t for name, t in state.items()}
    want = {name: t.detach().numpy() for name, t in wide.items()}
    same(torch_file.read(tmp_path / "file.pth"), want)


def test_pytorch_reads_what_the_tests_write(write):
    torch = pytest.importorskip("torch")
    got = torch.load(write({"a": whole(WEIGHT, "0")}), weights_only=True)
    np.testing.assert_array_equal(got["a"].numpy(), WEIGHT, strict=True)


def test_a_whole_model(tmp_path):
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(2, 3)
    for new in (True, False):
        torch.save(model, tmp_path / "file.pth", _use_new_zipfile_serialization=new)
        refused(tmp_path / "file.pth", "state_dict()")
