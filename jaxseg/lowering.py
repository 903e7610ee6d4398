"""The programs of a config, traced for any mesh.

The mesh may be of devices that are not here, see `jaxseg.deviceless`.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxseg import models, optim, predict, sharding, train
from jaxseg import state as states
from jaxseg.data.base import Description
from jaxseg.data.labels import dtype as label_dtype


def training(
    config: ConfigDict, description: Description, on: Mesh, size: tuple[int, int], batch: int
) -> jax.stages.Lowered:
    """The training step on batches [batch, *size, 3], split over the mesh; nothing is allocated."""
    step, init = _step_and_init(_resolved(config, on), description, on, size)
    state = states.laid_out(jax.eval_shape(init), on, config.shard.state)
    arrays = {
        "image": jax.ShapeDtypeStruct((batch, *size, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((batch, *size), label_dtype(description)),
        "mask": jax.ShapeDtypeStruct((batch,), bool),
    }
    return train.jitted(step, on, state).lower(state, arrays)


def initial_state(
    config: ConfigDict, description: Description, on: Mesh, size: tuple[int, int]
) -> states.TrainState:
    """What the training step begins with, untrained, on the devices of the mesh."""
    _, init = _step_and_init(config, description, on, size)
    return states.create(init, on, config.shard.state)[0]


def _step_and_init(config: ConfigDict, description: Description, on: Mesh, size: tuple[int, int]):
    model = models.get(config.model, num_classes=description.num_classes)
    params = states.abstract_variables(model, size)["params"]
    tx, schedule = optim.make(config.optimizer, config.schedule, config.steps, params)
    step = train.make_train_step(model, tx, schedule, config, description, on)
    return step, states.make_init(model, tx, size, bool(config.ema), config.seed)


def prediction(
    config: ConfigDict, description: Description, on: Mesh, size: tuple[int, int], batch: int
) -> jax.stages.Lowered:
    """The forward pass of images [batch, *size, 3] to labels at their size, split over the mesh."""
    model = models.get(config.model, num_classes=description.num_classes)
    variables = states.abstract_variables(model, size)
    labels = predict.make_predict(model, None, dtype=_resolved(config, on).dtype)
    step = jax.jit(
        lambda variables, images: labels(variables, images, size),
        in_shardings=(sharding.replicated(on), sharding.over_images(on, size[0])["image"]),
        out_shardings=sharding.over_batch(on),
    )
    return step.lower(variables, jax.ShapeDtypeStruct((batch, *size, 3), jnp.uint8))


def _resolved(config: ConfigDict, on: Mesh) -> ConfigDict:
    """The dtype 'auto' means bfloat16 on every target, whatever this machine would take."""
    config = ConfigDict(config)
    if config.dtype == "auto" and on.devices.flat[0].platform != "cpu":
        config.dtype = "bfloat16"
    return config
