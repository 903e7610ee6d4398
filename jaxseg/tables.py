"""The results that speak of all images: shares of the classes, and masks in COCO's form."""

import csv
import io
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxseg import named, writer
from jaxseg.errors import UserError

TABLES = ("shares", "coco")


class Tables:
    """The files that speak of all images.

    shares.csv has the columns image, width, height and one per class, the class's share of the
    pixels from 0 to 1; shares.json has the same under 'images', with the shares under 'shares'.

    coco.json is an annotation file of COCO's with stuff masks: 'images', 'categories' and one
    entry of 'annotations' per class and image, whose 'segmentation' is a compressed run-length mask
    (pycocotools reads it: `COCO('coco.json')`, then `annToMask`). Class index i is category i + 1,
    since ids begin at 1 in COCO. There are no polygons: they would be inexact, and a region with a
    hole has none.

    Rows are sorted by the image's name, whatever the order in which they were added.
    """

    def __init__(self, folder: pathlib.Path, segmentation: Any, write: Sequence[str]):
        self.folder, self.segmentation = folder, segmentation
        self.wanted = [name for name in TABLES if name in write]
        self.rows: list[dict[str, Any]] = []

    def add(self, name: str, file: str, labels: np.ndarray) -> None:
        """Takes in an image's labels, int [h, w]; may be called by several threads at once.

        Args:
          name: what its results are called.
          file: the image's file, relative to the input.
          labels: int [h, w].
        """
        if not self.wanted:
            return
        classes = len(self.segmentation.classes)
        counts = np.bincount(labels.ravel(), minlength=classes)
        row = {"name": name, "file": file, "size": labels.shape, "counts": counts}
        if "coco" in self.wanted:
            row["masks"] = {int(c): _run_lengths(labels == c) for c in np.flatnonzero(counts)}
        self.rows.append(row)

    def write(self) -> None:
        """Writes the tables of the images so far; none where there are none.

        Raises:
          UserError: a file cannot be written.
        """
        self.rows.sort(key=lambda row: row["name"])
        texts = {}
        if "shares" in self.wanted:
            texts |= {
                "shares.csv": self._csv(),
                "shares.json": json.dumps(self._shares(), indent=1),
            }
        if "coco" in self.wanted:
            texts["coco.json"] = json.dumps(self._coco())
        for name, text in texts.items() if self.rows else ():
            try:
                writer.write_atomically(self.folder / name, text)
            except OSError as error:
                raise unwritable(self.folder / name, error) from error

    def _csv(self) -> str:
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(["image", "width", "height", *self.segmentation.classes])
        for row in self._shares()["images"]:
            shares = row["shares"].values()
            lines.writerow([row["image"], row["width"], row["height"], *shares])
        return text.getvalue()

    def _shares(self) -> dict[str, Any]:
        images = []
        for row in self.rows:
            # Nine digits tell one pixel of a billion, and 0.1 stays 0.1.
            shares = [float(f"{x:.9g}") for x in row["counts"] / math.prod(row["size"])]
            images.append(
                {
                    "image": row["name"],
                    "width": row["size"][1],
                    "height": row["size"][0],
                    "shares": dict(zip(self.segmentation.classes, shares, strict=True)),
                }
            )
        return {"images": images}

    def _coco(self) -> dict[str, Any]:
        images, annotations = [], []
        for i, row in enumerate(self.rows, start=1):
            height, width = row["size"]
            images.append({"id": i, "file_name": row["file"], "width": width, "height": height})
            for c, (mask, box) in row["masks"].items():
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": i,
                        "category_id": c + 1,
                        "segmentation": mask,
                        "area": int(row["counts"][c]),
                        "bbox": box,
                        "iscrowd": 0,
                    }
                )
        categories = [
            {"id": c + 1, "name": name, "supercategory": "", "isthing": 0, "color": list(color)}
            for c, (name, color) in enumerate(
                zip(self.segmentation.classes, self.segmentation.palette, strict=True)
            )
        ]
        return {"images": images, "categories": categories, "annotations": annotations}


def _run_lengths(mask: np.ndarray) -> tuple[dict[str, Any], list[float]]:
    """COCO's compressed run lengths of a bool [h, w], and its box [left, top, width, height]."""
    coco = pycocotools()
    encoded = coco.encode(np.asfortranarray(mask, np.uint8))
    box = coco.toBbox(encoded).tolist()
    return {"size": list(mask.shape), "counts": encoded["counts"].decode("ascii")}, box


def pycocotools() -> Any:
    """The module `pycocotools.mask`; raises `UserError` where the package is not installed."""
    expected = "the package pycocotools (pip install pycocotools)"
    named.imported("--write=coco", "pycocotools.mask", "encode", expected)
    from pycocotools import mask

    return mask


def unwritable(path: pathlib.Path, error: OSError) -> UserError:
    """The error of a result that cannot be written."""
    return UserError(
        f"cannot write {path}: {error.strerror or error}; check the disk and the folder given by "
        "--output. What was written before is complete"
    )
