"""Reads the weights in a PyTorch or safetensors file without PyTorch and without trusting it.

Formats, told apart by their content: the zip archives of PyTorch since 1.6, the pickle streams
before them, and safetensors. No code in a file is run and no name in it is looked up, see
`torch_pickle`; sizes are checked against the file before memory is taken.

Source: `torch/serialization.py` (`_save`, `_legacy_save`).
"""

import contextlib
import mmap
import os
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxseg import safetensors_file, torch_tensors
from jaxseg.errors import UserError
from jaxseg.torch_pickle import AGAIN, Malformed, load

# Where files keep the weights, the first that is there; averaged weights only where no others are.
STATE_KEYS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module"),
    *("params", "weights", "params_ema", "model_ema", "state_dict_ema", "ema_state_dict", "ema"),
)
_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_SLACK = 16 << 20  # bytes that small files may spread over, see `torch_tensors.Arrays`


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The state dict in a .pth, .pt, .bin, .ckpt or .safetensors file.

    Where the file holds more than the weights (optimizer, meta, ...), they are taken from the first
    of `STATE_KEYS` that is there and holds nothing but named tensors, also within one another such
    as model/state_dict. Without one of those names there must be exactly one such mapping; several
    (a teacher and a student, say) are an error that names them. Entries that are None or end in
    "_extra_state" are left out, and so is the prefix "module." where every name has it.

    Returns:
      Name -> array, read-only, in C order, in the stored dtype; bfloat16 becomes float32. Arrays
      share memory where the tensors did.

    Raises:
      UserError: the file is missing, truncated, altered, of another kind, or asks for code to run.
    """
    path = pathlib.Path(path)
    try:
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise Malformed(f"it is empty. {AGAIN}")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _state_dict(file, data)
    except Malformed as error:
        raise UserError(f"{path}: {error}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def _state_dict(file: Any, data: mmap.mmap) -> dict[str, np.ndarray]:
    head = data[:512]
    if head.startswith(b"PK"):
        with _damage_of_zip():
            tree, raw, order = _open_zip(file, len(data))
            return _arrays(tree, torch_tensors.Arrays(raw, order, 4 * len(data) + _SLACK))
    if head[8:9] == b"{":
        return _unprefixed(safetensors_file.tensors(data))
    if head.startswith(b"\x80"):
        tree, raw = _open_stream(data)
        return _arrays(tree, torch_tensors.Arrays(raw, "<", 4 * len(data) + _SLACK))
    raise Malformed(_something_else(head))


def _something_else(head: bytes) -> str:
    text = head.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself. Fetch it with: git lfs pull"
    if text.startswith(b"<"):
        return f"it is a web page, not a checkpoint. {AGAIN}, from the file's own address"
    if head[257:262] == b"ustar":
        return (
            "it is a tar archive: packed, or written by PyTorch before 0.2. Unpack it, or save it "
            "again with a later PyTorch"
        )
    if head.startswith(b"\x1f\x8b"):
        return "it is compressed with gzip. Unpack it first"
    return "it is not a checkpoint: neither of PyTorch (.pth) nor safetensors"


# The zip format: <name>/data.pkl, and <name>/data/<key> with the numbers of each storage.


@contextlib.contextmanager
def _damage_of_zip() -> Iterator[None]:
    try:
        yield
    except (
        *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError),
        *(NotImplementedError, RuntimeError, ValueError, KeyError, IndexError),
    ) as error:
        raise Malformed(f"truncated or damaged zip archive ({error}). {AGAIN}") from error


def _open_zip(file: Any, size: int) -> tuple[Any, Callable[[str], bytes], str]:
    """(the pickled value, reader of records, byte order of the numbers)."""
    archive = zipfile.ZipFile(file)
    records = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in records if name.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
        raise Malformed("it is a zip archive, but not one that torch.save wrote")
    if any(
        info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size
        for info in records.values()
    ):
        raise Malformed("it is a zip archive with compressed parts, which torch.save never writes")
    if len(records) != len(archive.infolist()) or size < sum(
        info.file_size for info in records.values()
    ):
        raise Malformed("its parts overlap or are there twice, which torch.save never writes")
    folder = pickles[0].removesuffix("data.pkl")
    if folder + "constants.pkl" in records:
        raise Malformed(
            "it is a TorchScript program (torch.jit.save), not a state dict. Open it in PyTorch "
            "and save the weights: torch.save(torch.jit.load(...).state_dict(), ...)"
        )

    def raw(key: str) -> bytes:
        if f"{folder}data/{key}" not in records:
            raise Malformed(f"damaged: the data of storage {key!r:.40} are missing. {AGAIN}")
        return archive.read(f"{folder}data/{key}")

    order = "<"
    if folder + "byteorder" in records:
        order = {b"little": "<", b"big": ">"}.get(archive.read(folder + "byteorder"))
        if order is None:
            raise Malformed(f"damaged: it has no byte order. {AGAIN}")
    tree, _ = load(archive.read(pickles[0]), 0, torch_tensors.storage)
    return tree, raw, order


# The old format: pickles of the magic number, the version, facts about the writing machine, the
# value and the storages' keys; then for each key the int64 number of elements, and the elements.


def _open_stream(data: mmap.mmap) -> tuple[Any, Callable[[str], bytes]]:
    """(the pickled value, reader of records)."""
    stores: dict[str, torch_tensors.Storage] = {}

    def storage(persistent_id: Any) -> torch_tensors.Storage:
        store = torch_tensors.storage(persistent_id)
        first = stores.setdefault(store.key, store)
        if (first.code, first.total) != (store.code, store.total):
            raise Malformed("damaged: a storage is described in two ways")
        return store

    magic, at = load(data, 0, storage)  # names the code that it would have run, if any
    if magic != _MAGIC:
        raise Malformed("it is a pickle, but not one that torch.save wrote")
    version, at = load(data, at, storage)
    if version != _VERSION:
        raise Malformed(f"it is of version {version!r:.40}, where {_VERSION} was expected")
    _, at = load(data, at, storage)
    tree, at = load(data, at, storage)
    keys, at = load(data, at, storage)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise Malformed("damaged: its list of storages makes no sense")
    places = {}
    for key in keys:
        if key not in stores or key in places:
            raise Malformed("damaged: its list of storages makes no sense")
        store, start = stores[key], at + 8
        at = start + store.total * torch_tensors.itemsize(store.code)
        if at > len(data):
            raise Malformed(f"truncated: {at - len(data)} bytes are missing at least. {AGAIN}")
        if struct.unpack("<q", data[start - 8 : start])[0] != store.total:
            raise Malformed("damaged: a storage is not as long as announced")
        places[key] = slice(start, at)
    if at != len(data):
        raise Malformed(f"damaged: {len(data) - at} bytes behind its last storage. {AGAIN}")

    def raw(key: str) -> bytes:
        if key not in places:
            raise Malformed(f"damaged: the data of storage {key!r:.40} are missing. {AGAIN}")
        return data[places[key]]

    return tree, raw


# From the pickled value to the weights.


def _arrays(tree: Any, arrays: torch_tensors.Arrays) -> dict[str, np.ndarray]:
    state = {}
    for name, value in _select(tree).items():
        if _is_left_out(name, value):
            continue
        with torch_tensors.naming(name):
            state[name] = arrays.make(value)
    return _unprefixed(state)


def _select(tree: Any) -> dict[str, Any]:
    """The mapping of named tensors in the pickled value, see `read`."""
    if not isinstance(tree, dict):
        kind = "a single tensor" if torch_tensors.is_array(tree) else f"a {type(tree).__name__}"
        raise Malformed(f"it holds {kind}, where a state dict was expected")
    for _ in range(3):
        if _is_state(tree):
            return tree
        inner = {key: value for key, value in tree.items() if isinstance(value, dict) and value}
        known = [inner[key] for key in STATE_KEYS if key in inner]
        found = [value for value in known if _is_state(value)]
        if found:
            return found[0]
        distinct = {id(value): key for key, value in reversed(inner.items())}.values()
        others = [key for key in reversed(distinct) if _is_state(inner[key])]
        if len(others) == 1:
            return inner[others[0]]
        if others:
            raise Malformed(
                f"it has several sets of weights: {_listed(others)}. Open it in PyTorch and save "
                f"the wanted one alone: torch.save(torch.load(...)[{others[0]!r:.40}], ...)"
            )
        if not known:
            break
        tree = known[0]
    raise Malformed(f"no state dict found in it; its entries: {_listed(list(tree)) or 'none'}")


def _is_state(value: Any) -> bool:
    named = isinstance(value, dict) and all(
        isinstance(key, str) and (torch_tensors.is_array(entry) or _is_left_out(key, entry))
        for key, entry in value.items()
    )
    return named and any(map(torch_tensors.is_array, value.values()))


def _is_left_out(name: str, value: Any) -> bool:
    return value is None or name.endswith("_extra_state")


def _listed(keys: list[Any]) -> str:
    shown = [f"{key!r:.40}" if isinstance(key, str | int) else "..." for key in keys[:8]]
    return ", ".join(shown + ["..."] * (len(keys) > 8))


def _unprefixed(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without the prefix that `DataParallel` puts before every name."""
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): array for name, array in state.items()}
    return state
