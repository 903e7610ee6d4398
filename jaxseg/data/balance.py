"""Median-frequency class balancing: rare classes weigh more in the loss, by what the labels hold.

Eigen and Fergus 2014, arXiv:1411.4734, as SegNet uses it (arXiv:1511.00561, section 3.2): the
frequency of a class is its share of the pixels of those images that show it, and
its weight is the median of all frequencies over its own.
"""

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxseg.console import duration, say
from jaxseg.data import reading, threads
from jaxseg.data.base import Description
from jaxseg.distributed import gathered
from jaxseg.errors import UserError

NAME = "median_frequency"  # as a loss term's class_weights
_TOLD = 10.0  # seconds between lines of progress


def class_frequencies(description: Description, split: str, lenient: bool = False) -> np.ndarray:
    """How much of an image a class covers where it occurs; reads each label of the split once.

    Of several processes each reads its share, and all get the same. With `lenient`, labels that
    cannot be read count for nothing.

    Returns:
      float64 [C]: pixels of the class / pixels, ignored ones included, of the images that show it;
      0 for a class that no image shows.

    Raises:
      UserError: no such split, one without labels, or a label that cannot be read.
    """
    records = reading.labelled_records(description, split)
    records = records[jax.process_index() :: jax.process_count()]
    classes, ignore = description.num_classes, description.ignore_label

    def count(record) -> tuple[np.ndarray, int]:
        try:
            label = reading.read_label(description, record)
        except UserError:
            if not lenient:
                raise
            return np.zeros(classes, np.int64), 0
        # An ignore label may be any number, 255 or one below C; it gets a slot of its own.
        slots = np.where(label == ignore, classes, label)
        return np.bincount(slots.ravel(), minlength=classes + 1)[:classes], label.size

    pixels, of = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    began = told = time.monotonic()
    with ThreadPoolExecutor(threads.num_threads(), thread_name_prefix="jaxseg-balance") as pool:
        try:
            for done, (counts, size) in enumerate(pool.map(count, records), start=1):
                pixels += counts
                of += size * (counts > 0)
                if time.monotonic() - told > _TOLD:
                    told = time.monotonic()
                    left = duration((told - began) / done * (len(records) - done))
                    say(f"class frequencies: {done} of {len(records)} labels read, {left} left")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    pixels, of = (sum(parts) for parts in zip(*gathered((pixels, of)), strict=True))
    return pixels / np.maximum(of, 1)


def median_frequency(
    description: Description, split: str, lenient: bool = False
) -> tuple[float, ...]:
    """One weight per class: the median of the frequencies / the class's own.

    A class that no label shows gets the weight 0 and has no part in the median; it is named on the
    screen. `lenient` as for `class_frequencies`.

    Raises:
      UserError: as `class_frequencies`, or no label shows any class.
    """
    frequency = class_frequencies(description, split, lenient)
    shown = frequency > 0
    where = f"{description.name}/{split}"
    if not shown.any():
        raise UserError(f"{where} has no labelled pixel to balance the classes by")
    absent = [name for name, there in zip(description.classes, shown, strict=True) if not there]
    if absent:
        say(f"no label of {where} shows {', '.join(absent)}: weight 0 in the loss")
    median = np.median(frequency[shown])
    weights = np.where(shown, median / np.where(shown, frequency, 1), 0.0)
    return tuple(weights.tolist())


def resolve(config: ConfigDict, description: Description) -> ConfigDict:
    """The config with the weights in place of every class_weights="median_frequency".

    Args:
      config: its `losses` are looked at, and `train_split`, which is what is counted. A tuple of
        the name alone means the same, so that a command line can turn numbers into the name and
        back, which are all tuples then.
      description: the data set.

    Returns:
      `config` itself where no loss asks for it, and a changed copy otherwise.

    Raises:
      UserError: as `median_frequency`, or another string for class_weights.
    """
    asking = [term for term, entry in config.losses.items() if _asks(term, entry)]
    if not asking:
        return config
    lenient = config.get("on_bad_sample") == "skip"
    weights = median_frequency(description, config.train_split, lenient)
    pairs = zip(description.classes, weights, strict=True)
    say("class weights: " + ", ".join(f"{name} {weight:.3g}" for name, weight in pairs))
    config = config.copy_and_resolve_references()
    with config.unlocked(), config.ignore_type():
        for term in asking:
            config.losses[term].class_weights = weights
    return config


def without_labels(config: ConfigDict, description: Description) -> ConfigDict:
    """What `resolve` returns, for programs that are not trained with: weights of 1, nothing read.

    Raises:
      UserError: another string for class_weights.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked(), config.ignore_type():
        for term, entry in config.losses.items():
            if _asks(term, entry):
                entry.class_weights = (1.0,) * description.num_classes
    return config


def _asks(term: str, entry: Mapping[str, Any]) -> bool:
    given = entry.get("class_weights", ())
    if isinstance(given, str):
        given = (given,)
    strings = [weight for weight in given if isinstance(weight, str)]
    if strings and tuple(given) != (NAME,):
        raise UserError(
            f"config.losses.{term}.class_weights={given!r}: expected one number per class, (), or "
            f"{NAME!r}"
        )
    return bool(strings)
