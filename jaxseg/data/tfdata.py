"""Executes the plan with tf.data: same batches as `threads`, faster decoders.

Labels, windows and everything random come from the same NumPy functions as in `threads`, and so
does the rescaling, in which they are faster than TensorFlow's; TensorFlow decodes the images. So
labels agree exactly, and images where the two decoders of JPEG do. JPEGs are decoded only around
their window. What TensorFlow does not decode, may decode otherwise than Pillow, or decodes more
slowly, goes through Pillow.
"""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxseg.data import bad_samples, crop, labels, plan, png, reading, samples, threads
from jaxseg.data.base import Description, Record
from jaxseg.errors import UserError

_PIXELS, _PNG, _JPEG = range(3)  # how an image reaches TensorFlow

# Decoding part of a JPEG alters its first and last column where these lie on the edge of a block
# and chroma is subsampled; two columns more on each side, thrown away again, make it exact.
_MARGIN = 2

# TensorFlow decodes all rows of a PNG and Pillow those down to the window: below this share of the
# rows Pillow is faster, see benchmarks/RESULTS.md.
_FEW_ROWS = 0.6


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


def encoding(data: bytes | np.ndarray, what: str) -> int:
    """How TensorFlow can take an image.

    Returns:
      _PNG or _JPEG for the plain kinds that TensorFlow decodes as Pillow does: complete files in
      8-bit RGB or grey, upright. _PIXELS for all others.
    """
    if isinstance(data, np.ndarray):
        return _PIXELS
    picture = reading.open_image(data, what)
    if picture.mode not in ("RGB", "L") or reading.orientation(picture) != 1:
        return _PIXELS
    if picture.format == "JPEG" and b"\xff\xd9" in data[-1024:]:
        return _JPEG
    eight_bit = picture.format == "PNG" and data[24] == 8
    if eight_bit and "transparency" not in picture.info and png.is_whole(data):
        return _PNG
    return _PIXELS


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
    skip: bad_samples.Skip | None = None,
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
    chosen: dict[int, Record] = {}  # element -> its record
    read = samples.source(description, records, "none")
    substitute = bad_samples.substituting(skip, split, records, read, seed)

    def prepare(element):
        """Label and window of an element, and its image as TensorFlow shall take it."""

        def use(row):
            chosen[int(element)] = records[row.index]
            return _prepare(read(row.index), row, augment, ignore)

        try:
            step, place = divmod(int(element), share)
            position = step * batch_size + process_index * share + place
            row = plan.row(seed, len(records), position, augment)
            return substitute(use, row, position)
        except Exception as error:  # TensorFlow would wrap it; the reader of the batch raises it
            failures[int(element)] = error
            blank = plan.Cut((1, 1), 0, 0, 1, 1)
            label = np.empty((height, width), labels.dtype(description))
            return label, _PIXELS, np.zeros((1, 1, 3), np.uint8), b"", _numbers(blank, (1, 1))

    kept = tf.as_dtype(labels.dtype(description))
    signature = kept, tf.int32, tf.uint8, tf.string, tf.int32

    def finish(pixels, numbers, whole):
        """The window of what was decoded, rescaled, mirrored and padded."""
        cut, size, box = _cut_size_box(numbers)
        image = np.empty((height, width, 3), np.uint8)
        crop.write_image(image, pixels, cut, size, (0, 0) if whole else box[:2])
        return image

    def make(element):
        label, kind, pixels, data, numbers = tf.numpy_function(
            lambda e: _typed(prepare(e)), [element], signature
        )
        pixels = tf.switch_case(
            kind,
            [
                lambda: tf.ensure_shape(pixels, [None, None, 3]),
                lambda: tf.io.decode_png(data, channels=3),
                lambda: _decode_jpeg(tf, data, numbers[-4:]),
            ],
        )
        image = tf.numpy_function(finish, [pixels, numbers, kind == _PNG], tf.uint8)
        image = tf.ensure_shape(image, [height, width, 3])
        return image, tf.ensure_shape(label, [height, width])

    def widen(image, label):
        return image, tf.cast(label, tf.int32)

    options = tf.data.Options()
    options.deterministic = True
    # A pool of its own, no larger than the processors, and single-threaded ops: XLA's threads on
    # a CPU want the same processors.
    options.threading.private_threadpool_size = threads.num_threads()
    options.threading.max_intra_op_parallelism = 1
    elements = tf.data.Dataset.range(start_step * share, (start_step + num_steps) * share)
    dataset = elements.map(make, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.batch(share, drop_remainder=True).map(widen).prefetch(threads.AHEAD)

    def raise_failure(step: int) -> None:
        for element in range(step * share, (step + 1) * share):
            if element in failures:
                raise failures[element]

    def batches():
        iterator = dataset.with_options(options).as_numpy_iterator()
        for step in range(start_step, start_step + num_steps):
            elements = range(step * share, (step + 1) * share)
            try:
                image, label = next(iterator)
            except tf.errors.OpError as error:
                raise_failure(step)
                # TensorFlow does not say which; Pillow does.
                begun = [chosen[element] for element in elements if element in chosen]
                for record in begun:
                    reading.read_pair(description, record)
                ids = ", ".join(record.id for record in begun)
                reason = error.message.splitlines()[0]
                raise UserError(
                    f"TensorFlow refuses one of the images {ids}: {reason}. Save it "
                    "anew, or use the 'threads' back end: Pillow reads it"
                ) from None
            raise_failure(step)
            ids = [chosen.pop(element).id for element in elements]
            yield {"image": image, "label": label, "mask": np.ones(share, bool), "id": ids}

    return batches()


def _typed(values: tuple) -> tuple:
    """The types that the signature of `prepare` promises; bytes stay bytes."""
    label, kind, pixels, data, numbers = values
    return label, np.int32(kind), np.ascontiguousarray(pixels), data, numbers


def _numbers(cut: plan.Cut, size: tuple[int, int]) -> np.ndarray:
    """A cut, the size of its image and the box to read, as TensorFlow can carry them: int32."""
    values = *cut.scaled, cut.top, cut.left, cut.height, cut.width, cut.flip, *size
    return np.array([*values, *crop.source_box(size, cut)], np.int32)


def _cut_size_box(numbers: np.ndarray) -> tuple[plan.Cut, tuple[int, ...], tuple[int, ...]]:
    """What `_numbers` was made of, and the box."""
    values = numbers.tolist()
    cut = plan.Cut(tuple(values[:2]), *values[2:6], flip=bool(values[6]))
    return cut, tuple(values[7:9]), tuple(values[9:])


def _prepare(sample: samples.Sample, row: plan.Row, augment: Any, ignore: int) -> tuple:
    """Everything about a sample but the image's pixels.

    Returns:
      label [*crop] of `labels.dtype`, kind, pixels of the box uint8 [h, w, 3] or data bytes,
      numbers (see `_numbers`).
    """
    cut = plan.cut(row, sample.label, augment, ignore)
    target = np.empty(augment.crop, sample.label.dtype)
    crop.place(plan.crop_label(sample.label, cut), target, cut.flip, ignore)
    numbers = _numbers(cut, sample.size)
    box = tuple(numbers[-4:].tolist())
    kind = encoding(sample.image, sample.what)
    if kind == _PNG and box[0] + box[2] < _FEW_ROWS * sample.size[0]:
        kind = _PIXELS
    if kind == _PIXELS:
        pixels = reading.decode_image(sample.image, sample.what, box)
        return target, kind, pixels, b"", numbers
    return target, kind, np.zeros((1, 1, 3), np.uint8), sample.image, numbers


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
