"""Fingerprints of splits: what changes them, and what does not."""

import dataclasses
import os
import pathlib

import numpy as np
import pytest

from jaxseg.data.base import Description, Record
from jaxseg.data.fingerprint import SAMPLED, fingerprint

NUMBER = 3 * SAMPLED
WHAT = Description("toy", ("a", "b"), ((0, 0, 0), (9, 9, 9)), ("val",), lambda split: [])


def write(root: pathlib.Path) -> list[Record]:
    """Files of some bytes; nothing needs to decode them."""
    root.mkdir(parents=True)
    records = []
    for i in range(NUMBER):
        files = root / f"{i}.jpg", root / f"{i}.png"
        for file, length in zip(files, (100 + i, 10), strict=True):
            file.write_bytes(bytes([i]) * length)
        records.append(Record(f"s/{i:02}", *map(str, files)))
    return records


@pytest.fixture
def records(tmp_path):
    return write(tmp_path / "data")


def test_neither_the_place_nor_the_order_of_the_files_matters(records, tmp_path):
    known = fingerprint(WHAT, records)
    assert len(known) == 64
    assert fingerprint(WHAT, records[::-1]) == known
    assert fingerprint(WHAT, write(tmp_path / "elsewhere")) == known
    os.utime(records[0].image)
    assert fingerprint(WHAT, records) == known


def test_whatever_makes_another_split_changes_it(records):
    table = np.arange(256, dtype=np.int32)
    other_table = table.copy()
    other_table[7] = 255
    found = [
        fingerprint(WHAT, records),
        fingerprint(WHAT, records[:-1]),
        fingerprint(WHAT, [*records[:-1], dataclasses.replace(records[-1], id="other")]),
        fingerprint(WHAT, [*records[:-1], dataclasses.replace(records[-1], label=None)]),
        fingerprint(dataclasses.replace(WHAT, ignore_label=254), records),
        fingerprint(dataclasses.replace(WHAT, label_map=table), records),
        fingerprint(dataclasses.replace(WHAT, label_map=other_table), records),
        fingerprint(dataclasses.replace(WHAT, label_colors={(0, 0, 0): 0}), records),
    ]
    # The size of any file; the contents of those that are looked at, the first among them.
    pathlib.Path(records[NUMBER - 2].label).write_bytes(b"longer than it was")
    found.append(fingerprint(WHAT, records))
    pathlib.Path(records[0].label).write_bytes(b"other ....")
    found.append(fingerprint(WHAT, records))
    pathlib.Path(records[NUMBER - 1].image).unlink()  # said by whoever reads the sample
    found.append(fingerprint(WHAT, records))
    assert len(set(found)) == len(found)


def test_samples_that_are_no_files_count_by_contents():
    def made(value, shape=(4, 6), dtype=np.uint8):
        return [Record("0", lambda: np.full(shape, value, dtype), lambda: b"encoded")]

    known = fingerprint(WHAT, made(3))
    assert fingerprint(WHAT, made(3)) == known
    others = (made(4), made(3, (6, 4)), made(3, dtype=np.int8))
    assert len({known, *(fingerprint(WHAT, other) for other in others)}) == 4
