"""PIDNet's loss of boundaries: a head that has to find the pixels near them."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg import named
from jaxseg.errors import UserError
from jaxseg.losses import pixels


def boundary_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    ignore_label: int,
    mask: jax.Array | None = None,
    width: int = 4,
    average: str = "valid",
) -> tuple[jax.Array, jax.Array]:
    """Sigmoid cross-entropy of each pixel: is it near a boundary, as `boundaries` has them?

    Xu et al. 2023, arXiv:2206.02066, the loss l1; balanced as there: of n pixels in the batch m of
    which are near a boundary, those weigh (n - m) / n, and the others m / n.

    Args:
      logits: float [b, h, w, 1], any precision; the arithmetic is float32.
      labels: int32 [b, h, w], the classes.
      ignore_label: label of pixels of which nothing is known; nor is of negative ones.
      mask: bool [b]; rows that are False (padding) count nowhere. None: all count.
      width: of the boundaries, pixels.
      average: which pixels count, n of them. 'valid': those of which something is known. 'all': the
        others too, as pixels away from a boundary, unless they are within reach of one. That is
        MMSegmentation's, but for what it pads crops with, which cannot be told from them here.

    Returns:
      (sum, count), float32 scalars; the loss is sum / count, count is n.

    Raises:
      UserError: other than one logit, or an option out of its range.
    """
    if logits.shape[-1] != 1:
        raise UserError(
            f"boundary_cross_entropy: expected an output with one logit per pixel, not "
            f"{logits.shape[-1]}; config.losses.NAME.output says which output it scores"
        )
    named.check("average", "rule", average, ("valid", "all"))
    if not isinstance(width, int) or width < 1:
        raise UserError(f"width={width!r}: expected a whole number of pixels, at least 1")
    every_label = np.iinfo(np.int32).max  # one logit does not say how many classes there are
    inside, valid = pixels.which(labels, every_label, ignore_label, mask)
    counted = inside if average == "all" else valid
    target = boundaries(labels, ignore_label, width)
    near, far = counted & target, counted & ~target
    # Counted in integers: a float32 sum of ones may stop growing at 2^24.
    m, rest = (jnp.sum(x, dtype=jnp.int32).astype(jnp.float32) for x in (near, far))
    n = m + rest
    z = logits[..., 0].astype(jnp.float32)
    loss = jax.nn.softplus(jnp.where(target, -z, z))
    return (rest * jnp.sum(loss * near) + m * jnp.sum(loss * far)) / jnp.maximum(n, 1), n


def boundaries(labels: jax.Array, ignore_label: int, width: int) -> jax.Array:
    """Which pixels are near a boundary: int32 [b, h, w] -> bool [b, h, w].

    A boundary runs through a pixel that differs from the one above it, to its right, or below it to
    the left or right, both being known. Squares of `width` pixels are put on these, that of an even
    width reaching one pixel further to the bottom right, as in MMSegmentation's `GenerateEdge`.
    """
    _, h, w = labels.shape
    known = (labels != ignore_label) & (labels >= 0)
    padded = jnp.pad(jnp.where(known, labels, -1), ((0, 0), (1, 1), (1, 1)), constant_values=-1)
    edge = jnp.zeros_like(known)
    for down, right in ((-1, 0), (0, 1), (1, 1), (1, -1)):
        other = padded[:, 1 + down : 1 + down + h, 1 + right : 1 + right + w]
        edge |= known & (other >= 0) & (other != labels)
    reach = (width // 2, width - 1 - width // 2)
    return jax.lax.reduce_window(
        edge, False, jax.lax.bitwise_or, (1, width, width), (1, 1, 1), ((0, 0), reach, reach)
    )
