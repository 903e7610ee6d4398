"""Executes the plan with tf.data: same batches as `threads`, faster decoders.

Labels, windows and everything random come from the same NumPy functions as in `threads`;
TensorFlow decodes, crops and resizes the images, so labels agree exactly and images to one grey
level. JPEGs are decoded only around their window. What TensorFlow does not decode, or may decode
otherwise than Pillow, goes through Pillow.
"""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxseg.data import crop, plan, reading, threads
from jaxseg.data.base import Description
from jaxseg.errors import UserError

_PIXELS, _PNG, _JPEG = range(3)  # how an image reaches TensorFlow

# Decoding part of a JPEG alters its first and last column where these lie on the edge of a block
# and chroma is subsampled; two columns more on each side, thrown away again, make it exact.
_MARGIN = 2


def import_tensorflow():
    """TensorFlow, with every accelerator hidden from it: it would reserve JAX's memory."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # unused here, and says so at start
    import tensorflow as tf

    for kind in ("GPU", "TPU"):
        try:
            tf.config.set_visible_devices([], kind)
        except (RuntimeError, ValueError):
            pass  # whoever started TensorFlow's devices before us has decided already
    return tf


def encoding(data: bytes | np.ndarray, what: str) -> tuple[int, tuple[int, int] | None]:
    """How TensorFlow can take an image, and its (height, width) when that is encoded.

    Returns:
      (_PNG or _JPEG, size) for the plain kinds that TensorFlow decodes as Pillow does: complete
      files in 8-bit RGB or grey, upright. (_PIXELS, None) for all others.
    """
    if isinstance(data, np.ndarray):
        return _PIXELS, None
    picture = reading.open_image(data, what)
    size = picture.height, picture.width
    if picture.mode not in ("RGB", "L") or reading.orientation(picture) != 1:
        return _PIXELS, None
    if picture.format == "JPEG" and b"\xff\xd9" in data[-1024:]:
        return _JPEG, size
    eight_bit = picture.format == "PNG" and data[24] == 8
    if eight_bit and "transparency" not in picture.info and b"IEND" in data[-1024:]:
        return _PNG, size
    return _PIXELS, None


def train_batches(
    description: Description,
    split: str,
    augment: Any,
    *,
    seed: int,
    batch_size: int,
    start_step: int,
    num_steps: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, Any]]:
    """Training batches of the steps start_step .. start_step + num_steps - 1.

    Arguments, batches and errors as in `threads.train_batches`.
    """
    plan.check_augment(augment, seed)
    share = len(plan.train_positions(start_step, batch_size, process_index, process_count))
    records = reading.labelled_records(description, split)
    tf = import_tensorflow()
    height, width = augment.crop
    ignore = description.ignore_label
    failures: dict[int, Exception] = {}  # element -> what went wrong in Python

    def row_of(element: int) -> plan.Row:
        step, place = divmod(element, share)
        first = step * batch_size + process_index * share
        return plan.row(seed, len(records), first + place, augment)

    def prepare(element):
        """Label and window of an element, and its image as TensorFlow shall take it."""
        try:
            return _prepare(description, records, row_of(int(element)), augment)
        except Exception as error:  # TensorFlow would wrap it; the reader of the batch raises it
            failures[int(element)] = error
            blank = np.zeros((1, 1, 3), np.uint8)
            label = np.full((height, width), ignore, np.int32)
            box, scale = np.array([0, 0, 1, 1], np.int32), np.ones(2, np.float32)
            return label, _PIXELS, blank, b"", box, scale, scale * 0, box[2:], False

    signature = (
        *(tf.int32, tf.int32, tf.uint8, tf.string, tf.int32),
        *(tf.float32, tf.float32, tf.int32, tf.bool),
    )

    def make(element):
        label, kind, pixels, data, box, scale, shift, size, flip = tf.numpy_function(
            lambda e: _typed(prepare(e)), [element], signature
        )
        pixels.set_shape([None, None, 3])
        patch = tf.switch_case(
            kind,
            [
                lambda: pixels,
                lambda: _decode_png(tf, data, box),
                lambda: _decode_jpeg(tf, data, box),
            ],
        )
        image = tf.raw_ops.ScaleAndTranslate(
            images=patch[None],
            size=size,
            scale=scale,
            translation=shift,
            kernel_type="triangle",
            antialias=False,
        )[0]
        image = tf.cast(tf.clip_by_value(tf.round(image), 0.0, 255.0), tf.uint8)
        image = tf.cond(flip, lambda: tf.reverse(image, [1]), lambda: image)
        rest = [[0, height - size[0]], [0, width - size[1]], [0, 0]]
        image = tf.pad(image, rest, constant_values=crop.PAD)
        image = tf.ensure_shape(image, [height, width, 3])
        return image, tf.ensure_shape(label, [height, width])

    options = tf.data.Options()
    options.deterministic = True
    # A pool of its own, no larger than the processors, and single-threaded ops: XLA's threads on
    # a CPU want the same processors.
    options.threading.private_threadpool_size = threads.num_threads()
    options.threading.max_intra_op_parallelism = 1
    elements = tf.data.Dataset.range(start_step * share, (start_step + num_steps) * share)
    dataset = elements.map(make, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.batch(share, drop_remainder=True).prefetch(threads.AHEAD)

    def raise_failure(step: int) -> None:
        for element in range(step * share, (step + 1) * share):
            if element in failures:
                raise failures[element]

    def batches():
        iterator = dataset.with_options(options).as_numpy_iterator()
        for step in range(start_step, start_step + num_steps):
            rows = [row_of(element) for element in range(step * share, (step + 1) * share)]
            ids = [records[row.index].id for row in rows]
            try:
                image, label = next(iterator)
            except tf.errors.OpError as error:
                raise_failure(step)
                # TensorFlow does not say which; Pillow does.
                for row in rows:
                    reading.read_pair(description, records[row.index])
                reason = error.message.splitlines()[0]
                raise UserError(
                    f"TensorFlow refuses one of the images {', '.join(ids)}: {reason}. Save it "
                    "anew, or use the 'threads' back end: Pillow reads it"
                ) from None
            raise_failure(step)
            yield {"image": image, "label": label, "mask": np.ones(share, bool), "id": ids}

    return batches()


def _typed(values: tuple) -> tuple:
    """The types that the signature of `prepare` promises; bytes stay bytes."""
    label, kind, pixels, data, box, scale, shift, size, flip = values
    return label, np.int32(kind), pixels, data, box, scale, shift, size, np.bool_(flip)


def _prepare(description: Description, records: Any, row: plan.Row, augment: Any) -> tuple:
    """Everything about a sample but the image's pixels.

    Returns:
      label int32 [*crop], kind, pixels uint8 [h, w, 3] or data bytes, box int32 [4] (top, left,
      height, width of the pixels to read), scale and shift float32 [2] (rescaled = scale * read
      + shift), size int32 [2] of the window, flip.
    """
    record = records[row.index]
    label = reading.read_label(description, record)
    data = reading.load(record, "image")
    kind, size = encoding(data, reading.where(record, "image"))
    if kind == _PIXELS:
        image = reading.decode_image(data, reading.where(record, "image"))
        size = image.shape[:2]
    reading.check_sizes(record, size, label.shape)

    ignore = description.ignore_label
    cut = plan.cut(row, label, augment, ignore)
    box = crop.source_box(size, cut)
    scale = np.array(cut.scaled, np.float64) / size
    shift = np.array(box[:2]) * scale - (cut.top, cut.left)
    target = np.empty(augment.crop, np.int32)
    crop.place(plan.crop_label(label, cut), target, cut.flip, ignore)
    if kind == _PIXELS:
        top, left, height, width = box
        pixels, data = image[top : top + height, left : left + width], b""
    else:
        pixels = np.zeros((1, 1, 3), np.uint8)
    return (
        target,
        kind,
        np.ascontiguousarray(pixels),
        data,
        np.array(box, np.int32),
        scale.astype(np.float32),
        shift.astype(np.float32),
        np.array([cut.height, cut.width], np.int32),
        cut.flip,
    )


def _decode_png(tf, data, box):
    """The pixels of `box`: uint8 [h, w, 3]."""
    image = tf.io.decode_png(data, channels=3)
    return image[box[0] : box[0] + box[2], box[1] : box[1] + box[3]]


def _decode_jpeg(tf, data, box):
    """The pixels of `box`, equal to those of the whole image: uint8 [h, w, 3]."""
    image_width = tf.io.extract_jpeg_shape(data)[1]
    left = tf.maximum(box[1] - _MARGIN, 0)
    right = tf.minimum(box[1] + box[3] + _MARGIN, image_width)
    patch = tf.image.decode_and_crop_jpeg(
        data,
        tf.stack([box[0], left, box[2], right - left]),
        channels=3,
        fancy_upscaling=True,
        dct_method="INTEGER_ACCURATE",
    )
    return patch[:, box[1] - left : box[1] - left + box[3]]
