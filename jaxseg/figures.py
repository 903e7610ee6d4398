"""From the counts of a split to every figure, and figures to text."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxseg import metrics
from jaxseg.data.base import Description
from jaxseg.errors import UserError
from jaxseg.measure import TRIMAP, Total
from jaxseg.metrics import boundaries, calibration, cityscapes, images, sizes
from jaxseg.metrics.confusion import number, percent

# The figures that have intervals and are compared, and what they are called in tables.
SCORES = {
    "mIoU": "mIoU",
    "pixel_accuracy": "pixel accuracy",
    "boundary_IoU": "boundary IoU",
    "trimap_mIoU": f"trimap mIoU, {TRIMAP} px",
    "boundary_F": "boundary F",
    "ECE": "ECE",
}
_EXTREMES = 3  # images and classes that texts name of those at either end


def compute(total: Total, description: Description, split: str) -> dict[str, Any]:
    """Every figure of a split, fit for JSON, as fractions of 1.

    Args:
      total: the counts.
      description: the dataset.
      split: for messages.

    Returns:
      What `metrics.summarize` returns, and 'scores' (the figures of `SCORES`), 'intervals' (theirs,
      [low, high] with 95 % of 1,000 resamples of the images between them), 'per_image'
      (`metrics.images`), 'boundaries', 'sizes', 'calibration' and, on Cityscapes, 'cityscapes'
      (the modules' `summarize`), and 'confusion'.

    Raises:
      UserError: no pixel of the split has a label.
    """
    sums, classes = total.sums, description.classes
    summary = summarize(sums["confusion"], description, split)
    ids, rows = total.rows()
    resampled = scores(images.resample(rows))
    figures = {
        **summary,
        "scores": {
            name: number(value)
            for name, value in scores({k: x.sum(0) for k, x in rows.items()}).items()
        },
        "intervals": {name: images.interval(values) for name, values in resampled.items()},
        "per_image": images.summarize(ids, rows["classes"]),
        "boundaries": boundaries.summarize(sums["boundaries"], classes),
        "sizes": sizes.summarize(sums["sizes"], classes),
        "calibration": calibration.summarize(sums["calibration"]),
    }
    if is_cityscapes(description):
        instances = list(total.instances.values()) if total.instances else None
        figures["cityscapes"] = cityscapes.summarize(sums["confusion"], instances)
    return figures | {"confusion": sums["confusion"].tolist()}


def summarize(counts: np.ndarray, description: Description, split: str) -> dict[str, Any]:
    """`metrics.summarize`; raises `UserError` where no pixel of the split has a label."""
    if not counts.any():
        raise UserError(f"{description.name}/{split} has no labelled pixel to evaluate on")
    return metrics.summarize(counts, description.classes)


def scores(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The figures of `SCORES` from sums of `measure.summary_counts`, with any leading axes."""
    return {
        "mIoU": images.miou(sums["classes"]),
        "pixel_accuracy": images.pixel_accuracy(sums["classes"]),
        "boundary_IoU": images.miou(sums["boundary_IoU"]),
        "trimap_mIoU": images.miou(sums["trimap"]),
        "boundary_F": images.mean_defined(boundaries.f_scores(sums["contour"])),
        "ECE": calibration.error(sums["confidence"]),
    }


def is_cityscapes(description: Description) -> bool:
    """Whether the classes are those that Cityscapes' categories are made of."""
    return description.name == "cityscapes"


def report(figures: Mapping[str, Any]) -> str:
    """The figures as plain text, in percent: a table of classes, and below it the others."""
    per_image, confidence = figures["per_image"], figures["calibration"]
    quantiles = per_image["quantiles"]
    lines = [metrics.table(figures), "", f"{'figure':<20}  {'value':>6}  95 % of resampled images"]
    for name, label in SCORES.items():
        interval = figures["intervals"][name]
        between = "-" if interval is None else f"{percent(interval[0])} to {percent(interval[1])}"
        lines.append(f"{label:<20}  {percent(figures['scores'][name]):>6}  {between}")
    trimaps = figures["boundaries"]["trimap"]
    lines += [
        "",
        "trimap mIoU by width: "
        + ", ".join(f"{t['width']} px {percent(t['mIoU'])}" for t in trimaps),
        "mIoU by size of the regions: "
        + ", ".join(f"{size} {percent(of['mIoU'])}" for size, of in figures["sizes"].items()),
        f"mean confidence {percent(confidence['mean_confidence'])}, overconfidence "
        f"{percent(confidence['overconfidence'])}",
        f"mIoU of single images: mean {percent(per_image['mean'])}, "
        + ", ".join(f"{q} {percent(quantiles[q])}" for q in ("5%", "50%", "95%")),
        f"  worst: {_named(per_image['worst'])}",
        f"  best: {_named(per_image['best'])}",
    ]
    if "cityscapes" in figures:
        lines += ["", _cityscapes(figures["cityscapes"])]
    return "\n".join(lines)


def _named(extremes: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{row['id']} {percent(row['mIoU'])}" for row in extremes[:_EXTREMES])


def _cityscapes(figures: Mapping[str, Any]) -> str:
    lines = [f"{'category':<14}  {'IoU':>6}" + ("    iIoU" if "iIoU" in figures else "")]
    rows = [(c["name"], c["IoU"], c.get("iIoU")) for c in figures["categories"]]
    rows.append(("mean", figures["category_mIoU"], figures.get("category_iIoU")))
    for name, iou, iiou in rows:
        cells = (percent(iou), *((percent(iiou),) if "iIoU" in figures else ()))
        lines.append("  ".join((f"{name:<14}", *(f"{cell:>6}" for cell in cells))))
    if "iIoU" in figures:
        of_classes = ", ".join(f"{c['name']} {percent(c['iIoU'])}" for c in figures["classes"])
        lines.append(f"class iIoU {percent(figures['iIoU'])}: {of_classes}")
    return "\n".join(lines)


def comparison(result: Mapping[str, Any]) -> str:
    """Markdown of what `compare.run` found: a table, and what there is to say of each variant."""
    variants = result["variants"]
    table = [("variant", *SCORES.values(), "images/s")]
    for name, summary in variants.items():
        difference = summary.get("against_base", {}).get("difference", {})
        cells = [
            percent(summary["scores"][score]) + _difference(difference.get(score))
            for score in SCORES
        ]
        table.append((name, *cells, f"{summary['images_per_s']:.2f}"))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    table.insert(1, ("-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])))
    lines = [
        f"| {row[0].ljust(widths[0])} | " + " | ".join(map(str.rjust, row[1:], widths[1:])) + " |"
        for row in table
    ]
    weights = result.get("model") or f"step {result['step']}"
    lines += [
        "",
        f"{result['dataset']}/{result['split']}, {result['images']} images, {weights}; "
        "in percent, in brackets the difference to base, with a * where 95 % of 1,000 paired "
        "resamples of the images lie on one side of 0. Of ECE less is better. Images/s are those "
        "of predicting and counting, without reading.",
    ]
    for name, summary in variants.items():
        if "against_base" in summary:
            lines += ["", _paragraph(name, summary)]
    return "\n".join(lines) + "\n"


def _difference(difference: Mapping[str, Any] | None) -> str:
    if difference is None or difference["value"] is None:
        return ""
    return f" ({100 * difference['value']:+.2f}{'*' if difference['significant'] else ''})"


def _paragraph(name: str, summary: Mapping[str, Any]) -> str:
    than = summary["against_base"]
    pixels, changed = than["pixels"], than["most_changed"]
    gains = [c for c in than["classes"] if c["IoU"] > 0][:_EXTREMES]
    losses = [c for c in reversed(than["classes"]) if c["IoU"] < 0][:_EXTREMES]
    text = (
        f"**{name}** (`{' '.join(summary['settings'])}`) changes {percent(pixels['changed'])} % of "
        f"the labelled pixels: {percent(pixels['wrong_to_right'])} % from wrong to right, "
        f"{percent(pixels['right_to_wrong'])} % from right to wrong, "
        f"{percent(pixels['wrong_to_wrong'])} % from wrong to wrong."
    )
    for what, classes in (("gains", gains), ("losses", losses)):
        if classes:
            listed = ", ".join(f"{c['name']} {100 * c['IoU']:+.2f}" for c in classes)
            text += f" Largest {what} in IoU: {listed}."
    if changed:
        listed = ", ".join(
            f"{row['id']} ({percent(row['changed'])} %, mIoU {percent(row['mIoU'][0])} to "
            f"{percent(row['mIoU'][1])})"
            for row in changed
        )
        text += f" Most changed: {listed}."
    return text
