"""The data set doctor: reads every sample of a data set and reports what is in it and wrong.

Training stops at the first bad sample it meets; this finds all of them beforehand.
"""

import collections
import dataclasses
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from jaxseg.data import reading, threads
from jaxseg.data.base import Description, Record
from jaxseg.errors import UserError

_SHOWN = 20  # so many problems are printed


@dataclasses.dataclass(frozen=True)
class SplitReport:
    """What one split holds; samples that cannot be read are counted in `samples` only.

    Attributes:
      split: its name.
      samples: number of records.
      labelled: how many have a label.
      sizes: (height, width) of an image -> number of images.
      pixels: int64 [num_classes], labelled pixels of each class.
      images: int64 [num_classes], labels that show the class.
      ignored: pixels with the ignore label.
    """

    split: str
    samples: int
    labelled: int
    sizes: dict[tuple[int, int], int]
    pixels: np.ndarray
    images: np.ndarray
    ignored: int


@dataclasses.dataclass(frozen=True)
class Report:
    """All splits, and every problem as one line of text."""

    name: str
    classes: tuple[str, ...]
    splits: tuple[SplitReport, ...]
    problems: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Sample:
    """What is kept of a record after it was read."""

    size: tuple[int, int] | None  # None: the image cannot be read
    digest: bytes | None
    counts: np.ndarray | None  # int64 [num_classes + 1], ignored pixels last; None: no good label
    problems: tuple[str, ...]


def _read(description: Description, record: Record) -> _Sample:
    size = digest = counts = None
    problems = []
    try:
        image = reading.read_image(record)
        size = image.shape[:2]
        digest = hashlib.blake2b(image.tobytes() + repr(size).encode(), digest_size=16).digest()
    except UserError as error:
        problems.append(str(error))
    if record.label is not None:
        try:
            label = reading.read_label(description, record)
            classes = description.num_classes
            slots = np.where(label == description.ignore_label, classes, label)
            counts = np.bincount(slots.ravel(), minlength=classes + 1)
            if size is not None:
                reading.check_sizes(record, size, label.shape)
        except UserError as error:
            problems.append(str(error))
    return _Sample(size, digest, counts, tuple(problems))


def _split_report(
    description: Description, split: str, records: Sequence[Record], samples: Sequence[_Sample]
) -> SplitReport:
    zeros = np.zeros(description.num_classes + 1, np.int64)
    counts = [sample.counts for sample in samples if sample.counts is not None]
    pixels = sum(counts, zeros)
    return SplitReport(
        split=split,
        samples=len(records),
        labelled=sum(record.label is not None for record in records),
        sizes=dict(collections.Counter(s.size for s in samples if s.size is not None)),
        pixels=pixels[:-1],
        images=sum(((count > 0).astype(np.int64) for count in counts), zeros)[:-1],
        ignored=int(pixels[-1]),
    )


def check(description: Description, splits: Sequence[str] | None = None) -> Report:
    """Decodes every sample of `splits` (None: of all) in a pool of threads.

    Found are: empty splits, files that are missing or broken, label values that are not allowed,
    images and labels of different sizes, ids that occur twice in a split, images that occur twice
    (pixel for pixel; across splits, they leak the test into training), and classes that no label
    of any split shows.
    """
    problems: list[str] = []
    reports = []
    places: dict[bytes, list[str]] = {}
    for split in description.splits if splits is None else splits:
        try:
            records = description.records(split)
        except UserError as error:
            problems.append(str(error))
            continue
        if not len(records):
            problems.append(f"split {split!r} is empty")
        ids = collections.Counter(record.id for record in records)
        problems += [
            f"split {split!r}: id {name!r} occurs {count} times"
            for name, count in ids.items()
            if count > 1
        ]
        with ThreadPoolExecutor(threads.num_threads()) as pool:
            samples = list(pool.map(lambda record: _read(description, record), records))
        for record, sample in zip(records, samples, strict=True):
            problems += [f"split {split!r}: {problem}" for problem in sample.problems]
            if sample.digest is not None:
                places.setdefault(sample.digest, []).append(f"{split}/{record.id}")
        reports.append(_split_report(description, split, records, samples))

    problems += [
        f"the same image {len(names)} times: {', '.join(names)}"
        for names in places.values()
        if len(names) > 1
    ]
    seen = sum((report.pixels for report in reports), np.zeros(description.num_classes, np.int64))
    if seen.any():
        problems += [
            f"class {index} ({name}) occurs in no label"
            for index, name in enumerate(description.classes)
            if not seen[index]
        ]
    return Report(description.name, description.classes, tuple(reports), tuple(problems))


def format_report(report: Report) -> str:
    """The report as plain text: per split the samples, image sizes and class shares; problems."""
    lines = [f"data set {report.name}: {len(report.classes)} classes"]
    width = max(len(name) for name in report.classes)
    for split in report.splits:
        lines += ["", f"split {split.split}: {split.samples} samples, {split.labelled} labelled"]
        for (height, image_width), count in sorted(split.sizes.items(), key=lambda kv: -kv[1])[:5]:
            lines.append(f"  {count} images of {image_width} x {height} (width x height)")
        if len(split.sizes) > 5:
            lines.append(f"  and {len(split.sizes) - 5} more sizes")
        labelled = int(split.pixels.sum())
        total = labelled + split.ignored
        if not total:
            continue
        lines.append(f"  {100 * split.ignored / total:.2f} % of the pixels are ignored")
        lines.append(f"  {'class':<{width + 4}} {'% of labelled':>13} {'images':>8}")
        for index, name in enumerate(report.classes):
            share = 100 * split.pixels[index] / max(labelled, 1)
            lines.append(f"  {index:>3} {name:<{width}} {share:>13.3f} {split.images[index]:>8}")
    lines += ["", f"{len(report.problems)} problem(s)" if report.problems else "no problems"]
    lines += [f"  {problem}" for problem in report.problems[:_SHOWN]]
    if len(report.problems) > _SHOWN:
        lines.append(f"  and {len(report.problems) - _SHOWN} more")
    return "\n".join(lines)
