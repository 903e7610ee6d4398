"""Drawn street scenes: a dataset that needs no files, of any size and any number of images.

A scene is a function of (seed, split, index) and is drawn when it is read. Colours of the classes
overlap (a grey may be road, wall, coat or car, under light that changes from scene to scene), so
a model has to learn shape and context: `benchmarks/synthetic_baseline.py` has the figures.
"""

import functools
import operator
from collections.abc import Sequence

import numpy as np

from jaxseg.data import scenes
from jaxseg.data.base import Description, Record
from jaxseg.data.scene_objects import CLASSES, PALETTE, VOID
from jaxseg.errors import UserError

SPLITS = ("train", "val", "test")
MIN_SIDE = 64  # below, a person is a dot
CACHE_BYTES = 128 << 20


def describe(
    size: tuple[int, int] = (128, 256),
    train: int = 512,
    val: int = 64,
    test: int = 32,
    seed: int = 0,
) -> Description:
    """Street scenes with nine classes and a void label.

    Args:
      size: (height, width) of the images in pixels, each at least 64; scenes are composed for
        pictures about twice as wide as high.
      train: number of training scenes; a larger number keeps the first ones as they are.
      val: number of validation scenes.
      test: number of test scenes.
      seed: which dataset; splits of one seed, and datasets of different seeds, share no random
        stream.

    Returns:
      The description. Sources are functions that return read-only arrays, image uint8 [h, w, 3]
      and label uint8 [h, w]; what was drawn is kept, up to 128 MiB or 16 scenes.

    Raises:
      UserError: an argument is out of range.
    """
    try:
        height, width = (operator.index(side) for side in size)
    except (TypeError, ValueError):
        raise UserError(
            f"config.data.size={size!r}: expected (height, width), two whole numbers of pixels"
        ) from None
    if min(height, width) < MIN_SIDE:
        raise UserError(
            f"config.data.size={size!r}: a scene needs at least {MIN_SIDE} x {MIN_SIDE} pixels"
        )
    counts = {
        name: _whole(name, count, 1, 2**32 - 1)
        for name, count in zip(SPLITS, (train, val, test), strict=True)
    }
    seed = _whole("seed", seed, 0, 2**64 - 1)

    # Image and label are asked for one after the other, and every epoch asks again.
    @functools.lru_cache(maxsize=max(16, CACHE_BYTES // (4 * height * width)))
    def scene(split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        pair = draw(seed, split, index, (height, width))
        for array in pair:
            array.setflags(write=False)
        return pair

    def records(split: str) -> Sequence[Record]:
        if split not in counts:
            raise UserError(f"synthetic has no split {split!r}: choose from {', '.join(SPLITS)}")
        return tuple(
            Record(
                id=f"{split}_{i:05d}",
                image=lambda i=i: scene(split, i)[0],
                label=lambda i=i: scene(split, i)[1],
            )
            for i in range(counts[split])
        )

    return Description(
        name="synthetic",
        classes=CLASSES,
        palette=PALETTE,
        splits=SPLITS,
        records=records,
        ignore_label=VOID,
    )


def draw(seed: int, split: str, index: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Draws the scene (seed, split, index): image uint8 [h, w, 3], label uint8 [h, w].

    Philox is counter-based (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011):
    every key is a stream of its own, so no scene depends on which were drawn before it.
    """
    key = np.array([seed, SPLITS.index(split) << 32 | index], np.uint64)
    return scenes.draw(np.random.Generator(np.random.Philox(key=key)), size)


def _whole(name: str, value: int, low: int, high: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = low - 1
    if not low <= number <= high:
        raise UserError(f"config.data.{name}={value!r}: expected a whole number from {low} on")
    return number
