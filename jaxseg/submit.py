"""The files that a dataset's evaluation server takes: every image of a split, labelled and packed.

How the server wants them stands beside each dataset, as its module's `SUBMISSION`.
"""

import importlib
import os
import pathlib
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxseg import api, data, predict_files, tables, visualize
from jaxseg.console import say
from jaxseg.data import reading
from jaxseg.data.base import Description, Record
from jaxseg.data.submission import Submission
from jaxseg.errors import UserError


def from_run(
    config: ConfigDict,
    workdir: str,
    output: str,
    split: str | None = None,
    step: int | None = None,
) -> pathlib.Path:
    """Writes and packs a run's labels of a split by the recipe's test-time chain.

    Args:
      config: the run's config; `data` and `predict` may differ from those of training.
      workdir: a trained run.
      output: the folder to write to.
      split: 'test' when None.
      step: the checkpoint to take; the best when None.

    Returns:
      The archive.

    Raises:
      UserError: the dataset has no server; as `write`; or as `jaxseg.api.from_run`.
    """
    load = partial(api.from_run, workdir, config=config, step=step)
    return run(config, load, output, split)


def run(
    config: ConfigDict, load: Callable[[], Any], output: str, split: str | None = None
) -> pathlib.Path:
    """What `from_run` does with any segmentation, which `load` gives once the images are found."""
    submission = of_dataset(config.data.name)
    description = data.get(config.data)
    split = split or "test"
    if config.data.get("source") == "tfds" and split not in description.splits:
        raise UserError(
            f"submit: {description.name} as prepared by TFDS has no split {split!r}; give the "
            "folders as downloaded: --config.data.source=folders --config.data.root=FOLDER"
        )
    records = description.records(split)
    return write(load(), description, submission, split, records, output)


def of_dataset(name: str) -> Submission:
    """The `SUBMISSION` of a dataset; raises `UserError` where there is none."""

    def find(name):
        module = importlib.import_module(name if "." in name else f"jaxseg.data.{name}")
        return getattr(module, "SUBMISSION", None)

    submission = find(name)
    if submission is None:
        known = ", ".join(other for other in data.DATASETS if find(other))
        raise UserError(
            f"submit: no evaluation server is known for the dataset {name!r}; there is one for "
            f"{known}. Labels of any images are written by predict --input=FOLDER --write=labels"
        )
    return submission


def write(
    segmentation: Any,
    description: Description,
    submission: Submission,
    split: str,
    records: Sequence[Record],
    output: str,
) -> pathlib.Path:
    """Segments images, writes them as the server wants them, and packs them.

    The PNGs are `output/SPLIT/...`, always written anew, since one that is there may be another
    model's; the archive `output/DATASET_SPLIT.zip` (or .tar.gz) is there only when it is complete.

    Args:
      segmentation: a `jaxseg.segmentation.Segmentation` of the dataset's classes.
      description: the dataset.
      submission: what the server takes.
      split: the split that `records` are of.
      records: the images; labels are not read.
      output: the folder to write to; made when absent.

    Returns:
      The archive.

    Raises:
      UserError: other classes, an image that cannot be read or has not the server's size (after all
        others are done), or a file that cannot be written.
    """
    if tuple(segmentation.classes) != description.classes:
        raise UserError(
            f"submit: the model has {len(segmentation.classes)} classes, "
            f"{', '.join(segmentation.classes[:3])} ..., which are not the "
            f"{len(description.classes)} of {description.name}; give a run that was trained on it"
        )
    if split != "test":
        say(f"note: the server evaluates the test split, not {split}")
    elif len(records) != submission.images:
        say(
            f"note: {len(records)} images, but the server's test set has {submission.images}: it "
            "may refuse the archive"
        )
    archive = predict_files.make_folder(output) / (
        f"{description.name}_{split}.{submission.archive}"
    )
    folder = archive.parent / split
    paths = {record.id: folder / submission.path(record.id) for record in records}

    def save(id, image, labels):
        path, labels = paths[id], np.asarray(labels)[0]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stored = submission.values[labels]
            if submission.palette:
                visualize.save_label_png(path, stored, submission.palette)
            else:
                visualize.save_png(path, stored)
        except OSError as error:
            raise tables.unwritable(path, error) from error

    with ThreadPoolExecutor(predict_files.THREADS) as pool:
        reads = {record.id: partial(_read, record, submission.size) for record in records}
        failures = predict_files.each_image(reads, segmentation.segment, save, pool, f"in {folder}")
    if failures:
        raise UserError(
            f"nothing was packed: {len(failures)} of {len(records)} images "
            f"{predict_files.undone(failures)}"
        )
    written = sorted({path for path in paths.values() if path.is_file()})
    if len(written) != len(records):
        raise UserError(
            f"nothing was packed: {folder} has {len(written)} files for {len(records)} images; do "
            "not touch it while submit runs, and start again"
        )
    try:
        _pack(archive, written, folder)
    except OSError as error:
        raise tables.unwritable(archive, error) from error
    say(f"packed {len(written)} files into {archive}; upload it at {submission.server}")
    return archive


def _read(record: Record, size: tuple[int, int] | None) -> np.ndarray:
    image = reading.read_image(record)
    if size is not None and image.shape[:2] != size:
        raise UserError(
            f"{reading.where(record, 'image')} is {image.shape[1]} x {image.shape[0]}, but the "
            f"server wants labels of {size[1]} x {size[0]} (width x height); give the data as "
            "downloaded"
        )
    return image


def _pack(archive: pathlib.Path, files: Sequence[pathlib.Path], folder: pathlib.Path) -> None:
    """Packs files under their names relative to `folder`, without compressing PNGs once more."""
    part = archive.with_name(archive.name + ".part")
    if archive.suffix == ".zip":
        with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as packed:
            for file in files:
                packed.write(file, file.relative_to(folder).as_posix())
    else:
        with tarfile.open(part, "w:gz", compresslevel=1) as packed:
            for file in files:
                packed.add(file, file.relative_to(folder).as_posix())
    os.replace(part, archive)
