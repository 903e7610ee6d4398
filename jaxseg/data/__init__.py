"""Datasets and the input pipeline."""

import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

from jaxseg import named
from jaxseg.data import threads
from jaxseg.data.base import Description, Record
from jaxseg.data.threads import eval_batches
from jaxseg.errors import UserError

__all__ = ["Description", "Record", "eval_batches", "get", "train_batches"]

DATASETS = (
    "synthetic",
    "cityscapes",
    "ade20k",
    "voc2012",
    "camvid",
    "mmseg",
    "folder",
    "reencoded",
)
CACHES = ("none", "decoded", "device")


def get(spec: Mapping[str, Any]) -> Description:
    """The description that `spec` names: `spec['name']` is the module, the rest its arguments.

    A name without a dot is a module of `jaxseg.data`; one with a dot is any importable module
    with a `describe` function.

    Raises:
      UserError: no such module, or arguments it does not take.
    """
    arguments = dict(spec)
    name = arguments.pop("name", "")
    path = name if "." in name else f"jaxseg.data.{name}"
    try:
        if not all(map(str.isidentifier, path.split("."))):
            raise ModuleNotFoundError(name=path)  # import_module raises what comes to its mind
        describe = importlib.import_module(path).describe
    except (ModuleNotFoundError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and not f"{path}.".startswith(f"{error.name}."):
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
    cache: str = "none",
    **settings: Any,
) -> Iterator[dict[str, Any]]:
    """Training batches from tf.data or from threads; which one changes images by a grey level.

    Args:
      description, split, augment: as for `threads.train_batches`.
      backend: 'tfdata', 'threads', or 'auto': tf.data where TensorFlow is installed.
      cache: 'none', or 'decoded': images and labels stay in memory once they were read. Threads
        cut the windows then whatever the backend: nothing is left for TensorFlow to decode.
        Every process keeps what it reads, so several on one machine need several times as much.
      **settings: seed, batch_size, start_step, num_steps, process_index, process_count, skip, as
        for `threads.train_batches`.

    Raises:
      UserError: another backend or cache, no TensorFlow for 'tfdata', or too little memory for the
        cache; and what the back ends raise.
    """
    named.check("config.data_cache", "cache", cache, CACHES)
    if cache == "device":
        raise UserError(
            "config.data_cache='device' keeps the data set in the accelerators' memory, where "
            "only training cuts its windows; the host alone has 'none' and 'decoded'"
        )
    backend = resolve_backend(backend)
    if cache == "decoded":
        return threads.train_batches(description, split, augment, cache=cache, **settings)
    module = importlib.import_module(f"jaxseg.data.{backend}")
    return module.train_batches(description, split, augment, **settings)


def resolve_backend(backend: str) -> str:
    """'tfdata' or 'threads' for one of these or 'auto'; raises `UserError` as `train_batches`."""
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
    return backend
