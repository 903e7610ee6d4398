"""Variables and states as dictionaries from '/'-joined names to arrays.

Names do not depend on the container classes of flax and optax, and every message can say which
parameter it is about.
"""

import re
from collections.abc import Mapping, Sequence
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


def fill(variables: Any, loaded: Any, skip: str | Sequence[str] | None, source: str) -> Any:
    """`variables` with the values of `loaded`, but for what is skipped.

    Args:
      variables: {'params': ..., 'batch_stats': ...} of arrays; shapes, dtypes and shardings stay.
      loaded: the same from elsewhere, on the host.
      skip: regular expressions for names without the collection: 'head/classifier' covers
        everything under that module, and nothing of 'head/classifier2' or 'aux_head/classifier'.
      source: where `loaded` comes from, for messages.

    Raises:
      UserError: lists everything that does not fit and is not skipped; or a regex is wrong or
        matches nothing.
    """
    ours, theirs = named_leaves(variables), named_leaves(loaded)
    skipped = _matching([*ours, *theirs], [skip] if isinstance(skip, str) else skip or ())
    lines = mismatches(
        {name: leaf for name, leaf in ours.items() if name not in skipped},
        {name: leaf for name, leaf in theirs.items() if name not in skipped},
        dtypes=False,
    )
    if lines:
        report = listed({_in_module(name): line for name, line in lines.items()}, len(lines))
        raise UserError(
            f"{source}: {len(lines)} arrays do not fit this model:{report}\n"
            "to leave parts as they are initialised, for example to start a new head, use "
            f"--config.init_skip='{_suggestion(lines)}'"
        )
    fresh = [name for name in ours if name in skipped]
    if fresh:
        modules = sorted({_in_module(name).rpartition("/")[0] for name in fresh})
        say(f"{source}: not taken from it, left as initialised: {', '.join(modules)}")
    leaves = [
        like if name in skipped else place(np.asarray(theirs[name]), like)
        for name, like in ours.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(variables), leaves)


def _matching(names: Sequence[str], expressions: Sequence[str]) -> set[str]:
    found = set()
    for expression in filter(None, expressions):
        try:
            pattern = re.compile(f"(?:{expression})(?:/|$)")
        except re.error as error:
            raise UserError(
                f"config.init_skip: {expression!r} is not a regular expression ({error})"
            ) from error
        hits = {name for name in names if pattern.match(_in_module(name))}
        if not hits:
            parts = sorted({_in_module(name).split("/")[0] for name in names})
            raise UserError(
                f"config.init_skip: {expression!r} matches no parameter; "
                f"their names start with {', '.join(parts)}"
            )
        found |= hits
    return found


def _in_module(name: str) -> str:
    """'params/head/kernel' -> 'head/kernel': without the collection."""
    return name.partition("/")[2]


def _suggestion(lines: Mapping[str, str]) -> str:
    """A regex that covers all mismatches: their modules, or whole parts of the model if many."""
    names = [_in_module(name) for name in lines]
    modules = dict.fromkeys(name.rpartition("/")[0] or name for name in names)
    if len(modules) > 3:
        modules = dict.fromkeys(name.split("/")[0] for name in names)
    return "|".join(modules)
