"""Copies a split once into files that are decoded faster; `jaxseg.data.reencoded` reads them.

A Cityscapes image (2048x1024) takes about 55 ms to decode as the PNG that it comes as, 7 ms as
JPEG and 4 ms as BMP, which is as large as its pixels; a label 7 ms, and 2 ms as written here.
"""

import hashlib
import io
import json
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from jaxseg import named
from jaxseg.console import say
from jaxseg.data import files, folder, labels, reading, reencoded, threads
from jaxseg.data.base import Description, Record
from jaxseg.errors import UserError
from jaxseg.ordered import in_order

QUALITY = 95
# What --to may be -> (suffix, Pillow's settings, whether pixels change).
FORMS = {
    "jpeg": (".jpg", dict(format="JPEG", quality=QUALITY, subsampling=2), True),
    "bmp": (".bmp", dict(format="BMP"), False),
}
_TOLD = 500  # samples between lines of progress


def run(
    source: dict[str, Any],
    description: Description,
    splits: Sequence[str],
    output: str,
    form: str,
    shard: str = "1/1",
) -> str:
    """Copies splits of a dataset, or what is missing of the copy; returns what there is now.

    A file is written under another name and renamed when it is whole, and its line in the manifest
    follows, so a run may be killed at any moment and started again. Shards may run side by side, in
    processes or on hosts that share the folder.

    Args:
      source: the config's `data`, by which splits that were not copied are found.
      description: of the dataset.
      splits: which of its splits.
      output: the folder.
      form: 'jpeg' (quality 95; an image that is an upright RGB JPEG already is copied as it is) or
        'bmp' (lossless).
      shard: 'i/n': every n-th sample from the i-th on.

    Raises:
      UserError: another form or shard, a folder that holds something else, or a bad sample.
    """
    named.check("--to", "form", form, FORMS)
    shard = parse_shard(shard)
    root = pathlib.Path(output).expanduser()
    chosen = {split: description.records(split) for split in splits}
    try:
        _write_about(root, source, description, shard)
        with ThreadPoolExecutor(threads.num_threads()) as pool:
            told = [
                _run_split(root, description, split, records, form, shard, pool)
                for split, records in chosen.items()
            ]
    except OSError as error:
        raise UserError(
            f"--output={output}: {error.strerror or error} ({error.filename}). Give a folder that "
            "can be written, on a disk with room; the same command continues"
        ) from error
    return "\n".join(
        [
            *told,
            f"train with --config.data.name=reencoded --config.data.root={output} and the recipe "
            f"of {description.name}",
        ]
    )


def parse_shard(shard: str) -> tuple[int, int]:
    """'2/4' -> (2, 4); raises `UserError` unless 1 <= i <= n."""
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    part, parts = map(int, found.groups()) if found else (0, 0)
    if not 1 <= part <= parts:
        raise UserError(f"--shard={shard}: expected i/n with 1 <= i <= n, the first of four is 1/4")
    return part, parts


def verify(output: str) -> str:
    """Reads every file of a copy again and compares its SHA-256; returns what was found good.

    Raises:
      UserError: files that are missing or changed, or samples that were never finished.
    """
    root = os.path.expanduser(output)
    reencoded.describe(root)
    bad, told = [], []
    for about in sorted(pathlib.Path(root, "manifest").glob("*.json")):
        split, expected = about.stem, reencoded.read_json(str(about))["samples"]
        lines = reencoded.finished(root, split)
        entries = [e for line in lines.values() for e in (line["image"], line["label"]) if e]
        with ThreadPoolExecutor(threads.num_threads()) as pool:
            good = pool.map(lambda entry: _sha256(os.path.join(root, entry["path"])), entries)
            bad += [
                entry["path"]
                for entry, sha256 in zip(entries, good, strict=True)
                if sha256 != entry["sha256"]
            ]
        told.append(f"{split}: {len(lines)} of {expected} samples, {len(entries)} files")
        if len(lines) < expected:
            bad.append(f"{expected - len(lines)} sample(s) of {split}, never finished")
    if bad:
        raise UserError(
            f"{output}: {len(bad)} of the files are missing or not as they were written: "
            f"{files.some(bad)}. Delete them and re-encode again: it makes what is missing"
        )
    return f"{output} is as it was written. " + "; ".join(told)


def _write_about(
    root: pathlib.Path, source: dict[str, Any], description: Description, shard: tuple[int, int]
) -> None:
    """dataset.json and classes.txt, or the check that those there are of the same dataset."""
    about = {
        "name": description.name,
        "classes": list(description.classes),
        "palette": [list(color) for color in description.palette],
        "ignore_label": description.ignore_label,
        "splits": list(description.splits),
        "source": source,
    }
    path = root / "dataset.json"
    if path.exists():
        there = reencoded.read_json(str(path))
        other = [key for key in about if key != "source" and there.get(key) != about[key]]
        if other:
            raise UserError(
                f"--output={root}: a copy of another dataset is there (its {', '.join(other)} "
                "differ, see dataset.json). Give a folder of its own"
            )
        return
    rows = zip(description.classes, description.palette, strict=True)
    text = "".join(f"{name} {r} {g} {b}\n" for name, (r, g, b) in rows)
    _put(root, "classes.txt", text.encode(), shard)
    if folder.read_classes(str(root / "classes.txt"))[0] != description.classes:
        raise UserError(f"{description.name}: a class name cannot stand in a line of classes.txt")
    _put(root, path.name, json.dumps(about, indent=2).encode() + b"\n", shard)


def _run_split(
    root: pathlib.Path,
    description: Description,
    split: str,
    records: Sequence[Record],
    form: str,
    shard: tuple[int, int],
    pool: ThreadPoolExecutor,
) -> str:
    about = {"samples": len(records), "form": form, "lossy": FORMS[form][2]}
    if FORMS[form][2]:
        about["quality"] = QUALITY
    path = root / "manifest" / f"{split}.json"
    if not path.exists():
        _put(root, f"manifest/{path.name}", json.dumps(about).encode() + b"\n", shard)
    elif reencoded.read_json(str(path)) != about:
        raise UserError(
            f"{path}: this split was re-encoded otherwise ({path.read_text().strip()}), and now "
            f"{json.dumps(about)} is asked for. Give another --output"
        )
    done = {
        index
        for index, line in reencoded.finished(str(root), split).items()
        if index < len(records)
        and line["id"] == records[index].id
        and all(_is_there(root, entry) for entry in (line["image"], line["label"]) if entry)
    }
    part, parts = shard
    mine = [index for index in range(part - 1, len(records), parts) if index not in done]
    copy = partial(_copy, root, description, split, form, shard)
    tasks = (partial(copy, index, records[index]) for index in mine)
    manifest = root / "manifest" / f"{split}-{part}-of-{parts}.jsonl"
    with open(manifest, "a+b") as file:
        if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            file.write(b"\n")  # a kill has cut the last line off
        _append(file, in_order(tasks, pool, 2 * threads.num_threads()), len(mine), split)
    lossy = f"JPEG {QUALITY}, LOSSY" if FORMS[form][2] else f"{form.upper()}, lossless"
    there = len(reencoded.finished(str(root), split))
    return f"{root}: split {split}, images {lossy}: {there} of {len(records)} samples are there"


def _append(file: Any, entries: Iterable[dict[str, Any]], count: int, split: str) -> None:
    for number, entry in enumerate(entries, start=1):
        file.write(json.dumps(entry).encode() + b"\n")
        file.flush()
        if number % _TOLD == 0:
            say(f"{split}: {number} of {count} samples re-encoded")


def _copy(
    root: pathlib.Path,
    description: Description,
    split: str,
    form: str,
    shard: tuple[int, int],
    index: int,
    record: Record,
) -> dict[str, Any]:
    """Writes both files of a sample, and returns its line of the manifest."""
    suffix, settings, _ = FORMS[form]
    data, what = reading.load(record, "image"), reading.where(record, "image")
    image = reading.decode_image(data, what)
    if form != "jpeg" or not _is_plain_jpeg(data, what):
        data = _encoded(image, settings)
    label = None
    if record.label is not None:
        classes = reading.read_narrow_label(description, record)
        reading.check_sizes(record, image.shape[:2], classes.shape)
        png = _encoded_label(description, classes)
        label = _put(root, f"masks/{split}/{record.id}.png", png, shard)
    entry = _put(root, f"images/{split}/{record.id}{suffix}", data, shard)
    return {"index": index, "id": record.id, "image": entry, "label": label}


def _is_plain_jpeg(data: bytes | np.ndarray, what: str) -> bool:
    """Whether the image is an upright RGB JPEG already, which encoding again would only harm."""
    if isinstance(data, np.ndarray):
        return False
    picture = reading.open_image(data, what)
    plain = picture.format == "JPEG" and picture.mode == "RGB"
    return plain and reading.orientation(picture) == 1


def _encoded(array: np.ndarray, settings: dict[str, Any]) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(array).save(file, **settings)
    return file.getvalue()


def _encoded_label(description: Description, classes: np.ndarray) -> bytes:
    """A PNG of class indices. Pillow filters no rows of a palette's, so they are decoded sooner."""
    from PIL import Image

    if labels.dtype(description) != np.uint8:
        return _encoded(classes.astype(np.uint16), dict(format="PNG", compress_level=1))
    palette = np.zeros((256, 3), np.uint8)
    palette[: description.num_classes] = description.palette
    picture = Image.fromarray(classes)
    picture.putpalette(palette.ravel().tolist())
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _put(root: pathlib.Path, name: str, data: bytes, shard: tuple[int, int]) -> dict[str, Any]:
    """Writes a file under another name, renames it, and returns its entry of the manifest.

    The other name is the shard's own, and the same when it is run again after a kill. It begins
    with a dot: `jaxseg.data.folder` passes it over.
    """
    path = root.joinpath(*name.split("/"))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(".{}.{}-of-{}.tmp".format(path.name, *shard))
    temporary.write_bytes(data)
    os.replace(temporary, path)
    return {"path": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _is_there(root: pathlib.Path, entry: dict[str, Any]) -> bool:
    path = root.joinpath(*entry["path"].split("/"))
    return path.is_file() and path.stat().st_size == entry["bytes"]


def _sha256(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
