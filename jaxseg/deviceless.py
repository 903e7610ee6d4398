"""Compiles for GPUs and TPUs that are not here: the program can be read, though not run.

    python -m jaxseg.deviceless        # once: downloads the compilers

A target is "h100" or "h200", with ":n" for n of them, or a TPU slice such as "v5e:1x1", "v6e:2x2"
or "v5p:2x2x1". The compilers are the PJRT plugins of CUDA and of libtpu;
they are looked for in the folder that the environment variable JAXSEG_PLUGINS names, else in the
cache folder (see `jaxseg.cache`), else among the installed packages.

What the compiled program says: which kernels, how much memory, which exchanges between devices,
and on TPUs the compiler's estimate of cycles. GPU programs take no Triton matrix products, as
nothing can be autotuned without a device, and convolution algorithms are yet to be chosen.
"""

import importlib.metadata
import math
import os
import pathlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from jaxseg import cache, sharding
from jaxseg.errors import UserError

# Descriptions of GPUs as XLA's compiler takes them: text of its GpuTargetConfigProto.
GPUS = pathlib.Path(__file__).parent / "targets"
COMMAND = "python -m jaxseg.deviceless"
_CUDA, _TPU = "jax_plugins/xla_cuda13/*.so", "libtpu/libtpu.so"


def mesh(target: str, chips: int = 1, height: int = 1) -> Mesh:
    """The mesh, see `sharding.arrange`, of the first `chips` of a target's chips; 0 takes all.

    Raises:
      UserError: there is no such target, it has fewer chips, or its compiler is not here; the chips
        do not divide into groups of `height`.
    """
    devices = _devices(target)
    if chips > len(devices):
        raise UserError(f"target {target!r} has {len(devices)} chips, and {chips} are asked for")
    return sharding.arrange(devices[: chips or None], height)


def compile_lowered(
    lowered: jax.stages.Lowered, on: Mesh, options: Mapping[str, Any] | None = None
) -> jax.stages.Compiled:
    """Compiles what `jax.jit(f, in_shardings=...).lower(...)` returned for shardings on `on`.

    `options` are the compiler's, XLA flags without the dashes.
    """
    cuda = on.devices.flat[0].platform != "tpu"
    needed = {"xla_gpu_enable_triton_gemm": False} if cuda else {}
    return lowered.compile({**needed, **(options or {})})


def compile_function(f: Callable, *shapes: Any, target: str) -> jax.stages.Compiled:
    """Compiles `f` for one chip of `target`; `shapes` are `jax.ShapeDtypeStruct`s or arrays."""
    on = mesh(target)
    whole = sharding.replicated(on)
    return compile_lowered(jax.jit(f, in_shardings=whole, out_shardings=whole).lower(*shapes), on)


def folder() -> pathlib.Path:
    """Where the compilers are kept; need not exist yet."""
    return pathlib.Path(os.environ.get("JAXSEG_PLUGINS") or cache.folder() / "plugins")


def install() -> list[pathlib.Path]:
    """Downloads the compilers that fit the installed jax, about 0.5 GB, and returns their files.

    Raises:
      UserError: pip cannot fetch them.
    """
    wheels = folder() / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    wanted = [f"jax-cuda13-pjrt=={importlib.metadata.version('jax')}"]
    for line in importlib.metadata.requires("jax") or ():
        libtpu = re.match(r"(libtpu\s*[=<>!~][^;]*);.*extra == .tpu.", line)
        wanted += [libtpu.group(1).replace(" ", "")] if libtpu else []
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(wheels), *wanted]
    if subprocess.run(pip).returncode:
        raise UserError(f"pip could not download the compilers; what was tried: {' '.join(pip)}")
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder() / "unpacked")
        wheel.unlink()
    wheels.rmdir()
    return [_library(_CUDA), _library(_TPU)]


def _devices(target: str) -> list:
    jax.devices()  # the machine's own first: they must not take the compilers for their drivers
    gpu = re.fullmatch(r"(h\d+)(?::(\d+))?", target)
    if gpu and (GPUS / f"{gpu.group(1)}.txtpb").exists():
        return _gpus((GPUS / f"{gpu.group(1)}.txtpb").read_text(), int(gpu.group(2) or 1))
    if not re.fullmatch(r"v\d+\w*:\d+(x\d+)+", target):
        raise UserError(
            f"there is no target {target!r}: take h100 or h200 (h200:8 for eight of them), or a "
            "TPU slice such as v5e:2x2, v6e:2x2 or v5p:2x2x1"
        )
    os.environ.setdefault("TPU_LIBRARY_PATH", str(_library(_TPU)))
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no cloud to ask who we are
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")  # any: the target's name decides
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip is touched
    sides = [int(side) for side in target.split(":")[1].split("x")]
    # libtpu takes a host to have four chips, but there are machines with one and with two.
    small = {"chips_per_host_bounds": (*sides, 1)[:3]} if math.prod(sides) < 4 else {}
    try:
        return topologies.get_topology_desc(target, platform="tpu", **small).devices
    except jax.errors.JaxRuntimeError as e:
        raise UserError(f"libtpu has no target {target!r}: {e}") from e


def _gpus(description: str, count: int) -> list:
    from jax._src.lib import xla_client

    options = {"target_config": description, "topology": f"1x1x{count}"}
    if xla_client.pjrt_plugin_loaded("cuda"):  # jax's own, or ours of an earlier call
        if not _gpus.plugin:
            return topologies.get_topology_desc("gpus", platform="cuda", **options).devices
    else:
        _gpus.plugin = xla_client.load_pjrt_plugin_dynamically("cuda", str(_library(_CUDA)))
        xla_client.initialize_pjrt_plugin("cuda")
    topology = xla_client.make_c_api_device_topology(_gpus.plugin, "gpus", **options)
    return topology._make_compile_only_devices()


_gpus.plugin = None


def _library(pattern: str) -> pathlib.Path:
    for place in (folder() / "unpacked", *map(pathlib.Path, sys.path)):
        found = sorted(place.glob(pattern))
        if found:
            return found[0]
    raise UserError(f"the compilers of targets are not in {folder()}; fetch them with: {COMMAND}")


if __name__ == "__main__":
    try:
        print(*install(), sep="\n")
    except UserError as e:
        sys.exit(f"error: {e}")
