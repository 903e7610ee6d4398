"""EncNet's second loss: does the image show a class at all?"""

import jax
import jax.numpy as jnp

from jaxseg.losses import pixels


def presence_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    ignore_label: int,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Sigmoid cross-entropy of each class of an image: does it have a pixel of that class?

    The SE-loss of Zhang et al. 2018 (arXiv:1803.08904). A class counts the same whether it covers
    the image or one pixel of it.

    Args:
      logits: float [b, C], any precision; the arithmetic is float32.
      labels: int32 [b, h, w].
      ignore_label: label of pixels that do not count. An image without any other counts nowhere:
        nothing is known of it.
      mask: bool [b]; rows that are False (padding) count nowhere. None: all count.

    Returns:
      (sum, count), float32 scalars; the loss is sum / count. `count` is C times the images.
    """
    num_classes = logits.shape[-1]
    _, valid = pixels.which(labels, num_classes, ignore_label, mask)
    shown = jnp.any(pixels.is_class(labels, num_classes) & valid[..., None], (1, 2))  # [b, C]
    known = jnp.any(valid, (1, 2))  # [b]
    logits = logits.astype(jnp.float32)
    loss = jax.nn.softplus(jnp.where(shown, -logits, logits))
    count = num_classes * jnp.sum(known, dtype=jnp.int32)
    return jnp.sum(jnp.where(known[:, None], loss, 0.0)), count.astype(jnp.float32)
