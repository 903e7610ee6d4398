"""Keeps a whole split in the memory of the devices, and cuts its training batches there.

A step takes a small table from the host: which record, which window, at which scale, mirrored or
not. That is the plan's, as for the other back ends. Each device cuts the crops of the records that
it holds, and crops, not images, are exchanged, so that each has its rows of the batch.

Windows are chosen on the host, by the function that chooses them for every back end: to look for
one that no class fills takes now one try, now ten, which suits no accelerator. For that a process
keeps the labels of its records, a quarter of what its devices hold, in the host's memory.
"""

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxseg.data import device_crop, device_store, plan, reading, threads
from jaxseg.data.base import Description
from jaxseg.errors import UserError
from jaxseg.sharding import over_batch


def train_batches(
    description: Description,
    split: str,
    augment: Any,
    *,
    mesh: Mesh,
    seed: int,
    batch_size: int,
    start_step: int,
    num_steps: int,
) -> Iterator[dict[str, Any]]:
    """Reads the split onto the devices, then yields the batches of `threads.train_batches`.

    Take the batches in the thread that runs the training step: where programs with collectives are
    started from two threads, devices can meet them in different orders and wait for ever.

    Args:
      description, split, augment, seed, batch_size, start_step, num_steps: as for
        `threads.train_batches`.
      mesh: the devices; the batch is split over them.

    Yields:
      image uint8 [b, *crop, 3], label int32 [b, *crop], mask bool [b], all True, as global arrays
      split over the mesh; id: list of str, of this process's rows. Labels are those of the other
      back ends, images differ by a grey level at most.

    Raises:
      UserError: at once for a bad split, setting or sample, and where memory does not suffice.
    """
    if mesh.shape["height"] > 1:
        raise UserError(
            f"config.data_cache='device' with config.shard.height={mesh.shape['height']}: crops "
            "are cut on one device, not split over several; set config.data_cache='decoded'"
        )
    plan.check_augment(augment, seed)
    share = plan.train_positions(start_step, batch_size, jax.process_index(), jax.process_count())
    if batch_size % mesh.size:
        raise UserError(
            f"config.batch_size={batch_size} does not divide over {mesh.size} devices: take a "
            f"multiple of {mesh.size}, or set config.devices"
        )
    records = reading.labelled_records(description, split)
    if not num_steps:
        return iter(())
    with ThreadPoolExecutor(threads.num_threads()) as pool:
        sizes = list(pool.map(reading.read_size, records))
    # A label is looked at only to choose among windows.
    looks = augment.cat_max_ratio is not None and augment.cat_max_ratio < 1
    layout = device_store.lay_out(description, sizes, mesh)
    device_store.check_sizes(records, layout, augment)
    device_store.check_memory(layout, mesh, looks)
    store = device_store.load(description, records, layout, mesh, looks)
    cut = make_cut(mesh, tuple(augment.crop), description.ignore_label)

    def write_window(out, row):
        size = layout.sizes[row.index]
        label = store.on_host[row.index] if looks else np.broadcast_to(np.uint8(0), size)
        window = plan.cut(row, label, augment, description.ignore_label)
        out[:] = device_crop.Window(
            row.index // layout.devices, *size, *window.scaled, window.top, window.left,
            window.height, window.width, window.flip,
        )  # fmt: skip

    def jobs():
        for step in range(start_step, start_step + num_steps):
            rows = plan.train_rows(seed, len(records), step, batch_size, augment)
            shape = len(layout.mine), batch_size, len(device_crop.Window._fields)
            table = np.full(shape, -1, np.int32)
            parts = [
                functools.partial(write_window, table[layout.mine[device], place], row)
                for place, row in enumerate(rows)
                if (device := row.index % layout.devices) in layout.mine
            ]
            ids = [records[row.index].id for row in rows]
            first = share.start - start_step * batch_size
            yield (table, ids[first : first + len(share)]), parts

    def batches():
        for table, ids in threads.in_order(jobs()):
            table = jax.make_array_from_process_local_data(over_batch(mesh), table)
            image, label, mask = cut(store.images, store.labels, table)
            yield {"image": image, "label": label, "mask": mask, "id": ids}

    return batches()


def make_cut(mesh: Mesh, crop_size: tuple[int, int], ignore_label: int) -> Callable:
    """The jitted (images, labels, table) -> (image, label, mask) of a batch.

    `images` and `labels` are those of `device_store.Store`. `table` is int32 [devices, b, 10],
    split over the devices: per row of the batch what a device cuts, see `device_crop.Window`; -1
    where it does not hold the record. The batch is uint8 [b, *crop, 3], int32 [b, *crop] and bool
    [b], all True, split over the devices. Each of them sends b crops to the sum.
    """

    def cut(images, labels, table):
        image, label = device_crop.cut_windows(images, labels, table[0], crop_size, ignore_label)
        # All but one device have zeros for a row: the sum is that one's crop.
        image, label = (
            jax.lax.psum_scatter(x, "data", scatter_dimension=0, tiled=True) for x in (image, label)
        )
        return image, label, jnp.ones(len(label), bool)

    spec = PartitionSpec("data")
    return jax.jit(jax.shard_map(cut, mesh=mesh, in_specs=spec, out_specs=spec))
