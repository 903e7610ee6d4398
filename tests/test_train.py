"""The training step and the loop: devices, resuming after a kill, divergence, every config."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import command_line, data, feed, models, optim, train
from jaxseg import state as states
from jaxseg.data import labels
from jaxseg.sharding import make_mesh

ROOT = pathlib.Path(__file__).resolve().parents[1]
TINY = (
    "--config.data.size=(64, 64)",
    "--config.data.train=12",
    "--config.data.val=4",
    "--config.data.test=4",
    "--config.augment.crop=(48, 48)",
    "--config.batch_size=4",
    "--config.devices=1",
    "--config.data_backend=threads",
    "--config.model.backbone.name=tests.tiny_backbone",
    "--config.model.channels=16",
    "--config.model.aux_channels=16",
    "--config.schedule.warmup=2",
)


def config_of(recipe: str, *overrides: str):
    """The config of configs/deeplabv3p.py as the command line would make it."""
    name = str(ROOT / "configs" / "deeplabv3p.py")
    argv = ["jaxseg", f"--config={name}:{recipe}", "--workdir=unused", *overrides]
    return command_line.parse(argv)[2]


def steps_on(devices: int, count: int, *overrides: str):
    """The losses and the state after `count` steps of the tiny config on so many devices.

    Labels travel as int32 to one device, and as narrow as training sends them to several.
    """
    config = config_of("synthetic", *TINY, "--config.batch_size=8", *overrides)
    description = data.get(config.data)
    mesh = make_mesh(devices)
    model = models.get(config.model, num_classes=description.num_classes)
    crop = tuple(config.augment.crop)
    params = states.abstract_variables(model, crop)["params"]
    tx, schedule = optim.make(config.optimizer, config.schedule, config.steps, params)
    state, _ = states.create(states.make_init(model, tx, crop, bool(config.ema), 0), mesh)
    step = train.jitted(train.make_train_step(model, tx, schedule, config, description), mesh)
    batches = data.train_batches(
        description,
        "train",
        config.augment,
        backend="threads",
        seed=0,
        batch_size=8,
        start_step=0,
        num_steps=count,
    )
    losses = []
    dtype = np.int32 if devices == 1 else labels.dtype(description)
    for batch in feed.prefetch(batches, mesh, dtype):
        del batch["id"]
        before = state
        state, scalars = step(state, batch)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))  # donated
        losses.append(float(scalars["loss"]))
    return losses, state


@pytest.mark.parametrize(
    "backbone", ["tests.tiny_backbone", pytest.param("resnet", marks=pytest.mark.slow)]
)
def test_one_device_equals_eight(backbone):
    # SGD: Adam divides by the root of second moments, which near zero turns rounding into sign.
    sgd = ("--config.optimizer.name=sgd", "--config.optimizer.lr=0.01")
    sgd += (f"--config.model.backbone.name={backbone}",)
    one, state_one = steps_on(1, 5, *sgd)
    eight, state_eight = steps_on(8, 5, *sgd)
    np.testing.assert_allclose(one, eight, rtol=1e-5)
    for kind in ("params", "model_state"):
        for a, b in zip(
            jax.tree.leaves(getattr(state_one, kind)),
            jax.tree.leaves(getattr(state_eight, kind)),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert one[-1] < one[0]


def run_main(workdir, *overrides, **kwargs) -> subprocess.Popen:
    command = [sys.executable, "-m", "jaxseg.main", "--config=configs/deeplabv3p.py:synthetic"]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAXSEG_CACHE": str(pathlib.Path(workdir).parent)}
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *TINY, *overrides],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **kwargs,
    )


def rows_of(workdir) -> list[dict]:
    lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            assert line is lines[-1], f"torn line in the middle: {line}"
    return rows


def losses_of(workdir) -> dict[int, str]:
    """Step -> loss, to the last bit as JSON writes it."""
    return {row["step"]: repr(row["loss"]) for row in rows_of(workdir) if "loss" in row}


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    schedule = (
        "--config.steps=14",
        "--config.checkpoint_every=3",
        "--config.eval_every=7",
        "--config.log_every=1",
    )
    whole = run_main(tmp_path / "whole", *schedule)
    output, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, output
    expected = losses_of(tmp_path / "whole")
    assert sorted(expected) == list(range(1, 15))

    workdir = tmp_path / "killed"
    for kill_at in (2, 5, 10):  # before the first checkpoint, and between later ones
        process = run_main(workdir, *schedule)
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and process.poll() is None:
            if (workdir / "metrics.jsonl").exists():
                if max(losses_of(workdir), default=0) >= kill_at:
                    break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    last = run_main(workdir, *schedule)
    output, _ = last.communicate(timeout=300)
    assert last.returncode == 0, output
    assert "continuing from step" in output
    assert losses_of(workdir) == expected
    summaries = [
        json.loads((d / "results-test.json").read_text()) for d in (tmp_path / "whole", workdir)
    ]
    assert summaries[0]["confusion"] == summaries[1]["confusion"]


def test_a_step_that_is_not_finite_changes_nothing_but_the_step():
    config = config_of("synthetic", *TINY)
    description = data.get(config.data)
    model = models.get(config.model, num_classes=description.num_classes)
    params = states.abstract_variables(model, (48, 48))["params"]
    tx, schedule = optim.make(config.optimizer, config.schedule, config.steps, params)
    state, _ = states.create(states.make_init(model, tx, (48, 48), False, 0), make_mesh(1))
    bad = jax.tree.map(lambda x: x, state.params)
    bias = bad["head"]["classifier"]["conv"]["bias"]
    bad["head"]["classifier"]["conv"]["bias"] = bias.at[0].set(jnp.inf)
    state = state.replace(params=bad)
    batch = {
        "image": np.full((2, 48, 48, 3), 99, np.uint8),
        "label": np.zeros((2, 48, 48), np.int32),
        "mask": np.ones(2, bool),
    }
    step = jax.jit(train.make_train_step(model, tx, schedule, config, description))
    after, scalars = step(state, batch)
    assert scalars["finite"] == 0
    assert after.step == state.step + 1
    for a, b in zip(
        jax.tree.leaves(state.replace(step=0)), jax.tree.leaves(after.replace(step=0)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
