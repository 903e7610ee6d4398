"""The data set doctor finds every planted defect and counts what is there."""

import numpy as np
from PIL import Image

from jaxseg.data import check
from jaxseg.data.base import Description, Record
from jaxseg.errors import UserError


def picture(seed, size=(12, 16)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


def mask(*columns, size=(12, 16)):
    """A label whose columns repeat the given values."""
    label = np.resize(np.array(columns, np.uint8), size[1])
    return np.broadcast_to(label, size).copy()


def describe(splits):
    def records(split):
        if split not in splits:
            raise UserError(f"no files for {split}")
        return splits[split]

    return Description(
        name="toy",
        classes=("road", "car", "tree"),
        palette=((0, 0, 0),) * 3,
        splits=("train", "val", "missing"),
        records=records,
    )


def record(name, image, label):
    return Record(
        name,
        image if isinstance(image, str) else lambda: image,
        label if isinstance(label, str) or label is None else lambda: label,
    )


def test_a_sound_data_set():
    splits = {
        "train": [record("a", picture(0), mask(0, 1)), record("b", picture(1), mask(0, 255))],
        "val": [record("a", picture(2, (12, 20)), mask(2, size=(12, 20)))],
    }
    report = check.check(describe(splits), ("train", "val"))
    assert report.problems == ()
    train, val = report.splits
    assert (train.split, train.samples, train.labelled, train.ignored) == ("train", 2, 2, 96)
    assert train.pixels.tolist() == [96 + 96, 96, 0] and train.images.tolist() == [2, 1, 0]
    assert train.sizes == {(12, 16): 2} and val.sizes == {(12, 20): 1}
    assert val.pixels.tolist() == [0, 0, 240]
    text = check.format_report(report)
    assert "no problems" in text and "2 images of 16 x 12" in text
    assert "25.00 % of the pixels are ignored" in text
    assert any(line.split() == ["0", "road", "66.667", "2"] for line in text.splitlines())


def test_every_planted_defect_is_found(tmp_path):
    whole = tmp_path / "whole.png"
    Image.fromarray(picture(3)).save(whole)
    broken = tmp_path / "broken.png"
    broken.write_bytes(whole.read_bytes()[:200])
    splits = {
        "train": [
            record("good", picture(0), mask(0)),
            record("good", picture(1), mask(0)),
            record("torn", str(broken), mask(0)),
            record("gone", str(tmp_path / "gone.png"), mask(0)),
            record("illegal", picture(2), mask(0, 7)),
            record("small", picture(4), mask(0, size=(10, 16))),
        ],
        "val": [record("leak", picture(0), mask(0, 2)), record("bare", picture(9), None)],
    }
    report = check.check(describe(splits))
    expected = [
        ("'good' occurs 2 times",),
        ("torn", "broken.png", "not a complete image"),
        ("gone", "gone.png", "cannot be read"),
        ("illegal", "value 7 (96 pixels)", "stores 0..2, 255."),
        ("small", "16 x 12", "16 x 10"),
        ("no files for missing",),
        ("same image 2 times", "train/good", "val/leak"),
        ("class 1 (car) occurs in no label",),
    ]
    assert len(report.problems) == len(expected)
    for words, problem in zip(expected, report.problems, strict=True):
        assert all(word in problem for word in words), problem
    assert [s.labelled for s in report.splits] == [6, 1]
    text = check.format_report(report)
    assert "8 problem(s)" in text and all(problem in text for problem in report.problems)


def test_only_the_splits_asked_for():
    splits = {"train": [record("a", picture(0), mask(0, 1, 2))], "val": []}
    assert check.check(describe(splits), ("train",)).problems == ()
    (problem,) = check.check(describe(splits), ("train", "val")).problems
    assert problem == "split 'val' is empty"
