"""The device mesh, and how a batch and a state are laid over it.

Data parallelism is one line of layout: the batch is split over the axis 'data', everything else is
replicated. Under `jax.jit` the loss, the gradients and the BatchNorm statistics are then those of
the whole global batch by construction, on any number of devices and hosts. Two more lines of layout
are for what one device cannot hold:

    config.shard.height   every image is split over so many devices by rows (the axis 'height');
                          the compiler has neighbours exchange the rows that convolutions reach over
    config.shard.state    parameters, their averages and the optimizer's moments are split over all
                          devices; the parameters are gathered for a step, the gradients scattered
                          (Rajbhandari et al. 2020, arXiv:1910.02054, stages 1 and 2)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxseg.errors import UserError

ARRAYS = ("image", "label", "mask")  # the entries of a batch that go to the devices
# Smaller arrays stay whole on every device: what is saved is not worth an exchange each.
MIN_SPLIT = 2**14


def make_mesh(num_devices: int = 0, height: int = 1) -> Mesh:
    """A mesh over the first `num_devices` devices, see `arrange`; 0 takes all of every host.

    Raises:
      UserError: more devices asked for than there are, or a part of them on several hosts; images
        cannot be split into `height` parts on these devices.
    """
    devices = jax.devices()
    if num_devices > len(devices) or num_devices < 0:
        raise UserError(
            f"config.devices={num_devices}: this run has {len(devices)} "
            f"({devices[0].device_kind}); 0 uses them all"
        )
    if num_devices and jax.process_count() > 1 and num_devices != len(devices):
        raise UserError("config.devices: a run on several hosts uses all devices; leave it at 0")
    if jax.process_count() > 1 and height > 1 and jax.local_device_count() % height:
        raise UserError(
            f"config.shard.height={height}: an image stays on one host, and its "
            f"{jax.local_device_count()} devices do not divide into groups of so many; take a "
            "divisor of that"
        )
    # Ids may alternate between hosts; a host's rows of a batch are adjacent.
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    return arrange(devices[: num_devices or None], height)


def arrange(devices: Sequence[Any], height: int = 1) -> Mesh:
    """The mesh ('data', 'height') of these devices: `height` of them in a row share images.

    Raises:
      UserError: they do not divide into such rows.
    """
    if height < 1 or len(devices) % height:
        raise UserError(
            f"config.shard.height={height}: {len(devices)} devices do not divide into groups of so "
            "many; take a divisor of their number, or 1 for whole images"
        )
    grid = np.array(devices).reshape(-1, height)
    return Mesh(grid, ("data", "height"), axis_types=(AxisType.Auto,) * 2)


def check_divides(batch_size: int, crop: Sequence[int], mesh: Mesh) -> None:
    """Raises `UserError` unless every device gets as many images, or as many rows of them."""
    images, height = mesh.shape["data"], mesh.shape["height"]
    if batch_size % images:
        groups = f"groups of {height} devices" if height > 1 else "devices"
        raise UserError(
            f"config.batch_size={batch_size} does not divide over {images} {groups}: "
            f"take a multiple of {images}, or set config.devices"
        )
    if crop[0] % height:
        raise UserError(
            f"config.augment.crop={tuple(crop)}: {crop[0]} rows do not divide over "
            f"config.shard.height={height} devices; take a multiple, best of {height} times the "
            "model's output stride"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec("data"))


def over_images(mesh: Mesh, rows: int = 0) -> dict[str, NamedSharding]:
    """The layout of a batch's entries; images whose `rows` do not divide stay whole."""
    split = PartitionSpec("data", None if rows % mesh.shape["height"] else "height")
    maps = NamedSharding(mesh, split)
    return {"image": maps, "label": maps, "mask": over_batch(mesh)}


def over_devices(state: Any, mesh: Mesh) -> Any:
    """A state's layout, a tree of shardings: large arrays split over all devices, others whole.

    Args:
      state: arrays or shapes. Each is split along its longest axis that divides, the last of
        equals.
      mesh: the devices.
    """

    def layout(leaf: Any) -> NamedSharding:
        axes = [i for i, n in enumerate(leaf.shape) if n % mesh.size == 0]
        if leaf.size < MIN_SPLIT or not axes:
            return replicated(mesh)
        axis = max(axes, key=lambda i: (leaf.shape[i], i))
        return NamedSharding(mesh, PartitionSpec(*(None,) * axis, mesh.axis_names))

    return jax.tree.map(layout, state)


def gathered(tree: Any, mesh: Mesh) -> Any:
    """Arrays that are split over devices, whole on each of them."""
    return jax.jit(_same, out_shardings=replicated(mesh))(tree)


def _same(tree: Any) -> Any:
    return tree


def shard_batch(batch: Mapping[str, Any], mesh: Mesh, labels: Any = np.int32) -> dict[str, Any]:
    """This host's part of a batch (NumPy, leading axis) as global arrays split over the mesh.

    Starts the transfer and returns at once. Ids stay on the host, and out of the result; labels
    become `labels`, the dtype that they travel in.
    """
    arrays = {k: batch[k] for k in ARRAYS}
    arrays["label"] = arrays["label"].astype(labels, copy=False)
    layout = over_images(mesh, arrays["image"].shape[1])
    return jax.make_array_from_process_local_data(layout, arrays)


def local_rows(array: jax.Array) -> np.ndarray:
    """This host's rows of an array that is split over the batch, and perhaps over the height."""
    shards = array.addressable_shards
    first = min(shard.index[0].start or 0 for shard in shards)
    last = max(shard.index[0].stop or len(array) for shard in shards)
    rows = np.empty((last - first, *array.shape[1:]), array.dtype)
    for shard in shards:
        begin, end, _ = shard.index[0].indices(len(array))
        rows[(slice(begin - first, end - first), *shard.index[1:])] = shard.data
    return rows
