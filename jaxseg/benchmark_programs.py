"""The programs that `benchmark` times, compiled ahead of time: what training and prediction run."""

import collections
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxseg import feed, fold, hlo, lowering, models, predict, sharding, timing
from jaxseg import state as states
from jaxseg.compiling import needed_bytes
from jaxseg.data.base import Description
from jaxseg.data.labels import dtype as label_dtype
from jaxseg.progress import IN_FLIGHT

FILLED = 8  # steps before end-to-end speed is measured: compiling let the pipeline get ahead


class Program(NamedTuple):
    """A compiled program with its arguments.

    Attributes:
      compiled: the program of one device of the mesh.
      seconds: what compiling it took.
      run: enqueues it once and returns arrays of its result.
    """

    compiled: jax.stages.Compiled
    seconds: float
    run: Callable[[], Any]


def training(
    config: ConfigDict, description: Description, mesh: Mesh, size: tuple[int, int], batch: int
) -> Program:
    """The training step on a random batch [batch, *size, 3]; each run takes the state further."""
    batch = _random_batch(batch, size, description, mesh)
    compiled, seconds, state = _training_step(config, description, mesh, batch)

    def run():
        nonlocal state  # what went in is donated, and gone
        state, scalars = compiled(state, batch)
        return scalars

    return Program(compiled, seconds, run)


def _training_step(
    config: ConfigDict, description: Description, mesh: Mesh, batch: Mapping[str, jax.Array]
) -> tuple[jax.stages.Compiled, float, states.TrainState]:
    """(the compiled step for batches like this, the seconds that took, a state to begin with)."""
    number, *size, _ = batch["image"].shape
    lowered = lowering.training(config, description, mesh, tuple(size), number)
    compiled, seconds = _compile(lowered)
    return compiled, seconds, lowering.initial_state(config, description, mesh, tuple(size))


def inference(
    config: ConfigDict, description: Description, mesh: Mesh, size: tuple[int, int], batch: int
) -> Program:
    """The chain of config.predict, from a random batch uint8 [batch, *size, 3] to its labels."""
    model = models.get(config.model, num_classes=description.num_classes)
    image = np.zeros((1, *size, 3), np.uint8)
    variables = jax.jit(model.init, static_argnums=2)(jax.random.key(config.seed), image, False)
    model, variables = fold.folded(model, variables)
    variables = jax.device_put(variables, sharding.replicated(mesh))
    images = _random_batch(batch, size, description, mesh)["image"]
    labels = predict.make_predict(model, config.predict, dtype=config.dtype)
    compiled, seconds = _compile(labels.lower(variables, images, size))
    return Program(compiled, seconds, lambda: compiled(variables, images))


def measure(program: Program, batch: int, calls: int) -> dict[str, Any]:
    """Times a program.

    Args:
      program: what to run.
      batch: images that each call takes, over all devices.
      calls: how many to time; 0: what ten seconds hold.

    Returns:
      'ms_least' and 'ms_median' of a call, over 'calls' of them; 'images_per_s' by the median;
      'compile_s'; 'flops' of a call on one device, those of convolutions and matrix products in the
      compiled program; and 'memory', bytes on one device: arguments, results that are not in the
      arguments' place, and temporaries.
    """
    flops = sum(instruction.flops for instruction in hlo.instructions(program.compiled.as_text()))
    times = timing.per_call(program.run, calls)
    return {
        "ms_least": times.least,
        "ms_median": times.median,
        "calls": times.calls,
        "images_per_s": 1e3 * batch / times.median,
        "compile_s": program.seconds,
        "flops": flops,
        "memory": needed_bytes(program.compiled),
    }


def end_to_end(
    config: ConfigDict, description: Description, mesh: Mesh, batch: int, steps: int
) -> dict[str, Any]:
    """Trains on `config.train_split` as a run does, without a run's files.

    Returns:
      'images_per_s' over `steps` steps that follow `FILLED` others, 'waited', the share of that
      time in which the loop had no batch, and 'compile_s'.

    Raises:
      UserError: what `feed.train_batches` raises.
    """
    config = config.copy_and_resolve_references()
    config.batch_size, config.steps = batch, max(config.steps, FILLED + steps)
    batches = feed.train_batches(config, description, mesh, 0)
    compiled, results = None, collections.deque(maxlen=IN_FLIGHT + 1)
    try:
        for done in range(FILLED + steps):
            if done == FILLED:
                jax.block_until_ready(results)
                began, waited = time.monotonic(), 0.0
            asked = time.monotonic()
            arrays = next(batches)
            waited = time.monotonic() - asked + (waited if done else 0.0)
            del arrays["id"]
            if compiled is None:
                compiled, seconds, state = _training_step(config, description, mesh, arrays)
            state, scalars = compiled(state, arrays)
            results.append(scalars)
            jax.block_until_ready(results[0] if len(results) > IN_FLIGHT else ())
        jax.block_until_ready(results)
        took = time.monotonic() - began
    finally:
        batches.close()
    return {
        "images_per_s": steps * batch / took,
        "waited": waited / took,
        "compile_s": seconds,
    }


def _compile(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, float]:
    """The compiled program, and the seconds that took."""
    began = time.monotonic()
    return lowered.compile(), time.monotonic() - began


def _random_batch(
    batch: int, size: tuple[int, int], description: Description, mesh: Mesh
) -> dict[str, jax.Array]:
    """A batch as `feed` makes them, every pixel and label random: on zeros GPUs are faster."""
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.integers(0, 256, (batch, *size, 3), np.uint8),
        "label": rng.integers(0, description.num_classes, (batch, *size), np.int32),
        "mask": np.ones(batch, bool),
    }
    return sharding.shard_batch(arrays, mesh, label_dtype(description))
