"""PyTorch state dicts -> variables: names by table, leaves by one rule; torch is not imported.

A table is a list of (regex, replacement), kept beside the module that owns the parameters. The
first regex that matches a PyTorch module's whole dotted name gives the path in the parameter tree.
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
DROPPED = ("num_batches_tracked",)
# Parts of a Segmenter -> what MMSegmentation calls them.
PARTS = {
    "backbone": "backbone",
    "neck": "neck",
    "head": "decode_head",
    "aux_head": "auxiliary_head",
}
SHOWN = 20  # mismatches of a kind that an error spells out


def torch_names(model: nn.Module) -> Names:
    """The table of a whole `Segmenter`, from the `torch_names` of its parts' modules."""
    table = []
    for ours, theirs in PARTS.items():
        part = getattr(model, ours)
        if isinstance(part, tuple):  # Linen numbers the modules of a tuple
            parts = {(f"{ours}_{i}", rf"{theirs}\.{i}"): module for i, module in enumerate(part)}
        else:
            parts = {} if part is None else {(ours, theirs): part}
        for (path, name), module in parts.items():
            rows = sys.modules[type(module).__module__].torch_names(module)
            table += [(rf"{name}\.{row}", f"{path}/{here}") for row, here in rows]
    return table


def place(key: str, rank: int, names: Names) -> str | None:
    """Where the tensor `key` of `rank` dimensions goes, 'params/head/.../kernel', or None."""
    module, _, leaf = key.rpartition(".")
    if leaf not in LEAVES:
        return None
    collection, name = LEAVES[leaf]
    if leaf == "weight" and rank == 1:
        name = "scale"
    for pattern, replacement in names:
        match = re.fullmatch(pattern, module)
        if match:
            return f"{collection}/{match.expand(replacement)}/{name}"
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
