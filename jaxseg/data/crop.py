"""Cutting a window out of a rescaled image while reading only the pixels that it shows.

The result equals rescaling the whole image and cropping it, at the cost of the crop: bilinear with
half-pixel centres and without antialiasing, within a grey level of OpenCV's INTER_LINEAR. Labels
are in `plan.crop_label`.
"""

import numpy as np

from jaxseg.data.plan import Cut

PAD = 0  # pixel value around an image that is smaller than the crop

_STRIP = 16  # rows at a time: what is between two steps stays in the processor's cache


def taps(
    start: int, length: int, scaled: int, source: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two source pixels that each rescaled pixel i = start .. start + length - 1 mixes.

    Returns:
      (low, high, weight): int64 [length] each and float32 [length], the share of `high`.
    """
    centre = np.arange(start, start + length) + 0.5
    place = np.clip(centre * (source / scaled) - 0.5, 0, source - 1)
    low = np.floor(place).astype(np.int64)
    return low, np.minimum(low + 1, source - 1), (place - low).astype(np.float32)


def source_box(size: tuple[int, int], cut: Cut) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the pixels of an image of `size` that the window needs."""
    top, bottom, _ = taps(cut.top, cut.height, cut.scaled[0], size[0])
    left, right, _ = taps(cut.left, cut.width, cut.scaled[1], size[1])
    return (
        int(top[0]),
        int(left[0]),
        int(bottom[-1] - top[0]) + 1,
        int(right[-1] - left[0]) + 1,
    )


def crop_image(image: np.ndarray, cut: Cut) -> np.ndarray:
    """The window of the rescaled image, bilinear: uint8 [h, w, 3] -> [cut.height, cut.width, 3]."""
    if image.shape[:2] == cut.scaled:
        return image[cut.top : cut.top + cut.height, cut.left : cut.left + cut.width]
    low, high, weight = taps(cut.top, cut.height, cut.scaled[0], image.shape[0])
    left, right, share = taps(cut.left, cut.width, cut.scaled[1], image.shape[1])
    columns = slice(left[0], right[-1] + 1)
    left, right, share = left - left[0], right - left[0], share[:, None]
    window = np.empty((cut.height, cut.width, 3), np.uint8)
    for start in range(0, cut.height, _STRIP):
        rows = slice(start, start + _STRIP)
        mixed = image[low[rows], columns].astype(np.float32)  # [strip, source columns, 3]
        mixed += (image[high[rows], columns] - mixed) * weight[rows, None, None]
        first = mixed.take(left, 1, mode="clip")  # [strip, width, 3]
        first += (mixed.take(right, 1, mode="clip") - first) * share
        window[rows] = np.rint(first, out=first)
    return window


def place(window: np.ndarray, out: np.ndarray, flip: bool, fill: int | np.ndarray) -> None:
    """Writes `window` into the top left of `out`, mirrored if asked, and `fill` around it."""
    height, width = window.shape[:2]
    out[:height, :width] = window[:, ::-1] if flip else window
    out[:height, width:] = fill
    out[height:] = fill
