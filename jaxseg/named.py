"""What a config names: one look-up for functions, keywords and outputs, one message for a typo."""

import difflib
import inspect
from collections.abc import Callable, Iterable

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
