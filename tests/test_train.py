"""The training step: devices, layouts, divergence."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import command_line, data, feed, models, optim, sharding, train
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
    mesh = make_mesh(devices, config.shard.height)
    model = models.get(config.model, num_classes=description.num_classes)
    crop = tuple(config.augment.crop)
    params = states.abstract_variables(model, crop)["params"]
    tx, schedule = optim.make(config.optimizer, config.schedule, config.steps, params)
    init = states.make_init(model, tx, crop, bool(config.ema), 0)
    state, _ = states.create(init, mesh, config.shard.state)
    step = train.make_train_step(model, tx, schedule, config, description, mesh)
    step = train.jitted(step, mesh, state)
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


# SGD: Adam divides by the root of second moments, which near zero turns rounding into sign.
SGD = ("--config.optimizer.name=sgd", "--config.optimizer.lr=0.01", "--config.ema=0.9")


@functools.cache
def one_device(backbone: str):
    return steps_on(1, 5, *SGD, f"--config.model.backbone.name={backbone}")


@pytest.mark.parametrize(
    "backbone", ["tests.tiny_backbone", pytest.param("resnet", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "layout",
    [
        (),
        pytest.param(("--config.shard.state=True",), marks=pytest.mark.slow),
        pytest.param(("--config.shard.height=4",), marks=pytest.mark.slow),
        ("--config.shard.height=2", "--config.shard.state=True"),
    ],
    ids=["batch", "state", "height", "both"],
)
def test_one_device_equals_eight(backbone, layout, monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SPLIT", 64)  # the tiny model has nothing larger
    one, state_one = one_device(backbone)
    eight, state_eight = steps_on(8, 5, *SGD, *layout, f"--config.model.backbone.name={backbone}")
    np.testing.assert_allclose(one, eight, rtol=1e-5)
    for kind in ("params", "model_state"):
        for a, b in zip(
            jax.tree.leaves(getattr(state_one, kind)),
            jax.tree.leaves(getattr(state_eight, kind)),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert one[-1] < one[0]

    for held in (state_eight.params, state_eight.opt_state, state_eight.ema):
        sizes = [leaf.size for leaf in jax.tree.leaves(held)]
        mine = [leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(held)]
        if any("state" in flag for flag in layout):
            assert sum(mine) < 0.2 * sum(sizes)  # an eighth, but for biases and the like
        else:
            assert mine == sizes


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
