"""What `eval` leaves, and reading it again: figures, what they follow from, how they were made.

    <workdir>/results-SPLIT.json
      format, time      of this file: 1; when it was written
      dataset, split, images
      step | model      which weights: of a run's step, or of a released model
      weights_sha256    of names, shapes and values, however they are stored
      config            what they were trained by, but the model as it was evaluated; without the
                        place of the data
      protocol          how they were evaluated: what two results must share to be compared
      machine           `manifest.environment` of the evaluation, without the host's name
      confusion         rows: truth, columns: prediction; every figure of `metrics` follows from it
      ...               the figures, see `figures.compute`

`python -m jaxseg.main compare` puts several side by side; the README's table is made of those in
the folder results/ of the repository, see tools/results_table.py.
"""

import datetime
import hashlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxseg import manifest, metrics, predict
from jaxseg.data.fingerprint import fingerprint
from jaxseg.distributed import gathered
from jaxseg.errors import UserError
from jaxseg.models import segmenter
from jaxseg.trees import named_leaves
from jaxseg.writer import dumps, write_atomically

if TYPE_CHECKING:
    from jaxseg.evaluate import Task

FORMAT = 1
FIGURES = {  # that follow from a confusion matrix, and what they are called in tables
    "mIoU": "mIoU",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy",
    "frequency_weighted_IoU": "frequency-weighted IoU",
    "mean_Dice": "mean Dice",
}


# What those who read results ask for, besides the figures.
_NEEDED = {
    "time": str, "images": int, "weights_sha256": str, "config.model": dict,
    "protocol.dataset": str, "protocol.split": str, "protocol.images": int,
    "protocol.classes": list, "protocol.dtype": str, "protocol.predict.slide": dict,
    "machine.device": str, "machine.device_count": int, "machine.cores": int,
    "machine.packages": dict,
}  # fmt: skip


def header(task: "Task") -> dict[str, Any]:
    """What was evaluated, by which code and where; every process must ask for it."""
    own = json.loads(task.config.to_json_best_effort())
    weights = dict(task.weights)
    config = weights.pop("config", None) or own
    config = {**config, "model": own["model"], "data": {**config.get("data", {})}}
    config["data"].pop("root", None)
    machine = manifest.environment()
    del machine["host"]
    machine["environment"].pop("JAX_COMPILATION_CACHE_DIR", None)
    return {
        "format": FORMAT,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "dataset": task.description.name,
        "split": task.split,
        "images": task.number,
        **weights,
        "weights_sha256": digest(task.variables),
        "config": config,
        "machine": machine,
    }


def digest(variables: Any) -> str:
    """SHA-256, in hexadecimal digits, of names, shapes, dtypes and values."""
    total = hashlib.sha256()
    for name, leaf in sorted(named_leaves(variables).items()):
        array = np.asarray(leaf)
        total.update(f"{name}\0{array.dtype}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def protocol(task: "Task") -> dict[str, Any]:
    """How figures are made, whatever the model; every process must ask for it.

    Settings have the names that they have in the config; what changes no figure, batch sizes say,
    is not among them. A link of `predict` that is left out is empty: without 'slide' the image goes
    through the model whole, without 'scales' at one size.
    """
    description = task.description
    # One process reads for all.
    own = fingerprint(description, task.records) if jax.process_index() == 0 else None
    return {
        "dataset": description.name,
        "split": task.split,
        "images": task.number,
        "fingerprint": gathered(own)[0],
        "classes": list(description.classes),
        "ignore_label": description.ignore_label,
        **chain(task.config),
    }


def chain(config: ConfigDict) -> dict[str, Any]:
    """Of the protocol what the config says, which is another for a variant."""
    links = predict.checked(config.get("predict"))
    links["slide"].pop("batch", None)
    box = config.eval.base_size
    return {
        "resize": {
            "images": "to fill eval.base_size, aspect kept, OpenCV's bilinear" if box else "none",
            "scores": "bilinear, to the size of the label, before the argmax",
        },
        "eval": {"base_size": list(box)},
        "predict": {**links, "flip": bool(links["flip"])},
        "dtype": str(segmenter.compute_dtype(config.dtype)),
    }


def write(path: pathlib.Path, result: Mapping[str, Any]) -> None:
    """Writes a result as JSON, rows of numbers on a line each."""
    text = dumps(result, indent=1)
    rows = re.sub(r'\[\n([^][{}"]*)\n\s*\]', lambda match: f"[{' '.join(match[1].split())}]", text)
    write_atomically(path, rows + "\n")


def read(file: str | os.PathLike) -> dict[str, Any]:
    """A result that `eval` has written, with 'confusion' as int64 [C, C].

    Raises:
      UserError: it cannot be read, or is not such a result.
    """
    try:
        result = json.loads(pathlib.Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}; expected a result of eval") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: is not JSON ({error}); expected a result of eval") from error
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        found = result.get("format", "none") if isinstance(result, dict) else "none"
        raise UserError(
            f"{file}: expected a result of eval of format {FORMAT}, this one's is {found}; "
            "evaluate the weights again with this jaxseg: python -m jaxseg.main eval"
        )
    for key, kind in _NEEDED.items():
        value = result
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if type(value) is not kind:
            raise UserError(f"{file}: has no {key}; expected a file as eval wrote it")
    result["confusion"] = _matrix(file, result)
    return result


def _matrix(file: str | os.PathLike, result: Mapping[str, Any]) -> np.ndarray:
    classes, rows = result["protocol"]["classes"], result.get("confusion")
    good = (
        isinstance(rows, list)
        and len(rows) == len(classes)
        and all(isinstance(row, list) and len(row) == len(classes) for row in rows)
        and all(type(count) is int and 0 <= count < 2**53 for row in rows for count in row)
    )
    if not good or not any(map(any, rows)):
        raise UserError(
            f"{file}: its confusion matrix is none: expected counts of pixels, a row and a column "
            "for each of protocol.classes"
        )
    return np.array(rows, np.int64)


def in_short(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's manifest repeats of its result."""
    return {key: result[key] for key in ("split", "step", "weights_sha256", *FIGURES)}


def summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """The figures that follow from a result's confusion matrix, see `metrics.summarize`."""
    return metrics.summarize(result["confusion"], result["protocol"]["classes"])


def disagreements(result: Mapping[str, Any]) -> list[str]:
    """The stored figures that do not follow from the confusion matrix, a line for each."""
    computed = summary(result)
    pairs = {name: (result.get(name), computed[name]) for name in computed if name != "classes"}
    stored = result.get("classes")
    stored = stored if isinstance(stored, list) else []
    for c, was in itertools.zip_longest(computed["classes"], stored[: len(computed["classes"])]):
        was = was.get("IoU") if isinstance(was, dict) else None
        pairs[f"IoU of {c['name']}"] = (was, c["IoU"])
    return [
        f"{name}: {was} is stored, {now} follows from the confusion matrix"
        for name, (was, now) in pairs.items()
        if not _equal(was, now)
    ]


def _equal(was: Any, now: float | int | None) -> bool:
    if now is None or not isinstance(was, int | float):
        return was is now
    return abs(was - now) <= 1e-9  # sums in another order differ in the last digits
