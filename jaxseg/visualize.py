"""Label maps as pictures: palette PNG, colours over the photograph with a legend, training samples.

Pillow is imported where it is used, so that importing this module stays light.
"""

import math
import os
from collections.abc import Sequence

import numpy as np

Palette = Sequence[tuple[int, int, int]]

IGNORED = "ignored"
_STRIP = 256  # rows at a time
_INK, _PAPER, _FRAME = (33, 33, 33), (255, 255, 255), (150, 150, 150)


def color_map(
    labels: np.ndarray, palette: Palette, ignore_color: tuple[int, int, int] = (0, 0, 0)
) -> np.ndarray:
    """The colour of each pixel's class.

    Args:
      labels: integers [..., h, w]; values outside 0..len(palette)-1 count as ignored.
      palette: one RGB colour per class.
      ignore_color: RGB of ignored pixels.

    Returns:
      uint8 RGB [..., h, w, 3].
    """
    table = np.asarray([*palette, ignore_color], np.uint8)
    return table[_indices(labels, len(palette))]


def overlay(
    image: np.ndarray,
    labels: np.ndarray,
    palette: Palette,
    classes: Sequence[str],
    alpha: float = 0.5,
) -> np.ndarray:
    """The image under its classes' colours, class boundaries drawn, and a legend next to it.

    The legend lists the classes that occur, largest first, with their share of all pixels. It
    stands below a wide picture and to the right of any other, and hides nothing. Ignored pixels
    keep the photograph's colour.

    Args:
      image: uint8 RGB [h, w, 3].
      labels: integers [h, w]; values outside 0..len(palette)-1 count as ignored.
      palette: one RGB colour per class.
      classes: one name per class.
      alpha: weight of the class colour, 0 (photograph) to 1 (colours alone).

    Returns:
      uint8 RGB [H, W, 3] with H >= h and W >= w; the picture is its upper left corner.
    """
    if image.shape[:2] != labels.shape:
        raise ValueError(f"image {image.shape} and labels {labels.shape} differ in size")
    picture = _blend(image, labels, palette, alpha)
    counts = np.bincount(_indices(labels, len(palette)).ravel(), minlength=len(palette) + 1)
    entries = [
        (classes[index], tuple(palette[index]), counts[index] / labels.size)
        for index in np.argsort(-counts[:-1], kind="stable")
        if counts[index]
    ]
    if counts[-1]:
        entries.append((IGNORED, None, counts[-1] / labels.size))
    return _add_legend(picture, entries)


def save_label_png(path: str | os.PathLike, labels: np.ndarray, palette: Palette) -> None:
    """Writes class indices as PNG: 8-bit with a palette, or 16-bit grey past 256 classes.

    Args:
      path: file to write.
      labels: integers [h, w], each 0..255 (0..65535 past 256 classes).
      palette: one RGB colour per class; unused entries, the ignore label's among them, are black.
    """
    from PIL import Image

    limit = 255 if len(palette) <= 256 else 65535
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > limit:
        raise ValueError(f"{path}: labels {low}..{high} do not fit a PNG of values 0..{limit}")
    if limit == 255:
        picture = Image.fromarray(labels.astype(np.uint8)).convert("L")
        # All 256 entries: a shorter palette makes Pillow pack several pixels into a byte.
        colors = np.zeros((256, 3), np.uint8)
        colors[: len(palette)] = palette
        picture.putpalette(colors.tobytes())
    else:
        picture = Image.fromarray(labels.astype(np.uint16))
    picture.save(path, format="PNG")


def save_png(path: str | os.PathLike, picture: np.ndarray) -> None:
    """Writes uint8 RGB [h, w, 3] as PNG, with light compression: it is written fast, to be seen."""
    from PIL import Image

    Image.fromarray(picture).save(path, format="PNG", compress_level=3)


def side_by_side(
    image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, palette: Palette
) -> np.ndarray:
    """Image, true classes and predicted classes in a row, for samples during training.

    Args:
      image: uint8 RGB [h, w, 3]; it and `prediction` are brought to `truth`'s size by the nearest
        pixel, since in evaluation the image may have been resized while the label was not.
      truth: integers [H, W].
      prediction: integers [h, w] or [H, W].
      palette: one RGB colour per class; ignored pixels are black.

    Returns:
      uint8 RGB [H, 3 * W, 3].
    """
    size = truth.shape
    parts = (
        nearest(image, size),
        color_map(truth, palette),
        nearest(color_map(prediction, palette), size),
    )
    return np.concatenate(parts, axis=1)


def _indices(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Class indices with everything that is no class as `num_classes`."""
    labels = np.asarray(labels)
    return np.where((labels >= 0) & (labels < num_classes), labels, num_classes).astype(np.int32)


def nearest(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """x [h, w, ...] at size, each pixel from the input pixel that holds its centre."""
    rows, columns = (
        (np.arange(new) * 2 + 1) * old // (2 * new)
        for new, old in zip(size, x.shape[:2], strict=True)
    )
    return x[rows[:, None], columns]


def _blend(image: np.ndarray, labels: np.ndarray, palette: Palette, alpha: float) -> np.ndarray:
    index = _indices(labels, len(palette))
    # A boundary is drawn inside each of the two regions, one pixel per 500 of the longer side.
    edge = np.zeros(index.shape, bool)
    for step in range(1, max(1, round(max(index.shape) / 500)) + 1):
        rows, columns = index[step:] != index[:-step], index[:, step:] != index[:, :-step]
        edge[step:] |= rows
        edge[:-step] |= rows
        edge[:, step:] |= columns
        edge[:, :-step] |= columns
    # Two rows of colours and weights, within regions and on boundaries; the last column: ignored.
    inside = np.asarray([*palette, (0, 0, 0)], np.float32)
    colors = np.stack([inside, 0.6 * inside + 0.4 * 255])  # a boundary is lighter than its region
    weights = np.repeat(np.array([[alpha], [max(alpha, 0.8)]], np.float32), len(inside), axis=1)
    weights[:, -1] = 0
    colors *= weights[..., None]
    blend = np.empty(image.shape, np.uint8)
    for start in range(0, len(image), _STRIP):  # floats of a whole large one take gigabytes
        strip = slice(start, start + _STRIP)
        at = edge[strip].astype(np.int8), index[strip]
        blend[strip] = np.rint(image[strip] * (1 - weights[at][..., None]) + colors[at])
    return blend


def _share(fraction: float) -> str:
    return f"{100 * fraction:.1f} %" if fraction >= 0.001 else "<0.1 %"


def _add_legend(
    picture: np.ndarray, entries: Sequence[tuple[str, tuple[int, int, int] | None, float]]
) -> np.ndarray:
    """Pastes the picture on a white canvas with (name, colour, share) rows beside or below it."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = picture.shape[:2]
    # A fortieth of the diagonal reads well when the picture is scaled to a page or a screen.
    text = min(max(round(math.hypot(height, width) / 45), 12), 48)
    font = ImageFont.load_default(size=text)
    line, gap, swatch = round(1.5 * text), round(0.5 * text), text
    name_width = math.ceil(max(font.getlength(name) for name, _, _ in entries))
    share_width = math.ceil(max(font.getlength(_share(share)) for _, _, share in entries))
    column = swatch + name_width + share_width + 3 * gap

    below = width > 1.5 * height
    if below:
        columns = min(max(1, (width - gap) // (column + gap)), len(entries))
        rows = math.ceil(len(entries) / columns)
    else:
        rows = min(max(1, (height - 2 * gap) // line), len(entries))
        columns = math.ceil(len(entries) / rows)
    block = (columns * (column + gap) + gap, rows * line + 2 * gap)
    if below:
        size, (left, top) = (max(width, block[0]), height + block[1]), (gap, height + gap)
    else:
        size, (left, top) = (width + block[0], max(height, block[1])), (width + gap, gap)

    canvas = Image.new("RGB", size, _PAPER)
    canvas.paste(Image.fromarray(picture), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for number, (name, color, share) in enumerate(entries):
        x, y = left + number // rows * (column + gap), top + number % rows * line
        middle = y + line // 2
        box = (x, middle - swatch // 2, x + swatch - 1, middle - swatch // 2 + swatch - 1)
        draw.rectangle(box, fill=color or _PAPER, outline=_FRAME)
        if color is None:  # ignored: an empty, crossed-out box
            draw.line((box[0], box[3], box[2], box[1]), fill=_FRAME)
        draw.text((x + swatch + gap, middle), name, _INK, font, anchor="lm")
        draw.text((x + column - gap, middle), _share(share), _INK, font, anchor="rm")
    return np.asarray(canvas)
