"""The largest batch that fits, by compiling a few."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

TRIES = 4  # compilations that a search may cost, after the first
GROWTH = 16  # times a batch that fits, the next to compile at the most: small ones tell little


class Measured(Protocol):
    """A training step as compiled: what `planning.Compiled` says of its memory."""

    batch: int
    needed: int  # bytes of each chip
    fixed: int  # those of them that any batch needs
    fits: bool


def search(
    compiled: Callable[[int], Measured], first: Measured, unit: int, usable: int
) -> dict[str, Any]:
    """The largest multiple of `unit` that fits.

    Memory grows by about as much with every image. So the next batch to compile is where the
    straight line through the two that came nearest to what is usable reaches it, and the search
    ends when that is a batch which was compiled and fits, when none is left between one that fits
    and one that does not, or after `TRIES`.

    Args:
      compiled: compiles the step for a number of images.
      first: as compiled already.
      unit: images are multiples of it.
      usable: bytes of a chip.

    Returns:
      'batch', which was compiled and fits, or 0; 'sure', whether the next larger one is known not
      to fit or, by the line, cannot; 'compiled', batch -> bytes of a chip.
    """
    known = {first.batch // unit: first}
    for tries in range(TRIES + 1):
        low = max((n for n in known if known[n].fits), default=0)
        high = min((n for n in known if not known[n].fits), default=math.inf)
        guess = min(_guess(known, low, usable), high - 1, GROWTH * low or math.inf)
        sure = guess <= low
        if sure or tries == TRIES:
            break
        known[guess] = compiled(guess * unit)
    sizes = {n * unit: known[n].needed for n in sorted(known)}
    return {"batch": low * unit, "sure": sure, "compiled": sizes}


def _guess(known: Mapping[int, Measured], low: int, usable: int) -> int:
    """Where a line says that memory ends; at least one more than nothing."""
    near = sorted(known, key=lambda n: abs(known[n].needed - usable))[:2]
    first = known[near[0]]
    if len(near) == 2:
        slope = (known[near[1]].needed - first.needed) / (near[1] - near[0])
    else:
        slope = (first.needed - first.fixed) / near[0]
    if slope <= 0:
        return low
    return max(near[0] + math.floor((usable - first.needed) / slope), 0 if low else 1)
