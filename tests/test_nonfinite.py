"""Steps without a finite loss: left for inspection, counted, and gone back from."""

import json

import numpy as np
import pytest
from test_checkpoint import steps_in
from tiny_runs import (
    BAD,
    after_step,
    arrays_of,
    assert_same,
    command,
    compiled_once,
    losses_of,
    terminate,
)

from jaxseg import data, loop, nonfinite
from jaxseg.workdir import read_config, read_manifest


@pytest.fixture(scope="module", autouse=True)
def shared_programs():
    with compiled_once():
        yield


@pytest.fixture
def bad(monkeypatch) -> set[int]:
    """Steps of the data, from 0, whose batch shall have no finite loss."""
    batches, bad = data.train_batches, set()

    def poisoned(*arguments, start_step, **settings):
        found = batches(*arguments, start_step=start_step, **settings)
        for step, batch in enumerate(found, start_step):
            if step in bad:
                batch["image"][:] = BAD
            yield batch

    monkeypatch.setattr(data, "train_batches", poisoned)
    return bad


def test_steps_without_a_finite_loss_are_left_for_inspection(bad, tmp_path, monkeypatch, capsys):
    bad |= {4, 5, 6, 7}  # steps 5 to 8
    monkeypatch.setattr(nonfinite, "FILES", 2)
    settings = ("--config.nonfinite.stop_after=3", "--config.eval_every=12")
    assert command(tmp_path, *settings) == 2
    error = capsys.readouterr().err
    assert "the loss was not finite for 3 steps in a row, up to step 7; " in error
    # Nothing has changed since step 4; the newest checkpoint, of a later step, is as good.
    assert steps_in(tmp_path) == ["4", "8"]
    assert_same(arrays_of(tmp_path, 8), arrays_of(tmp_path, 4))

    lines = [json.loads(line) for line in (tmp_path / "nonfinite.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 6, 7, 8]
    files = sorted((tmp_path / "nonfinite").iterdir())
    assert [file.name for file in files] == ["step_5.npz", "step_6.npz"]
    with np.load(files[0], allow_pickle=False) as left:
        assert left["image"].shape == (4, 48, 48, 3) and left["image"].dtype == np.uint8
        assert (left["image"] == BAD).all() and left["mask"].all()
        assert left["label"].shape == (4, 48, 48)
        assert list(left["id"]) == lines[0]["ids"]
        assert np.isnan(left["loss"]) and left["finite"] == 0


def test_a_run_goes_back_and_on_with_other_batches(bad, tmp_path, monkeypatch, capsys):
    bad |= {6, 7, 8}  # steps 7 to 9, unless they are passed over
    settings = ("--config.nonfinite.stop_after=3", "--config.nonfinite.rollbacks=1")
    settings += ("--config.eval_every=12",)
    seen = []
    take = loop.Loop._take_step

    def recorded(self, step, batch):
        seen.append((step, tuple(batch["id"])))
        take(self, step, batch)

    monkeypatch.setattr(loop.Loop, "_take_step", recorded)
    assert command(tmp_path / "whole", *settings) == 0
    # Of 4 and 8, whose state is that of step 6, step 4 is the newest that a finite loss follows.
    assert "from step 7 to 9: back to step 4, and on" in capsys.readouterr().out
    folder = tmp_path / "whole" / "checkpoints"
    assert {p.name for p in folder.iterdir()} == {"8.abandoned", "8", "12"}
    twice = [step for step, _ in seen].index(5, 5)
    assert [step for step, _ in seen[twice:]] == [5, 6, 7, 8, 9, 10, 11, 12]
    config = read_config(tmp_path / "whole")
    after = data.threads.train_batches(
        data.get(config.data),
        "train",
        config.augment,
        seed=0,
        batch_size=4,
        start_step=9,
        num_steps=8,
    )
    assert [ids for _, ids in seen[twice:]] == [tuple(batch["id"]) for batch in after]
    assert sorted(losses_of(tmp_path / "whole")) == list(range(1, 13))
    (event,) = [e for e in read_manifest(tmp_path / "whole")["runs"][0]["events"] if "to" in e]
    assert (event["step"], event["to"], event["batches_skipped"]) == (9, 4, 5)

    # Stopped among the bad steps, and again after the return, it takes the same way.
    for step in (8, 6):
        with monkeypatch.context() as patch:
            after_step(patch, {step: terminate})
            assert command(tmp_path / "stopped", *settings) == 42
    assert command(tmp_path / "stopped", *settings) == 0
    assert losses_of(tmp_path / "stopped") == losses_of(tmp_path / "whole")
    assert_same(arrays_of(tmp_path / "stopped", 12), arrays_of(tmp_path / "whole", 12))


def test_every_streak_is_noted_once_and_lasts(tmp_path):
    watch = nonfinite.Watch(tmp_path, stop_after=3, in_a_row=2)  # as a resumed run has it
    batch = {"id": ["a"]}
    for step, finite in enumerate([0, 1, 0], 11):
        watch.see(step, {"finite": np.float32(finite), "loss": np.float32("nan")}, batch)
    with pytest.raises(nonfinite.Diverged, match="3 steps in a row, up to step 11;") as error:
        watch.check()  # though step 12 was good
    assert (error.value.first, error.value.last, watch.in_a_row) == (9, 11, 1)


@pytest.mark.parametrize("value", ["stop_after=0", "rollbacks=-1"])
def test_settings_that_make_no_sense(value, tmp_path, capsys):
    assert command(tmp_path, f"--config.nonfinite.{value}") == 2
    assert f"config.nonfinite.{value}: expected " in capsys.readouterr().err
