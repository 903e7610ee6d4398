"""The Lovasz extension of the Jaccard loss (Berman et al. 2018, arXiv:1705.08790), by sorting."""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def jaccard_extension(probability: jax.Array, targets: jax.Array, needed: jax.Array) -> jax.Array:
    """The Lovasz extension of each class's Jaccard loss in each group of pixels.

    Args:
      probability: float32 [C, groups, n].
      targets: int32 [groups, n], a class or -1: ignored.
      needed: bool [C]; where False the loss is not computed, and 0.

    Returns:
      float32 [C, groups].
    """
    return _forward(probability, targets, needed)[0]


def _forward(probability, targets, needed):
    def one_class(_, inputs):
        return None, jax.lax.cond(inputs[0], _sort_class, _skip_class, *inputs[1:], targets)

    classes = jnp.arange(probability.shape[0])
    _, (loss, slopes) = jax.lax.scan(one_class, None, (needed, classes, probability))
    return loss, slopes


def _backward(slopes, g):
    return g[..., None] * slopes, None, None


jaccard_extension.defvjp(_forward, _backward)


def _skip_class(c, p, targets):
    return jnp.zeros(p.shape[:1]), jnp.zeros(p.shape)


def _sort_class(c, p, targets):
    """One class's loss [groups] and its slopes [groups, n] with respect to p [groups, n].

    Algorithm 1 of the paper: with the pixels in the order of falling error, a pixel's slope is by
    how much the Jaccard loss grows when it joins those that are wrong. Their differences are
    written out, since the float32 loss before and after would differ in its last bits only.
    """
    inside = targets == c
    error = jnp.clip(jnp.where(inside, 1 - p, p), 0, 1)
    # Floats that are not negative are ordered as their bits. With one more bit for `inside`, and
    # 0 for pixels to ignore, one key holds all: odd outside, even inside.
    key = 2 * jax.lax.bitcast_convert_type(error, jnp.uint32) + inside + 1
    key = jnp.where(targets >= 0, key, 0)
    place = jax.lax.broadcasted_iota(jnp.int32, key.shape, 1)
    key, place = jax.lax.sort((key, place), dimension=1, num_keys=1)
    error = jax.lax.bitcast_convert_type((key - 1) >> 1, jnp.float32)
    outside, inside = key % 2 == 1, (key % 2 == 0) & (key > 0)

    missed = jax.lax.cumsum(inside.astype(jnp.int32), axis=1, reverse=True)  # of errors so large
    added = jax.lax.cumsum(outside.astype(jnp.int32), axis=1, reverse=True)
    size = missed[:, :1]
    intersection = (size - missed).astype(jnp.float32)
    union = (size + added).astype(jnp.float32)
    before = union - 1  # without this pixel, if it is outside; only of an empty class is it 0
    growth = jnp.where(before > 0, intersection / (union * jnp.maximum(before, 1)), 1.0)
    slope = jnp.where(inside, 1 / jnp.maximum(union, 1), jnp.where(outside, growth, 0.0))
    loss = jnp.sum(jnp.where(key > 0, slope * error, 0.0), axis=1)

    signed = jnp.where(inside, -slope, slope)
    unsort = jax.vmap(lambda i, s: jnp.zeros_like(s).at[i].set(s, unique_indices=True))
    return loss, unsort(place, signed)
