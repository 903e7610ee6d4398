"""A number for what a split consists of, to tell whether two results are of the same images."""

import hashlib
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from jaxseg.data.base import Description, Record, Source
from jaxseg.errors import UserError

SAMPLED = 8  # samples whose contents count, evenly spaced
_THREADS = 16  # that ask for sizes: on network file systems each answer takes its time


def fingerprint(description: Description, records: Sequence[Record]) -> str:
    """SHA-256, in hexadecimal digits, of a split, without reading all of it.

    Into it go the ids, the size of every file, the contents of `SAMPLED` samples, and how stored
    masks become classes; but neither the order of the records nor where the files lie. The same
    images in other files, a copy by `data.prepare reencode` say, are another split by it.

    Args:
      description: the dataset.
      records: of the split.
    """
    records = sorted(records, key=lambda record: record.id)
    table = None if description.label_map is None else np.asarray(description.label_map).tolist()
    colors = description.label_colors and sorted(description.label_colors.items())
    digest = hashlib.sha256(repr((description.ignore_label, table, colors)).encode())
    sources = itertools.chain.from_iterable((record.image, record.label) for record in records)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="jaxseg-sizes") as pool:
        sizes = list(pool.map(_size, sources))
    for record, image, label in zip(records, sizes[::2], sizes[1::2], strict=True):
        digest.update(f"{record.id}\0{image}\0{label}\n".encode())
    for place in sorted({len(records) * i // SAMPLED for i in range(SAMPLED)} if records else ()):
        for source in (records[place].image, records[place].label):
            digest.update(hashlib.sha256(_content(source)).digest())
    return digest.hexdigest()


def _size(source: Source | None) -> int | str:
    """Bytes of a file; a word for what is none."""
    if source is None or callable(source):
        return "no file"
    try:
        return os.path.getsize(source)
    except OSError:
        return "unreadable"


def _content(source: Source | None) -> bytes:
    try:
        if source is None:
            return b""
        if not callable(source):
            with open(source, "rb") as file:
                return file.read()
        content = source()
    except (OSError, UserError):  # the samples' reader has something to say to this
        return b"unreadable"
    if isinstance(content, np.ndarray):
        return f"{content.dtype}{content.shape}".encode() + np.ascontiguousarray(content).tobytes()
    return content
