"""Turns stored masks into class indices, and refuses values that a data set does not know.

A value out of range must not reach the loss: there it is NaN, or trains some class in silence.
"""

from collections.abc import Sequence

import numpy as np

from jaxseg.data.base import Description
from jaxseg.errors import UserError

_SHOWN = 5  # so many offending values are listed in a message


def to_classes(description: Description, stored: np.ndarray, what: str) -> np.ndarray:
    """Class indices and the ignore label of a stored mask.

    Args:
      description: its label_colors, or else its label_map, say what the stored values mean.
      stored: integers [h, w], or uint8 RGB [h, w, 3] where the description has label_colors.
      what: names the mask in messages.

    Returns:
      int32 [h, w].

    Raises:
      UserError: values that the description does not allow, with their counts.
    """
    if description.label_colors is not None:
        return _from_colors(description, stored, what)
    return _from_values(description, stored, what)


def _from_values(description: Description, stored: np.ndarray, what: str) -> np.ndarray:
    """Maps stored integers [h, w] through `label_map` and refuses the rest: int32 [h, w]."""
    classes, ignore = description.num_classes, description.ignore_label
    mapping = description.label_map
    if mapping is None:
        mapping = np.full(max(classes, ignore + 1), -1)
        mapping[:classes] = np.arange(classes)
        mapping[ignore] = ignore
    # One slot more than any stored value that is mapped and than any byte: what lies outside
    # falls into the last slot, which is illegal like every other -1.
    table = np.full(max(256, len(mapping)) + 1, -1, np.int32)
    table[: len(mapping)] = mapping
    table[(table >= classes) & (table != ignore)] = -1
    slots = stored
    if stored.dtype != np.uint8:
        slots = stored.astype(np.int64)
        slots[(slots < 0) | (slots >= len(table))] = len(table) - 1
    label = table.take(slots, mode="clip")  # nothing to clip, but faster than with its check
    if label.min() < 0:
        illegal = label < 0
        allowed = _ranges(np.flatnonzero(table >= 0).tolist())
        raise UserError(
            f"{what}: {_offending(stored[illegal])} not allowed; {description.name} stores "
            f"{allowed}. Correct the mask, or the classes and label_map of the data set"
        )
    return label


def _from_colors(description: Description, stored: np.ndarray, what: str) -> np.ndarray:
    """Looks the colours [h, w, 3] up in `label_colors` and refuses the rest: int32 [h, w]."""
    weights = np.array([1 << 16, 1 << 8, 1])
    colors = np.array(sorted(description.label_colors), np.int64)  # [n, 3]
    codes = colors @ weights
    classes = np.array([description.label_colors[tuple(color)] for color in colors.tolist()])
    pixels = stored.astype(np.int64) @ weights  # [h, w]
    found = np.minimum(np.searchsorted(codes, pixels), len(codes) - 1)
    illegal = codes[found] != pixels
    if illegal.any():
        offending = _offending(pixels[illegal], lambda v: f"({v >> 16}, {v >> 8 & 255}, {v & 255})")
        raise UserError(
            f"{what}: {offending} not allowed; {description.name} knows {len(codes)} colours. "
            "Correct the mask, or the label_colors of the data set"
        )
    return classes[found].astype(np.int32)


def _offending(values: np.ndarray, name=str) -> str:
    """'values 37 (12 pixels), 40 (3 pixels)' of the illegal pixels, the first few."""
    found, counts = np.unique(values, return_counts=True)
    listed = [
        f"{name(v)} ({n} pixel{'s' * (n > 1)})"
        for v, n in zip(found[:_SHOWN].tolist(), counts.tolist(), strict=False)
    ]
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"value{'s' * (len(found) > 1)} {', '.join(listed)}{more}"


def _ranges(values: Sequence[int]) -> str:
    """'0..3, 7, 9..11' for sorted integers."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)
