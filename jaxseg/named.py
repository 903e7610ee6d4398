"""What a config names: one look-up for functions, keywords and outputs, one message for a typo."""

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from jaxseg.errors import UserError


def check(key: str, what: str, name: str | None, known: Iterable[str]) -> None:
    """Raises `UserError` unless `name` is one of `known`.

    Args:
      key: the config key at fault, 'config.losses.logits.name'.
      what: what the name stands for, 'loss'.
      name: what the user wrote.
      known: the names that exist; the message lists them and suggests the nearest.
    """
    known = list(known)
    if name in known:
        return
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f", did you mean {near[0]!r}?" if near else "."
    raise UserError(f"{key}: unknown {what} {name!r}{hint} Known: {', '.join(known) or 'none'}")


def keywords(function: Callable) -> tuple[str, ...]:
    """The names of a function's keyword-only parameters: those a config may set."""
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)


def imported(key: str, module: str, name: str, expected: str) -> Any:
    """`name` of an importable module, for names with a dot in a config.

    Args:
      key: the config key at fault and its value, "config.model.name='my.net'".
      module: dotted name of the module.
      name: what it is to define.
      expected: how the message says what was expected.

    Raises:
      UserError: there is no such module, or it does not define `name`. Errors within the module
        are its own.
    """
    if not all(map(str.isidentifier, module.split("."))):
        raise UserError(f"{key}: expected {expected}, a.b.c")
    try:
        return getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there; something that it imports is not
        raise UserError(f"{key}: expected {expected}, but: {error}") from error
