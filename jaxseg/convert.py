"""PyTorch state dicts <-> variables: names by table, leaves by one rule; torch is not imported.

A table is a list of (regex, replacement), kept beside the module that owns the parameters. The
first regex that matches a PyTorch module's whole dotted name gives the path in the parameter tree.
A parameter that is none of `LEAVES` has a row of its own, which matches its own whole name.

Backwards, a row's replacement becomes the regex and its regex the replacement. That takes rows
whose sides determine each other: all that varies in a name is a group, and every group is in the
path. A row that is more general can be read forwards only.
"""

import functools
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from flax import traverse_util

from jaxseg import matching
from jaxseg.errors import UserError
from jaxseg.trees import named_leaves

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
# A group that a replacement can name, an escaped character, or one that stands for itself.
_PIECES = re.compile(
    r"\((?:\?P<(?P<name>\w+)>)?(?P<group>[^()?][^()]*)\)|\\(?P<escaped>\W)|(?P<plain>[\w-])"
)


def torch_names(
    model: nn.Module, parts: Mapping[str, str] = PARTS, function: str = "torch_names"
) -> Names:
    """The table of a whole `Segmenter`, from that `function` of its parts' modules.

    Raises:
      UserError: a module does not have it.
    """
    table = []
    for part, path, prefix in parts_of(model, parts):
        module = sys.modules[type(part).__module__]
        if not hasattr(module, function):
            raise UserError(
                f"{module.__name__} has no function {function}, so that the names of PyTorch's "
                f"weights of {type(part).__name__} are not known; jaxseg/models has examples"
            )
        rows = getattr(module, function)(part)
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


def untransposed(value: np.ndarray) -> np.ndarray:
    """The inverse of `transpose`: [..., in, out] -> [out, in, ...], in C order."""
    if value.ndim >= 2:
        value = value.transpose(value.ndim - 1, value.ndim - 2, *range(value.ndim - 2))
    return np.ascontiguousarray(value).reshape(value.shape)


def match(state_dict: Mapping[str, Any], wanted: Mapping[str, Any], names: Names) -> matching.Match:
    """Lays a PyTorch state dict beside the places `wanted` of a model.

    Args:
      state_dict: name -> array, or anything that `np.asarray` takes.
      wanted: place -> anything with a shape.
      names: the table, e.g. from `torch_names`.
    """
    entries = []
    for key, value in state_dict.items():
        if key.rpartition(".")[2] in DROPPED:
            continue
        value = np.asarray(value)
        path = place(key, value.ndim, names)
        if path not in wanted:  # of another rank: a vector where a kernel belongs, or the reverse
            other = place(key, 2 if value.ndim == 1 else 1, names)
            path = other if other in wanted else path
        entries.append((key, path, transpose(value)))
    return matching.match(entries, wanted)


def from_torch(
    state_dict: Mapping[str, Any],
    abstract_variables: Any,
    names: Names,
    source: str = "",
    advise: Callable[[matching.Match], str] = lambda found: "",
) -> Any:
    """Variables with the values of a PyTorch state dict.

    Args:
      state_dict: name -> array, or anything that `np.asarray` takes.
      abstract_variables: the variables to fill, e.g. from `jax.eval_shape`; shapes and dtypes.
      names: the table, e.g. from `torch_names`.
      source: the file's name, for the message.
      advise: the end of the message: how to mend it.

    Returns:
      NumPy arrays in the structure, shapes and dtypes of `abstract_variables`.

    Raises:
      UserError: lists every name without a place, place without a source, unequal shape, and place
        with two sources. See `matching` for what cannot be seen.
    """
    wanted = traverse_util.flatten_dict(abstract_variables, sep="/")
    found = match(state_dict, wanted, names)
    if not found.fits():
        keys = functools.partial(key_of, names=names)
        raise UserError(matching.report(found, keys, source) + advise(found))
    filled = {path: value.astype(wanted[path].dtype) for path, value in found.values.items()}
    return traverse_util.unflatten_dict(filled, sep="/")


def to_torch(variables: Any, names: Names) -> dict[str, np.ndarray]:
    """The PyTorch state dict of variables: the inverse of `from_torch`, to the last bit.

    Counters (`num_batches_tracked`) and buffers that carry no information are not in it; PyTorch
    takes a state dict without counters.

    Args:
      variables: arrays.
      names: the table, e.g. from `torch_names`.

    Raises:
      UserError: parameters without a name in the table.
    """
    state_dict, nameless = {}, []
    for path, leaf in named_leaves(variables).items():
        key = key_of(path, names)
        if key is None:
            nameless.append(path)
        else:
            state_dict[key] = untransposed(np.asarray(leaf))
    if nameless:
        raise UserError(
            f"{len(nameless)} parameters of this model have no names in PyTorch, such as "
            f"{nameless[0]}: PyTorch has no such network that is known here. Write a folder, which "
            "every model has, in place of a .safetensors file"
        )
    return state_dict


def key_of(path: str, names: Names) -> str | None:
    """What PyTorch calls the parameter 'params/head/.../kernel', or None."""
    collection, _, whole = path.partition("/")
    module, _, leaf = whole.rpartition("/")
    for theirs, (kind, ours) in LEAVES.items():
        if kind == collection and leaf in (ours, "scale" if theirs == "weight" else ours):
            rank = 1 if leaf == "scale" else 2
            for name in _modules(module, names):
                if place(f"{name}.{theirs}", rank, names) == path:
                    return f"{name}.{theirs}"
    for name in _modules(whole, names):  # rows of single parameters
        if place(name, 2, names) == path:
            return name
    return None


def _modules(path: str, names: Names) -> Iterator[str]:
    """Names that rows lead from to `path`, if no row before them takes them elsewhere."""
    for pattern, replacement in names:
        row = _inverted(pattern, replacement)
        match = row and re.fullmatch(row[0], path)
        if match:
            yield "".join(match[piece] if piece in row[1] else piece for piece in row[2])


@functools.cache
def _inverted(pattern: str, replacement: str) -> tuple[str, set, list] | None:
    """(regex of paths, its groups, the name in pieces, some of them groups) of a row.

    None when a path does not determine the name.
    """
    pieces, groups, at = [], {}, 0
    for piece in _PIECES.finditer(pattern):
        if piece.start() != at:
            return None
        at = piece.end()
        if piece["group"]:
            group = f"_{1 + len(groups)}"
            groups[group] = (piece["name"], piece["group"])
            pieces.append(group)
        else:
            pieces.append(piece["escaped"] or piece["plain"])
    if at != len(pattern):
        return None
    by_name = {name: group for group, (name, _) in groups.items()}
    expression, seen = "", set()
    for literal, number, name in re.findall(r"([^\\]+)|\\(\d+)|\\g<(\w+)>", replacement):
        number = number or (name if name.isdigit() else "")
        if literal:
            expression += re.escape(literal)
            continue
        group = f"_{number}" if number else by_name[name]
        expression += f"(?P={group})" if group in seen else f"(?P<{group}>{groups[group][1]})"
        seen.add(group)
    return (expression, seen, pieces) if seen == groups.keys() else None
