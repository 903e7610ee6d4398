"""Cutting a window out of a rescaled image while reading only the pixels that it shows.

The result equals rescaling the whole image and cropping it, at the cost of the crop: bilinear with
half-pixel centres and without antialiasing, within a grey level of OpenCV's INTER_LINEAR. Labels
are in `plan.crop_label`.
"""

import dataclasses

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
    """The window of the rescaled image, bilinear: uint8 [h, w, 3] -> [cut.height, cut.width, 3].

    Not flipped.
    """
    window = np.empty((cut.height, cut.width, 3), np.uint8)
    write_image(window, image, dataclasses.replace(cut, flip=False), image.shape[:2], (0, 0))
    return window


def write_image(
    out: np.ndarray,
    pixels: np.ndarray,
    cut: Cut,
    size: tuple[int, int],
    corner: tuple[int, int],
) -> None:
    """Writes the window into the top left of `out`, mirrored where the cut says so, and `PAD`.

    Args:
      out: uint8 [H, W, 3].
      pixels: uint8 [h, w, 3], a part of the image that holds `source_box(size, cut)`.
      cut: the window.
      size: (height, width) of the whole image.
      corner: (top, left) of `pixels` in it.
    """
    window = out[: cut.height, : cut.width]
    out[: cut.height, cut.width :] = PAD
    out[cut.height :] = PAD
    top, left = corner
    if size == cut.scaled:
        top, left = cut.top - top, cut.left - left
        source = pixels[top : top + cut.height, left : left + cut.width]
        window[:] = source[:, ::-1] if cut.flip else source
        return
    low, high, weight = taps(cut.top, cut.height, cut.scaled[0], size[0])
    near, far, share = taps(cut.left, cut.width, cut.scaled[1], size[1])
    low, high, weight = low - top, high - top, weight[:, None]
    first, last = near[0] - left, far[-1] + 1 - left
    if cut.flip:
        near, far, share = near[::-1], far[::-1], share[::-1]
    # The channels are columns of their own: `take` is fastest where it moves four bytes at a time.
    near, far = (3 * (index - left - first)[:, None] + np.arange(3) for index in (near, far))
    columns = near.ravel(), far.ravel(), np.repeat(share, 3)
    enlarged = cut.scaled[1] > size[1]
    for start in range(0, cut.height, _STRIP):
        strip = slice(start, start + _STRIP)
        begin, end = low[strip][0], high[strip][-1] + 1
        rows = low[strip] - begin, high[strip] - begin, weight[strip]
        mixed = pixels[begin:end, first:last].astype(np.float32).reshape(end - begin, -1)
        # Columns, which are slower to mix, while there are fewer rows of them.
        for axis in (1, 0) if enlarged else (0, 1):
            mixed = _mix(mixed, *(columns if axis else rows), axis)
        window[strip] = np.rint(mixed, out=mixed).reshape(-1, cut.width, 3)


def _mix(
    source: np.ndarray, low: np.ndarray, high: np.ndarray, share: np.ndarray, axis: int
) -> np.ndarray:
    """source[low] * (1 - share) + source[high] * share along an axis: float32 [m, n]."""
    mixed = source.take(low, axis, mode="clip")  # nothing is out of range; faster than to check
    other = source.take(high, axis, mode="clip")
    other -= mixed
    other *= share
    mixed += other
    return mixed


def place(window: np.ndarray, out: np.ndarray, flip: bool, fill: int | np.ndarray) -> None:
    """Writes `window` into the top left of `out`, mirrored if asked, and `fill` around it."""
    height, width = window.shape[:2]
    out[:height, :width] = window[:, ::-1] if flip else window
    out[:height, width:] = fill
    out[height:] = fill
