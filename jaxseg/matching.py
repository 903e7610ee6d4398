"""A state dict beside the model that it is for: what fits, and one error for all that does not.

Two arrays that were swapped are found where their shapes differ: then both are of a wrong shape.
Between arrays of one shape nothing can tell, nor for an altered number: checksums are for that.
"""

import collections
import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np

from jaxseg.trees import parts

SHOWN = 20  # lines of a kind that an error has at most


@dataclasses.dataclass(frozen=True)
class Match:
    """What became of every entry. Places are our names; all shapes are in our order of axes.

    Attributes:
      values: place -> array, where there is one of the right shape.
      shapes: place -> (its key, shape there, shape in the model), where it is another.
      missing: place -> shape, where there is none.
      unplaced: key -> (place or None, shape), where the model has no such place.
      doubles: place -> its keys, where there are several.
    """

    values: Mapping[str, np.ndarray]
    shapes: Mapping[str, tuple[str, tuple[int, ...], tuple[int, ...]]]
    missing: Mapping[str, tuple[int, ...]]
    unplaced: Mapping[str, tuple[str | None, tuple[int, ...]]]
    doubles: Mapping[str, list[str]]

    def fits(self) -> bool:
        return not (self.shapes or self.missing or self.unplaced or self.doubles)

    def without(self, names: Collection[str]) -> "Match":
        """The same but for some places or keys."""
        fields = (self.values, self.shapes, self.missing, self.unplaced, self.doubles)
        return Match(*({n: x for n, x in field.items() if n not in names} for field in fields))


def match(
    entries: Iterable[tuple[str, str | None, np.ndarray]], wanted: Mapping[str, Any]
) -> Match:
    """Compares (key, place or None, array) with the places that a model has.

    Args:
      entries: of the state dict, arrays in our order of axes.
      wanted: place -> anything with a shape.
    """
    found = Match({}, {}, {}, {}, {})
    keys = collections.defaultdict(list)
    for key, place, value in entries:
        if place not in wanted:
            found.unplaced[key] = (place, value.shape)
            continue
        keys[place].append(key)
        shape = tuple(wanted[place].shape)
        if value.shape == shape:
            found.values[place] = value
        else:
            found.shapes[place] = (key, value.shape, shape)
    for place in sorted(wanted):
        if place not in keys:
            found.missing[place] = tuple(wanted[place].shape)
        elif len(keys[place]) > 1:
            found.doubles[place] = keys[place]
    return found


def report(found: Match, key_of: Callable[[str], str | None], source: str = "") -> str:
    """Everything that does not fit, a line each, by kind; and how much of each part does fit.

    Args:
      found: what does not fit together.
      key_of: PyTorch's name of a place, where it has one.
      source: the file's name.
    """
    kinds = {
        "in the checkpoint, without a place in the model": [
            f"{key}{f' (it would be {place})' if place else ''}, {shape}"
            for key, (place, shape) in found.unplaced.items()
        ],
        "in the model, missing from the checkpoint": [
            f"{place} ({key_of(place) or 'no name in PyTorch'}), {shape}"
            for place, shape in found.missing.items()
        ],
        "of unequal shape": [
            f"{place}: {key} gives {there}, the model has {here}"
            for place, (key, there, here) in found.shapes.items()
        ],
        "with two sources": [
            f"{place}: {' and '.join(keys)}" for place, keys in found.doubles.items()
        ],
    }
    lines = [f"{source}: " if source else ""]
    lines[0] += "the checkpoint does not fit the model:"
    for title, entries in kinds.items():
        if entries:
            lines.append(f"{len(entries)} {title}:")
            lines += [f"  {entry}" for entry in entries[:SHOWN]]
            if len(entries) > SHOWN:
                lines.append(f"  ... and {len(entries) - SHOWN} more")
    wrong = {*found.missing, *found.shapes, *found.doubles}
    return "\n".join([*lines, parts(sorted({*found.values} | wrong), wrong)])
