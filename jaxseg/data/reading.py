"""Reads one record: an RGB image, and a label as class indices, both checked.

Pillow decodes everything here. Whatever is wrong with a file ends in a `UserError` that names it.
"""

import io
from collections.abc import Sequence

import numpy as np

from jaxseg.data import labels, png
from jaxseg.data.base import Description, Record, Source
from jaxseg.errors import UserError

_EXIF_ORIENTATION = 0x0112

# Pillow tells formats by the content, whatever the file is called, and knows 40 more: for EPS it
# starts Ghostscript, which runs the program in the file, and its rarer decoders are little tested.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")


def where(record: Record, part: str) -> str:
    """How messages name the 'image' or 'label' of a record."""
    source = getattr(record, part)
    return f"{part} of {record.id!r}" + (f" ({source})" if isinstance(source, str) else "")


def load(record: Record, part: str) -> bytes | np.ndarray:
    """Encoded bytes or the array itself of a record's 'image' or 'label'.

    Raises:
      UserError: the file cannot be read.
    """
    source: Source = getattr(record, part)
    if callable(source):
        return source()
    try:
        with open(source, "rb") as file:
            return file.read()
    except OSError as error:
        raise _broken(where(record, part), error) from error


def open_image(file: bytes | str, what: str):
    """A Pillow image whose header is read and whose pixels are not.

    Raises:
      UserError: not an image, or more pixels than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    too_large = UserError(
        f"{what}: more than {limit} pixels, which Pillow takes for an attack; cut it into tiles, "
        "or raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file"
    )
    try:
        picture = Image.open(file if isinstance(file, str) else io.BytesIO(file), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_large from error
    except Exception as error:  # OSError, SyntaxError, struct.error, KeyError ...: damage has many
        raise _broken(what, error) from error
    if limit is not None and picture.width * picture.height > limit:
        raise too_large
    return picture


def _broken(what: str, error: Exception) -> UserError:
    if isinstance(error, OSError) and error.strerror:  # Pillow's own OSErrors have none
        return UserError(
            f"{what}: cannot be read ({error.strerror}); check the path and that the data set is "
            "complete"
        )
    # Pillow names the object it read from, which says nothing to a user.
    reason = "of no known format" if "cannot identify" in str(error) else str(error)
    return UserError(
        f"{what}: not a complete image file ({reason}); fetch it again or leave it out"
    )


def _decode(picture, what: str) -> None:
    try:
        picture.load()
    except Exception as error:  # as for `open_image`
        raise _broken(what, error) from error


def orientation(picture) -> int:
    """The EXIF orientation 1..8 as far as it is known before the pixels are decoded."""
    if picture.format == "TIFF":
        return 1  # Pillow turns these itself
    # For a PNG without EXIF in front, `getexif` would decode the whole picture to look behind it.
    if picture.format == "PNG" and not any(
        key in picture.info for key in ("exif", "Raw profile type exif", "xmp")
    ):
        return 1
    try:
        value = picture.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # as for `open_image`
        return 1  # the picture can be whole where what is said about it is not
    return value if value in range(1, 9) else 1


def read_size(record: Record) -> tuple[int, int]:
    """(height, width) of a record's image as `read_image` returns it, without decoding a file."""
    what = where(record, "image")
    source = record.image
    return image_size(source if isinstance(source, str) else load(record, "image"), what)


def image_size(source: bytes | str | np.ndarray, what: str) -> tuple[int, int]:
    """(height, width) of what `decode_image` makes of a file, its bytes or an array."""
    if isinstance(source, np.ndarray):
        return _checked_image(source, what).shape[:2]
    with open_image(source, what) as picture:
        return _oriented_size(picture)


def _oriented_size(picture) -> tuple[int, int]:
    if orientation(picture) >= 5:
        return picture.width, picture.height
    return picture.height, picture.width


def read_image(record: Record) -> np.ndarray:
    """The image, upright: uint8 RGB [h, w, 3]."""
    return decode_image(load(record, "image"), where(record, "image"))


def decode_image(
    data: bytes | np.ndarray, what: str, box: tuple[int, int, int, int] | None = None
) -> np.ndarray:
    """An image from encoded bytes or an array: uint8 RGB [h, w, 3].

    Grey images get three equal channels, palettes are looked up, alpha is dropped, 16 bits become
    8, and the EXIF orientation is applied.

    Args:
      data: the bytes or the array.
      what: names the image in messages.
      box: (top, left, height, width) of the part to return; None: all of it.

    Raises:
      UserError: broken or truncated, or pixels that are no colours.
    """
    from PIL import Image

    if isinstance(data, np.ndarray):
        image = _checked_image(data, what)
        return image if box is None else image[box[0] :, box[1] :][: box[2], : box[3]]
    picture = open_image(data, what)
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation(picture))
    if box is not None and turn is None and picture.format == "PNG":
        picture = open_image(png.first_rows(data, box[0] + box[2]), what)
    _decode(picture, what)
    if turn is not None:
        picture = picture.transpose(turn)
    if box is not None:
        picture = picture.crop((box[1], box[0], box[1] + box[3], box[0] + box[2]))
    if picture.mode.startswith("I"):
        values = np.asarray(picture).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise UserError(
                f"{what}: grey values {values.min()}..{values.max()}; expected 8 or 16 bits. "
                "Save it as PNG or JPEG"
            )
        grey = ((values + 128) // 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if picture.mode == "F":
        raise UserError(
            f"{what}: pixels are floating-point numbers; expected 8 or 16 bits. Save it as PNG or "
            "JPEG"
        )
    picture.info.pop("transparency", None)  # dropped like alpha; `convert` would warn of it
    return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def _checked_image(array: np.ndarray, what: str) -> np.ndarray:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise UserError(
            f"{what}: array of {array.dtype} {list(array.shape)}; expected uint8 RGB [h, w, 3]"
        )
    return array


def read_label(description: Description, record: Record) -> np.ndarray:
    """The label as class indices and the ignore label: int32 [h, w].

    Raises:
      UserError: see `read_narrow_label`.
    """
    return read_narrow_label(description, record).astype(np.int32)


def read_narrow_label(description: Description, record: Record) -> np.ndarray:
    """The label as class indices and the ignore label: [h, w] of `labels.dtype`.

    Raises:
      UserError: no label, a broken file, or values that the description does not allow.
    """
    what = where(record, "label")
    if record.label is None:
        raise UserError(
            f"{description.name}: {record.id!r} has no label; choose a split that is labelled"
        )
    stored = _stored_label(load(record, "label"), what, description.label_colors is not None)
    return labels.to_classes(description, stored, what)


def _stored_label(data: bytes | np.ndarray, what: str, colored: bool) -> np.ndarray:
    """The mask as stored: integers [h, w], or uint8 [h, w, 3] if `colored`."""
    if isinstance(data, np.ndarray):
        stored = data[..., 0] if data.ndim == 3 and data.shape[2] == 1 else data
    else:
        picture = open_image(data, what)
        # Pillow stretches 2- and 4-bit grey to 0..255 on the way; the indices are what is stored.
        raw_mode = picture.tile[0].args if picture.tile and picture.format == "PNG" else None
        _decode(picture, what)
        if colored and picture.mode in ("P", "L", "LA", "RGBA"):
            picture = picture.convert("RGB")
        # Never convert("L"): it would turn palette indices into the brightness of their colours.
        stored = np.asarray(picture)
        stretched = {"L;2": 85, "L;4": 17}.get(raw_mode, 1)
        if stretched > 1 and not colored:
            stored = stored // stretched
    if stored.dtype == bool:
        stored = stored.astype(np.uint8)
    expected = "uint8 RGB [h, w, 3]" if colored else "integers [h, w], class indices"
    channels = (3,) if colored else ()
    if stored.dtype.kind not in "iu" or stored.ndim < 2 or stored.shape[2:] != channels:
        hint = "" if colored else "; a mask in colours needs the data set's label_colors"
        raise UserError(
            f"{what}: pixels are {stored.dtype} {list(stored.shape)}; expected {expected}{hint}"
        )
    return stored


def check_sizes(record: Record, image_size: Sequence[int], label_size: Sequence[int]) -> None:
    """Raises `UserError` unless image and label have the same (height, width)."""
    if tuple(image_size) != tuple(label_size):
        cure = "Make the mask of this very image"
        if tuple(image_size) == tuple(label_size)[::-1]:
            cure = "One lies on its side: EXIF orientations are applied to images. Turn the mask"
        raise UserError(
            f"{where(record, 'image')} is {image_size[1]} x {image_size[0]} but its "
            f"{where(record, 'label')} is {label_size[1]} x {label_size[0]} (width x height); "
            f"they must be equally large. {cure}, or leave both out"
        )


def read_pair(description: Description, record: Record) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 RGB [h, w, 3] and label int32 [h, w] of a record.

    Raises:
      UserError: see `read_image` and `read_label`, or their sizes differ.
    """
    label = read_label(description, record)
    image = read_image(record)
    check_sizes(record, image.shape[:2], label.shape)
    return image, label


def labelled_records(description: Description, split: str) -> Sequence[Record]:
    """The records of a split that can be trained on or evaluated.

    Raises:
      UserError: no such split, no records, or records without labels.
    """
    if split not in description.splits:
        raise UserError(
            f"{description.name} has no split {split!r}; it has {', '.join(description.splits)}"
        )
    records = description.records(split)
    if not len(records):
        raise UserError(f"{description.name}: split {split!r} is empty")
    bare = [record.id for record in records if record.label is None]
    if bare:
        raise UserError(
            f"{description.name}: {len(bare)} of {len(records)} records of split {split!r} have "
            f"no label, the first is {bare[0]!r}; choose a split that is labelled"
        )
    return records
