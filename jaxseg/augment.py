"""Augmentation inside the training step, after what `data.plan` does on the host."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxseg.ops import elastic, photometric


def distort(
    key: jax.Array, batch: Mapping[str, jax.Array], augment: Any, ignore_label: int
) -> dict[str, jax.Array]:
    """Displaces pixels and changes colours at random, as `augment` says.

    Args:
      key: of this step.
      batch: 'image' uint8 [b, h, w, 3] and 'label' [b, h, w] of any integer dtype, as narrow as it
        came to the device.
      augment: config.augment.
      ignore_label: of pixels from outside the image.

    Returns:
      The batch with other images, uint8 or float32 in 0..255, and labels int32.
    """
    images, labels = batch["image"], batch["label"].astype(jnp.int32)
    if augment.elastic > 0:
        key_elastic = jax.random.fold_in(key, 3)
        images, labels = elastic.deform(key_elastic, images, labels, augment.elastic, ignore_label)
    if augment.photometric:
        images = photometric.distort(jax.random.fold_in(key, 0), images)
    return {**batch, "image": images, "label": labels}
