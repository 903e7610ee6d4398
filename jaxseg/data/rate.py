"""How fast the host makes training batches, with nothing else to do."""

import collections
import contextlib
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxseg import data
from jaxseg.data import reading, threads
from jaxseg.data.base import Description, Record
from jaxseg.errors import UserError


def measure_input(
    description: Description,
    split: str,
    augment: Any,
    *,
    backend: str = "auto",
    cache: str = "none",
    batch_size: int = 8,
    batches: int = 25,
    seed: int = 0,
) -> dict[str, Any]:
    """Reads training batches as fast as they come, and says what that took.

    What is measured starts when the pipeline runs evenly: after a few batches, or, with
    cache='decoded', when all that is read has been kept. So that this does not take the whole of a
    large data set, no more than `batches` * `batch_size` of its samples are read, evenly spaced.

    Args:
      description, split, augment, backend, cache, batch_size, seed: as for `data.train_batches`.
      batches: so many are measured.

    Returns:
      images_per_s: by the clock, with all processors that this process may use.
      images_per_cpu_s: by the processor time of all threads of this process, user and system.
      first_batch_s: from the call to the first batch; the import of TensorFlow is part of it.
      backend: 'tfdata' or 'threads', which one executed the plan.
      format: what the images are, 'PNG 2048x1024' (width x height), the most frequent of a few.
      cache, batch_size, batches: as given; processors: how many the process may use.

    Raises:
      UserError: `batches` is not positive; and what `data.train_batches` raises.
    """
    if batches < 1:
        raise UserError(f"{batches} batches to measure: expected 1 or more")
    records = reading.labelled_records(description, split)
    number = min(len(records), batches * batch_size)
    chosen = [records[i] for i in np.linspace(0, len(records) - 1, number).astype(int)]
    description = dataclasses.replace(description, records=lambda split: chosen)
    ahead = threads.AHEAD + 1
    warm = ahead + (-(-number // batch_size) if cache == "decoded" else 0)
    began = time.perf_counter()
    # As many batches follow as are read ahead, so that the pipeline is as full at the end of what
    # is measured as at its beginning.
    stream = data.train_batches(
        description,
        split,
        augment,
        backend=backend,
        cache=cache,
        seed=seed,
        batch_size=batch_size,
        start_step=0,
        num_steps=warm + batches + ahead,
    )
    marks = {}  # batch -> (clock, processor time) when it came
    with contextlib.closing(stream):
        for step in range(warm + batches):
            next(stream)
            if step in (0, warm - 1, warm + batches - 1):
                marks[step] = time.perf_counter(), time.process_time()
    start, end = marks[warm - 1], marks[warm + batches - 1]
    images = batches * batch_size
    resolved = data.resolve_backend(backend)
    return {
        "images_per_s": images / (end[0] - start[0]),
        "images_per_cpu_s": images / (end[1] - start[1]),
        "first_batch_s": marks[0][0] - began,
        "backend": "threads" if cache == "decoded" else resolved,
        "cache": cache,
        "format": _format(chosen),
        "batch_size": batch_size,
        "batches": batches,
        "processors": threads.num_threads(),
    }


def _format(records: Sequence[Record]) -> str:
    """'PNG 2048x1024', the most frequent kind and size among the first records."""
    seen: collections.Counter = collections.Counter()
    for record in records[:8]:
        source, what = reading.load(record, "image"), reading.where(record, "image")
        kind = "array"
        if not isinstance(source, np.ndarray):
            kind = reading.open_image(source, what).format
        height, width = reading.image_size(source, what)
        seen[f"{kind} {width}x{height}"] += 1
    return seen.most_common(1)[0][0]
