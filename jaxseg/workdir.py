"""The folder of one run: its lock, the resolved config, and the manifest that says what ran.

    <workdir>/lock            held while a run writes here; names the host and the process
    <workdir>/config.json     the resolved config of the last start
    <workdir>/manifest.json   {"runs": [...]}: one entry per start or resume, newest last
    <workdir>/code-*.patch    how the code differed from the commit that an entry names, if it did

On several hosts only process 0 locks and writes.
"""

import datetime
import hashlib
import json
import os
import pathlib
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from jaxseg import foreign, manifest
from jaxseg.config import changed_keys
from jaxseg.distributed import gathered
from jaxseg.errors import Preempted, UserError
from jaxseg.writer import dumps, write_atomically

VISIBLE_WITHIN = 60.0  # seconds that a network's file system may take to show a file elsewhere
# Changing one of these between a save and a resume makes the run neither the old nor the new one.
TRAINING_KEYS = tuple("model data augment optimizer schedule losses batch_size seed steps".split())


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
      UserError: another process holds the folder, it cannot be written, not all hosts see it, or
        the config changed.
    """
    workdir = Workdir(path)
    try:
        workdir.record(config, argv, force)
        workdir.check_shared()
    except OSError as error:
        workdir.close()
        raise UserError(
            f"workdir {path}: {error.filename} cannot be written ({error.strerror}); make room, "
            "or choose another --workdir"
        ) from error
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
        self._began = time.monotonic()
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
        changed = []
        if (self.path / "config.json").is_file():
            old = read_config(self.path)
            changed = changed_keys(old, config)
            if resuming:
                self._compare(old, config, force)
        text = config.to_json_best_effort(sort_keys=True)
        write_atomically(self.path / "config.json", json.dumps(json.loads(text), indent=2) + "\n")
        self._runs = read_manifest(self.path)["runs"]
        self._runs.append(
            {
                "argv": list(argv),
                "overrides": [a for a in argv if a.lstrip("-").startswith("config.")],
                "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
                "config_changes": changed,  # since the start before: config.json is of the last
                "seed": config.get("seed"),
                **manifest.environment(),
                **self._keep_changes(),
                "events": [],
            }
        )
        self.event("resume" if resuming else "start")

    def check_shared(self) -> None:
        """Raises `UserError` unless every process of the run sees what process 0 has written."""
        if jax.process_count() == 1:
            return
        path = self.path / "manifest.json"

        def content() -> bytes:
            return path.read_bytes() if path.is_file() else b""

        written = gathered(content() if self._primary else None)[0]
        deadline = time.monotonic() + VISIBLE_WITHIN
        while not (sees := content() == written) and time.monotonic() < deadline:
            time.sleep(0.5)
        blind = [process for process, sees in enumerate(gathered(sees)) if not sees]
        if blind:
            raise UserError(
                f"workdir {self.path}: process {', '.join(map(str, blind))} does not see there "
                "what process 0 writes. All hosts of a run share its --workdir: give a folder of a "
                "disk that is mounted on each of them (NFS, Lustre, or a bucket by gcsfuse)"
            )

    def _keep_changes(self) -> dict[str, str]:
        """{'patch': the file that holds the uncommitted changes of the code}; {} without any."""
        patch = manifest.changes()
        if not patch:
            return {}
        path = self.path / f"code-{hashlib.sha256(patch).hexdigest()[:12]}.patch"
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_bytes(patch)
        os.replace(temporary, path)
        return {"patch": path.name}

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

    def note_goodput(self, productive: float) -> None:
        """Notes how many of the seconds since this start went into steps of training."""
        total = time.monotonic() - self._began
        seconds = {"productive_s": round(productive, 2), "total_s": round(total, 2)}
        self.note(goodput={**seconds, "share": round(productive / total, 4)})

    def close(self) -> None:
        """Releases the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        """Notes what ended the run, unless that was nothing or is noted, and releases the lock."""
        if kind is not None and self._runs:
            name = {KeyboardInterrupt: "interrupted", Preempted: "preempted"}.get(kind, "stopped")
            if self._runs[-1]["events"][-1]["event"] != name:
                why = f"{kind.__name__}: {error}".splitlines()[0]
                self.event(name, **({} if name != "stopped" else {"why": why}))
        self.close()

    def _write_manifest(self) -> None:
        text = dumps({"runs": self._runs}, indent=2)
        path = self.path / "manifest.json"
        try:
            write_atomically(path, text + "\n")
        except OSError as error:  # not worth the run; the next entry tries again
            logging.error("could not write %s: %s", path, error.strerror)


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
      UserError: the folder has no readable config.json, or it names code that lies beside it.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir}: has no config.json, so it is not the workdir of a run")
    values = _load(path)
    foreign.refuse_modules(path, values)
    try:
        return as_config(values)
    except (ValueError, TypeError) as error:  # keys with dots, a type for each place in a list ...
        raise UserError(f"{path}: is not the config of a run ({error})") from error


def as_config(values: Mapping[str, Any]) -> ConfigDict:
    """A config from JSON values: lists become tuples, as everywhere in configs."""

    def tuples(value):
        if isinstance(value, Mapping):
            return {k: tuples(v) for k, v in value.items()}
        return tuple(tuples(v) for v in value) if isinstance(value, list) else value

    return ConfigDict(tuples(values))


def _load(path: pathlib.Path) -> Any:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON ({error}); move it away to go on") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no JSON object; move it away to go on")
    return values
