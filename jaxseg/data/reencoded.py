"""A copy of another dataset that is decoded faster, made by `jaxseg.data.prepare.reencode`.

    root/
      dataset.json                  what it is a copy of: classes, colours, ignore label, source
      classes.txt                   the same for `jaxseg.data.folder`, which reads the copy too
      images/SPLIT/ID.jpg (or .bmp)
      masks/SPLIT/ID.png            class indices, as a palette in the classes' colours
      manifest/SPLIT.json           how many samples, in which form, and whether that is lossy
      manifest/SPLIT-I-of-N.jsonl   a line per finished sample: its place in the split, the files,
                                    their sizes and SHA-256

Take it in place of the dataset, with the same recipe:

    --config configs/deeplabv3p.py:cityscapes --config.data.name=reencoded --config.data.root=ROOT

Samples come in the order of the original. A split that was not copied is read where it was, so
that evaluation sees the pixels that it should.
"""

import functools
import json
import os
import pathlib
from typing import Any

from jaxseg import foreign
from jaxseg.data import reading
from jaxseg.data.base import Description, Record
from jaxseg.errors import UserError

LAYOUT = """\
  root/dataset.json, classes.txt, images/, masks/, manifest/
as written by
  python -m jaxseg.data.prepare reencode --config FILE:DATASET --to bmp --output ROOT"""


def describe(root: str, **settings: Any) -> Description:
    """Describes the copy of a dataset.

    Args:
      root: the folder of `LAYOUT`.
      **settings: passed over, so that a recipe of the original needs no other change: what they
        said when the copy was made stands in it.

    Returns:
      The original's name, classes, palette, ignore label and splits.

    Raises:
      UserError: no such copy; from `records`, a split that is neither whole in the copy nor to be
        had from the original.
    """
    root = os.path.expanduser(root)
    about = read_json(os.path.join(root, "dataset.json"))
    try:
        return Description(
            name=about["name"],
            classes=tuple(about["classes"]),
            palette=tuple(tuple(color) for color in about["palette"]),
            splits=tuple(about["splits"]),
            records=functools.partial(_records, root),
            ignore_label=about["ignore_label"],
        )
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{os.path.join(root, 'dataset.json')}: not of a re-encoded dataset ({error!r}). "
            f"Expected:\n{LAYOUT}"
        ) from error


def read_json(path: str) -> dict[str, Any]:
    """The object in a file of `LAYOUT`; raises `UserError` where there is none."""
    try:
        content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
        reason = "not a JSON object"
    except OSError as error:
        reason = error.strerror
    except (ValueError, RecursionError) as error:
        reason = str(error)
    raise UserError(f"{path}: cannot be read ({reason}). Expected:\n{LAYOUT}")


def finished(root: str, split: str) -> dict[int, dict[str, Any]]:
    """Place in the split -> its line in a manifest, for every sample that is done.

    A line that a kill has cut off counts for nothing: its sample is made anew.
    """
    lines: dict[int, dict[str, Any]] = {}
    manifests = pathlib.Path(root, "manifest").glob("*-*-of-*.jsonl")
    for path in sorted(manifests, key=lambda path: path.stat().st_mtime):  # the newest line counts
        if path.name.rsplit("-", 3)[0] != split:
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
                lines[entry["index"]] = entry
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
    return dict(sorted(lines.items()))


def _records(root: str, split: str) -> list[Record]:
    about = os.path.join(root, "manifest", f"{split}.json")
    if not os.path.exists(about):
        return _of_the_original(root, split)
    samples, lines = read_json(about)["samples"], finished(root, split)
    if len(lines) < samples:
        raise UserError(
            f"{root}: {len(lines)} of the {samples} samples of split {split!r} are re-encoded. Run "
            "`python -m jaxseg.data.prepare reencode` again, with every --shard: it continues"
        )
    try:
        return [
            Record(
                str(entry["id"]),
                os.path.join(root, *entry["image"]["path"].split("/")),
                entry["label"] and os.path.join(root, *entry["label"]["path"].split("/")),
            )
            for entry in lines.values()
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{root}: a line of manifest/{split}-*.jsonl is of no re-encoded sample ({error!r}). "
            f"Expected:\n{LAYOUT}"
        ) from error


def _of_the_original(root: str, split: str) -> list[Record]:
    """The records of a split that was not copied, with labels that hold class indices."""
    from jaxseg import data
    from jaxseg.workdir import as_config

    about = pathlib.Path(root, "dataset.json")
    source = read_json(str(about)).get("source", {})
    foreign.refuse_modules(about, source)
    try:
        original = data.get(as_config(source))
        records = original.records(split)
    except UserError as error:
        raise UserError(
            f"{root}: split {split!r} was not re-encoded, and the original cannot be read: {error}"
        ) from error
    return [
        Record(
            record.id,
            record.image,
            record.label and functools.partial(reading.read_narrow_label, original, record),
        )
        for record in records
    ]
