"""Runs that are stopped or run out of disk, against one that is left alone."""

import contextlib
import json
import pathlib
import resource
import shutil
import signal

import pytest
from test_checkpoint import flip_bit, steps_in
from tiny_runs import (
    STEPS,
    after_step,
    assert_equals_uninterrupted,
    command,
    compiled_once,
    figures_of,
    losses_of,
    terminate,
)

from jaxseg import checkpoint, evaluate, full_disk, loop, preemption
from jaxseg.errors import Preempted
from jaxseg.workdir import read_manifest
from jaxseg.writer import Writer


@pytest.fixture(scope="module", autouse=True)
def shared_programs():
    with compiled_once():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory, shared_programs) -> pathlib.Path:
    """A run that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole")
    assert command(folder) == 0
    assert sorted(losses_of(folder)) == list(range(1, STEPS + 1))
    return folder


def test_sigterm_saves_and_the_same_command_goes_on(whole, tmp_path, monkeypatch, capfd, caplog):
    before = signal.getsignal(signal.SIGTERM)
    batches, calls = evaluate.batches, []
    in_evaluation = set()

    def hooked(*arguments):
        calls.append(arguments)
        if len(calls) in in_evaluation:
            terminate()
        return batches(*arguments)

    monkeypatch.setattr(evaluate, "batches", hooked)

    with monkeypatch.context() as patch:
        after_step(patch, {3: terminate})
        assert command(tmp_path) == 42
    assert signal.getsignal(signal.SIGTERM) == before
    told = capfd.readouterr().err
    assert "SIGTERM: stopping at the next step" in told and "the same command goes on" in told
    assert losses_of(tmp_path).keys() == {1, 2, 3} and steps_in(tmp_path) == ["3"]

    # While step 6 is evaluated: it is saved, and its evaluation is still to be made.
    in_evaluation.add(1)
    assert command(tmp_path) == 42
    assert max(losses_of(tmp_path)) == 6 and not figures_of(tmp_path)
    assert steps_in(tmp_path) == ["4", "6"]

    # That checkpoint is evaluated first. Then the same within the evaluation of the last step.
    in_evaluation.add(3)
    assert command(tmp_path) == 42
    assert figures_of(tmp_path) == figures_of(whole)[:1]
    assert checkpoint.find_step(tmp_path, "best").name == "6"  # it got its score afterwards
    assert steps_in(tmp_path) == ["12", "6", "8"]

    # The newest checkpoint rots: the one before it leads to the same end.
    for path in (tmp_path / "checkpoints" / "12" / "model").rglob("d/*"):
        flip_bit(path, path.stat().st_size // 2, 3)
    assert command(tmp_path) == 0
    assert "checkpoint of step 12 is damaged" in caplog.text
    assert_equals_uninterrupted(tmp_path, whole)
    runs = read_manifest(tmp_path)["runs"]
    ends = [run["events"][-1] for run in runs]
    assert [end.get("step") for end in ends if end["event"] == "preempted"] == [3, 6, 12]


def test_a_run_from_before_there_were_these_settings_goes_on(whole, tmp_path, caplog):
    shutil.copytree(whole, tmp_path / "old")
    path = tmp_path / "old" / "config.json"
    config = json.loads(path.read_text())
    new = [config.pop(key) for key in ("nonfinite", "shard", "on_bad_sample", "bad_sample_cap")]
    assert len(new) == 4
    path.write_text(json.dumps(config))
    assert command(tmp_path / "old") == 0
    assert "since the last start: nonfinite.rollbacks: (absent) -> 0" in caplog.text
    assert loop.Past.of({"step": 4}) == loop.Past()  # a checkpoint of then
    assert command(tmp_path / "old", "--config.seed=1") == 2


def test_a_second_sigterm_ends_the_process_at_once():
    with preemption.watch():
        terminate()
        assert preemption.asked()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert not preemption.asked()


def test_sigterm_ends_an_evaluation_between_batches():
    seen = []
    with preemption.watch(), pytest.raises(Preempted):
        for batch in preemption.checked(batch for batch in range(5)):
            seen.append(batch)
            if batch == 2:
                terminate()
    assert seen == [0, 1, 2]


@contextlib.contextmanager
def largest_file(size: int):
    """No file can grow beyond this: what a full disk is to one who writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_log_catches_up_when_there_is_room_again(tmp_path, caplog, monkeypatch):
    with Writer(tmp_path) as writer:
        writer.write_scalars(1, {"loss": 1.0})
        with largest_file((tmp_path / "metrics.jsonl").stat().st_size + 10):  # in the middle of one
            for step in range(2, 5):
                writer.write_scalars(step, {"loss": float(step)})
        assert losses_of(tmp_path) == {1: 1.0}  # and a torn line
        writer.write_scalars(5, {"loss": 5.0})
        assert losses_of(tmp_path) == {step: float(step) for step in range(1, 6)}
        assert sum("metrics.jsonl" in record.getMessage() for record in caplog.records) == 1

        monkeypatch.setattr(full_disk, "KEEP", 100)  # bytes: more than waits does not fill memory
        with largest_file(10):
            for step in range(6, 12):
                writer.write_scalars(step, {"loss": float(step)})
        assert any("its end is lost" in record.getMessage() for record in caplog.records)


def test_events_of_a_full_disk_do_not_hang_the_run(tmp_path):
    pytest.importorskip("tensorboardX")
    with Writer(tmp_path) as writer:
        with largest_file(50):
            for step in range(40):  # more than TensorBoard's queue holds
                writer.write_scalars(step, {"loss": 0.0})
            writer.flush()
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert path.stat().st_size > 50


def test_a_full_disk_costs_neither_steps_nor_the_log(whole, tmp_path, monkeypatch, caplog, capfd):
    disk = contextlib.ExitStack()

    def fill(run):
        run.checkpointer.wait()
        disk.enter_context(largest_file(500))

    # The saves of steps 6 and 8 fail, and the last ones.
    hooks = {5: fill, 9: lambda run: (run.checkpointer.wait(), disk.close()), 11: fill}
    with disk, monkeypatch.context() as patch:
        after_step(patch, hooks)
        assert command(tmp_path) == 2
    errors = capfd.readouterr().err.splitlines()
    (error,) = [line for line in errors if line.startswith("error: ")]
    assert f"could not save the checkpoint of step {STEPS} in " in error
    assert error.endswith("; the run's last state is not on disk")
    told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    for step, times in ((6, 1), (8, 1), (12, 2)):  # 12 as the best, and once more as the last
        lines = [line for line in told if f"checkpoint of step {step} in " in line]
        assert len(lines) == times and "(training goes on; " in lines[0]
    assert f"{tmp_path}/metrics.jsonl: File too large; kept in memory until there is" in told[0]
    assert not [line for line in told + errors if "Traceback" in line or len(line) > 600]
    assert steps_in(tmp_path) == ["4"]
    assert not list(tmp_path.rglob("*tmp*"))
    assert command(tmp_path) == 0
    assert_equals_uninterrupted(tmp_path, whole)
