"""Datasets and the input pipeline."""

import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

from jaxseg.data.base import Description, Record
from jaxseg.data.threads import eval_batches
from jaxseg.errors import UserError

__all__ = ["Description", "Record", "eval_batches", "get", "train_batches"]

DATASETS = ("synthetic", "cityscapes", "ade20k", "voc2012", "camvid", "mmseg", "folder")


def get(spec: Mapping[str, Any]) -> Description:
    """The description that `spec` names: `spec['name']` is the module, the rest its arguments.

    A name without a dot is a module of `jaxseg.data`; one with a dot is any importable module
    with a `describe` function.

    Raises:
      UserError: no such module, or arguments it does not take.
    """
    arguments = dict(spec)
    name = arguments.pop("name")
    path = name if "." in name else f"jaxseg.data.{name}"
    try:
        describe = importlib.import_module(path).describe
    except (ModuleNotFoundError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name != path:
            raise
        raise UserError(
            f"config.data.name={name!r}: no such dataset. jaxseg has {', '.join(DATASETS)}; "
            "a dotted name is imported as it stands and must define describe(...)"
        ) from error
    try:
        return describe(**arguments)
    except TypeError as error:
        if "unexpected keyword" not in str(error) and "required" not in str(error):
            raise
        raise UserError(f"config.data for {name!r}: {error}") from error


def train_batches(
    description: Description,
    split: str,
    augment: Any,
    *,
    backend: str = "auto",
    **settings: Any,
) -> Iterator[dict[str, Any]]:
    """Training batches from tf.data or from threads; which one changes images by a grey level.

    Args:
      description, split, augment: as for `threads.train_batches`.
      backend: 'tfdata', 'threads', or 'auto': tf.data where TensorFlow is installed.
      **settings: seed, batch_size, start_step, num_steps, process_index, process_count, as for
        `threads.train_batches`.

    Raises:
      UserError: another backend, or no TensorFlow for 'tfdata'; and what the back ends raise.
    """
    installed = importlib.util.find_spec("tensorflow") is not None
    if backend == "auto":
        backend = "tfdata" if installed else "threads"
    if backend not in ("tfdata", "threads"):
        raise UserError(f"data backend {backend!r}: expected 'auto', 'tfdata' or 'threads'")
    if backend == "tfdata" and not installed:
        raise UserError(
            "data backend 'tfdata' needs TensorFlow, which is not installed: install "
            "tensorflow-cpu, or use 'threads'"
        )
    module = importlib.import_module(f"jaxseg.data.{backend}")
    return module.train_batches(description, split, augment, **settings)
