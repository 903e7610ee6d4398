"""Diagrams, drawn with Pillow: the reliability diagram, and what one prediction changes in another.

Pillow is imported where it is used, so that importing this module stays light.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxseg import visualize
from jaxseg.data.base import Description

_INK, _PAPER, _GRID = (33, 33, 33), (255, 255, 255), (225, 225, 225)
_BAR, _GAP, _MEAN, _SHARE = (66, 114, 176), (236, 160, 150), (190, 70, 50), (150, 150, 150)
MENDED, SPOILED, WRONG = (0, 150, 60), (220, 30, 30), (250, 200, 0)
_LEFT, _TOP, _SIDE, _BELOW = 80, 70, 500, 130  # pixels; the share's panel is _BELOW high


def reliability_diagram(calibration: Mapping[str, Any], title: str) -> np.ndarray:
    """Accuracy against confidence, bin by bin, and below it how many pixels each bin has.

    Guo et al. 2017, arXiv:1706.04599, figure 1. Bars are accuracies; the lighter part between a bar
    and its bin's mean confidence is the gap that the calibration error averages: above the bar the
    model is too sure of itself, within it not sure enough. Bins without pixels stay empty.

    Args:
      calibration: of `metrics.calibration.summarize`.
      title: the first line.

    Returns:
      uint8 RGB [h, w, 3].
    """
    from PIL import Image, ImageDraw, ImageFont

    share_top = _TOP + _SIDE + 30
    size = (_LEFT + _SIDE + 40, share_top + _BELOW + 70)
    canvas = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(canvas)
    font, small = ImageFont.load_default(size=18), ImageFont.load_default(size=15)

    def x(value: float) -> int:
        return _LEFT + round(value * _SIDE)

    def y(value: float) -> int:
        return _TOP + _SIDE - round(value * _SIDE)

    def y_share(value: float) -> int:
        return share_top + _BELOW - round(value * _BELOW)

    bins, pixels = calibration["bins"], max(calibration["pixels"], 1)
    for tick in np.linspace(0, 1, 6):
        draw.line((x(tick), y(0), x(tick), y(1)), _GRID)
        draw.line((x(0), y(tick), x(1), y(tick)), _GRID)
        draw.text((x(0) - 8, y(tick)), f"{tick:.1f}", _INK, small, anchor="rm")
        draw.text((x(tick), share_top + _BELOW + 6), f"{tick:.1f}", _INK, small, anchor="mt")
    for bin in bins:
        left, right = x(bin["above"]) + 1, x(bin["to"]) - 1
        if not bin["pixels"]:
            continue
        accuracy, confidence = y(bin["accuracy"]), y(bin["confidence"])
        draw.rectangle((left, accuracy, right, y(0)), _BAR)
        draw.rectangle((left, min(accuracy, confidence), right, max(accuracy, confidence)), _GAP)
        draw.line((left, accuracy, right, accuracy), _BAR, 3)
        top = y_share(bin["pixels"] / pixels)
        draw.rectangle((left, top, right, y_share(0)), _SHARE)
    draw.line((x(0), y(0), x(1), y(1)), _INK, 2)
    draw.rectangle((x(0), y(1), x(1), y(0)), outline=_INK)
    draw.rectangle((x(0), share_top, x(1), y_share(0)), outline=_INK)
    for share in (0, 1):
        draw.text((x(0) - 8, y_share(share)), str(share), _INK, small, anchor="rm")
    # The means as lines through the panel of shares, as in the paper's figure.
    for name, color in (("mean_confidence", _MEAN), ("accuracy", _BAR)):
        if calibration[name] is not None:
            at = x(calibration[name])
            draw.line((at, share_top, at, y_share(0)), color, 2)

    draw.text((_LEFT, 12), title, _INK, font)
    at = _LEFT
    for label, name, color in (
        ("ECE", "ECE", _INK),
        ("mean confidence", "mean_confidence", _MEAN),
        ("accuracy", "accuracy", _BAR),
    ):
        text = f"{label} {percent(calibration[name])}"
        draw.text((at, 40), text, color, small)
        at += small.getlength(text) + 24
    draw.text((x(0.5), size[1] - 12), "confidence", _INK, font, anchor="mb")
    for text, middle in (("accuracy", y(0.5)), ("share", y_share(0.5))):
        _sideways(canvas, text, font, (20, middle))
    for text, color, row in (("accuracy", _BAR, 0), ("gap to confidence", _GAP, 1)):
        top = _TOP + 14 + 24 * row
        draw.rectangle((_LEFT + 14, top, _LEFT + 28, top + 14), color)
        draw.text((_LEFT + 36, top + 7), text, _INK, small, anchor="lm")
    return np.asarray(canvas)


def changes_sheet(
    image: np.ndarray,
    truth: np.ndarray,
    base: np.ndarray,
    variant: np.ndarray,
    description: Description,
    names: tuple[str, str],
) -> np.ndarray:
    """What a variant of a prediction changes, in six fields.

    Image, truth and changed pixels above; base, variant and a legend below. A changed pixel is
    green where it was mended, red where it was spoiled, and yellow where both are wrong; pixels
    without a label are not coloured, since they count nowhere.

    Args:
      image: uint8 RGB [h, w, 3], brought to the truth's size.
      truth, base, variant: integers [H, W].
      description: the dataset, for colours and the ignore label.
      names: of the variant, and of the image.

    Returns:
      uint8 RGB.
    """
    from PIL import Image, ImageDraw, ImageFont

    height, width = truth.shape
    palette = description.palette
    image = visualize.nearest(image, truth.shape)
    valid = (truth >= 0) & (truth < len(palette)) & (truth != description.ignore_label)
    changed = (base != variant) & valid
    kinds = (
        (MENDED, "wrong to right", changed & (variant == truth)),
        (SPOILED, "right to wrong", changed & (base == truth)),
        (WRONG, "wrong to wrong", changed & (base != truth) & (variant != truth)),
    )
    grey = image.mean(-1, keepdims=True) * 0.35 + 150  # pale, so that single pixels can be seen
    marks = np.broadcast_to(grey, image.shape).astype(np.uint8)
    for color, _, where in kinds:
        marks[where] = color

    text = min(max(round(math.hypot(height, width) / 30), 12), 40)
    font = ImageFont.load_default(size=text)
    gap, line = text // 3, round(1.5 * text)
    labelled = max(np.count_nonzero(valid), 1)
    legend = [f"{kind} {percent(np.count_nonzero(where) / labelled)}" for _, kind, where in kinds]
    legend_width = text + 3 * gap + math.ceil(max(map(font.getlength, (names[1], *legend))))
    canvas_width = 2 * (width + gap) + max(width, legend_width)
    canvas_height = height + line + max(height + line, 5 * line)
    canvas = Image.new("RGB", (canvas_width, canvas_height), _PAPER)
    draw = ImageDraw.Draw(canvas)
    fields = (
        ("image", image),
        ("truth", visualize.color_map(truth, palette)),
        ("changes", marks),
        ("base", visualize.color_map(base, palette)),
        (names[0], visualize.color_map(variant, palette)),
    )
    for number, (title, picture) in enumerate(fields):
        left, top = number % 3 * (width + gap), number // 3 * (height + line)
        draw.text((left + gap, top + line // 2), title, _INK, font, anchor="lm")
        canvas.paste(Image.fromarray(picture), (left, top + line))

    left, top = 2 * (width + gap) + gap, height + line + line // 2
    draw.text((left, top), names[1], _INK, font, anchor="lm")
    for row, ((color, _, _), entry) in enumerate(zip(kinds, legend, strict=True), 1):
        middle = top + row * line
        draw.rectangle((left, middle - text // 2, left + text, middle + text // 2), color)
        draw.text((left + text + gap, middle), entry, _INK, font, anchor="lm")
    return np.asarray(canvas)


def _sideways(canvas: Any, text: str, font: Any, middle: tuple[int, int]) -> None:
    """Writes a line of text upwards, its centre at `middle` (x, y)."""
    from PIL import Image, ImageDraw

    width, height = int(font.getlength(text)) + 4, round(1.5 * font.size)
    line = Image.new("RGB", (width, height), _PAPER)
    ImageDraw.Draw(line).text((width / 2, height / 2), text, _INK, font, anchor="mm")
    canvas.paste(line.rotate(90, expand=True), (middle[0] - height // 2, middle[1] - width // 2))


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"
