"""Settings that came with somebody else's folder may not run the code that came with it.

A config names models, losses and data sets, and a name with a dot is any importable module. In a
config of one's own that is how own code is used. In a downloaded folder it would start whatever
lies beside the weights, as soon as Python finds the folder from where it is started.
"""

import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from jaxseg.errors import UserError


def refuse_modules(file: pathlib.Path, values: Any) -> None:
    """Raises `UserError` where a 'name' within `values`, read from `file`, is a module that lies in
    the folder of `file` or below. Nothing is imported to find out."""
    folder = file.parent.resolve()
    for key, name in _dotted(values, ""):
        parts = name.split(".")
        for root in sys.path:
            for depth in range(1, len(parts) + 1):
                path = pathlib.Path(root, *parts[:depth]).resolve()
                if folder in (path, *path.parents) and _is_there(path):
                    raise UserError(
                        f"{file}: {key}={name!r} is code that lies in this very folder; a folder "
                        "that comes from somewhere else would run what it likes by that. Nothing "
                        "was run. If you trust it, move the module out of the folder, to a place "
                        "on Python's path, and name that"
                    )


def _dotted(values: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """(key, value) of every 'name' with a dot."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            if key == "name" and isinstance(value, str) and "." in value and "\0" not in value:
                yield f"{prefix}{key}", value
            yield from _dotted(value, f"{prefix}{key}.")
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _dotted(value, prefix)


def _is_there(path: pathlib.Path) -> bool:
    """Whether a module or a package of this path without suffix can be imported."""
    return path.is_dir() or (path.parent.is_dir() and any(path.parent.glob(f"{path.name}.*")))
