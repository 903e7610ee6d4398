"""Writes checkpoint files as PyTorch does, without PyTorch, and such as it never would."""

import dataclasses
import io
import json
import pathlib
import pickle
import struct
import zipfile
from typing import Any

import numpy as np
import pytest

from jaxseg import torch_file
from jaxseg.errors import UserError

KINDS = {
    **{"f8": "Double", "f4": "Float", "f2": "Half", "i8": "Long", "i4": "Int", "i2": "Short"},
    **{"i1": "Char", "u1": "Byte", "b1": "Bool"},
}
MAGIC = 0x1950A86A20F9469CFC6C


@dataclasses.dataclass(frozen=True, eq=False)
class Name:
    """A class or function that need not exist here."""

    module: str
    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class Do:
    """A call of `callee` when the pickle is opened, and then the state that the result is given."""

    callee: Name
    args: tuple
    state: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class Store:
    """A tensor's numbers; `count` is what the file claims."""

    key: str
    data: bytes
    kind: str
    count: int


class Pickler(pickle._Pickler):
    """Python's own in protocol 2, with the placeholders above."""

    dispatch = dict(pickle._Pickler.dispatch)

    def __init__(self, file, view: tuple):
        super().__init__(file, protocol=2)
        self.view, self.stores = view, {}

    def persistent_id(self, value):
        if isinstance(value, Store):
            self.stores[value.key] = value
            kind = Name("torch", f"{value.kind}Storage")
            return ("storage", kind, value.key, "cpu", value.count, *self.view)
        return None

    def save_name(self, value):
        self.write(f"c{value.module}\n{value.name}\n".encode())

    def save_do(self, value):
        self.save(value.callee)
        self.save(value.args)
        self.write(pickle.REDUCE)
        if value.state is not None:
            self.save(value.state)
            self.write(pickle.BUILD)

    dispatch[Name], dispatch[Do] = save_name, save_do


def store(array: np.ndarray, key: str, kind: str | None = None, count: int | None = None) -> Store:
    kind = kind or KINDS[array.dtype.str[1:]]
    return Store(key, array.tobytes(), kind, array.size if count is None else count)


def tensor(values: Store, shape, strides, first=0) -> Do:
    rebuild = Name("torch._utils", "_rebuild_tensor_v2")
    return Do(rebuild, (values, first, tuple(shape), tuple(strides), False, {}))


def whole(array: np.ndarray, key: str) -> Do:
    """The tensor of all of an array."""
    strides = [stride // array.itemsize for stride in array.strides]
    return tensor(store(array, key), array.shape, strides)


def pickled(value: Any, *view) -> tuple[bytes, dict[str, Store]]:
    file = io.BytesIO()
    pickler = Pickler(file, view)
    pickler.dump(value)
    return file.getvalue(), pickler.stores


def zipped(value: Any, order: str = "little", **options) -> bytes:
    """The format since PyTorch 1.6. `value` may also be a pickle's bytes."""
    data, stores = (value, {}) if isinstance(value, bytes) else pickled(value)
    records = {"data.pkl": data, "byteorder": order.encode(), "version": b"3\n"}
    records |= {f"data/{key}": store.data for key, store in stores.items()}
    return archive({f"archive/{name}": data for name, data in records.items()}, **options)


def archive(records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return file.getvalue()


def stream(value: Any) -> bytes:
    """The format before PyTorch 1.6."""
    data, stores = (value, {}) if isinstance(value, bytes) else pickled(value, None)
    machine = {"protocol_version": 1001, "little_endian": True}
    parts = [pickle.dumps(part, 2) for part in (MAGIC, 1001, machine)]
    parts += [data, pickle.dumps(list(stores), 2)]
    for one in stores.values():
        parts += [struct.pack("<q", one.count), one.data]
    return b"".join(parts)


def safetensors(arrays: dict[str, np.ndarray], **changes) -> bytes:
    """`changes` replace entries of the header."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, array in arrays.items():
        kind = {"f": "F", "i": "I", "u": "U", "b": "BOOL"}[array.dtype.kind]
        header[name] = {
            "dtype": kind if kind == "BOOL" else f"{kind}{8 * array.itemsize}",
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + array.nbytes],
        }
        data += array.tobytes()
    text = json.dumps(header | changes).encode()
    return struct.pack("<Q", len(text)) + text + data


FORMATS = {"zip": zipped, "stream": stream}


def saved(tmp_path, data: bytes) -> pathlib.Path:
    path = tmp_path / "file.pth"
    path.write_bytes(data)
    return path


def refused(path, *words) -> str:
    """Asserts the file's error, with the words in it, and returns it."""
    with pytest.raises(UserError) as caught:
        torch_file.read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    for word in words:
        assert word in message
    return message
