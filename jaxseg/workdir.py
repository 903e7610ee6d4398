"""The folder of one run: its lock, the resolved config, and the manifest that says what ran.

    <workdir>/lock            held while a run writes here; names the host and the process
    <workdir>/config.json     the resolved config of the last start
    <workdir>/manifest.json   {"runs": [...]}: one entry per start or resume, newest last

On several hosts only process 0 locks and writes.
"""

import datetime
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from jaxseg.errors import UserError
from jaxseg.writer import dumps, write_atomically

# Changing one of these between a save and a resume makes the run neither the old nor the new one.
TRAINING_KEYS = tuple("model data augment optimizer schedule losses batch_size seed steps".split())

_PACKAGES = (
    "jax jaxlib jax-cuda13-plugin jax-cuda12-plugin libtpu flax optax orbax-checkpoint numpy "
    "ml_collections pillow tensorboardX tensorflow tensorflow-cpu tensorflow-datasets"
).split()
_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS")


def open_workdir(
    path: str | os.PathLike, config: ConfigDict, argv: Sequence[str], *, force: bool = False
) -> "Workdir":
    """Makes or enters the folder of a run, locks it, and records the config and the environment.

    Args:
      path: the folder.
      config: the resolved config.
      argv: the command line.
      force: goes on from a checkpoint though the config changed in `TRAINING_KEYS`.

    Raises:
      UserError: another process holds the folder, it cannot be written, or the config changed.
    """
    workdir = Workdir(path)
    try:
        workdir.record(config, argv, force)
    except BaseException:
        workdir.close()
        raise
    return workdir


class Workdir:
    """A locked run folder, made by `open_workdir`.

    Leave the context, close it, or let the process end: the lock goes with the process.

    Attributes:
      path: the folder.
    """

    def __init__(self, path: str | os.PathLike):
        if "://" in str(path):
            raise UserError(
                f"workdir {path}: expected a folder of a file system; mount the bucket (gcsfuse, "
                "s3fs) or share a disk (NFS) and give the path where it is mounted"
            )
        self.path = pathlib.Path(path).expanduser().absolute()
        self._lock = None
        self._runs: list[dict[str, Any]] = []
        self._primary = jax.process_index() == 0
        if not self._primary:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = _take_lock(self.path / "lock")
        except OSError as error:
            raise UserError(
                f"workdir {path}: cannot be made or written ({error.strerror}); "
                "choose another --workdir"
            ) from error

    def record(self, config: ConfigDict, argv: Sequence[str], force: bool) -> None:
        """Writes config.json and opens this run's entry in manifest.json; see `open_workdir`."""
        if not self._primary:
            return
        resuming = any(p.name.isdigit() for p in (self.path / "checkpoints").glob("*"))
        if resuming and (self.path / "config.json").is_file():
            self._compare(read_config(self.path), config, force)
        text = config.to_json_best_effort(sort_keys=True)
        write_atomically(self.path / "config.json", json.dumps(json.loads(text), indent=2) + "\n")
        self._runs = read_manifest(self.path)["runs"]
        self._runs.append(
            {
                "argv": list(argv),
                "overrides": [a for a in argv if a.lstrip("-").startswith("config.")],
                "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
                "seed": config.get("seed"),
                **environment(),
                "events": [],
            }
        )
        self.event("resume" if resuming else "start")

    def _compare(self, old: ConfigDict, new: ConfigDict, force: bool) -> None:
        for line in changed_keys(old, new):
            logging.warning("config changed since the last start: %s", line)
        changed = changed_keys(old, new, TRAINING_KEYS)
        if changed and not force:
            raise UserError(
                f"workdir {self.path}: its checkpoints were trained with another config:\n  "
                + "\n  ".join(changed)
                + "\nundo the change, choose another --workdir, or go on all the same with --force"
            )

    def event(self, event: str, **fields: Any) -> None:
        """Appends what happened ('preempted', 'finished' ...) to this run's entry."""
        if not self._primary:
            return
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._runs[-1]["events"].append({"time": now, "event": event, **fields})
        self._write_manifest()

    def note(self, **fields: Any) -> None:
        """Sets fields of this run's entry: the data's fingerprint, goodput, final metrics."""
        if not self._primary:
            return
        self._runs[-1].update(fields)
        self._write_manifest()

    def close(self) -> None:
        """Releases the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _write_manifest(self) -> None:
        text = dumps({"runs": self._runs}, indent=2)
        write_atomically(self.path / "manifest.json", text + "\n")


def _take_lock(path: pathlib.Path):
    """The open, locked file. The kernel drops the lock with the process, however that ends."""
    import fcntl  # POSIX only; everything but training works without

    file = open(path, "a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise UserError(
            f"workdir {path.parent}: in use by {holder}; wait for it, stop it, "
            "or choose another --workdir"
        ) from error
    except OSError as error:
        logging.warning(
            "%s: this file system has no locks (%s): nothing stops a second run from writing here",
            path,
            error.strerror,
        )
    file.truncate(0)
    file.write(f"process {os.getpid()} on host {socket.gethostname()}\n")
    file.flush()
    return file


def read_manifest(workdir: str | os.PathLike) -> dict[str, Any]:
    """{'runs': [...]}, empty when the folder has no manifest; newest run last."""
    path = pathlib.Path(workdir) / "manifest.json"
    if not path.is_file():
        return {"runs": []}
    return _load(path)


def read_config(workdir: str | os.PathLike) -> ConfigDict:
    """The config that a run was last started with; JSON's lists are tuples again.

    Raises:
      UserError: the folder has no readable config.json.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir}: has no config.json, so it is not the workdir of a run")
    return as_config(_load(path))


def as_config(values: Mapping[str, Any]) -> ConfigDict:
    """A config from JSON values: lists become tuples, as everywhere in configs."""

    def tuples(value):
        if isinstance(value, Mapping):
            return {k: tuples(v) for k, v in value.items()}
        return tuple(tuples(v) for v in value) if isinstance(value, list) else value

    return ConfigDict(tuples(values))


def _load(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error}); move it away to go on") from error


def changed_keys(old: ConfigDict, new: ConfigDict, under: Sequence[str] = ()) -> list[str]:
    """What differs between two configs, one line per leaf: 'optimizer.lr: 0.01 -> 0.02'.

    Args:
      old: the saved config, from `read_config`.
      new: the config of this start.
      under: keep only these top-level keys, e.g. `TRAINING_KEYS`; empty keeps all.
    """
    # Through JSON, because the saved one has been there: values that JSON cannot hold are text.
    old = _leaves(json.loads(old.to_json_best_effort()))
    new = _leaves(json.loads(new.to_json_best_effort()))
    absent = "(absent)"
    return [
        f"{key}: {_show(old[key]) if key in old else absent} -> "
        f"{_show(new[key]) if key in new else absent}"
        for key in sorted(old.keys() | new.keys())
        if (not under or key.split(".")[0] in under)
        and (key not in old or key not in new or old[key] != new[key])
    ]


def _leaves(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, Mapping) or not values:
        return {prefix: values}
    leaves = {}
    for key, value in values.items():
        leaves |= _leaves(value, f"{prefix}.{key}" if prefix else key)
    return leaves


def _show(value: Any) -> str:
    return repr(tuple(value) if isinstance(value, list) else value)


def environment() -> dict[str, Any]:
    """What a result depends on besides config and data: code, versions, machine, flags."""
    devices = jax.devices()
    return {
        "git": _git(),
        "packages": _versions(),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "device": devices[0].device_kind,
        "device_count": len(devices),
        "process_count": jax.process_count(),
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _git() -> dict[str, Any] | None:
    """Commit and dirtiness of the checkout that this file is tracked in; None when it is not."""
    here = pathlib.Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ("git", "-C", str(here.parent), *arguments)
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=20
        ).stdout.strip()

    try:
        # An installed copy may lie inside somebody else's repository.
        git("ls-files", "--error-unmatch", here.name)
        dirty = git("status", "--porcelain", "--untracked-files=no") != ""
        return {"commit": git("rev-parse", "HEAD"), "dirty": dirty}
    except (OSError, subprocess.SubprocessError):
        return None
