"""Order statistics without sorting."""

import jax
import jax.numpy as jnp


def kth_smallest(x: jax.Array, k: jax.Array | int, where: jax.Array) -> jax.Array:
    """The k-th smallest, from 0, of the elements of `x` that `where` marks; exact.

    Numbers that are not negative are ordered as their bit patterns, so the answer's bits are found
    from the highest on: a bit is set where no more than k elements lie below the number so far.
    That is 31 counts, each a pass over `x` and, if it is sharded, one integer summed over the
    devices, where a sort would gather all of it on each device.

    Args:
      x: float32, any shape, no element negative or NaN.
      k: int32 [], in 0..n-1 for n marked elements. Below 0 the answer is 0, above it is not finite.
      where: bool, of the shape of `x`.

    Returns:
      float32 [].
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)

    def refine(i, found):
        candidate = found | (1 << (30 - i))
        below = jnp.sum(where & (bits < candidate), dtype=jnp.int32)
        return jnp.where(below <= k, candidate, found)

    found = jax.lax.fori_loop(0, 31, refine, jnp.zeros((), jnp.int32))
    return jax.lax.bitcast_convert_type(found, jnp.float32)
