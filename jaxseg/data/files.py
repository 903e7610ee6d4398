"""What dataset modules share: finding pictures, pairing them with masks, errors with a layout."""

import os
from collections.abc import Iterable, Mapping, Sequence

from jaxseg.data.base import Record
from jaxseg.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def some(names: Iterable[str], limit: int = 5) -> str:
    """`'a, b, c, d, e and 12 more'`."""
    names = list(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def check_split(dataset: str, split: str, splits: Sequence[str]) -> None:
    """Raises `UserError` unless `split` is one of `splits`."""
    if split not in splits:
        raise UserError(f"{dataset} has no split {split!r}; it has {', '.join(splits)}")


def check_source(dataset: str, source: str) -> None:
    """Raises `UserError` unless `source`, where a description takes its records from, is known."""
    if source not in ("folders", "tfds"):
        raise UserError(
            f"config.data.source={source!r} for {dataset}: expected 'folders' (as downloaded) or "
            "'tfds' (prepared by TensorFlow Datasets)"
        )


def require(path: str, layout: str) -> str:
    """`path`, if such a file or folder exists; else `UserError` that shows the expected layout."""
    if not os.path.exists(path):
        raise UserError(f"{path}: no such file or folder. Expected:\n{layout}")
    return path


def find(
    folder: str,
    *,
    layout: str,
    suffixes: Sequence[str] = IMAGE_SUFFIXES,
    ending: str = "",
) -> dict[str, str]:
    """Finds the pictures in a folder and its sub-folders.

    Args:
      folder: where to look. Links are followed, but not in circles; names that begin with a dot
        are passed over.
      layout: the folder tree to show when there is nothing.
      suffixes: which files count, compared in lower case.
      ending: what the name without suffix must end with; such an ending is no part of the id.

    Returns:
      id -> path, sorted by id. An id is the path relative to `folder` without ending and suffix,
      with forward slashes.

    Raises:
      UserError: no such folder, no such files in it, or two files with one id.
    """
    found: dict[str, list[str]] = {}
    above: dict[str, set[str]] = {}  # folder -> itself and those on the way to it, without links
    for parent, folders, names in os.walk(require(folder, layout), followlinks=True):
        here = {*above.get(os.path.dirname(parent), ()), os.path.realpath(parent)}
        above[parent] = here
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(os.path.join(parent, name)) not in here
        ]
        prefix = os.path.relpath(parent, folder).replace(os.sep, "/") + "/"
        prefix = "" if prefix == "./" else prefix
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in suffixes and stem.endswith(ending) and name[0] != ".":
                id = prefix + stem.removesuffix(ending)
                found.setdefault(id, []).append(os.path.join(parent, name))
    if not found:
        pattern = f"*{ending}({'|'.join(suffixes)})"
        raise UserError(f"{folder}: no file {pattern} in it. Expected:\n{layout}")
    twice = sorted(id for id, paths in found.items() if len(paths) > 1)
    if twice:
        raise UserError(
            f"{folder}: {len(twice)} name(s) stand for more than one file: {some(twice)}; e.g. "
            f"{' and '.join(sorted(found[twice[0]]))}. Keep one file for each"
        )
    return {id: found[id][0] for id in sorted(found)}


def pair(
    images: Mapping[str, str],
    masks: Mapping[str, str],
    *,
    image_folder: str,
    mask_folder: str,
    hint: str = "",
) -> list[Record]:
    """Records of images and masks with equal ids, in the order of `images`.

    Raises:
      UserError: an image without mask or a mask without image; lists both kinds.
    """
    problems = []
    for here, there, folder, other, kind in (
        (images, masks, image_folder, mask_folder, "image"),
        (masks, images, mask_folder, image_folder, "mask"),
    ):
        alone = [id for id in here if id not in there]
        if alone:
            partner = "mask" if kind == "image" else "image"
            problems.append(
                f"{folder}: {len(alone)} of {len(here)} {kind}(s) have no {partner} in {other}: "
                f"{some(alone)}"
            )
    if problems:
        raise UserError(". ".join(problems) + (f". {hint}" if hint else ""))
    return [Record(id, path, masks[id]) for id, path in images.items()]


def read_list(path: str, layout: str) -> list[str]:
    """The ids in a list file, one per line, blank lines passed over.

    Raises:
      UserError: no such file, nothing in it, or an id twice.
    """
    with open(require(path, layout), encoding="utf-8") as file:
        ids = [line.strip() for line in file if line.strip()]
    if not ids:
        raise UserError(f"{path}: an empty list; expected one name without suffix per line")
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        twice = [id for id in ids if id in seen or seen.add(id)]
        raise UserError(f"{path}: {len(twice)} name(s) are listed more than once: {some(twice)}")
    return ids


def select(
    ids: Sequence[str], files: Mapping[str, str], *, list_file: str, folder: str
) -> dict[str, str]:
    """The listed files, in the list's order.

    Raises:
      UserError: a listed id has no file.
    """
    unknown = [id for id in ids if id not in files]
    if unknown:
        raise UserError(
            f"{list_file}: {len(unknown)} of {len(ids)} listed name(s) have no file in {folder}: "
            f"{some(unknown)}. A line is a path relative to that folder, without suffix"
        )
    return {id: files[id] for id in ids}
