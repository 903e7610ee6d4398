"""NumPy arrays from what `torch_pickle` read of tensors, with every claim checked first.

Stored dtypes are kept, but for bfloat16, which NumPy has not and which becomes float32 without
loss. Arrays are read-only, in C order, and share memory where the tensors did.

Source: `torch/_utils.py` (`_rebuild_tensor_v2` and its kin), `numpy.ndarray.__reduce__`.
"""

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxseg.torch_names import ARRAYS, DTYPES, REBUILD, STORAGES
from jaxseg.torch_pickle import Call, Global, Malformed

_MOST_AXES = 32
_WRAPPERS = ("parameter", "parameter_with_state")


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Storage:
    """A stretch of numbers in the file: the whole of record `key`, or a part in old files.

    `code` is the dtype's kind and bytes ("f4"), or "bf16"; `count` and `first` are in elements,
    `total` those of the record.
    """

    key: str
    code: str
    count: int
    first: int
    total: int


def storage(persistent_id: Any) -> Storage:
    """What a persistent id of PyTorch's stands for.

    Raises:
      Malformed: it is not ("storage", class, key, device, count), with (key, first, count) of a
        part of it, or None, as sixth in the old format.
    """
    match persistent_id:
        case ("module", *_):
            raise Malformed(
                "it holds a whole pickled model rather than a state dict. Open it in PyTorch and "
                "save the state dict alone: torch.save(model.state_dict(), ...)"
            )
        case ("storage", Global(name=name), str(key), str(), total, *view) if (
            _is_count(total) and len(view) <= 1
        ):
            code = STORAGES.get(name)
            first, count = 0, total
            match view:
                case [(_, first, count)] if not (
                    _is_count(first) and _is_count(count) and first + count <= total
                ):
                    code = None
                case [] | [None] | [(_, _, _)]:
                    pass
                case _:
                    code = None
            if code:
                return Storage(key, code, count, first, total)
    raise Malformed("damaged: a reference to the data of a tensor makes no sense")


def itemsize(code: str) -> int:
    return 2 if code == "bf16" else int(code[1:])


def is_array(value: Any) -> bool:
    """Whether the value stands for a tensor or a NumPy array."""
    return isinstance(value, Call) and (value.name in REBUILD or value.name in ARRAYS)


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Puts the tensor's name before what is wrong with it."""
    try:
        yield
    except Malformed as error:
        raise Malformed(f"{name!r:.200}: {error}") from error


class Arrays:
    """Makes arrays of tensors.

    Args:
      raw: a storage's key -> the bytes of the whole record.
      order: "<" or ">", of the bytes of each number.
      limit: bytes that all copies together may take. Tensors that lie in the file as they are need
        no copy; a few numbers that claim to be spread over a large shape do.
    """

    def __init__(self, raw: Callable[[str], bytes], order: str, limit: int):
        self._raw, self._order, self._left = raw, order, limit
        self._records: dict[str, bytes] = {}

    def make(self, value: Call) -> np.ndarray:
        """The array of a value for which `is_array`. Raises Malformed, which says what is wrong."""
        for _ in range(4):  # a parameter of a subclass of a tensor, at worst
            if not isinstance(value, Call):
                break
            kind, args = REBUILD.get(value.name), value.args
            if value.name in ARRAYS:
                return self._numpy(value)
            if kind in _WRAPPERS and args:
                value = args[0]
            elif kind == "from_type" and len(args) == 4 and isinstance(args[0], Global):
                value = Call(args[0].name, args[2] if isinstance(args[2], tuple) else ())
            elif kind in ("tensor", "tensor_v2", "tensor_v3"):
                return self._tensor(kind, args)
            else:
                break
        raise Malformed("it is a kind of tensor that jaxseg does not read (sparse or quantized?)")

    def contiguous(self, raw: bytes, code: str, shape: Any, order: str = "<") -> np.ndarray:
        """The array of `shape` whose numbers are all of `raw`. Raises Malformed."""
        shape = _axes(shape)
        if not _fits(shape) or len(raw) != math.prod(shape) * itemsize(code):
            raise Malformed("damaged: its shape does not fit its data")
        return self._finish(np.frombuffer(raw, _layout(code, order)).reshape(shape), code)

    def _tensor(self, kind: str, args: tuple) -> np.ndarray:
        if len(args) < 4 or not isinstance(args[0], Storage):
            raise Malformed("damaged: no tensor as PyTorch writes it")
        store, first, shape, strides = args[:4]
        code = store.code
        if kind == "tensor_v3":  # dtypes without a storage of their own
            dtype = args[6] if len(args) > 6 else None
            code = DTYPES.get(dtype.name) if isinstance(dtype, Global) else None
        flags = args[6] if kind == "tensor_v2" and len(args) > 6 else None
        if code is None or (isinstance(flags, dict) and any(flags.values())):
            raise Malformed("it is a kind of tensor that jaxseg does not read")
        shape, strides = _axes(shape), _axes(strides)
        if len(shape) != len(strides) or not _is_count(first) or not _fits(shape):
            raise Malformed("damaged: its shape makes no sense")
        size = itemsize(code)
        count = store.count * itemsize(store.code) // size
        if not math.prod(shape):
            return self._finish(np.zeros(shape, "u2" if code == "bf16" else code), code)
        strides = [stride if n > 1 else 0 for n, stride in zip(shape, strides, strict=True)]
        last = first + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if last >= count:
            raise Malformed(f"it reaches to element {last} of a storage that has {count}")
        flat = self._flat(store, code)[first : last + 1]
        view = np.lib.stride_tricks.as_strided(
            flat, shape, [stride * size for stride in strides], writeable=False
        )
        return self._finish(view, code)

    def _flat(self, store: Storage, code: str) -> np.ndarray:
        if store.key not in self._records:
            self._records[store.key] = self._raw(store.key)
        whole = self._records[store.key]
        size = itemsize(store.code)
        # Where PyTorch writes dtypes without an own storage, it counts the bytes.
        if len(whole) != store.total * size:
            raise Malformed(
                f"its data has {len(whole)} bytes where {store.total * size} were announced"
            )
        part = memoryview(whole)[store.first * size : (store.first + store.count) * size]
        part = part[: len(part) // itemsize(code) * itemsize(code)]
        return np.frombuffer(part, _layout(code, self._order))

    def _finish(self, array: np.ndarray, code: str) -> np.ndarray:
        """In native byte order, C order and a dtype of NumPy's; a copy only where it must be."""
        target = np.dtype({"bf16": "f4", "b1": "?"}.get(code, code))
        if not (array.flags.c_contiguous and array.dtype == target):
            self._left -= array.size * max(target.itemsize, 4)
            if self._left < 0:
                raise Malformed("its tensors claim many times the size of the file; refused")
            if code == "bf16":  # the upper half of a float32
                array = (array.astype("u4", order="C") << np.uint32(16)).view("f4")
            elif code == "b1":
                array = np.array(array != 0, order="C")
            else:
                array = array.astype(target, order="C")
        array.flags.writeable = False
        return array

    def _numpy(self, value: Call) -> np.ndarray:
        if ARRAYS[value.name] == "scalar":
            parts = ((), value.args[0], False, value.args[1]) if len(value.args) == 2 else None
        else:
            state = value.state
            parts = state[1:] if isinstance(state, tuple) and len(state) == 5 else None
        if parts is None:
            raise Malformed("damaged: no NumPy array as NumPy writes it")
        shape, dtype, by_columns, raw = parts
        order, code = _numpy_dtype(dtype)
        if by_columns is not True:
            return self.contiguous(_bytes(raw), code, shape, order)
        columns = self.contiguous(_bytes(raw), code, _axes(shape)[::-1], order)
        return self._finish(columns.T, code)


def _layout(code: str, order: str) -> np.dtype:
    """How the numbers lie in the file. Truth values are bytes: any but 0 and 1 would be no bool."""
    return np.dtype({"bf16": "u2", "b1": "u1"}.get(code, code)).newbyteorder(order)


def _numpy_dtype(value: Any) -> tuple[str, str]:
    """(byte order, code) of a pickled dtype of numbers."""
    if isinstance(value, Call) and value.name == "numpy.dtype" and value.args:
        code, state = value.args[0], value.state
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else "<"
        if isinstance(code, str) and re.fullmatch("[iu][1248]|f[248]|b1", code):
            if order in ("<", ">", "|", "="):
                return (">" if order == ">" else "<"), code
    raise Malformed("it is a NumPy array of something other than numbers")


def _bytes(value: Any) -> bytes:
    """Bytes, which protocol 2 writes as a text to encode."""
    match value:
        case bytes():
            return value
        case Call(name="_codecs.encode", args=(str(text), "latin1")):
            try:
                return text.encode("latin-1")
            except UnicodeEncodeError as error:
                raise Malformed("damaged: a NumPy array's data are no bytes") from error
        case Call(name="builtins.bytes", args=()):
            return b""
    raise Malformed("damaged: a NumPy array's data are no bytes")


def _axes(value: Any) -> tuple[int, ...]:
    if isinstance(value, Call) and value.name == "torch.Size" and len(value.args) == 1:
        value = value.args[0]
    if not isinstance(value, tuple | list) or not all(map(_is_count, value)):
        raise Malformed("damaged: its shape makes no sense")
    return tuple(value)


def _fits(shape: tuple[int, ...]) -> bool:
    return len(shape) <= _MOST_AXES and math.prod(max(n, 1) for n in shape) < 1 << 48


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63
