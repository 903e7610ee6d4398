"""Damaged pictures and masks give arrays of the right form, or a `UserError`; see `fuzzing`."""

import io
import struct
import zlib

import hypothesis
import numpy as np
import pytest
from fuzzing import damaged, fuzz
from hypothesis import strategies as st
from PIL import Image, ImageFile

from jaxseg.data import png, reading, tfdata
from jaxseg.data.base import Description, Record
from jaxseg.data.labels import dtype as label_dtype
from jaxseg.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow warns of what it refuses after that


def encoded(array: np.ndarray, mode: str | None = None, **settings) -> bytes:
    file = io.BytesIO()
    picture = Image.fromarray(array)
    if mode is not None:
        picture = picture.convert(mode)
    picture.save(file, **{"format": "PNG", **settings})
    return file.getvalue()


def mend_png(data: bytes) -> bytes:
    """The chunks of a damaged PNG with right checksums, so that decoders see what is inside."""
    mended, at = data[:8], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        body = data[at + 4 : at + 8 + min(length, len(data))]
        mended += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return mended + data[at:]


def pictures() -> list[bytes]:
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    contents = []
    for size in ((1, 1), (1, 9), (7, 1), (13, 17)):
        rgb = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        grey = rng.integers(0, 5, size, dtype=np.uint8)
        contents += [encoded(rgb, mode) for mode in ("RGB", "RGBA", "L", "LA", "P", "1")]
        contents += [encoded(grey), encoded(grey.astype(np.uint16) * 999)]
        contents += [encoded(rgb, "P", transparency=1), encoded(rgb, exif=exif)]
        for kind in ("JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000"):
            contents.append(encoded(rgb, format=kind))
        contents += [
            encoded(rgb, "CMYK", format="JPEG", exif=exif),
            encoded(rgb, format="JPEG", progressive=True),
            encoded(rgb, format="TIFF", compression="tiff_lzw"),
            encoded(grey.astype(np.float32), format="TIFF"),
            encoded(grey.astype(np.int32) * 10**6, format="TIFF"),
        ]
    return contents


PICTURES = pictures()
PICTURE = damaged(PICTURES) | damaged([p for p in PICTURES if p[1:4] == b"PNG"]).map(mend_png)


@fuzz
@hypothesis.given(PICTURE, st.tuples(*[st.floats(0, 1, exclude_max=True)] * 4))
def test_images(data, fractions):
    try:
        size = reading.image_size(data, "x")
        image = reading.decode_image(data, "x")
    except UserError as error:
        assert str(error).startswith("x: ")
        return
    assert image.dtype == np.uint8 and image.shape == (*size, 3)
    top, left = (int(f * n) for f, n in zip(fractions, size, strict=False))
    height, width = (
        1 + int(f * (n - first))
        for f, n, first in zip(fractions[2:], size, (top, left), strict=True)
    )
    part = reading.decode_image(data, "x", (top, left, height, width))
    np.testing.assert_array_equal(part, image[top : top + height, left : left + width])
    assert tfdata.encoding(data, "x") in range(3)


@fuzz
@hypothesis.given(PICTURE, st.booleans())
def test_labels(data, colored):
    description = Description(
        name="toy",
        classes=tuple("abcde"),
        palette=((0, 0, 0),) * 5,
        splits=(),
        records=lambda split: [],
        label_colors={(i, i, i): i for i in range(5)} if colored else None,
    )
    try:
        label = reading.read_narrow_label(description, Record("x", "", lambda: data))
    except UserError as error:
        assert str(error).startswith("label of 'x': ")
        return
    assert label.dtype == label_dtype(description) and label.ndim == 2 and label.size
    assert set(np.unique(label)) <= {0, 1, 2, 3, 4, 255}


@fuzz
@hypothesis.given(PICTURE, st.integers(0, 40))
def test_tops_of_pngs(data, rows):
    top = png.first_rows(data, rows)
    assert top == data or (len(top) == len(data) and png.is_whole(top) and data[:4] == b"\x89PNG")


def test_the_fuzzed_pictures_are_whole():
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    refusals = 0
    for data in PICTURES:
        try:
            reading.decode_image(data, "x")
        except UserError:
            refusals += 1
    assert refusals == 8  # floating-point numbers and large ones, in four sizes
