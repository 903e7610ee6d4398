"""Samples on disk with one defect each, and what must be said of it."""

import pathlib
import struct
import zlib

import numpy as np
from PIL import Image

SIZE = (20, 24)
GOOD = 9  # classes, and sound samples


def flat(number: int) -> tuple[np.ndarray, np.ndarray]:
    """An image and a label that show nothing but the number of their sample."""
    return np.full((*SIZE, 3), 20 * number, np.uint8), np.full(SIZE, number, np.uint8)


def save(path: pathlib.Path, array: np.ndarray, **settings) -> str:
    Image.fromarray(array).save(path, **settings)
    return str(path)


def torn(path: pathlib.Path) -> str:
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    save(path, noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return str(path)


def page(path: pathlib.Path) -> str:
    path.write_text("<html>not found</html>")
    return str(path)


def bomb(path: pathlib.Path) -> str:
    """A PNG of some bytes that says it has 50,000 x 50,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in (header, b"IEND")
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return str(path)


def folder(path: pathlib.Path) -> str:
    path.mkdir()
    return str(path)


def sideways(path: pathlib.Path) -> str:
    exif = Image.Exif()
    exif[0x0112] = 6
    return save(path, flat(0)[0], exif=exif)


BROKEN = ("not a complete image file", "fetch it again or leave it out")
LABEL = flat(0)[1]
# Name -> (which file is bad, what makes it, what must be said of it besides its path).
DEFECTS = {
    "torn.png": ("image", torn, BROKEN),
    "torn.jpg": ("image", torn, BROKEN),
    "page.jpg": ("image", page, BROKEN),
    "gone.png": ("image", str, ("No such file", "check the path")),
    "folder.png": ("image", folder, ("Is a directory", "check the path")),
    "bomb.png": ("image", bomb, ("more than 89478485 pixels", "cut it into tiles")),
    "float.tiff": (
        "image",
        lambda path: save(path, LABEL.astype(np.float32)),
        ("floating-point", "expected 8 or 16 bits", "Save it"),
    ),
    "deep.tiff": (
        "image",
        lambda path: save(path, LABEL.astype(np.int32) + 70_000),
        ("70000..70000", "expected 8 or 16 bits", "Save it"),
    ),
    "sideways.png": ("image", sideways, ("20 x 24", "24 x 20", "EXIF", "Turn the mask")),
    "small.png": (
        "label",
        lambda path: save(path, LABEL[1:]),
        ("24 x 20", "24 x 19", "Make the mask"),
    ),
    "torn_mask.png": ("label", torn, BROKEN),
    "values.png": (
        "label",
        lambda path: save(path, np.where(LABEL.cumsum(1) < 0, 0, 12).astype(np.uint8)),
        ("value 12 (480 pixels) not allowed", "stores 0..8, 255", "Correct the mask"),
    ),
    "colours.png": ("label", lambda path: save(path, flat(1)[0]), ("uint8", "label_colors")),
    "float_mask.tiff": (
        "label",
        lambda path: save(path, LABEL.astype(np.float32)),
        ("float32", "expected integers"),
    ),
}
