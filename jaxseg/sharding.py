"""The device mesh, and how a batch and a state are laid over it.

Data parallelism is one line of layout: the batch is split over the axis 'data', everything else is
replicated. Under `jax.jit` the loss, the gradients and the BatchNorm statistics are then those of
the whole global batch by construction, on any number of devices and hosts.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxseg.errors import UserError

ARRAYS = ("image", "label", "mask")  # the entries of a batch that go to the devices


def make_mesh(num_devices: int = 0) -> Mesh:
    """A one-axis mesh ('data') over the first `num_devices` devices; 0 takes all of every host.

    Raises:
      UserError: more devices asked for than there are, or a part of them on several hosts.
    """
    devices = jax.devices()
    if num_devices > len(devices) or num_devices < 0:
        raise UserError(
            f"config.devices={num_devices}: this run has {len(devices)} "
            f"({devices[0].device_kind}); 0 uses them all"
        )
    if num_devices and jax.process_count() > 1 and num_devices != len(devices):
        raise UserError("config.devices: a run on several hosts uses all devices; leave it at 0")
    devices = np.array(devices[: num_devices or None])
    return Mesh(devices, ("data",), axis_types=(AxisType.Auto,))


def check_divides(batch_size: int, mesh: Mesh) -> None:
    """Raises `UserError` unless every device gets as many images."""
    if batch_size % mesh.devices.size:
        raise UserError(
            f"config.batch_size={batch_size} does not divide over {mesh.devices.size} "
            f"devices: take a multiple of {mesh.devices.size}, or set config.devices"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec("data"))


def shard_batch(batch: Mapping[str, Any], mesh: Mesh, labels: Any = np.int32) -> dict[str, Any]:
    """This host's part of a batch (NumPy, leading axis) as global arrays split over the mesh.

    Starts the transfer and returns at once. Ids stay on the host, and out of the result; labels
    become `labels`, the dtype that they travel in.
    """
    arrays = {k: batch[k] for k in ARRAYS}
    arrays["label"] = arrays["label"].astype(labels, copy=False)
    return jax.make_array_from_process_local_data(over_batch(mesh), arrays)


def local_rows(array: jax.Array) -> np.ndarray:
    """This host's rows of an array that is split over the batch."""
    shards = {s.index[0].start or 0: s.data for s in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def init_distributed(coordinator: str | None, num_processes: int | None, process_id: int | None):
    """Joins a multi-host run; call it before anything touches a device.

    Without arguments jax finds the other hosts from the environment (Cloud TPU, Slurm, Open MPI).
    The shutdown timeout is short, so that a failure on one host does not hold the others for
    jax's default of five minutes.
    """
    where = coordinator or "the address that the environment gives"
    print(f"waiting for all processes at {where}", flush=True)
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, shutdown_timeout_seconds=30
        )
    except ValueError as error:
        raise UserError(
            f"--distributed: {error} Pass --coordinator=HOST:PORT --num_processes=N --process_id=I "
            "when the cluster is not one that jax recognises."
        ) from error
