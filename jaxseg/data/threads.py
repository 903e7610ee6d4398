"""Executes the plan with Pillow, NumPy and a pool of threads; needs nothing else.

Pillow's decoders and NumPy's loops release the interpreter lock, so threads do run side by side.
Evaluation always reads this way: it decodes whole images, which tf.data does no better.
"""

import collections
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from jaxseg.data import bad_samples, crop, plan, reading, samples
from jaxseg.data.base import Description

AHEAD = 2  # batches in the making while the caller holds another


def num_threads() -> int:
    """Processors this process may use, at most 32."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return min(len(affinity(0)) if affinity else os.cpu_count() or 1, 32)


def in_order(jobs: Iterable[tuple[Any, list[Callable[[], None]]]]) -> Iterator[Any]:
    """Yields each job's result, in order, after all of its parts have run in a pool of threads.

    Args:
      jobs: (result, parts): `result` is handed out when every function of `parts` has returned.
        Taken lazily, at most `AHEAD` jobs early.

    Raises:
      Whatever a part raised, when its job's turn comes; the first part's if several did. The pool
      is shut down then, and when the iterator is closed or dropped.
    """
    pool = ThreadPoolExecutor(num_threads(), thread_name_prefix="jaxseg-data")
    waiting: collections.deque = collections.deque()
    jobs = iter(jobs)
    try:
        while True:
            while len(waiting) <= AHEAD:
                job = next(jobs, None)
                if job is None:
                    break
                result, parts = job
                waiting.append((result, [pool.submit(part) for part in parts]))
            if not waiting:
                return
            result, futures = waiting.popleft()
            for future in futures:
                future.result()
            del futures  # they hold on to this batch's arrays
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def empty_batch(rows: int, size: tuple[int, int], ignore_label: int) -> dict[str, Any]:
    """A batch of padding rows: images of the padding colour, nothing labelled, mask False."""
    return {
        "image": np.full((rows, *size, 3), crop.PAD, np.uint8),
        "label": np.full((rows, *size), ignore_label, np.int32),
        "mask": np.zeros(rows, bool),
        "id": [""] * rows,
    }


def train_batches(
    description: Description,
    split: str,
    augment: Any,
    *,
    seed: int,
    batch_size: int,
    start_step: int,
    num_steps: int,
    process_index: int = 0,
    process_count: int = 1,
    cache: str = "none",
    skip: bad_samples.Skip | None = None,
) -> Iterator[dict[str, Any]]:
    """Training batches of the steps start_step .. start_step + num_steps - 1.

    Args:
      description: the data set.
      split: which of its splits.
      augment: `config.augment`: crop (height, width), scale, base_size, cat_max_ratio, flip.
      seed: of the order and the augmentation.
      batch_size: global, over all processes; this one yields its contiguous share.
      start_step, num_steps: starting at s continues a run from 0 exactly.
      process_index, process_count: which share.
      cache: 'none' or 'decoded', see `samples.source`.
      skip: how many bad samples others take the place of; None: the first is an error.

    Yields:
      image uint8 [b, *crop, 3], label int32 [b, *crop], mask bool [b], all True, id list of str.

    Raises:
      UserError: at once for a bad split or setting, at its batch for a bad sample.
    """
    plan.check_augment(augment, seed)
    plan.train_positions(start_step, batch_size, process_index, process_count)
    records = reading.labelled_records(description, split)
    read = samples.source(description, records, cache, lenient=skip is not None)
    substitute = bad_samples.substituting(skip, split, records, read, seed)
    ignore = description.ignore_label
    size = tuple(augment.crop)

    def fill(batch, place, row):
        sample = read(row.index)
        cut = plan.cut(row, sample.label, augment, ignore)
        box = crop.source_box(sample.size, cut)
        pixels = reading.decode_image(sample.image, sample.what, box)
        crop.write_image(batch["image"][place], pixels, cut, sample.size, box[:2])
        label = plan.crop_label(sample.label, cut)
        crop.place(label, batch["label"][place], cut.flip, ignore)
        batch["id"][place] = records[row.index].id

    def positions(step):
        return plan.train_positions(step, batch_size, process_index, process_count)

    def jobs():
        for step in range(start_step, start_step + num_steps):
            rows = plan.train_rows(
                seed, len(records), step, batch_size, augment, process_index, process_count
            )
            batch = {  # every value of it is written
                "image": np.empty((len(rows), *size, 3), np.uint8),
                "label": np.empty((len(rows), *size), np.int32),
                "mask": np.ones(len(rows), bool),
                "id": [""] * len(rows),
            }
            yield (
                batch,
                [
                    functools.partial(substitute, functools.partial(fill, batch, place), *pair)
                    for place, pair in enumerate(zip(rows, positions(step), strict=True))
                ],
            )

    return in_order(jobs())


def eval_batches(
    description: Description,
    split: str,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, Any]]:
    """Every sample of a split exactly once, whole, in batches of equally large samples.

    Args:
      description: the data set.
      split: which of its splits.
      batch_size: global, over all processes; this one yields its contiguous share.
      process_index, process_count: which share. All processes get equally many batches of the
        same shapes.

    Yields:
      image uint8 [b, h, w, 3], label int32 [b, h, w], mask bool [b], id list of str. Where a size
      does not fill its last batch, rows follow with mask False, label all ignored and id ''.

    Raises:
      UserError: at once for a bad split or image header, at its batch for a bad sample.
    """
    plan.train_positions(0, batch_size, process_index, process_count)
    records = reading.labelled_records(description, split)
    with ThreadPoolExecutor(num_threads()) as pool:
        sizes = list(pool.map(reading.read_size, records))
    groups = plan.eval_groups(sizes, batch_size, process_index, process_count)

    def fill(batch, place, record):
        image, label = reading.read_pair(description, record)
        batch["image"][place] = image
        batch["label"][place] = label
        batch["mask"][place] = True
        batch["id"][place] = record.id

    def jobs():
        for group in groups:
            batch = empty_batch(len(group.indices), group.size, description.ignore_label)
            yield (
                batch,
                [
                    functools.partial(fill, batch, place, records[index])
                    for place, index in enumerate(group.indices)
                    if index >= 0
                ],
            )

    return in_order(jobs())
