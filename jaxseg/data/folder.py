"""Anybody's own images and masks, paired by name.

    root/
      classes.txt
      images/train/a.jpg  images/train/x/b.png  images/val/c.jpg
      masks/train/a.png   masks/train/x/b.png   masks/val/c.png

or, with the splits as lists of names in place of folders,

    root/
      classes.txt  train.txt  val.txt
      images/a.jpg  images/x/b.png  images/c.jpg
      masks/a.png   masks/x/b.png   masks/c.png

An image and its mask have the same path but for the suffix (jpg, jpeg, png, webp, bmp, tif, tiff);
that path without suffix is the id. A list has one id per line, relative to the image folder:
`a`, `x/b`. Where both exist, the list counts. Masks should be PNG: lossy formats change values.

`classes.txt` has a class per line, in the order of the values 0, 1, 2, ...:

    # blank lines and lines that begin with # are passed over
    background 0 0 0
    traffic light 250 170 30

A line that ends in three numbers gives the class a colour (R G B, 0..255); either every line does
or none. A file that ends in .json holds a list of names, `["background", "traffic light"]`, or an
object of colours in order, `{"background": [0, 0, 0], "traffic light": [250, 170, 30]}`. Without
colours the classes get VOC's.

Masks are index masks, grey or with a palette: the stored value (the palette's index) is the class.
With `mask_kind='rgb'` they are RGB pictures and the colours of the class file are the classes.
"""

import functools
import json
import os

import numpy as np

from jaxseg.data import files
from jaxseg.data.base import Description, Record
from jaxseg.data.voc2012 import bit_palette
from jaxseg.errors import UserError

LAYOUT = """\
  ROOT/classes.txt          a class per line: `name` or `name r g b` (or a .json file)
  ROOT/images/SPLIT/a.jpg   or images/a.jpg with a list ROOT/SPLIT.txt of names without suffix
  ROOT/masks/SPLIT/a.png    the same path as the image's but for the suffix
where SPLIT is train, val or test; config.data.images, .masks and .classes give other names"""

Color = tuple[int, int, int]


def describe(
    root: str,
    images: str = "images",
    masks: str = "masks",
    classes: str = "classes.txt",
    mask_kind: str = "index",
    values: tuple[int, ...] = (),
    ignore: tuple[int, ...] | tuple[Color, ...] = (),
    ignore_label: int = 255,
    splits: tuple[str, ...] = (),
    unlabelled: tuple[str, ...] = (),
    mask_ending: str = "",
) -> Description:
    """Describes a folder of images and masks.

    Args:
      root: the folder that holds the rest.
      images, masks: folders, relative to root.
      classes: the class file, relative to root.
      mask_kind: 'index' or 'rgb', see above.
      values: the stored value of each class, where they are not 0, 1, 2, ...: (0, 255) for a
        binary mask in black and white. Only for index masks.
      ignore: what is stored for pixels to be ignored: values, or colours if masks are RGB. Empty:
        `ignore_label` for index masks (unless it is a class's value), nothing for RGB masks.
      ignore_label: what ignored pixels become; not a class index.
      splits: names of splits. Empty: those of train, val and test that exist.
      unlabelled: those of them that have no masks.
      mask_ending: what mask names have that image names have not, '_mask' for a.jpg, a_mask.png.

    Returns:
      The description. A value or colour that is neither a class nor ignored is an error when a
      mask is read.

    Raises:
      UserError: here for a bad class file or argument and for missing splits; from `records` for
        images without mask, masks without image, two files with one id, names in a list without a
        file, and an empty split.
    """
    root = os.path.expanduser(root)
    path = os.path.join(root, classes)
    names, colors = read_classes(files.require(path, LAYOUT))
    if 0 <= ignore_label < len(names):
        raise UserError(
            f"config.data.ignore_label={ignore_label} is the index of class "
            f"{names[ignore_label]!r} ({path} has {len(names)}); choose a value beyond"
        )
    if mask_kind == "index":
        label_map = _index_map(len(names), values, ignore, ignore_label)
        label_colors = None
    elif mask_kind == "rgb":
        if colors is None or values:
            raise UserError(
                f"config.data.mask_kind='rgb' takes the colours of {path}, `name r g b` per line, "
                "and no config.data.values"
            )
        label_map = None
        label_colors = _color_map(colors, ignore, ignore_label)
    else:
        raise UserError(f"config.data.mask_kind={mask_kind!r}: expected 'index' or 'rgb'")
    splits = _find_splits(root, images, splits)
    return Description(
        name=os.path.basename(os.path.abspath(root)),
        classes=names,
        palette=colors or bit_palette(len(names)),
        splits=splits,
        records=functools.partial(
            _records, root, images, masks, splits, tuple(unlabelled), mask_ending
        ),
        ignore_label=ignore_label,
        label_map=label_map,
        label_colors=label_colors,
    )


def read_classes(path: str) -> tuple[tuple[str, ...], tuple[Color, ...] | None]:
    """Reads a class file: the names, and the colours or None.

    Raises:
      UserError: not one of the forms in this module's docstring, an empty file, a name twice, a
        colour out of 0..255, or colours for only some of the classes.
    """
    with open(path, encoding="utf-8") as file:
        text = file.read()
    entries = _json_entries(path, text) if path.endswith(".json") else _text_entries(text)
    names = tuple(name for name, _ in entries)
    colors = tuple(color for _, color in entries if color is not None)
    twice = sorted({name for name in names if names.count(name) > 1})
    bad = [name for name, color in entries if color and not all(0 <= c <= 255 for c in color)]
    if not names:
        raise UserError(f"{path}: no class in it; expected a name per line")
    if twice:
        raise UserError(f"{path}: class name(s) given more than once: {files.some(twice)}")
    if bad:
        raise UserError(f"{path}: colours beyond 0..255: {files.some(bad)}")
    if colors and len(colors) < len(names):
        bare = [name for name, color in entries if color is None]
        raise UserError(
            f"{path}: {len(bare)} of {len(names)} classes have no colour: {files.some(bare)}. "
            "Give every class `r g b`, or none"
        )
    return names, colors or None


def _text_entries(text: str) -> list[tuple[str, Color | None]]:
    entries = []
    for line in text.splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) > 3 and all(word.isdecimal() for word in words[-3:]):
            entries.append((" ".join(words[:-3]), tuple(map(int, words[-3:]))))
        else:
            entries.append((" ".join(words), None))
    return entries


def _json_entries(path: str, text: str) -> list[tuple[str, Color | None]]:
    try:
        content = json.loads(text, object_pairs_hook=list)  # a dict would hide a repeated name
        if not isinstance(content, list):
            raise TypeError(content)
        if all(isinstance(name, str) for name in content):
            return [(name, None) for name in content]
        entries = [(name, tuple(color)) for name, color in content]
        if all(len(c) == 3 and all(type(v) is int for v in c) for _, c in entries):
            return entries
    except (ValueError, TypeError, RecursionError):
        pass
    raise UserError(
        f'{path}: expected a JSON list of names, ["a", "b"], or an object of colours, '
        '{"a": [0, 0, 0], "b": [128, 0, 0]}'
    )


def _index_map(
    count: int,
    values: tuple[int, ...],
    ignore: tuple[int, ...],
    ignore_label: int,
) -> np.ndarray | None:
    """Stored value -> class index, ignore label or -1; None where stored values are indices."""
    if not values and not ignore:
        return None
    values = tuple(values) or tuple(range(count))
    if len(values) != count:
        raise UserError(f"config.data.values has {len(values)} values for {count} classes")
    if not ignore:
        ignore = (ignore_label,) if ignore_label not in values else ()
    stored = values + tuple(ignore)
    if len(set(stored)) < len(stored) or not all(
        isinstance(v, int) and 0 <= v < 65536 for v in stored
    ):
        raise UserError(
            f"config.data.values={values} and config.data.ignore={tuple(ignore)}: expected "
            "different whole numbers in 0..65535"
        )
    table = np.full(max(255, *stored) + 1, -1, np.int32)
    table[list(values)] = np.arange(count)
    table[list(ignore)] = ignore_label
    return table


def _color_map(
    colors: tuple[Color, ...], ignore: tuple[Color, ...], ignore_label: int
) -> dict[Color, int]:
    if not all(isinstance(color, tuple) and len(color) == 3 for color in ignore):
        raise UserError(f"config.data.ignore={ignore}: expected colours, e.g. ((0, 0, 0),)")
    stored = colors + tuple(ignore)
    twice = sorted({color for color in stored if stored.count(color) > 1})
    if twice:
        raise UserError(
            "config.data.mask_kind='rgb': every class and ignored colour needs its own colour; "
            f"more than once: {files.some(map(str, twice))}"
        )
    indices = [*range(len(colors))] + [ignore_label] * len(ignore)
    return dict(zip(stored, indices, strict=True))


def _find_splits(root: str, images: str, splits: tuple[str, ...]) -> tuple[str, ...]:
    wanted = tuple(splits) or ("train", "val", "test")
    found = tuple(
        split
        for split in wanted
        if os.path.isfile(os.path.join(root, f"{split}.txt"))
        or os.path.isdir(os.path.join(root, images, split))
    )
    missing = [split for split in wanted if split not in found]
    if not found or (splits and missing):
        raise UserError(
            f"{root}: no list {missing[0]}.txt and no folder {images}/{missing[0]} "
            f"(looked for {', '.join(missing)}). Expected:\n{LAYOUT}"
        )
    return found


def _records(
    root: str,
    images: str,
    masks: str,
    splits: tuple[str, ...],
    unlabelled: tuple[str, ...],
    mask_ending: str,
    split: str,
) -> list[Record]:
    files.check_split(root, split, splits)
    list_file = os.path.join(root, f"{split}.txt")
    listed = os.path.isfile(list_file)
    image_folder, mask_folder = (
        os.path.join(root, folder) if listed else os.path.join(root, folder, split)
        for folder in (images, masks)
    )
    pictures = files.find(image_folder, layout=LAYOUT)
    if listed:
        ids = files.read_list(list_file, LAYOUT)
        pictures = files.select(ids, pictures, list_file=list_file, folder=image_folder)
    if split in unlabelled:
        return [Record(id, path) for id, path in pictures.items()]
    labels = files.find(mask_folder, layout=LAYOUT, ending=mask_ending)
    if listed:
        # The folder holds the masks of other splits too.
        labels = {id: path for id, path in labels.items() if id in pictures}
    return files.pair(
        pictures,
        labels,
        image_folder=image_folder,
        mask_folder=mask_folder,
        hint=f"If {split} has no masks by intention, name it in config.data.unlabelled",
    )
