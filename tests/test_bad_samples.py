"""Samples that cannot be used: each is refused by name, or another takes its place."""

import dataclasses
import importlib.util
import io
import json
import logging
import pathlib

import numpy as np
import pytest
import test_main
from defects import DEFECTS, GOOD, SIZE, flat, save, torn
from ml_collections import ConfigDict
from PIL import Image

from jaxseg import config as configs
from jaxseg import data
from jaxseg.data import bad_samples, balance, check, plan, reading, threads
from jaxseg.data.base import Description, Record
from jaxseg.errors import UserError

TENSORFLOW = importlib.util.find_spec("tensorflow") is not None
BACKENDS = ["threads", *["tfdata"] * TENSORFLOW]
SEED = 11
pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> list[Record]:
    """`GOOD` samples as PNG, and then one of each defect."""
    root = tmp_path_factory.mktemp("samples")
    made = []
    for number in range(GOOD):
        image, label = flat(number)
        paths = save(root / f"image{number}.png", image), save(root / f"label{number}.png", label)
        made.append(Record(f"good{number}", *paths))
    for name, (part, make, _) in DEFECTS.items():
        made.append(dataclasses.replace(made[0], id=name, **{part: make(root / name)}))
    return made


def describe(records, **changes) -> Description:
    return Description(
        **{
            "name": "toy",
            "classes": tuple(f"class{i}" for i in range(GOOD)),
            "palette": ((0, 0, 0),) * GOOD,
            "splits": ("train",),
            "records": lambda split: records,
            **changes,
        }
    )


def skip(cap=0.9, **changes) -> bad_samples.Skip:
    return bad_samples.Skip(cap, **changes)


def train(records, backend="threads", *, batch_size=4, start=0, steps=12, p=(0, 1), **settings):
    augment = dict(crop=(16, 16), scale=(0.9, 1.5), base_size=(), cat_max_ratio=None, flip=True)
    return data.train_batches(
        describe(records),
        "train",
        ConfigDict(augment),
        backend=backend,
        seed=SEED,
        batch_size=batch_size,
        start_step=start,
        num_steps=steps,
        process_index=p[0],
        process_count=p[1],
        **settings,
    )


def same(one, two):
    assert one["id"] == two["id"]
    for key in ("image", "label", "mask"):
        np.testing.assert_array_equal(one[key], two[key])


# ---- Refused ----


def test_check_names_every_bad_sample(records):
    problems = check.check(describe(records)).problems
    for name, (_, _, words) in DEFECTS.items():
        (said,) = (line for line in problems if f"{name})" in line)
        assert said.startswith("split 'train': ") and all(word in said for word in words), said


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_stops_at_every_bad_sample(records, backend):
    few = ("bomb.png", "sideways.png", "torn_mask.png")  # the back ends read with one reader
    for record in records[GOOD:]:
        if backend == "tfdata" and record.id not in few:
            continue
        words = DEFECTS[record.id][2]
        with pytest.raises(UserError) as caught:
            next(train([record], backend, batch_size=1, steps=1))
        assert all(word in str(caught.value) for word in (f"{record.id})", *words)), caught.value


def test_masks_in_colours_have_three_channels():
    description = describe([], label_colors={(7, 7, 7): 2})
    grey = Image.fromarray(np.full(SIZE, 7, np.uint8))

    def read(mode, kind):
        file = io.BytesIO()
        grey.convert(mode).save(file, kind)
        record = Record("x", "", lambda: file.getvalue())
        return reading.read_label(description, record)

    for mode in ("L", "LA", "RGB", "RGBA"):
        np.testing.assert_array_equal(read(mode, "PNG"), np.full(SIZE, 2))
    with pytest.raises(UserError, match=r"'x': pixels are uint8 \[20, 24, 4\]; expected uint8 RGB"):
        read("CMYK", "TIFF")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(on_bad_sample="ignore"), "config.on_bad_sample.*'ignore'.*Known: error, skip"),
        (dict(bad_sample_cap=0.0), "config.bad_sample_cap=0.0: expected a share"),
        (dict(bad_sample_cap=1.0), "config.bad_sample_cap=1.0: expected a share"),
        (dict(on_bad_sample="skip", data_cache="device"), "data_cache='device'.*jaxseg.main check"),
    ],
)
def test_settings_are_checked(settings, words):
    config = configs.from_file("configs/deeplabv3p.py:synthetic")
    configs.validate(config)
    assert (config.on_bad_sample, config.bad_sample_cap) == ("error", 0.001)
    config.update(settings)
    with pytest.raises(UserError, match=words):
        configs.validate(config)


# ---- Skipped ----


def expected_ids(records, step, batch_size=4) -> list[str]:
    """The rule spelled out: the first good one in the order that (seed, position) gives."""
    ids = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, place = divmod(position, len(records))
        index = int(plan.permutation(SEED, epoch, len(records))[place])
        if index >= GOOD:
            counter = np.array([0, position, 0, 0], np.uint64)
            generator = np.random.Philox(key=np.array([SEED, 2], np.uint64), counter=counter)
            order = np.argsort(generator.random_raw(len(records)), kind="stable")
            index = int(next(i for i in order if i < GOOD))
        ids.append(records[index].id)
    return ids


@pytest.mark.parametrize("backend", BACKENDS)
def test_another_sample_takes_the_place(records, backend):
    replaced = 0
    for step, batch in enumerate(train(records, backend, skip=skip())):
        assert batch["id"] == expected_ids(records, step)
        for position in plan.train_positions(step, 4):
            epoch, place = divmod(position, len(records))
            replaced += plan.permutation(SEED, epoch, len(records))[place] >= GOOD
        for name, image, label in zip(batch["id"], batch["image"], batch["label"], strict=True):
            number = int(name.removeprefix("good"))
            shown = label != 255
            assert shown.any() and (label[shown] == number).all()
            assert (image[shown] == 20 * number).all() and (image[~shown] == 0).all()
    assert replaced > 20


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cache", ["none", "decoded"])
def test_resuming_processes_back_ends_and_caches_see_the_same(records, backend, cache):
    whole = list(train(records, skip=skip()))
    settings = dict(backend=backend, cache=cache, skip=skip())
    for step, batch in enumerate(train(records, start=5, steps=7, **settings), 5):
        same(batch, whole[step])
    for process in (0, 1):
        for step, batch in enumerate(train(records, p=(process, 2), **settings)):
            same(batch, {key: whole[step][key][2 * process :][:2] for key in batch})


def test_bad_samples_are_said_and_noted_once(records, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        list(train(records, steps=12, skip=skip(folder=tmp_path)))
    said = [r.getMessage() for r in caplog.records if "takes the place" in r.getMessage()]
    assert len(said) == len(DEFECTS)
    found = bad_samples.listed(tmp_path)
    assert [entry["id"] for entry in found] == sorted(DEFECTS)
    by_id = {record.id: record for record in records}
    for entry in found:
        part, _, words = DEFECTS[entry["id"]]
        assert entry["split"] == "train" and all(word in entry["reason"] for word in words)
        assert getattr(by_id[entry["id"]], part) in entry["files"]
    # Another start adds nothing, another process its own.
    text = (tmp_path / "bad_samples-0.jsonl").read_text()
    list(train(records, steps=12, skip=skip(folder=tmp_path)))
    assert (tmp_path / "bad_samples-0.jsonl").read_text() == text
    list(train(records, steps=3, p=(1, 2), skip=skip(folder=tmp_path, process=1)))
    lines = (tmp_path / "bad_samples-1.jsonl").read_text().splitlines()
    assert 0 < len(lines) < len(DEFECTS) and set(lines) < set(text.splitlines())
    assert bad_samples.listed(tmp_path) == found


def test_a_file_that_goes_in_the_middle_of_a_run_is_replaced_from_there(records, tmp_path):
    moved = pathlib.Path(save(tmp_path / "moved.png", flat(0)[0]))
    some = [dataclasses.replace(records[0], image=str(moved)), *records[1:GOOD]]
    stream = train(some, batch_size=3, steps=30, skip=skip(0.2))
    before = sum((next(stream)["id"] for _ in range(6)), [])
    moved.unlink()
    after = sum((batch["id"] for batch in stream), [])
    # What was read ahead may still show it, once an epoch of three steps.
    assert before.count("good0") == 2 and after.count("good0") <= 2
    assert len(after) == 72


def test_the_cap_is_a_share_and_one_at_the_least():
    for number, cap, allowed in [
        *[(2975, 0.001, 2), (3000, 0.001, 3), (20_210, 0.001, 20), (40, 0.001, 1)],
        *[(100, 0.29, 29), (2, 0.9, 1), (1, 0.5, 0)],
    ]:
        assert skip(cap).allowed(number) == allowed


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_bad_samples_than_the_cap_end_the_run_with_a_list(records, backend):
    some = records[: GOOD + 3]
    order = plan.permutation(SEED, 0, len(some)).tolist()
    second = sorted(order.index(bad) for bad in range(GOOD, GOOD + 3))[1]
    stream = train(some, backend, batch_size=1, steps=len(some), skip=skip(0.1))
    with pytest.raises(UserError) as caught:
        for step, batch in enumerate(stream):
            # No later than this; earlier where a batch that is read ahead has met more already.
            assert step < second and batch["id"][0].startswith("good")
    message = str(caught.value)
    assert "of the 12 samples of split 'train' cannot be used" in message
    assert "config.bad_sample_cap=0.1 allows 1" in message and "jaxseg.main check" in message
    assert 2 <= sum(record.image in message for record in some[GOOD:]) <= 3


def test_nothing_but_bad_samples_is_an_error(records):
    with pytest.raises(UserError, match="3 of the 3 samples"):
        list(train(records[GOOD : GOOD + 3], skip=skip(0.99)))


def test_errors_of_other_kinds_are_not_skipped(records):
    def fail():
        raise RuntimeError("out of luck")

    some = [*records[:3], Record("bug", fail, records[0].label)]
    with pytest.raises(RuntimeError, match="out of luck"):
        list(train(some, steps=4, skip=skip()))


def test_evaluation_skips_nothing(records):
    with pytest.raises(UserError, match="torn.png"):
        list(threads.eval_batches(describe(records[: GOOD + 1]), "train", batch_size=2))


def test_class_frequencies_leave_out_labels_that_cannot_be_read(records):
    mixed = [*records[:3], next(r for r in records if r.id == "torn_mask.png")]
    with pytest.raises(UserError, match="torn_mask.png"):
        balance.class_frequencies(describe(mixed), "train")
    found = balance.class_frequencies(describe(mixed), "train", lenient=True)
    assert found.tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0]


@pytest.mark.slow
def test_a_run_goes_on_and_its_evaluation_does_not(tmp_path, capsys):
    """A bad sample in each split: that of training is in the manifest, that of validation stops."""
    root, run = test_main.write_folder(tmp_path / "mine"), tmp_path / "run"
    bad = {split: torn(root / "images" / split / "3.png") for split in ("train", "val")}
    status, said = test_main.train(capsys, root, run, "--config.on_bad_sample=skip")
    assert status == 2 and f"image of '3' ({bad['val']}): not a complete image file" in said
    (entry,) = json.loads((run / "manifest.json").read_text())["runs"]
    (found,) = entry["bad_samples"]
    assert (found["split"], found["id"]) == ("train", "3") and bad["train"] in found["files"]
    losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {row["step"] for row in losses if "loss" in row} == {1, 2}
    assert (run / "checkpoints" / "2").is_dir()
