"""Variables and states as dictionaries from '/'-joined names to arrays.

Names do not depend on the container classes of flax and optax, and every message can say which
parameter it is about.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from jaxseg.console import say
from jaxseg.errors import UserError


def named_leaves(tree: Any) -> dict[str, Any]:
    """{'params/head/classifier/kernel': leaf, ...} in the order of `jax.tree.leaves`."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in flat}


def nested(named: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries from '/'-joined names."""
    return unflatten_dict(dict(named), sep="/")


def place(value: np.ndarray, like: Any) -> Any:
    """A host array as `like`: in its dtype, and on its sharding if it has one."""
    value = value.astype(like.dtype, copy=False)
    sharding = getattr(like, "sharding", None)
    if sharding is None:
        return value
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def mismatches(
    model: Mapping[str, Any], checkpoint: Mapping[str, Any], dtypes: bool = True
) -> dict[str, str]:
    """{name: what differs} between named arrays or shapes; empty when they agree.

    Args:
      model: what is wanted.
      checkpoint: what there is.
      dtypes: whether dtypes must agree too.
    """
    lines = {}
    for name in [*model, *(name for name in checkpoint if name not in model)]:
        if name not in checkpoint:
            lines[name] = f"only in the model, {tuple(model[name].shape)}"
            continue
        theirs = checkpoint[name]
        if name not in model:
            lines[name] = f"only in the checkpoint, {tuple(theirs.shape)}"
        elif tuple(model[name].shape) != tuple(theirs.shape):
            shapes = tuple(theirs.shape), tuple(model[name].shape)
            lines[name] = f"checkpoint {shapes[0]}, model {shapes[1]}"
        elif dtypes and model[name].dtype != theirs.dtype:
            lines[name] = f"checkpoint {theirs.dtype}, model {model[name].dtype}"
    return lines


def listed(lines: Mapping[str, str], limit: int = 8) -> str:
    """Mismatches for a message, one per line: the first few and how many more."""
    shown = "".join(f"\n  {name}: {line}" for name, line in list(lines.items())[:limit])
    more = len(lines) - limit
    return shown + (f"\n  and {more} more" if more > 0 else "")


def fill(
    variables: Any,
    loaded: Any,
    skip: str | Sequence[str] | None,
    source: str,
    left: Collection[str] = (),
) -> Any:
    """`variables` with the values of `loaded`, but for what is skipped or left.

    Args:
      variables: {'params': ..., 'batch_stats': ...} of arrays; shapes, dtypes and shardings stay.
      loaded: the same from elsewhere, on the host.
      skip: regular expressions for names without the collection: 'head/classifier' covers
        everything under that module, and nothing of 'head/classifier2' or 'aux_head/classifier'.
      source: where `loaded` comes from, for messages.
      left: names that are to stay as they are, too; the caller says so.

    Raises:
      UserError: lists everything that does not fit and is not skipped; or a regex is wrong or
        matches nothing.
    """
    ours, theirs = named_leaves(variables), named_leaves(loaded)
    skipped = matching_names([*ours, *theirs], skip)
    lines = mismatches(
        {name: leaf for name, leaf in ours.items() if name not in skipped},
        {name: leaf for name, leaf in theirs.items() if name not in skipped},
        dtypes=False,
    )
    if lines.keys() - set(left):
        report = listed({in_module(name): line for name, line in lines.items()}, len(lines))
        raise UserError(
            f"{source}: {len(lines)} arrays do not fit this model:{report}\n"
            f"{parts(ours, lines)}\n{suggestion(lines)}"
        )
    say_skipped([name for name in ours if name in skipped], source)
    taken = ours.keys() - skipped - set(left)
    return overlay(variables, {name: theirs[name] for name in taken})


def overlay(variables: Any, values: Mapping[str, Any]) -> Any:
    """`variables` with host arrays in the place of some leaves, by name."""
    leaves = [
        place(np.asarray(values[name]), like) if name in values else like
        for name, like in named_leaves(variables).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(variables), leaves)


def say_skipped(fresh: Sequence[str], source: str) -> None:
    if fresh:
        modules = sorted({in_module(name).rpartition("/")[0] for name in fresh})
        say(f"{source}: not taken from it, left as initialised: {', '.join(modules)}")


def parts(names: Collection[str], wrong: Collection[str]) -> str:
    """Which parts of a model fit: 'arrays that fit: backbone 265 of 265, head 2 of 38'."""
    total, fit = ({in_module(name).split("/")[0]: 0 for name in names} for _ in range(2))
    for name in names:
        part = in_module(name).split("/")[0]
        total[part] += 1
        fit[part] += name not in wrong
    return "arrays that fit: " + ", ".join(f"{part} {fit[part]} of {total[part]}" for part in total)


def matching_names(names: Sequence[str], skip: str | Sequence[str] | None) -> set[str]:
    """The names that `config.init_skip` means; see `fill`."""
    found = set()
    for expression in filter(None, [skip] if isinstance(skip, str) else skip or ()):
        try:
            pattern = re.compile(f"(?:{expression})(?:/|$)")
        except re.error as error:
            raise UserError(
                f"config.init_skip: {expression!r} is not a regular expression ({error})"
            ) from error
        hits = {name for name in names if pattern.match(in_module(name))}
        if not hits:
            parts = sorted({in_module(name).split("/")[0] for name in names})
            raise UserError(
                f"config.init_skip: {expression!r} matches no parameter; "
                f"their names start with {', '.join(parts)}"
            )
        found |= hits
    return found


def in_module(name: str) -> str:
    """'params/head/kernel' -> 'head/kernel': without the collection."""
    return name.partition("/")[2]


def suggestion(wrong: Iterable[str]) -> str:
    """How to do without the named arrays: a regex for their modules, or for whole parts if many."""
    names = [in_module(name) for name in wrong]
    modules = dict.fromkeys(name.rpartition("/")[0] or name for name in names)
    if len(modules) > 3:
        modules = dict.fromkeys(name.split("/")[0] for name in names)
    return (
        "to leave parts as they are initialised, for example to start a new head, use "
        f"--config.init_skip='{'|'.join(modules)}'"
    )
