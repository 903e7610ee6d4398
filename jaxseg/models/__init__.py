"""Models by name.

A module with a function `Model` is an architecture, one with `Backbone` a backbone. Both are found
by importing them: there is no list to enter them in.
"""

import importlib
import inspect
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from jaxseg import named
from jaxseg.errors import UserError


def get(spec: Mapping[str, Any], num_classes: int | None = None):
    """The `Segmenter` that `spec` describes: its 'name' is a module, the rest are its arguments.

    A name without a dot is a module of `jaxseg.models`; one with a dot is any importable module
    that defines `Model(num_classes, ...)`. `spec` may itself hold 'num_classes'.

    Raises:
      UserError: no such model, arguments it does not take, or values it does not know.
    """
    spec = dict(spec)
    stated = spec.pop("num_classes", num_classes)
    if num_classes not in (None, stated):
        raise UserError(
            f"config.model.num_classes={stated} but the dataset has {num_classes} classes: "
            "leave it out, or choose the dataset that the model is for"
        )
    return _call("config.model", spec, "Model", num_classes=stated)


def get_backbone(spec: Mapping[str, Any]):
    """The backbone that `spec` describes, likewise: a module that defines `Backbone(...)`."""
    return _call("config.model.backbone", dict(spec), "Backbone")


def available(factory: str = "Model") -> list[str]:
    """Names of the modules of this package that define `factory`."""
    files = sorted(pathlib.Path(__file__).parent.glob("[!_]*.py"))
    modules = [importlib.import_module(f"{__name__}.{file.stem}") for file in files]
    return [module.__name__.rsplit(".", 1)[1] for module in modules if hasattr(module, factory)]


def _call(where: str, spec: dict[str, Any], factory: str, **given: Any):
    """Imports the module that `spec` names and calls its `factory` with the rest of `spec`."""
    name = spec.pop("name", None)
    function = _find(where, name, factory)
    accepted = [key for key in inspect.signature(function).parameters if key not in given]
    for key in spec:
        named.check(f"{where}.{key}", f"argument of {name}", key, accepted)
    return function(**given, **spec)


def _find(where: str, name: str | None, factory: str) -> Callable:
    given = name
    if not name or "." not in name:
        named.check(f"{where}.name", factory.lower(), name, available(factory))
        name = f"{__name__}.{name}"
    expected = f"the dotted name of an importable module that defines {factory}(...)"
    return named.imported(f"{where}.name={given!r}", name, factory, expected)
