"""PyTorch state dicts -> variables: names by table, leaves by one rule; torch is not imported.

A table is a list of (regex, replacement), kept beside the module that owns the parameters. The
first regex that matches a PyTorch module's whole dotted name gives the path in the parameter tree.
A parameter that is none of `LEAVES` has a row of its own, which matches its own whole name.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from flax import traverse_util

from jaxseg.errors import UserError

Names = Sequence[tuple[str, str]]

# PyTorch's name of a leaf -> (collection, name here). A weight is a scale if it is a vector.
LEAVES = {
    "weight": ("params", "kernel"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}
# Leaves that nothing learns and no output depends on: a counter, and the constants from which STDC
# makes the targets of its detail loss (`losses.detail`).
DROPPED = ("num_batches_tracked", "laplacian_kernel", "fusion_kernel")
# Parts of a Segmenter -> regex that begins their names in MMSegmentation.
PARTS = {
    "backbone": r"backbone\.",
    "neck": r"neck\.",
    "head": r"decode_head\.",
    "aux_head": r"auxiliary_head\.",
}
SHOWN = 20  # mismatches of a kind that an error spells out


def torch_names(
    model: nn.Module, parts: Mapping[str, str] = PARTS, function: str = "torch_names"
) -> Names:
    """The table of a whole `Segmenter`, from that `function` of its parts' modules."""
    table = []
    for part, path, prefix in parts_of(model, parts):
        rows = getattr(sys.modules[type(part).__module__], function)(part)
        table += [(prefix + theirs, f"{path}/{ours}") for theirs, ours in rows]
    return table


def parts_of(model: nn.Module, parts: Mapping[str, str]) -> list[tuple[nn.Module, str, str]]:
    """(module, path of its parameters, regex that begins its names) of a Segmenter's parts."""
    found = []
    for path, prefix in parts.items():
        part = getattr(model, path)
        if isinstance(part, tuple):  # Linen numbers the modules of a tuple
            found += [(p, f"{path}_{i}", rf"{prefix}{i}\.") for i, p in enumerate(part)]
        elif part is not None:
            found.append((part, path, prefix))
    return found


def place(key: str, rank: int, names: Names) -> str | None:
    """Where the tensor `key` of `rank` dimensions goes, 'params/head/.../kernel', or None."""
    module, _, leaf = key.rpartition(".")
    collection, name = LEAVES.get(leaf, ("params", ""))
    if leaf == "weight" and rank == 1:
        name = "scale"
    for pattern, replacement in names:
        match = re.fullmatch(pattern, module if name else key)
        if match:
            return "/".join(filter(None, (collection, match.expand(replacement), name)))
    return None


def transpose(value: np.ndarray) -> np.ndarray:
    """A weight's axes in our order: [out, in, ...] -> [..., in, out]; vectors stay."""
    return value if value.ndim < 2 else value.transpose(*range(2, value.ndim), 1, 0)


def from_torch(state_dict: Mapping[str, Any], abstract_variables: Any, names: Names) -> Any:
    """Variables with the values of a PyTorch state dict.

    Args:
      state_dict: name -> array, or anything that `np.asarray` takes.
      abstract_variables: the variables to fill, e.g. from `jax.eval_shape`; shapes and dtypes.
      names: the table, e.g. from `torch_names`.

    Returns:
      NumPy arrays in the structure, shapes and dtypes of `abstract_variables`.

    Raises:
      UserError: lists every name without a place, place without a source, unequal shape, and place
        with two sources.
    """
    wanted = traverse_util.flatten_dict(abstract_variables, sep="/")
    sources: dict[str, str] = {}
    filled: dict[str, np.ndarray] = {}
    unplaced, shapes, doubles = [], [], []
    for key, value in state_dict.items():
        if key.rpartition(".")[2] in DROPPED:
            continue
        value = np.asarray(value)
        path = place(key, value.ndim, names)
        if path not in wanted:
            unplaced.append(key if path is None else f"{key} (it would be {path})")
            continue
        if path in sources:
            doubles.append(f"{path}: {sources[path]} and {key}")
            continue
        sources[path] = key
        value = transpose(value)
        if value.shape != wanted[path].shape:
            shapes.append(f"{path}: {key} gives {value.shape}, the model has {wanted[path].shape}")
            continue
        filled[path] = value.astype(wanted[path].dtype)
    missing = sorted(wanted.keys() - sources.keys())
    kinds = {
        "in the checkpoint, without a place in the model": unplaced,
        "in the model, missing from the checkpoint": missing,
        "of unequal shape": shapes,
        "with two sources": doubles,
    }
    if any(kinds.values()):
        raise UserError(_report(kinds))
    return traverse_util.unflatten_dict(filled, sep="/")


def _report(kinds: dict[str, list[str]]) -> str:
    lines = ["the checkpoint does not fit the model (other architecture or number of classes?):"]
    for title, entries in kinds.items():
        if entries:
            lines.append(f"{len(entries)} {title}:")
            lines += [f"  {entry}" for entry in entries[:SHOWN]]
            if len(entries) > SHOWN:
                lines.append(f"  ... and {len(entries) - SHOWN} more")
    return "\n".join(lines)
