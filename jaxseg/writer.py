"""Metrics of a run: always to metrics.jsonl, and to TensorBoard where tensorboardX is installed.

    <workdir>/metrics.jsonl   one JSON object per line: {"step": 10, "time": 1.7e9, "loss": 0.5}
    <workdir>/tensorboard/    event files

A number that is not finite is null in metrics.jsonl (JSON has no NaN) and itself in TensorBoard.
Only process 0 of a run on several hosts writes. On a full disk both wait, see `full_disk`.
"""

import json
import math
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from jaxseg.full_disk import PatientFile


def jsonable(value: Any) -> Any:
    """`value` as plain JSON types; arrays become lists, NaN and infinities become null."""
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(v) for v in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return jsonable(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def dumps(value: Any, indent: int | None = None) -> str:
    """`value` as a JSON text that any parser accepts, see `jsonable`."""
    return json.dumps(jsonable(value), indent=indent, allow_nan=False)


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a file so that a kill at any moment leaves the old text or the new one.

    Raises:
      OSError: it cannot be written, and is as it was.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl in order, without a line torn by a kill; [] when there are none.

    null, which stands for a number that was not finite, comes back as None.
    """
    path = pathlib.Path(workdir) / "metrics.jsonl"
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


class Writer:
    """Writes scalars, images and texts by step.

    Args:
      workdir: the run's folder; it must exist.
      resume_step: the step that training goes on from; what was written for later steps is
        dropped, here and in TensorBoard. 0 starts afresh but for step 0; None only appends.
    """

    def __init__(self, workdir: str | os.PathLike, resume_step: int | None = None):
        self._file = self._board = None
        if jax.process_index() != 0:
            return
        path = pathlib.Path(workdir) / "metrics.jsonl"
        if path.exists():
            rows = [r for r in read_metrics(workdir) if _kept(r, resume_step)]
            write_atomically(path, "".join(dumps(row) + "\n" for row in rows))
        self._file = PatientFile(path, "ab")
        self._board = _tensorboard(pathlib.Path(workdir) / "tensorboard", resume_step)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """One line with every scalar; values are Python, NumPy or JAX numbers."""
        if self._file is None:
            return
        scalars = {name: np.asarray(value).item() for name, value in scalars.items()}
        row = {"step": int(step), "time": round(time.time(), 3), **scalars}
        self._file.write((dumps(row) + "\n").encode())
        if self._board is not None:
            for name, value in scalars.items():
                self._board.add_scalar(name, value, int(step))

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """uint8 RGB pictures [h, w, 3], or several [n, h, w, 3], to TensorBoard."""
        if self._board is None:
            return
        for name, image in images.items():
            image = np.asarray(image)
            if image.ndim == 3:
                self._board.add_image(name, image, int(step), dataformats="HWC")
                continue
            for i, one in enumerate(image):
                self._board.add_image(f"{name}/{i}", one, int(step), dataformats="HWC")

    def write_text(self, step: int, texts: Mapping[str, str]) -> None:
        """Markdown texts to TensorBoard."""
        if self._board is not None:
            for name, text in texts.items():
                self._board.add_text(name, text, int(step))

    def flush(self) -> None:
        """Hands events to TensorBoard's files; its own thread may lag behind until `close`."""
        if self._board is not None:  # lines of metrics.jsonl are out already
            self._board.flush()

    def close(self) -> None:
        """Flushes and closes; the writer cannot be used after."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()
        self._file = self._board = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _kept(row: Mapping[str, Any], resume_step: int | None) -> bool:
    return resume_step is None or row["step"] <= resume_step


def _tensorboard(folder: pathlib.Path, resume_step: int | None):
    """A tensorboardX writer, or None, said once, where the package is missing."""
    try:
        import tensorboardX
    except ImportError:
        logging.warning(
            "tensorboardX is not installed: metrics go to metrics.jsonl only "
            "(pip install tensorboardX adds TensorBoard)"
        )
        return None
    # Its thread ends with the first failure to write; who adds events then waits for it for ever.
    tensorboardX.record_writer.register_writer_factory(_PREFIX, _EventFiles())
    # Readers drop earlier events from `purge_step` on, so the first step to go is the next one.
    purge_step = None if resume_step is None or not folder.is_dir() else resume_step + 1
    return tensorboardX.SummaryWriter(f"{_PREFIX}:{folder}", purge_step=purge_step)


_PREFIX = "jaxseg"  # of paths, as in 'gs://bucket', for which tensorboardX asks `_EventFiles`


class _EventFiles:
    """Makes the files of TensorBoard's events."""

    def directory_check(self, path: str) -> None:
        os.makedirs(path.removeprefix(f"{_PREFIX}:"), exist_ok=True)

    def open(self, path: str) -> PatientFile:
        return PatientFile(path.removeprefix(f"{_PREFIX}:"), "ab")
