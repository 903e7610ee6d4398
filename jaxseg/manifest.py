"""What a result depends on besides config and data: the code, the packages, the machine, the flags.

The manifest of a run (`jaxseg.workdir`), the results of an evaluation (`jaxseg.results`) and those
of `benchmark` hold what `environment` finds.
"""

import importlib.metadata
import os
import pathlib
import platform
import re
import socket
import subprocess
import sys
from typing import Any

import jax

from jaxseg import deterministic

# Distributions, in the spelling of package indices; and what drivers and compilers come in.
_PACKAGES = frozenset(
    "jax jaxlib flax optax orbax-checkpoint tensorstore numpy scipy ml-dtypes ml-collections etils "
    "absl-py pillow tensorboardx tensorflow tensorflow-cpu tensorflow-datasets array-record".split()
)
_FAMILIES = ("jax-cuda", "libtpu", "nvidia-")
_VARIABLES = re.compile(
    r"(JAX|XLA|LIBTPU|TPU|MEGASCALE|NCCL)_.*|CUDA_VISIBLE_DEVICES|NVIDIA_TF32_OVERRIDE|"
    r"TF_ENABLE_ONEDNN_OPTS|OMP_NUM_THREADS"
)


def environment() -> dict[str, Any]:
    """What a result depends on besides config and data; fit for JSON."""
    devices = jax.devices()
    return {
        "git": code(),
        "packages": packages(),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "processor": _processor(),
        "cores": _cores(),  # on a CPU the bits depend on it
        "device": devices[0].device_kind,
        "device_count": len(devices),
        "process_count": jax.process_count(),
        "deterministic": deterministic.is_on(),
        "environment": {
            name: os.environ[name] for name in sorted(os.environ) if _VARIABLES.fullmatch(name)
        },
    }


def packages() -> dict[str, str]:
    """Versions of the installed distributions that results depend on."""
    found = {}
    for distribution in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        if name in _PACKAGES or name.startswith(_FAMILIES):
            found.setdefault(name, distribution.version)  # the first on the path is imported
    return dict(sorted(found.items()))


def _processor() -> str:
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        text = ""
    match = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    return match[1] if match else platform.processor() or platform.machine()


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def code() -> dict[str, Any] | None:
    """The checkout that this file is tracked in; None when it is in none.

    'commit'; 'dirty', whether tracked files differ from it (`changes` tells how); 'untracked', the
    files and folders that are neither tracked nor ignored.
    """
    try:
        status = _git("status", "--porcelain").decode(errors="replace").splitlines()
        untracked = [line[3:] for line in status if line.startswith("??")]
        commit = _git("rev-parse", "HEAD").decode().strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": len(untracked) < len(status), "untracked": untracked}


def changes() -> bytes:
    """How the tracked files differ from the commit, for `git apply`; empty where they do not."""
    try:
        return _git("diff", "--binary", "--no-color", "--no-ext-diff", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return b""


def _git(*arguments: str) -> bytes:
    """What a git command prints in the checkout that this file is tracked in."""
    here = pathlib.Path(__file__).resolve()

    def run(*arguments: str) -> bytes:
        command = ("git", "-C", str(here.parent), *arguments)
        return subprocess.run(command, check=True, capture_output=True, timeout=20).stdout

    # An installed copy may lie inside somebody else's repository.
    run("ls-files", "--error-unmatch", here.name)
    return run(*arguments)
