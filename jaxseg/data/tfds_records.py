"""Random access to what TensorFlow Datasets has prepared; reading it needs no TensorFlow.

A record is a serialised `tf.train.Example`, in which an encoded picture lies as it is. In
`tfrecord` files, TFDS's default format, `read` walks over the headers only and notes where in
which file each picture lies, so that listing touches a few pages per record and reading is one
seek. In `array_record` files, whose records are compressed, listing reads every record once for
its id, and each later read decompresses its record. Neither verifies the record's checksum; PNG
has its own.

The records come sorted by id, so the order is that of the folders and not TFDS's shuffled one.
"""

import functools
import mmap
import os
import re
import struct
from collections.abc import Iterator
from typing import Any

from jaxseg.data import files
from jaxseg.data.base import Record, Source
from jaxseg.errors import UserError

Buffer = bytes | mmap.mmap
Span = tuple[int, int]  # start, end


def read(
    data_dir: str,
    dataset: str,
    split: str,
    *,
    id: str,
    image: str,
    label: str | None,
    prepare: str,
) -> list[Record]:
    """Lists one split of a prepared dataset.

    Args:
      data_dir: TFDS's data folder, which holds DATASET/VERSION/; a local or mounted path.
      dataset: 'name' or 'name/config', as TFDS names it.
      split: as TFDS names it.
      id, image, label: names of the features: a text, and two encoded pictures (label None: the
        records have no labels).
      prepare: the command that prepares the dataset, for the error.

    Returns:
      Records sorted by id; images and labels are functions that return encoded bytes.

    Raises:
      UserError: not prepared, another file format, no such split or feature, files missing or cut.
    """
    # Imported here: it takes half a second, and only this source of records needs it.
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(_version_folder(data_dir, dataset, prepare))
    where = f"{builder.data_dir} (TFDS {dataset}, split {split})"
    if split not in builder.info.splits:
        has = ", ".join(builder.info.splits) or "none"
        raise UserError(f"{where}: no such split; it has {has}. Prepare it again:\n{prepare}")
    names = [id, image] + [label] * (label is not None)
    listers = {"tfrecord": _tfrecords, "array_record": _array_records}
    file_format = builder.info.file_format.value
    if file_format not in listers:
        raise UserError(
            f"{where}: file format {file_format!r}; jaxseg reads {' and '.join(listers)}. "
            f"Prepare it again:\n{prepare}"
        )
    paths = [str(path) for path in builder.info.splits[split].filepaths]
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise UserError(
            f"{where}: {len(missing)} of {len(paths)} file(s) are missing: {files.some(missing)}. "
            "Copy or prepare them again"
        )
    records = []
    for name, sources in listers[file_format](builder, split, names, where):
        records.append(Record(name, sources[0], sources[1] if label is not None else None))
    records.sort(key=lambda record: record.id)
    expected = builder.info.splits[split].num_examples
    if len(records) != expected or not records:
        raise UserError(
            f"{where}: {len(records)} records, {expected} expected. Prepare it again:\n{prepare}"
        )
    return records


def _version_folder(data_dir: str, dataset: str, prepare: str) -> str:
    """The folder of the newest prepared version."""
    folder = os.path.join(data_dir, *dataset.split("/"))
    versions = [
        name
        for name in (os.listdir(folder) if os.path.isdir(folder) else ())
        if re.fullmatch(r"\d+\.\d+\.\d+", name)
        and os.path.exists(os.path.join(folder, name, "dataset_info.json"))
    ]
    if not versions:
        raise UserError(
            f"{folder}: no dataset prepared by TensorFlow Datasets (VERSION/dataset_info.json). "
            f"With ROOT={data_dir}, prepare it once with\n{prepare}"
        )
    return os.path.join(folder, max(versions, key=lambda name: [*map(int, name.split("."))]))


def _tfrecords(
    builder: Any, split: str, names: list[str], where: str
) -> Iterator[tuple[str, list[Source]]]:
    """Id and sources of every record. A source is a place in a file, opened when it is read."""
    for path in map(str, builder.info.splits[split].filepaths):
        if os.path.getsize(path) == 0:  # which cannot be mapped
            continue
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for span in _frames(data, path):
                spans = _spans(data, span, names, where)
                (start, end), *pictures = (spans[name] for name in names)
                yield (
                    data[start:end].decode(),
                    [functools.partial(_read_span, path, *picture) for picture in pictures],
                )


def _read_span(path: str, start: int, end: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(end - start)


def _frames(data: mmap.mmap, path: str) -> Iterator[Span]:
    """Where the records of a TFRecord file lie: u64 length, u32 crc, the record, u32 crc."""
    position = 0
    while position < len(data):
        start = position + 12
        length = struct.unpack_from("<Q", data, position)[0] if start <= len(data) else 0
        position = start + length + 4
        if position > len(data):
            raise UserError(
                f"{path}: the file ends within a record, at byte {len(data)}. Copy or prepare it "
                "again"
            )
        yield start, start + length


def _array_records(
    builder: Any, split: str, names: list[str], where: str
) -> Iterator[tuple[str, list[Source]]]:
    """Id and sources of every record. A source is a number in TFDS's random-access source."""
    from tensorflow_datasets.core.decode import DeserializeMethod

    data = builder.as_data_source(split, deserialize_method=DeserializeMethod.RAW_BYTES)
    for index in range(len(data)):
        record = _array_record(data, index, where)
        start, end = _spans(record, (0, len(record)), names, where)[names[0]]
        yield (
            record[start:end].decode(),
            [functools.partial(_read_feature, data, index, name, where) for name in names[1:]],
        )


def _read_feature(data: Any, index: int, name: str, where: str) -> bytes:
    record = _array_record(data, index, where)
    start, end = _spans(record, (0, len(record)), [name], where)[name]
    return record[start:end]


def _array_record(data: Any, index: int, where: str) -> bytes:
    try:
        return data[index]
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"{where}: record {index} cannot be read ({error}). Copy or prepare the files again"
        ) from error


def _spans(data: Buffer, record: Span, names: list[str], where: str) -> dict[str, Span]:
    """Where the bytes of some features lie in a serialised `tf.train.Example`.

    Example is {1: Features}, Features is {1: map entry, ...}, a map entry {1: name, 2: Feature},
    Feature is {1: BytesList} for bytes, and BytesList {1: bytes, ...}.
    """
    found: dict[str, Span] = {}
    try:
        for entry in _fields(data, _fields(data, record)[1][0])[1]:
            parts = _fields(data, entry)
            start, end = parts[1][0]
            name = data[start:end].decode()
            if name in names:
                bytes_list = _fields(data, parts[2][0])[1][0]
                found[name] = _fields(data, bytes_list)[1][0]
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"{where}: a record is not a tf.train.Example of bytes") from error
    absent = [name for name in names if name not in found]
    if absent:
        raise UserError(f"{where}: a record has no feature {', '.join(absent)}")
    return found


def _fields(data: Buffer, span: Span) -> dict[int, list[Span]]:
    """Field number -> where its values lie, in a protobuf message of length-delimited fields."""
    position, end = span
    fields: dict[int, list[Span]] = {}
    while position < end:
        key, position = _varint(data, position)
        if key & 7 != 2:
            raise ValueError(f"wire type {key & 7}")
        length, position = _varint(data, position)
        if position + length > end:
            raise ValueError("a field reaches beyond its message")
        fields.setdefault(key >> 3, []).append((position, position + length))
        position += length
    return fields


def _varint(data: Buffer, position: int) -> tuple[int, int]:
    """A base-128 number, lowest digits first, and the position after it."""
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
