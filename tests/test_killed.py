"""Processes that are killed, and runs that go on for long."""

import json
import random
import signal

import jax
import numpy as np
import pytest
from processes import ROOT, joined, together
from tiny_runs import (
    arrays_of,
    assert_equals_uninterrupted,
    assert_same,
    command,
    compiled_once,
    losses_of,
)

from jaxseg import checkpoint

CHILD = str(ROOT / "tests" / "tiny_child.py")
TIMEOUT = 1500  # seconds, against hanging


def run_child(*arguments) -> tuple[int, str]:
    """As many devices as here: they share the processors, and sums are cut accordingly."""
    devices = {"JAX_NUM_CPU_DEVICES": str(len(jax.devices()))}
    (done,) = together([[CHILD, *map(str, arguments)]], [devices], timeout=TIMEOUT)
    return done


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    """Killed while the checkpoint of step 6 is on its way; it goes on in another process."""
    status, output = run_child("SIGKILL", 7, 0, tmp_path / "killed")
    assert status == -signal.SIGKILL, output
    with compiled_once():
        assert command(tmp_path / "killed") == 0
        assert command(tmp_path / "whole") == 0
    assert_equals_uninterrupted(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_ten_random_kills_leave_the_log_of_an_uninterrupted_run(tmp_path):
    """With a checkpoint of every step, most of them come while one is written."""
    settings = ("--config.steps=60", "--config.checkpoint_every=1", "--config.eval_every=9")
    status, output = run_child("none", 0, 0, tmp_path / "whole", *settings)
    assert status == 0, output
    rng, killed = random.Random(0), 0
    for _ in range(10):
        delay = rng.uniform(0.01, 1.5)
        status, output = run_child("SIGKILL", 0, delay, tmp_path / "killed", *settings)
        assert status in (0, -signal.SIGKILL), output
        assert "damaged" not in output
        killed += status != 0
    assert killed > 1  # a fast machine may be done before the tenth
    status, output = run_child("none", 0, 0, tmp_path / "killed", *settings)
    assert status == 0, output
    assert sorted(losses_of(tmp_path / "whole")) == list(range(1, 61))
    assert_equals_uninterrupted(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_agree_on_a_step_to_stop_at(tmp_path):
    """The signal reaches one of them. One process with two devices goes on from there."""
    settings = ("--config.devices=0", "--config.steps=2000", "--config.eval_every=2000")
    settings += ("--config.checkpoint_every=2000", "--config.log_every=1")
    signals = (["none", "0", "0"], ["SIGTERM", "3", "0"])
    commands = [
        [CHILD, *which, str(tmp_path / "two"), *settings, *flags]
        for which, flags in zip(signals, joined(2), strict=True)
    ]
    for status, output in together(commands, timeout=TIMEOUT):
        assert status == 42, output
        assert "stopped by SIGTERM" in output
    (folder,) = (p for p in (tmp_path / "two" / "checkpoints").iterdir())
    stopped = int(folder.name)
    assert 3 <= stopped < 2000 and max(losses_of(tmp_path / "two")) == stopped

    last = stopped + 3
    folders = [str(tmp_path / name) for name in ("two", "whole")]
    commands = [[CHILD, "SIGTERM", str(last), "0", name, *settings] for name in folders]
    for status, output in together(commands, [{"JAX_NUM_CPU_DEVICES": "2"}] * 2, timeout=TIMEOUT):
        assert status == 42, output
    assert sorted(losses_of(tmp_path / "whole")) == list(range(1, last + 1))
    assert losses_of(tmp_path / "two") == losses_of(tmp_path / "whole")
    assert checkpoint.find_step(tmp_path / "two", "latest").name == str(last)
    assert_same(arrays_of(tmp_path / "two", last), arrays_of(tmp_path / "whole", last))


@pytest.mark.slow
def test_memory_stays_flat(tmp_path):
    """Over 2,000 steps, and 2,000 evaluated images: MiB in the four quarters of each.

    Medians, because the writing of a checkpoint takes memory for a while.
    """
    settings = ("--config.steps=2000", "--config.checkpoint_every=500", "--config.eval_every=2000")
    settings += ("--config.data.val=2000", "--config.data_cache=decoded", "--config.log_every=20")
    status, output = run_child("rss", 0, 0, tmp_path, *settings)
    assert status == 0, output
    rows = [json.loads(line) for line in (tmp_path / "rss.jsonl").read_text().splitlines()]
    for key in ("step", "images"):
        found = [row["rss"] for row in rows if key in row]
        quarters = [np.median(part) for part in np.array_split(found, 4)]
        print(f"{key}: " + ", ".join(f"{value:.1f}" for value in quarters) + " MiB")
        assert max(row.get(key, 0) for row in rows) > 1900
        assert quarters[3] - quarters[1] < 8, quarters
