"""A training sample before its window is known, read anew every time or kept in memory.

    none      files are read, and of an image no more is decoded than the window needs
    decoded   every image and label is decoded once and kept, as bytes, in this process's memory

`device`, the third kind of cache, is `jaxseg.data.on_device`.
"""

import dataclasses
import os
import threading
from collections.abc import Callable, Sequence

import numpy as np

from jaxseg.data import labels, reading
from jaxseg.data.base import Description, Record
from jaxseg.errors import UserError

_ASKED = 500  # so many images are asked for their size to estimate what all will take
_SHARE = 0.9  # of the free memory that a cache may fill; the rest is for the run


@dataclasses.dataclass(frozen=True)
class Sample:
    """One record, its label read and its image perhaps not.

    Attributes:
      label: class indices and the ignore label, [h, w] of `labels.dtype`.
      size: (height, width) of both.
      image: what is decoded or to be decoded: an array or encoded bytes, for
        `reading.decode_image`.
      what: names the image in messages.
    """

    label: np.ndarray
    size: tuple[int, int]
    image: bytes | np.ndarray
    what: str


def read(description: Description, record: Record) -> Sample:
    """The label and the encoded image of a record.

    Raises:
      UserError: a file that cannot be read, a bad label, or image and label of different sizes.
    """
    label = reading.read_narrow_label(description, record)
    image, what = reading.load(record, "image"), reading.where(record, "image")
    size = reading.image_size(image, what)
    reading.check_sizes(record, size, label.shape)
    return Sample(label, size, image, what)


def source(
    description: Description, records: Sequence[Record], cache: str, lenient: bool = False
) -> Callable[[int], Sample]:
    """The function that reads the record of an index, from files or from what it kept of them.

    Args:
      description: the data set.
      records: of the split.
      cache: 'none' or 'decoded'. Of several processes each keeps what it reads, which is all of
        the split in the end: an epoch deals the records out anew.
      lenient: whether records that cannot be read are left out of the estimate of what all take.

    Raises:
      UserError: the decoded split will not fit into memory.
    """
    if cache == "none":
        return lambda index: read(description, records[index])
    _check_memory(description, records, lenient)
    kept: list[Sample | None] = [None] * len(records)
    locks = [threading.Lock() for _ in records]

    def decoded(index: int) -> Sample:
        with locks[index]:  # two batches can ask for one record at a time
            if kept[index] is None:
                sample = read(description, records[index])
                image = reading.decode_image(sample.image, sample.what)
                kept[index] = dataclasses.replace(sample, image=image)
            return kept[index]

    return decoded


def decoded_bytes(
    description: Description, records: Sequence[Record], lenient: bool = False
) -> int:
    """What the decoded images and labels take, from the headers of at most `_ASKED` images."""

    def size(record):
        try:
            return int(np.prod(reading.read_size(record)))
        except UserError:
            if not lenient:
                raise
            return 0

    asked = records[:: -(-len(records) // _ASKED)]
    pixels = sum(map(size, asked))
    return pixels * (3 + labels.dtype(description).itemsize) * len(records) // len(asked)


def _check_memory(description: Description, records: Sequence[Record], lenient: bool) -> None:
    need, free = decoded_bytes(description, records, lenient), free_memory()
    if free is not None and need > _SHARE * free:
        raise UserError(
            f"config.data_cache='decoded': the {len(records)} decoded samples of "
            f"{description.name} take {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are "
            f"free, of which a cache may fill {100 * _SHARE:.0f} %. Set config.data_cache='none'; "
            "where decoding is what takes long, `python -m jaxseg.data.prepare reencode` makes a "
            "copy that is decoded several times as fast"
        )


def free_memory(root: str = "/") -> int | None:
    """Bytes this process can still take: free on the machine and within its control groups.

    Args:
      root: where `proc` and `sys` are.

    Returns:
      None where the system does not say.
    """
    limits = []
    meminfo = _read(os.path.join(root, "proc/meminfo")) or ""
    for line in meminfo.splitlines():
        if line.startswith("MemAvailable:"):
            limits.append(int(line.split()[1]) * 1024)
    for line in (_read(os.path.join(root, "proc/self/cgroup")) or "").splitlines():
        number, controllers, path = line.split(":", 2)
        one = number != "0"  # version 1: a hierarchy for each controller
        if one and "memory" not in controllers.split(","):
            continue
        mount = os.path.join(root, "sys/fs/cgroup", "memory" if one else "")
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        names = names if one else ("memory.max", "memory.current", "inactive_file")
        # A container may see its own group as the root, and any group above it may be the tightest.
        parts = path.strip("/").split("/")
        groups = {os.path.join(mount, *parts[:depth]) for depth in range(len(parts) + 1)}
        limits += [room for group in groups if (room := _room(group, *names)) is not None]
    return max(min(limits), 0) if limits else None


def _room(group: str, limit: str, used: str, file_pages: str) -> int | None:
    """Bytes left in one control group, or None where it has no limit."""
    values = [_read(os.path.join(group, name)) for name in (limit, used)]
    if not all(value and value.strip().isdecimal() for value in values):
        return None  # 'max', or no such group
    statistics = (_read(os.path.join(group, "memory.stat")) or "").split()
    pages = dict(zip(statistics[::2], statistics[1::2], strict=False)).get(file_pages, 0)
    return int(values[0]) - int(values[1]) + int(pages)  # cached files give way


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return None
