"""How far colour alone goes on the synthetic scenes: the figure that a network has to beat.

A Bayes classifier counts, on the training split, how often each class has each quantised colour,
and gives every pixel of the other split the class that is most frequent for its colour. A second
one also knows in which horizontal strip of the image the pixel lies. Neither sees a neighbour.

  python benchmarks/synthetic_baseline.py --size 128 256 --train 512 --eval 64 --split val
"""

import argparse
from collections.abc import Iterable

import numpy as np

from jaxseg.data import synthetic
from jaxseg.data.base import Description


def keys(image: np.ndarray, bits: int, strips: int) -> np.ndarray:
    """Which bin every pixel falls into, int64 [h, w]: colour to `bits` per channel, and strip."""
    r, g, b = np.moveaxis(image.astype(np.int64) >> (8 - bits), -1, 0)
    strip = np.arange(len(image)) * strips // len(image)
    return ((r << bits | g) << bits | b) * strips + strip[:, None]


def read(data: Description, split: str) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """The images and labels of a split, one after the other."""
    for record in data.records(split):
        yield record.image(), record.label()


def fit(data: Description, split: str, bits: int, strips: int) -> np.ndarray:
    """The most frequent class of every bin, int64 [bins]; of all pixels where a bin is empty."""
    classes, bins = data.num_classes, strips << 3 * bits
    counts = np.zeros(bins * classes, np.int64)
    for image, label in read(data, split):
        valid = label < classes
        pairs = keys(image, bits, strips)[valid] * classes + label[valid]
        counts += np.bincount(pairs, minlength=len(counts))
    counts = counts.reshape(bins, classes)
    return np.where(counts.any(1), counts.argmax(1), counts.sum(0).argmax())


def evaluate(
    data: Description, split: str, table: np.ndarray, bits: int, strips: int
) -> tuple[np.ndarray, float]:
    """IoU of every class, float64 [classes], and pixel accuracy; void pixels do not count."""
    classes = data.num_classes
    confusion = np.zeros(classes * classes, np.int64)
    for image, label in read(data, split):
        valid = label < classes
        predicted = table[keys(image, bits, strips)[valid]]
        pairs = label[valid].astype(np.int64) * classes + predicted
        confusion += np.bincount(pairs, minlength=len(confusion))
    confusion = confusion.reshape(classes, classes)
    hits = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hits
    return hits / np.maximum(union, 1), hits.sum() / confusion.sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(128, 256), metavar=("H", "W"))
    parser.add_argument("--train", type=int, default=512, help="training scenes")
    parser.add_argument("--eval", type=int, default=64, help="scenes to evaluate on")
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    data = synthetic.describe(
        size=tuple(arguments.size),
        train=arguments.train,
        seed=arguments.seed,
        **{arguments.split: arguments.eval},
    )
    print(f"{arguments.train} training scenes, {arguments.eval} of {arguments.split}")
    print(f"{'classifier':24} {'mIoU':>6} {'pixels':>6}  " + " ".join(data.classes))
    for name, bits, strips in (
        ("colour, 16^3 bins", 4, 1),
        ("colour, 32^3 bins", 5, 1),
        ("colour 16^3, 16 strips", 4, 16),
    ):
        table = fit(data, "train", bits, strips)
        iou, accuracy = evaluate(data, arguments.split, table, bits, strips)
        row = " ".join(f"{x:{len(c)}.2f}" for x, c in zip(iou, data.classes, strict=True))
        print(f"{name:24} {iou.mean():6.3f} {accuracy:6.3f}  {row}")


if __name__ == "__main__":
    main()
