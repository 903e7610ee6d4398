"""Datasets and the input pipeline."""

import importlib
from collections.abc import Mapping
from typing import Any

from jaxseg.data.base import Description, Record
from jaxseg.errors import UserError

__all__ = ["Description", "Record", "get"]

DATASETS = ("synthetic", "cityscapes", "ade20k", "voc2012", "camvid", "folder")


def get(spec: Mapping[str, Any]) -> Description:
    """The description that `spec` names: `spec['name']` is the module, the rest its arguments.

    A name without a dot is a module of `jaxseg.data`; one with a dot is any importable module
    with a `describe` function.

    Raises:
      UserError: no such module, or arguments it does not take.
    """
    arguments = dict(spec)
    name = arguments.pop("name")
    path = name if "." in name else f"jaxseg.data.{name}"
    try:
        describe = importlib.import_module(path).describe
    except (ModuleNotFoundError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name != path:
            raise
        raise UserError(
            f"config.data.name={name!r}: no such dataset. jaxseg has {', '.join(DATASETS)}; "
            "a dotted name is imported as it stands and must define describe(...)"
        ) from error
    try:
        return describe(**arguments)
    except TypeError as error:
        if "unexpected keyword" not in str(error) and "required" not in str(error):
            raise
        raise UserError(f"config.data for {name!r}: {error}") from error
