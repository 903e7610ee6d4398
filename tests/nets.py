"""What tests of networks share: shapes, weights that do something, gradients that arrive."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.models import segmenter


def shapes(module, *inputs):
    """Shapes of the module's variables."""
    return jax.eval_shape(lambda *x: module.init(jax.random.key(0), *x, False), *inputs)


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def randomised(abstract, seed=0):
    """Variables whose norms neither vanish nor do nothing; a fresh model's residuals are zero."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name, shape = path[-1].key, leaf.shape
        if name in ("scale", "var"):
            return rng.uniform(0.5, 1.5, shape).astype(np.float32)
        spread = np.sqrt(2 / np.prod(shape[:-1])) if name == "kernel" else 0.2
        return (rng.normal(size=shape) * spread).astype(np.float32)

    return jax.tree.map_with_path(draw, abstract)


def check_gradients(model, variables, image, outputs=("logits",), train=True) -> None:
    """Every parameter of a Segmenter gets a finite gradient from `outputs` that is not zero.

    A bias before a normalisation has none in training: where there is one, not with `train`.
    """
    state = {name: value for name, value in variables.items() if name != "params"}

    @jax.jit
    def gradients(params):
        def loss(params):
            found, _ = segmenter.forward(
                model,
                {"params": params, **state},
                image,
                train=train,
                rngs={"dropout": jax.random.key(0), "points": jax.random.key(1)},
            )
            return sum(jnp.square(found[name] - 1).mean() for name in outputs)

        return jax.grad(loss)(params)

    for path, grad in jax.tree.leaves_with_path(gradients(variables["params"])):
        assert np.isfinite(grad).all() and np.abs(grad).max() > 0, jax.tree_util.keystr(path)
