"""Whose state dict is it? Toolboxes name the same parameters differently.

Each part of a model has one table of names per dialect, beside its module: `torch_names` is
MMSegmentation's, `torchvision_names` and `smp_names` are others'. A part without a table of a
dialect does not exist there. Where the values differ too (channels in another order), a function
like `torchvision_values` beside it puts them right.
"""

import dataclasses
import re
import sys
from collections.abc import Mapping
from typing import Any

from jaxseg import convert
from jaxseg.errors import UserError
from jaxseg.models.segmenter import Segmenter


@dataclasses.dataclass(frozen=True)
class Dialect:
    """How a toolbox names things.

    Attributes:
      name: the toolbox.
      sign: regex that begins some key of every such state dict, and none of the others'.
      names: the functions of the parts' modules that give their tables.
      values: those that adapt a state dict, in the few modules that need it.
      parts: parts of a `Segmenter` -> regex that begins their keys.
    """

    name: str
    sign: str
    names: str
    values: str
    parts: Mapping[str, str]


DIALECTS = (
    Dialect("MMSegmentation", r"decode_head\.", "torch_names", "torch_values", convert.PARTS),
    Dialect(
        "torchvision",
        r"classifier\.",
        "torchvision_names",
        "torchvision_values",
        {"backbone": r"backbone\.", "head": r"classifier\.", "aux_head": r"aux_classifier\."},
    ),
    Dialect(
        "segmentation_models.pytorch",
        r"segmentation_head\.",
        "smp_names",
        "smp_values",
        {"backbone": r"encoder\.", "head": ""},
    ),
)
WRAPPERS = ("module.", "model.", "_orig_mod.")  # DataParallel, Lightning, torch.compile


def unwrapped(state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict without a prefix that every name of it has from how it was trained."""
    for wrapper in WRAPPERS:
        if state_dict and all(key.startswith(wrapper) for key in state_dict):
            return unwrapped({key.removeprefix(wrapper): v for key, v in state_dict.items()})
    return state_dict


def read(
    model: Segmenter, state_dict: Mapping[str, Any]
) -> tuple[Mapping[str, Any], convert.Names]:
    """A state dict in `model`'s order of channels, and the table of the names that it uses.

    The dialect is told by the names, and MMSegmentation's by default.

    Raises:
      UserError: a part of the model does not exist in that toolbox.
    """
    state_dict = unwrapped(state_dict)
    spoken = (d for d in DIALECTS if any(re.match(d.sign, key) for key in state_dict))
    dialect = next(spoken, DIALECTS[0])
    for part, _, _ in convert.parts_of(model, dialect.parts):
        module = sys.modules[type(part).__module__]
        if not hasattr(module, dialect.names):
            raise UserError(
                f"the weights are of {dialect.name}, by their names, which has no "
                f"{type(part).__name__} like this model's; docs/zoo.md lists what can be read"
            )
        if hasattr(module, dialect.values):
            state_dict = getattr(module, dialect.values)(part, state_dict)
    return state_dict, convert.torch_names(model, dialect.parts, dialect.names)
