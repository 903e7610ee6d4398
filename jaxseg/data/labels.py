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
      [h, w] of `dtype(description)`.

    Raises:
      UserError: values that the description does not allow, with their counts.
    """
    if description.label_colors is not None:
        return _from_colors(description, stored, what)
    return _from_values(description, stored, what)


def dtype(description: Description) -> np.dtype:
    """The narrowest unsigned integers that hold every class, the ignore label and a value more."""
    return np.min_scalar_type(max(_no_class(description), description.ignore_label))


def _no_class(description: Description) -> int:
    """The least number that is neither a class nor the ignore label: what illegal values become."""
    classes = description.num_classes
    return classes + 1 if description.ignore_label == classes else classes


def _from_values(description: Description, stored: np.ndarray, what: str) -> np.ndarray:
    """Maps stored integers [h, w] through `label_map` and refuses the rest."""
    classes, ignore = description.num_classes, description.ignore_label
    mapping, illegal = description.label_map, _no_class(description)
    if mapping is None:
        mapping = np.full(max(classes, ignore + 1), -1)
        mapping[:classes] = np.arange(classes)
        mapping[ignore] = ignore
    # One slot more than any stored value that is mapped and than any byte: what lies outside
    # falls into the last slot, which is illegal as every -1 is.
    table = np.full(max(256, len(mapping)) + 1, illegal, dtype(description))
    legal = ((mapping >= 0) & (mapping < classes)) | (mapping == ignore)
    table[: len(mapping)][legal] = mapping[legal]
    if stored.dtype == table.dtype == np.uint8:  # several times as fast as `take`
        mapped = stored.tobytes().translate(table[:256].tobytes())
        label = np.frombuffer(mapped, np.uint8).reshape(stored.shape)
    else:
        slots = stored
        if stored.dtype != np.uint8:
            slots = stored.astype(np.int64)
            slots[(slots < 0) | (slots >= len(table))] = len(table) - 1
        label = table.take(slots, mode="clip")  # nothing to clip, but faster than with its check
    wrong = label == illegal
    if wrong.any():
        allowed = _ranges(np.flatnonzero(table != illegal).tolist())
        raise UserError(
            f"{what}: {_offending(stored[wrong])} not allowed; {description.name} stores "
            f"{allowed}. Correct the mask, or the classes and label_map of the data set"
        )
    return label


def _from_colors(description: Description, stored: np.ndarray, what: str) -> np.ndarray:
    """Looks the colours [h, w, 3] up in `label_colors` and refuses the rest."""
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
    return classes.astype(dtype(description))[found]


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
