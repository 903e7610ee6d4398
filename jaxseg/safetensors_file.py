"""safetensors: a length (uint64), a JSON header of that length, the numbers without gaps.

Source: the format's description, github.com/huggingface/safetensors.
"""

import json
import os
import pathlib
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxseg import torch_tensors
from jaxseg.torch_pickle import AGAIN, Malformed

_DTYPES = {
    **{"F64": "f8", "F32": "f4", "F16": "f2", "BF16": "bf16", "BOOL": "b1"},
    **{f"{sign}{8 * size}": f"{sign.lower()}{size}" for sign in "IU" for size in (1, 2, 4, 8)},
}
_LONGEST_HEADER = 100_000_000  # bytes, as in the reference implementation


def tensors(data: Any) -> dict[str, np.ndarray]:
    """Name -> array, as `jaxseg.torch_file.read` returns them, of a file's bytes (or a buffer
    whose slices are bytes).

    Raises:
      Malformed: truncated, damaged, or of a dtype that NumPy has not.
    """
    size = int.from_bytes(data[:8], "little")
    start = 8 + size
    if start > len(data) or size > _LONGEST_HEADER:
        raise Malformed(f"truncated, or not a safetensors file: its header has {size} bytes")
    try:
        header = json.loads(data[8:start], object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"damaged: its header is no JSON ({str(error):.80})") from error
    header.pop("__metadata__", None)
    entries = {}
    for name, entry in header.items():
        match entry:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(a), int(b)]}:
                entries[name] = (start + a, start + b, dtype, shape)
            case _:
                raise Malformed(f"damaged: no tensor at {name!r:.200} of its header")
    # Checked before any is read: overlapping tensors could ask for far more than the file has.
    at = start
    for name, (a, b, _, _) in sorted(entries.items(), key=lambda item: item[1][:2]):
        if a != at or b < a:
            raise Malformed("damaged: its tensors overlap, or bytes belong to none of them")
        if b > len(data):
            raise Malformed(f"truncated: {name!r:.200} would end at byte {b}. {AGAIN}")
        at = b
    if at != len(data):
        raise Malformed(f"damaged: {len(data) - at} bytes behind the last tensor. {AGAIN}")
    arrays = torch_tensors.Arrays(bytes, "<", 4 * len(data))
    state = {}
    for name, (a, b, dtype, shape) in entries.items():
        with torch_tensors.naming(name):
            if dtype not in _DTYPES:
                raise Malformed(f"it is of dtype {dtype!r:.40}, which jaxseg does not read")
            state[name] = arrays.contiguous(data[a:b], _DTYPES[dtype], shape)
    return state


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) != len(dict(pairs)):
        raise ValueError("a name is there twice")
    return dict(pairs)


def write(path: pathlib.Path, state: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays of numbers or booleans; a kill at any moment leaves no half file there.

    As the reference implementation does: the widest numbers first, then by name, and the header
    filled up with spaces, so that every array lies at a multiple of its numbers' size.
    """
    names = {np.dtype(code).str[1:]: name for name, code in _DTYPES.items() if code != "bf16"}
    order = sorted(state, key=lambda name: (-state[name].dtype.itemsize, name))
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name in order:
        array = state[name]
        start, end = end, end + array.nbytes
        kind = names[array.dtype.str[1:]]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            array = np.ascontiguousarray(state[name])
            file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
