"""A search for the dense CRF's weights on validation images, as the DeepLab papers do it.

Chen et al. 2016, arXiv:1606.00915, section 4.1: the smoothness kernel is fixed at weight 3 and
width 3, the appearance kernel's weight and widths are searched from coarse to fine on 100 images of
the validation set, with 10 iterations.
"""

import itertools
import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxseg import api, data, metrics, named
from jaxseg.console import duration, say
from jaxseg.data import reading
from jaxseg.errors import UserError
from jaxseg.links import to_labels
from jaxseg.ops.dense_crf import dense_crf
from jaxseg.writer import write_atomically

# Within the paper's ranges: weight 3 to 6, position 30 to 100 pixels, colour 3 to 6 levels.
GRID = {
    "bilateral_weight": (3.0, 5.0),
    "bilateral_sxy": (30.0, 60.0, 90.0),
    "bilateral_srgb": (3.0, 6.0),
}
SEARCHED = ("smooth_weight", "smooth_sxy", *GRID)
ITERATIONS = 10


def tune(
    config: ConfigDict,
    workdir: str,
    split: str | None = None,
    step: int | None = None,
    images: int = 100,
    grid: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, Any]:
    """Searches a grid, then once more around its best point, and writes `crf-SPLIT.json`.

    The second round moves each setting half a step of the grid, one at a time.

    Args:
      config: the run's config; `predict.crf` holds the settings that are not searched.
      workdir: a trained run.
      split: `config.eval.split` when None.
      step: the checkpoint to take; the best when None.
      images: how many of the split's images to look at, evenly spread over it.
      grid: setting -> values to try; None takes `GRID`.

    Returns:
      What the file holds: 'best' (settings), 'mIoU' and 'mIoU_without', 'tried' (settings and
      figures of each, best first), and the protocol.

    Raises:
      UserError: no such run or split, a setting that cannot be searched, a value out of range.
    """
    split = split or config.eval.split
    grid = {name: tuple(sorted(set(values))) for name, values in (grid or GRID).items()}
    for name, values in grid.items():
        named.check("tune_crf", "setting", name, SEARCHED)
        if not values or min(values) <= 0:
            raise UserError(f"tune_crf: {name}={values}: expected one or more numbers above 0")
    if images < 1:
        raise UserError(f"tune_crf: --images={images}: expected 1 or more")
    config = config.copy_and_resolve_references()
    fixed = config.predict.crf.to_dict()
    config.predict.crf.iterations = 0
    fixed["iterations"] = fixed.get("iterations") or ITERATIONS
    segmentation = api.from_run(workdir, config=config, step=step)
    description = data.get(config.data)
    records = reading.labelled_records(description, split)
    chosen = [records[i] for i in np.unique(np.linspace(0, len(records) - 1, images).astype(int))]

    search = _Search(segmentation, description, chosen, fixed)
    names = tuple(grid)
    first = [dict(zip(names, point, strict=True)) for point in itertools.product(*grid.values())]
    say(f"trying {len(first)} settings on {len(chosen)} images of {description.name}/{split}")
    search.run(first)
    second = around(search.best(), grid)
    if second:
        say(f"trying {len(second)} settings around the best, {_listed(search.best())}")
        search.run(second)
    result = search.result() | {
        "dataset": description.name, "split": split, "images": len(chosen), "fixed": fixed,
    }  # fmt: skip
    path = pathlib.Path(workdir) / f"crf-{split}.json"
    write_atomically(path, json.dumps(result, indent=1) + "\n")
    say(_table(result))
    values = {"iterations": fixed["iterations"]} | result["best"]
    say(
        f"written to {path}; use it with\n  "
        + " ".join(f"--config.predict.crf.{name}={value:g}" for name, value in values.items())
    )
    return result


def parse_grid(given: Sequence[str]) -> dict[str, tuple[float, ...]] | None:
    """{'bilateral_sxy': (30.0, 60.0)} of ['bilateral_sxy=30,60']; None of nothing."""
    grid = {}
    for text in given:
        name, _, values = text.partition("=")
        try:
            grid[name.strip()] = tuple(float(value) for value in values.split(","))
        except ValueError:
            raise UserError(
                f"--grid={text}: expected a setting and numbers, as in bilateral_sxy=30,60,90"
            ) from None
    return grid or None


def around(
    best: Mapping[str, float], grid: Mapping[str, Sequence[float]]
) -> list[dict[str, float]]:
    """The points half way between the best one and its neighbours along each axis of the grid.

    At the end of an axis, half a step further out takes the place of the missing neighbour.
    """
    points = []
    for name, values in grid.items():
        if len(values) < 2:
            continue
        at, value = values.index(best[name]), best[name]
        below = values[at - 1] if at else 2 * value - values[1]
        above = values[at + 1] if at + 1 < len(values) else 2 * value - values[-2]
        halves = ((value + neighbour) / 2 for neighbour in (below, above))
        points += [{**best, name: half} for half in halves if half > 0]
    return points


class _Search:
    """Confusion matrices of settings, added up over images."""

    def __init__(self, segmentation, description, records, fixed):
        self.segmentation, self.description, self.records = segmentation, description, records
        self.classes = description.num_classes
        self.plain = None
        self.tried: list[tuple[dict[str, float], np.ndarray]] = []
        still = {name: value for name, value in fixed.items() if name not in SEARCHED}
        self.moved = {name: fixed[name] for name in SEARCHED if name in fixed}

        # Weights and widths are arguments of the compiled function: one compilation for all.
        @jax.jit
        def refined(probabilities, image, label, settings):
            labels = to_labels(dense_crf(probabilities, image, **still, **settings))
            return self._count(labels, label)

        self._refined = refined

    def _count(self, labels, label):
        return metrics.confusion_matrix(labels, label, self.classes, self.description.ignore_label)

    def run(self, points: list[dict[str, float]]) -> None:
        """Adds the confusion matrix of each point, and that of no CRF, to what was tried."""
        counts = np.zeros((len(points) + 1, self.classes, self.classes), np.int64)
        began = told = time.monotonic()
        for done, record in enumerate(self.records, start=1):
            image, label = reading.read_pair(self.description, record)
            probabilities = self.segmentation.probabilities(image[None])
            counts[-1] += np.asarray(self._count(to_labels(probabilities), label[None]), np.int64)
            for i, point in enumerate(points):
                found = self._refined(probabilities, image[None], label[None], self.moved | point)
                counts[i] += np.asarray(found, np.int64)
            if time.monotonic() - told > 10:
                told = time.monotonic()
                left = duration((told - began) * (len(self.records) - done) / done)
                say(f"{done}/{len(self.records)} images, {left} left")
        self.plain = counts[-1]
        self.tried += zip(points, counts[:-1], strict=True)

    def best(self) -> dict[str, float]:
        return max(self.tried, key=lambda point: _miou(point[1]))[0]

    def result(self) -> dict[str, Any]:
        tried = sorted(self.tried, key=lambda point: -_miou(point[1]))
        rows = [
            {**point, "mIoU": _miou(count), "pixel_accuracy": _accuracy(count)}
            for point, count in tried
        ]
        return {
            "best": tried[0][0],
            "mIoU": _miou(tried[0][1]),
            "mIoU_without": _miou(self.plain),
            "pixel_accuracy_without": _accuracy(self.plain),
            "tried": rows,
        }


def _summary(count: np.ndarray) -> dict[str, Any]:
    return metrics.summarize(count, [str(i) for i in range(len(count))])


def _miou(count: np.ndarray) -> float:
    return _summary(count)["mIoU"] or 0.0


def _accuracy(count: np.ndarray) -> float:
    return _summary(count)["pixel_accuracy"] or 0.0


def _listed(point: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in point.items())


def _table(result: Mapping[str, Any], rows: int = 10) -> str:
    lines = [f"mIoU {100 * result['mIoU_without']:6.2f}  without a CRF"]
    for row in result["tried"][:rows]:
        settings = {k: v for k, v in row.items() if k not in ("mIoU", "pixel_accuracy")}
        lines.append(f"mIoU {100 * row['mIoU']:6.2f}  {_listed(settings)}")
    return "\n".join(lines)
