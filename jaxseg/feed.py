"""Training batches on their way to the devices: the next are transferred while a step runs."""

import collections
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxseg import data
from jaxseg.data import bad_samples
from jaxseg.data.base import Description
from jaxseg.data.labels import dtype as label_dtype
from jaxseg.sharding import shard_batch

# Batches on the devices before their step is enqueued. A GPU's copies may queue behind the steps
# that were enqueued before them; two batches early, they still overlap with a step.
AHEAD = 2


def train_batches(
    config: ConfigDict,
    description: Description,
    mesh: Mesh,
    start: int,
    folder: pathlib.Path | None = None,
    skipped: int = 0,
) -> Iterator[dict[str, Any]]:
    """The batches of the steps after `start`, on the devices, with the samples' 'id'.

    Of the data, so many batches are `skipped` before those of step `start` + 1.
    Bad samples that `config.on_bad_sample` skips are listed in `folder`, see `data.bad_samples`.

    Close it when the loop ends early. Raises what `data.train_batches` and `data.on_device` raise.
    """
    where = (description, config.train_split, config.augment)
    settings = dict(
        seed=config.seed,
        batch_size=config.batch_size,
        start_step=start + skipped,
        num_steps=config.steps - start,
    )
    if config.data_cache == "device":
        from jaxseg.data import on_device

        return on_device.train_batches(*where, mesh=mesh, **settings)
    skip = None
    if config.on_bad_sample == "skip":
        skip = bad_samples.Skip(config.bad_sample_cap, folder, jax.process_index())
    batches = data.train_batches(
        *where,
        skip=skip,
        backend=config.data_backend,
        cache=config.data_cache,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        **settings,
    )
    return prefetch(batches, mesh, label_dtype(description))


def prefetch(
    batches: Iterable[Mapping[str, Any]], mesh: Mesh, labels: Any = np.int32
) -> Iterator[dict[str, Any]]:
    """The same batches in the same order, as `shard_batch` makes them, with their 'id'.

    A thread takes and transfers up to `AHEAD` batches while the caller holds another, and so many
    are in the devices' memory at the most, besides those of the steps that are not done.

    Raises:
      What `batches` raises, after the batches before. The thread has ended then, as it has when
      the iterator is exhausted or closed.
    """
    batches = iter(batches)

    def take() -> dict[str, Any] | None:
        batch = next(batches, None)
        return batch and {**shard_batch(batch, mesh, labels), "id": batch["id"]}

    pool = ThreadPoolExecutor(1, thread_name_prefix="jaxseg-transfer")
    waiting: collections.deque = collections.deque()
    try:
        while True:
            while len(waiting) <= AHEAD:
                waiting.append(pool.submit(take))
            batch = waiting.popleft().result()
            if batch is None:
                return
            yield batch
            del batch  # its memory is the caller's to free
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
