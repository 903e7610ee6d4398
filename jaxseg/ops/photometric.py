"""Photometric distortion of training images on the device.

The distortion of SSD (Liu et al. 2016, arXiv:1512.02325, section 2.2, "Data augmentation") in the
form of MMSegmentation's PhotoMetricDistortion: brightness, contrast, saturation and hue, each with
probability 1/2, contrast before or after the colours. Two things differ from that form, which
stores 8-bit integers after every part and passes through OpenCV's 8-bit HSV: values stay float32
between the parts (only clipped to 0..255), and the hue turns by a real, not a whole number.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

BRIGHTNESS = 32.0  # greatest shift, grey levels
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = 36.0  # greatest turn, degrees: 18 on OpenCV's scale, where a full turn is 180


class Distortion(NamedTuple):
    """One value per image, float32 [b] and bool [b]; (0, 1, False, 1, 0) changes nothing."""

    brightness: jax.Array  # added, grey levels
    contrast: jax.Array  # factor
    contrast_first: jax.Array  # contrast before saturation and hue, or after them
    saturation: jax.Array  # factor
    hue: jax.Array  # turn, degrees


def draw(key: jax.Array, batch_size: int) -> Distortion:
    """The random distortion of each image of a batch; image i depends on (key, i) only."""
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(batch_size))
    uniform = jax.vmap(lambda k: jax.random.uniform(k, (9,)))(keys)  # [b, 9]

    def maybe(chance: jax.Array, value: jax.Array, low: float, high: float, neutral: float):
        return jnp.where(chance < 0.5, low + (high - low) * value, neutral)

    u = [uniform[:, i] for i in range(9)]
    return Distortion(
        brightness=maybe(u[0], u[1], -BRIGHTNESS, BRIGHTNESS, 0.0),
        contrast=maybe(u[2], u[3], *CONTRAST, 1.0),
        contrast_first=u[4] < 0.5,
        saturation=maybe(u[5], u[6], *SATURATION, 1.0),
        hue=maybe(u[7], u[8], -HUE, HUE, 0.0),
    )


def scale_saturation(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Scales saturation at constant hue and value, up to full saturation.

    In HSV the distance of a channel from the largest one is proportional to the saturation, so
    scaling that distance needs no conversion. `images` [..., 3] >= 0; `factor` broadcasts against
    [..., 1].
    """
    value = images.max(-1, keepdims=True)
    chroma = value - images.min(-1, keepdims=True)
    limit = value / jnp.where(chroma > 0, chroma, 1.0)  # where saturation reaches 1
    factor = jnp.where(chroma > 0, jnp.minimum(factor, limit), 1.0)
    return images + (1.0 - factor) * (value - images)


def turn_hue(images: jax.Array, degrees: jax.Array) -> jax.Array:
    """Turns the hue at constant saturation and value.

    `images` [..., 3] RGB; `degrees` broadcasts against [...]. Hue runs from red over green to blue
    in six sectors of 60 degrees.
    """
    red, green, blue = images[..., 0], images[..., 1], images[..., 2]
    value = images.max(-1)
    chroma = value - images.min(-1)
    safe = jnp.where(chroma > 0, chroma, 1.0)
    sector = jnp.where(
        value == red,
        (green - blue) / safe,
        jnp.where(value == green, 2.0 + (blue - red) / safe, 4.0 + (red - green) / safe),
    )
    sector = sector + degrees / 60.0

    def channel(offset: float) -> jax.Array:
        # A channel falls short of the value by its distance from its own sectors, at most chroma.
        k = jnp.mod(sector + offset, 6.0)
        return value - chroma * jnp.clip(jnp.minimum(k, 4.0 - k), 0.0, 1.0)

    turned = jnp.stack([channel(5.0), channel(3.0), channel(1.0)], axis=-1)
    return jnp.where((degrees == 0)[..., None], images, turned)


def apply(images: jax.Array, distortion: Distortion) -> jax.Array:
    """Distorts each image by its own values, clipped to 0..255 after every part.

    Args:
      images: uint8 or float [b, h, w, 3], RGB 0..255.
      distortion: per image, [b] each.

    Returns:
      float32 [b, h, w, 3].
    """
    brightness, contrast, first, saturation, hue = (x[:, None, None, None] for x in distortion)

    def clip(x: jax.Array) -> jax.Array:
        return jnp.clip(x, 0.0, 255.0)

    images = clip(images.astype(jnp.float32) + brightness)
    images = clip(images * jnp.where(first, contrast, 1.0))
    images = scale_saturation(images, saturation)
    images = clip(turn_hue(images, hue[..., 0]))
    return clip(images * jnp.where(first, 1.0, contrast))


def distort(key: jax.Array, images: jax.Array) -> jax.Array:
    """Random photometric distortion: uint8 or float [b, h, w, 3], RGB 0..255 -> float32, 0..255.

    Image i depends on (key, i) only. Elementwise but for the maximum over colours, so a batch that
    is sharded over devices needs no communication.
    """
    return apply(images, draw(key, images.shape[0]))
