"""A whole split in the memory of the devices: which record goes where, whether all fit, reading.

Images lie in one uint8 array, smaller ones padded; labels likewise, wider where classes need it.
Each device holds its share. Only a chunk at a time is in the host's memory.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxseg.console import duration, say
from jaxseg.data import crop, device_crop, labels, plan, reading, samples, threads
from jaxseg.data.base import Description, Record
from jaxseg.errors import UserError
from jaxseg.sharding import over_batch

MAX_PADDING = 4.0  # times the pixels of the images that their arrays, all of one size, may have

_CHUNK_BYTES = 128 << 20  # read, then sent to the devices, at once
_REPORT_EVERY = 10.0  # seconds

_KEY = "config.data_cache='device'"


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the records are: record i is number i // devices on device i % devices.

    Attributes:
      sizes: (height, width) of every record.
      devices: how many.
      mine: of this process: place in the mesh -> its number among this process's devices.
      slots: images per device; the last ones may be empty.
      chunk: of these, how many are read at once; a divisor.
      dtype: of the labels.
    """

    sizes: Sequence[tuple[int, int]]
    devices: int
    mine: dict[int, int]
    slots: int
    chunk: int
    dtype: np.dtype

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the largest."""
        return tuple(max(edges) for edges in zip(*self.sizes, strict=True))

    @property
    def bytes_per_device(self) -> int:
        return self.slots * self.size[0] * self.size[1] * (3 + self.dtype.itemsize)


@dataclasses.dataclass(frozen=True)
class Store:
    """A split in device memory.

    Attributes:
      images: uint8 [devices * slots, h, w, 3], split over the devices.
      labels: integers [devices * slots, h, w], likewise.
      on_host: record -> its label once more, [h, w], of the records on this process's devices; or
        empty.
    """

    images: jax.Array
    labels: jax.Array
    on_host: dict[int, np.ndarray]


def lay_out(description: Description, sizes: Sequence[tuple[int, int]], mesh: Mesh) -> Layout:
    """Spreads records of these (height, width) over the devices of the mesh."""
    here = [i for i, d in enumerate(mesh.devices.flat) if d.process_index == jax.process_index()]
    mine = {place: number for number, place in enumerate(here)}
    slots = -(-len(sizes) // mesh.size)
    layout = Layout(sizes, mesh.size, mine, slots, 1, labels.dtype(description))
    most = max(_CHUNK_BYTES * slots // (layout.bytes_per_device * len(mine)), 1)
    chunks = -(-slots // most)
    chunk = -(-slots // chunks)
    return dataclasses.replace(layout, slots=chunk * chunks, chunk=chunk)


def check_sizes(records: Sequence[Record], layout: Layout, augment: Any) -> None:
    """Raises `UserError` where one array does not suit all images, or an image is too large."""
    for record, size in zip(records, layout.sizes, strict=True):
        scaled = plan.scaled_size(size, augment.scale[1], augment.base_size)
        if max(2 * a * b for a, b in zip(size, scaled, strict=True)) > device_crop.MAX_PRODUCT:
            raise UserError(
                f"{_KEY}: {reading.where(record, 'image')} is {size[1]} x {size[0]} and is scaled "
                f"to {scaled[1]} x {scaled[0]} (width x height), more than the devices can count; "
                "cut it into tiles, lower config.augment.scale, or set config.data_cache='decoded'"
            )
    height, width = layout.size
    padding = height * width * len(layout.sizes) / sum(h * w for h, w in layout.sizes)
    if padding > MAX_PADDING:
        raise UserError(
            f"{_KEY} keeps every image in an array as large as the largest, {width} x {height} "
            f"(width x height) in all: {padding:.1f} times the pixels that there are; at most "
            f"{MAX_PADDING:g} times are sensible. Set config.data_cache='decoded', which keeps "
            "each at its size in the host's memory, or store the images in similar sizes"
        )


def check_memory(layout: Layout, mesh: Mesh, keeps_labels: bool) -> None:
    """Says how much memory the split takes; raises `UserError` where there is less."""
    device = next(d for d in mesh.devices.flat if d.process_index == jax.process_index())
    on_host = 0
    if keeps_labels:
        held = [size for i, size in enumerate(layout.sizes) if i % layout.devices in layout.mine]
        on_host = sum(h * w for h, w in held) * layout.dtype.itemsize
    say(
        f"{_KEY}: {len(layout.sizes)} images take {_gb(layout.bytes_per_device)} on each of "
        f"{layout.devices} x {device.device_kind}, and their labels {_gb(on_host)} of the host"
    )
    if device.platform == "cpu":  # its devices share the host's memory
        on_host += layout.bytes_per_device * len(layout.mine)
    else:
        stats = device.memory_stats() or {}
        if "bytes_limit" in stats:
            free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
            if layout.bytes_per_device > free:
                raise UserError(
                    f"{_KEY}: {_gb(layout.bytes_per_device)} are needed on each device, and "
                    f"{_gb(free)} of {_gb(stats['bytes_limit'])} are free. Use more devices, or "
                    "config.data_cache='decoded', which takes the host's memory, or 'none'"
                )
    free = samples.free_memory()
    if free is not None and on_host > free:
        raise UserError(
            f"{_KEY}: {_gb(on_host)} of the host's memory are needed, and {_gb(free)} are free. "
            "Use more hosts, or config.data_cache='none', which takes none"
        )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def load(
    description: Description,
    records: Sequence[Record],
    layout: Layout,
    mesh: Mesh,
    keeps_labels: bool,
) -> Store:
    """Reads every record of this process's devices, a chunk at a time, and sends it there.

    Args:
      keeps_labels: whether to keep the labels on the host as well.

    Raises:
      UserError: a record cannot be read.
    """
    sharding = over_batch(mesh)
    height, width = layout.size
    shapes = ((height, width, 3), np.dtype(np.uint8)), ((height, width), layout.dtype)
    on_host: dict[int, np.ndarray] = {}

    def fill(images, masks, place, index):
        image, label = reading.read_pair(description, records[index])
        crop.place(image, images[place], False, crop.PAD)
        crop.place(label, masks[place], False, description.ignore_label)
        if keeps_labels:
            on_host[index] = label.astype(layout.dtype)

    def jobs():
        for first in range(0, layout.slots, layout.chunk):
            rows = len(layout.mine) * layout.chunk
            chunk = tuple(np.zeros((rows, *shape), dtype) for shape, dtype in shapes)
            indices = [
                (number * layout.chunk + slot - first, slot * layout.devices + device)
                for slot in range(first, first + layout.chunk)
                for device, number in layout.mine.items()
            ]
            parts = [
                functools.partial(fill, *chunk, place, index)
                for place, index in indices
                if index < len(records)
            ]
            yield (first, chunk), parts

    @functools.partial(jax.jit, out_shardings=sharding)
    def allocate():
        rows = layout.devices * layout.slots
        return tuple(jnp.zeros((rows, *shape), dtype) for shape, dtype in shapes)

    write = make_write(mesh)
    began = reported = time.monotonic()
    arrays = allocate()
    for first, chunk in threads.in_order(jobs()):
        arrays = write(arrays, jax.make_array_from_process_local_data(sharding, chunk), first)
        jax.block_until_ready(arrays)  # or chunks would pile up
        now, done = time.monotonic(), (first + layout.chunk) / layout.slots
        if now - reported > _REPORT_EVERY and done < 1:
            reported = now
            left = duration((now - began) * (1 - done) / done)
            say(f"{_KEY}: {int(done * len(records))} of {len(records)} images read, {left} left")
    say(f"{_KEY}: {len(records)} images read in {duration(time.monotonic() - began)}")
    return Store(*arrays, on_host)


def make_write(mesh: Mesh) -> Callable:
    """The jitted (arrays, chunk, first) -> arrays that puts a chunk into every device's share.

    In place: `arrays` is donated. `first` is the number of the chunk's first image on each device.
    """

    def write(arrays, chunk, first):
        return jax.tree.map(
            lambda a, c: jax.lax.dynamic_update_slice_in_dim(a, c, first, 0), arrays, chunk
        )

    spec = PartitionSpec("data")
    local = jax.shard_map(write, mesh=mesh, in_specs=(spec, spec, PartitionSpec()), out_specs=spec)
    return jax.jit(local, donate_argnums=0)
