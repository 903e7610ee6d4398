"""One checkpoint on disk: what its `meta` says of the rest, and reading it with a check.

    <step>/model   params, model_state and ema: all that prediction needs
    <step>/train   opt_state and step
    <step>/meta    JSON: what the caller gave, the score, and the shape, dtype and CRC-32 of every
                   array; itself under a CRC-32

Orbax loads an array with a flipped bit without a word, hence the checksums.
"""

import functools
import json
import logging as python_logging
import os
import pathlib
import sys
import traceback
import warnings
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils

from jaxseg.errors import UserError
from jaxseg.trees import listed, mismatches, named_leaves, nested, place
from jaxseg.writer import jsonable, write_atomically

ITEMS = ("model", "train")
_FORMAT = 1


class Damage(Exception):
    """A checkpoint that cannot be read as it was written; says which part."""


def items(state: Any) -> dict[str, Any]:
    """A `TrainState`, or shapes of one, as it is divided on disk."""
    model = {"params": state.params, "model_state": state.model_state, "ema": state.ema}
    return {"model": model, "train": {"opt_state": state.opt_state, "step": state.step}}


def checksum(leaf: Any) -> int:
    """CRC-32 of an array's bytes in C order, whatever its sharding. Any flipped bit changes it."""
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8))


def envelope(
    step: int, named: Mapping[str, Mapping[str, Any]], meta: Mapping[str, Any], score: float | None
) -> dict[str, Any]:
    """The `meta` item for a state.

    Args:
      step: the number of steps taken.
      named: item -> name -> array.
      meta: JSON values of the caller's.
      score: of this state; not a number is the same as none.
    """
    leaves = {f"{item}/{name}": x for item, tree in named.items() for name, x in tree.items()}
    for leaf in leaves.values():
        if isinstance(leaf, jax.Array):
            leaf.copy_to_host_async()  # all on their way before the first is awaited
    values = {
        "format": _FORMAT,
        "step": int(step),
        "score": None if score is None else jsonable(float(score)),
        "meta": jsonable(meta),
        "leaves": {
            name: {"shape": list(x.shape), "dtype": str(x.dtype), "crc32": checksum(x)}
            for name, x in leaves.items()
        },
    }
    return values | {"crc32": _crc32_of_json(values)}


def replace_meta(folder: pathlib.Path, meta: Mapping[str, Any], score: float | None) -> None:
    """Gives a step on disk another `meta` and score; a kill at any moment leaves one or the other.

    Raises:
      Damage: what is there is not as it was written.
    """
    values = read_envelope(folder)
    values |= {"score": None if score is None else jsonable(float(score)), "meta": jsonable(meta)}
    values["crc32"] = _crc32_of_json(values)
    write_atomically(folder / "meta" / "metadata", json.dumps(values))


def _crc32_of_json(values: Mapping[str, Any]) -> int:
    values = {k: v for k, v in values.items() if k != "crc32"}
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def read_envelope(folder: pathlib.Path) -> dict[str, Any]:
    """The `meta` item of a step. Raises `Damage` when it is absent or not as it was written."""
    try:
        values = json.loads((folder / "meta" / "metadata").read_bytes())
    except FileNotFoundError as error:
        raise Damage("meta is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise Damage(f"meta cannot be read: {reason(error)}") from error
    if not isinstance(values, dict) or values.get("crc32") != _crc32_of_json(values):
        raise Damage("meta differs from its checksum")
    if values.get("format") != _FORMAT:
        raise UserError(
            f"{folder}: checkpoint format {values.get('format')!r:.40}, this jaxseg reads "
            f"{_FORMAT}; use the version that wrote it, which manifest.json of the run names"
        )
    if not _is_whole(values):
        raise Damage("meta is not what jaxseg writes")
    return values


def _is_whole(values: Mapping[str, Any]) -> bool:
    """Whether it has the form of `envelope`: who alters a file can alter its checksum as well."""
    match values:
        case {"score": None | float() | int(), "meta": dict(), "leaves": dict(leaves)}:
            return all(map(_is_leaf, leaves.values()))
    return False


def _is_leaf(leaf: Any) -> bool:
    match leaf:
        case {"shape": list(shape), "dtype": str(dtype), "crc32": int()}:
            try:
                named = jax.ShapeDtypeStruct(shape, dtype).dtype.kind != "O"
            except (TypeError, ValueError, OverflowError):
                return False
            return named and all(type(n) is int and n >= 0 for n in shape)
    return False


def score(folder: pathlib.Path) -> dict[int, float]:
    """{step: score} of a step folder, empty when it has none or is damaged."""
    try:
        values = read_envelope(folder)
    except Damage:
        return {}
    return {} if values["score"] is None else {int(folder.name): values["score"]}


def checksums(workdir: str | os.PathLike) -> dict[str, int | None]:
    """{step: CRC-32 of its `meta`, which has those of the arrays} of a run; None where damaged."""
    found = {}
    for folder in sorted((pathlib.Path(workdir) / "checkpoints").glob("*"), key=lambda p: p.name):
        if folder.name.isdigit():
            try:
                found[folder.name] = read_envelope(folder)["crc32"]
            except (Damage, UserError):
                found[folder.name] = None
    return found


def _shapes(values: Mapping[str, Any], item: str) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        name.removeprefix(f"{item}/"): jax.ShapeDtypeStruct(leaf["shape"], leaf["dtype"])
        for name, leaf in values["leaves"].items()
        if name.startswith(f"{item}/")
    }


def _read_item(folder: pathlib.Path, values: Mapping[str, Any], item: str) -> dict[str, np.ndarray]:
    """{name: array} of an item. Raises `Damage` when an array is not as it was written."""
    quiet_orbax()
    # NumPy targets: Orbax then never looks for the devices that the state was saved from.
    try:
        target = {name: np.empty(x.shape, x.dtype) for name, x in _shapes(values, item).items()}
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
            tree = reader.restore(folder / item, args=ocp.args.StandardRestore(nested(target)))
    except Exception as error:  # damage shows as many types: ValueError, KeyError, OSError ...
        raise Damage(f"{item} cannot be read: {reason(error)}") from error
    named = flatten_dict(tree, sep="/")
    for name, leaf in named.items():
        if checksum(leaf) != values["leaves"][f"{item}/{name}"]["crc32"]:
            raise Damage(f"{item}/{name} differs from its checksum")
    return named


def read_state(folder: pathlib.Path, abstract: Any) -> tuple[Any, dict[str, Any]]:
    """(state, meta) of one step folder, on the shardings of `abstract`, a `TrainState` of shapes.

    Raises:
      Damage: something is not as it was written.
      UserError: the checkpoint is of another model or optimizer.
    """
    values = read_envelope(folder)
    wanted = items(abstract)
    for item, what in zip(ITEMS, ("model", "optimizer"), strict=True):
        lines = mismatches(named_leaves(wanted[item]), _shapes(values, item))
        if lines:
            raise UserError(
                f"{folder}: the checkpoint is of another {what}, {len(lines)} arrays differ:"
                f"{listed(lines)}\n"
                "undo the change of the config, or train in another --workdir; to start that one "
                f"from these weights use --config.init_from={folder}, and --config.init_skip for "
                "the parts that differ"
            )
    restored = {}
    for item in ITEMS:
        named = _read_item(folder, values, item)
        leaves = [place(named[name], like) for name, like in named_leaves(wanted[item]).items()]
        restored |= jax.tree.unflatten(jax.tree.structure(wanted[item]), leaves)
    return abstract.replace(**restored), values["meta"]


def read_variables(folder: pathlib.Path, abstract: Any = None) -> tuple[Any, dict[str, Any]]:
    """(variables, meta) of one step folder, see `checkpoint.load_model`.

    Raises:
      Damage: something is not as it was written.
      UserError: the checkpoint is of another model.
    """
    values = read_envelope(folder)
    kinds = {name.partition("/")[0] for name in _shapes(values, "model")}
    renamed = {"ema" if "ema" in kinds else "params": "params/", "model_state": ""}

    def variables(named: Mapping[str, Any]) -> dict[str, Any]:
        parts = {name: name.partition("/") for name in named}
        return {
            renamed[kind] + rest: named[name]
            for name, (kind, _, rest) in parts.items()
            if kind in renamed
        }

    if abstract is not None:
        wanted = named_leaves(abstract)
        lines = mismatches(wanted, variables(_shapes(values, "model")))
        if lines:
            raise UserError(
                f"{folder}: the checkpoint is of another model, {len(lines)} arrays differ:"
                f"{listed(lines)}\n"
                "use the config that it was trained with: config.json in the workdir of its run"
            )
    named = variables(_read_item(folder, values, "model"))
    if abstract is None:
        return nested(named), values["meta"]
    leaves = [place(named[name], like) for name, like in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves), values["meta"]


def reason(error: Exception) -> str:
    """What went wrong, in a line: Orbax and TensorStore send pages."""
    text = " ".join(str(error).split())
    for known in ("No space left on device", "Disk quota exceeded", "File too large"):
        if known in text:
            return known
    return f"{type(error).__name__}: {text[:200]}"


@functools.cache
def quiet_orbax() -> None:
    """Keeps Orbax out of the log: it tells every phase of a save, and its failures raise anyway.

    Where one array cannot be written, asyncio would tell at length of each of the others, and
    Python of the event loop that these find closed and of those whose turn never came.
    """
    warnings.filterwarnings("ignore", "coroutine '.*(serialize|Checkpoint|Store)", RuntimeWarning)
    asyncio = python_logging.getLogger("asyncio")
    for logger in (logging.get_absl_logger(), asyncio):
        logger.addFilter(_not_from_orbax)
    asyncio.addFilter(_not_of_a_save)
    hook = sys.unraisablehook

    def quieter(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    sys.unraisablehook = quieter


def _not_from_orbax(record: python_logging.LogRecord) -> bool:
    files = [record.pathname]
    if record.exc_info and record.exc_info[2]:
        files += [frame.filename for frame in traceback.extract_tb(record.exc_info[2])]
    return not any(file.startswith(os.path.dirname(ocp.__file__)) for file in files)


def _not_of_a_save(record: python_logging.LogRecord) -> bool:
    """TensorStore's failures and tasks left over have no traceback, but say what they were at."""
    message = record.getMessage()
    return "orbax-checkpoint-tmp" not in message and os.path.dirname(ocp.__file__) not in message
