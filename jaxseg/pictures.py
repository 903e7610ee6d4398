"""The pictures that an evaluation leaves in the workdir."""

import pathlib
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from jaxseg import visualize
from jaxseg.data.base import Description
from jaxseg.distributed import gathered


def save_extremes(
    folder: pathlib.Path,
    kept: Iterable,
    result: Mapping[str, Any],
    kind: str,
    description: Description,
) -> None:
    """The pictures of those images that are the 'worst' or 'best' ones of all hosts', no others."""
    fresh_folder(folder)
    chosen = {row["id"] for row in result["per_image"][kind]}
    save_compared(folder, (item for item in kept if item[0] in chosen), description)


def fresh_folder(folder: pathlib.Path) -> None:
    """Removes pictures of an earlier evaluation, of which others would be worst; on one process."""
    if jax.process_index() == 0:
        shutil.rmtree(folder, ignore_errors=True)
    gathered(None)  # no process writes before


def save_overlays(folder: pathlib.Path, kept: Iterable, description: Description) -> None:
    """Writes for each (id, image, truth, labels) `ID_overlay.png` and `ID_compared.png`."""
    for name, image, truth, labels in kept:
        save_compared(folder, [(name, image, truth, labels)], description)
        image = visualize.nearest(image, truth.shape)
        picture = visualize.overlay(image, labels, description.palette, description.classes)
        visualize.save_png(folder / f"{name}_overlay.png", picture)


def save_compared(folder: pathlib.Path, kept: Iterable, description: Description) -> None:
    """Writes for each (id, image, truth, labels) `ID_compared.png`: the three side by side."""
    for name, image, truth, labels in kept:
        path = folder / f"{name}_compared.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = visualize.side_by_side(image, truth, labels, description.palette)
        visualize.save_png(path, picture)
