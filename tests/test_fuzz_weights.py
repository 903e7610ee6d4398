"""Damaged weights and checkpoints are arrays or a `UserError`; see `fuzzing`."""

import json
import pathlib
import struct
import zlib

import hypothesis
import numpy as np
import torch_writer as writer
from fuzzing import JSON, damaged, fuzz
from hypothesis import strategies as st

from jaxseg import safetensors_file, stored, torch_file
from jaxseg.errors import UserError
from jaxseg.torch_pickle import Malformed

ARRAYS = {"w": np.arange(6, dtype="f4").reshape(2, 3), "n": np.arange(4), "h": np.ones(3, "f2")}
STATE = {"meta": {"x": 1.5}, "state_dict": {k: writer.whole(v, k) for k, v in ARRAYS.items()}}
WEIGHTS = [writer.zipped(STATE), writer.stream(STATE), writer.safetensors(ARRAYS)]


def mend_zip(data: bytes) -> bytes:
    """The members of a damaged zip with right checksums, so that the pickle within is read."""
    mended = bytearray(data)
    for signature, at_crc, at_size, header in ((b"PK\3\4", 14, 22, 30), (b"PK\1\2", 16, 24, 46)):
        at = data.find(signature)
        while at >= 0 and at + header <= len(data):
            size, names = struct.unpack_from("<IH", data, at_size + at)
            start = at + header + names
            if signature == b"PK\3\4":
                extra = struct.unpack_from("<H", data, at + 28)[0]
                body = data[start + extra :][:size]
            else:
                (local,) = struct.unpack_from("<I", data, at + 42)
                more = sum(struct.unpack_from("<HH", data[local : local + 30].ljust(30, b"\0"), 26))
                body = data[local + 30 + more :][:size]
            mended[at + at_crc : at + at_crc + 4] = struct.pack("<I", zlib.crc32(body))
            at = data.find(signature, at + 4)
    return bytes(mended)


@fuzz
@hypothesis.given(damaged(WEIGHTS) | damaged(WEIGHTS[:1]).map(mend_zip))
def test_weights(data):
    path = pathlib.Path("file.pth")
    path.write_bytes(data)
    try:
        state = torch_file.read(path)
    except UserError as error:
        assert str(error).startswith(f"{path}: ")
        return
    assert all(isinstance(x, np.ndarray) and x.dtype.kind in "fiub" for x in state.values())
    assert sum(x.nbytes for x in state.values()) <= 10 * len(data) + (16 << 20)


@fuzz
@hypothesis.given(
    st.dictionaries(
        st.text(max_size=6) | st.just("__metadata__"),
        JSON
        | st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "BOOL", "F8_E4M3", ""]),
                "shape": st.lists(st.integers(-1, 5) | st.integers(0, 2**70) | JSON, max_size=3),
                "data_offsets": st.lists(st.integers(-4, 40) | JSON, max_size=3),
            }
        ),
        max_size=3,
    ),
    st.binary(max_size=40),
)
def test_headers_of_safetensors(header, numbers):
    text = json.dumps(header).encode()
    try:
        state = safetensors_file.tensors(struct.pack("<Q", len(text)) + text + numbers)
    except Malformed:
        return
    assert sum(x.size for x in state.values()) <= len(numbers)


LEAF = st.fixed_dictionaries(
    {
        "shape": st.lists(st.integers(0, 3) | st.integers(-1, 2**70) | JSON, max_size=3),
        "dtype": st.sampled_from(["float32", "bfloat16", "int64", "object", "U9", "V8"]) | JSON,
        "crc32": st.integers() | JSON,
    }
)
META = st.fixed_dictionaries(
    {"format": st.just(1)},
    optional={
        "step": JSON,
        "score": JSON,
        "meta": JSON | st.just({}),
        "leaves": JSON
        | st.dictionaries(st.text(max_size=9) | st.just("model/params/w"), JSON | LEAF, max_size=3),
    },
)


@fuzz
@hypothesis.given(META | JSON, st.booleans())
def test_what_checkpoints_say_of_themselves(values, sealed):
    folder = pathlib.Path("1")
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    if sealed and isinstance(values, dict):
        values = values | {"crc32": stored._crc32_of_json(values)}
    (folder / "meta" / "metadata").write_text(json.dumps(values))
    try:
        assert set(stored.read_envelope(folder)) >= {"format", "score", "meta", "leaves", "crc32"}
    except (stored.Damage, UserError) as error:
        assert str(error)
    try:
        assert set(stored.score(folder)) <= {1}
    except UserError as error:
        assert "checkpoint format" in str(error)
