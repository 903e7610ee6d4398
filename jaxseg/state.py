"""What training carries from step to step: data only, no functions."""

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxseg.sharding import over_devices, replicated


@flax.struct.dataclass
class TrainState:
    """All that a training step reads and writes.

    Attributes:
      step: int32 [], the number of steps taken.
      params: float32 parameters.
      model_state: the model's other collections: {'batch_stats': ...}.
      opt_state: the optimizer's moments.
      ema: exponential moving average of `params`, or None when it is off.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: optax.OptState
    ema: Any = None

    def variables(self) -> dict[str, Any]:
        """The variables to evaluate with: averaged parameters when they are kept."""
        params = self.params if self.ema is None else self.ema
        return {"params": params, **self.model_state}


def abstract_variables(model: nn.Module, size: tuple[int, int] = (64, 64)) -> dict[str, Any]:
    """Shapes and dtypes of a model's variables, without allocating any.

    They do not depend on the image's `size`, but a model may not take any.
    """
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), image)


def make_init(
    model: nn.Module, tx: optax.GradientTransformation, size: tuple[int, int], ema: bool, seed: int
):
    """Returns `init() -> TrainState`, a pure function fit for `eval_shape` and `jit`."""

    def init() -> TrainState:
        image = jnp.zeros((1, *size, 3), jnp.uint8)
        variables = dict(model.init(jax.random.key(seed), image, False))
        params = variables.pop("params")
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            model_state=variables,
            opt_state=tx.init(params),
            ema=jax.tree.map(jnp.copy, params) if ema else None,
        )

    return init


def create(init, mesh: Mesh, split: bool = False) -> tuple[TrainState, TrainState]:
    """(state, abstract state with shardings): weights are born where they will live.

    Args:
      init: of `make_init`.
      mesh: the devices.
      split: each holds a part of the state, see `sharding.over_devices`; else all of it.
    """
    abstract = laid_out(jax.eval_shape(init), mesh, split)
    layout = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    # It runs once: a CPU's compiler takes several times as long to optimise it as it saves. The
    # bits are the same.
    fast = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else {}
    return jax.jit(init, out_shardings=layout).lower().compile(compiler_options=fast)(), abstract


def laid_out(abstract: TrainState, mesh: Mesh, split: bool) -> TrainState:
    """Shapes with the shardings of `create`."""
    whole = jax.tree.map(lambda _: replicated(mesh), abstract)
    layout = over_devices(abstract, mesh) if split else whole
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        abstract,
        layout,
    )


def with_variables(state: TrainState, variables: dict[str, Any]) -> TrainState:
    """The state with other weights, say of another checkpoint; averages start there."""
    model_state = dict(variables)
    params = model_state.pop("params")
    ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
    return state.replace(params=params, model_state=model_state, ema=ema)


def count(tree: Any) -> int:
    """The number of scalars in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
