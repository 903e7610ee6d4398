"""Windows of rescaled images and labels, cut on the device from whole ones that are kept there.

What `crop.crop_image` and `plan.crop_label` do on the host, as one program for every window: where
a window lies, and at which scale, is data. Labels are the same; images differ from the host's by a
grey level where float32 rounds a tie otherwise.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.data import crop as host

MAX_PRODUCT = 2**31 - 1  # of twice an edge as stored and as rescaled: places are int32


class Window(NamedTuple):
    """A `plan.Cut` and the image it is cut from, each int32 []; or [...] for several.

    Attributes:
      image: which of the images; -1 for none, whose crop is all zeros, label included.
      source_height, source_width: size of the image as stored, in the top left of its array.
      scaled_height, scaled_width: size of the whole image after rescaling.
      top, left, height, width: the window in the rescaled image.
      flip: 1 to mirror the window before it is padded.
    """

    image: jax.Array
    source_height: jax.Array
    source_width: jax.Array
    scaled_height: jax.Array
    scaled_width: jax.Array
    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array
    flip: jax.Array


def cut_windows(
    images: jax.Array, labels: jax.Array, table: jax.Array, crop: tuple[int, int], ignore_label: int
) -> tuple[jax.Array, jax.Array]:
    """One crop per row of `table`, padded at the bottom and right where its window is smaller.

    Args:
      images: uint8 [n, h, w, 3], smaller images padded.
      labels: integers [n, h, w]; class indices and `ignore_label`.
      table: int32 [b, 10], the fields of `Window`. No source and scaled edge may have twice their
        product above `MAX_PRODUCT`.
      crop: (height, width) of the crops.
      ignore_label: padding of labels; that of images is `crop.PAD`.

    Returns:
      images uint8 [b, *crop, 3], bilinear at half-pixel centres without antialiasing, and labels
      [b, *crop] in the dtype of `labels`, nearest.
    """

    def one(table, images, labels, resample):
        window = Window(*table)
        image, label = resample(images, labels, window, crop)
        inside = (jnp.arange(crop[0]) < window.height)[:, None] & (
            jnp.arange(crop[1]) < window.width
        )
        image = jnp.where(inside[..., None], image, jnp.uint8(host.PAD))
        label = jnp.where(inside, label, jnp.asarray(ignore_label, label.dtype))
        exists = window.image >= 0
        return jnp.where(exists, image, 0), jnp.where(exists, label, 0)

    def at_once(table, images, labels):
        return jax.vmap(functools.partial(one, resample=by_taps), (0, None, None))(
            table, images, labels
        )

    def one_by_one(table, images, labels):
        # A matrix product costs as much for an image that is not here: those are left out.
        def crop_or_none(row):
            cut = functools.partial(one, images=images, labels=labels, resample=by_matrices)
            none = jax.tree.map(jnp.zeros_like, jax.eval_shape(cut, row))
            return lax.cond(row[0] >= 0, cut, lambda _: none, row)

        return lax.map(crop_or_none, table)

    # Matrix products suit a TPU, which is slow to gather. Elsewhere a condition would cost more
    # than the crop: it makes a GPU wait for the host.
    return lax.platform_dependent(table, images, labels, tpu=one_by_one, default=at_once)


def by_taps(images, labels, window: Window, crop: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """The crop without its padding, each pixel mixed from the four that it lies between."""
    (top, bottom, share, y), (left, right, part, x) = _places(window, crop)
    pick = dict(mode="clip", wrap_negative_indices=False)

    def pixels(rows, columns):
        taken = images.at[window.image, rows[:, None], columns].get(**pick)
        return taken.astype(jnp.float32)  # [h, w, 3]

    share, part = share[:, None, None], part[:, None]
    first, second = pixels(top, left), pixels(top, right)
    first += (pixels(bottom, left) - first) * share
    second += (pixels(bottom, right) - second) * share
    image = jnp.rint(first + (second - first) * part).astype(images.dtype)
    return image, labels.at[window.image, y[:, None], x].get(**pick)


def by_matrices(
    images, labels, window: Window, crop: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """The crop without its padding, by one matrix product per axis."""
    rows, columns = _places(window, crop)
    h, w = labels.shape[1:]
    image, label = (lax.dynamic_index_in_dim(x, window.image, 0, False) for x in (images, labels))

    def weights(low, high, share, _, size):
        pixel, share = jnp.arange(size), share[:, None]
        return (pixel == low[:, None]) * (1 - share) + (pixel == high[:, None]) * share

    # Three passes of bfloat16 keep 16 bits of what is mixed, which is within 0.01 of a grey level.
    contract = functools.partial(jnp.einsum, precision=lax.Precision.HIGH)
    mixed = contract("yh,hwc->ywc", weights(*rows, h), image.astype(jnp.float32))
    mixed = contract("xw,ywc->yxc", weights(*columns, w), mixed)

    # A product with a matrix of zeros and ones picks exactly where the values are exact in it.
    exact = jnp.bfloat16 if label.dtype == jnp.uint8 else jnp.float32
    contract = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    picked = contract("yh,hw->yw", _one_hot(rows[3], h, exact), label.astype(exact))
    picked = contract("xw,yw->yx", _one_hot(columns[3], w, exact), picked)
    return jnp.rint(mixed).astype(images.dtype), jnp.rint(picked).astype(labels.dtype)


def _one_hot(index: jax.Array, size: int, dtype) -> jax.Array:
    return (jnp.arange(size) == index[:, None]).astype(dtype)


def _places(window: Window, crop: tuple[int, int]):
    """(low, high, share of high, nearest) of the rows and of the columns of a crop.

    Where `crop.taps` and `plan.nearest_index` look, as fractions of whole numbers; outside of
    the window as at its edge. The first two and the last are int32, the share is float32.
    """
    columns = jnp.arange(crop[1])
    columns = jnp.where(window.flip > 0, window.width - 1 - columns, columns)
    return (
        _along(jnp.arange(crop[0]), window.top, window.height, window.scaled_height,
               window.source_height),
        _along(columns, window.left, window.width, window.scaled_width, window.source_width),
    )  # fmt: skip


def _along(i, start, length, scaled, source):
    centre = (2 * (jnp.clip(i, 0, length - 1) + start) + 1) * source  # in units of 1 / (2 * scaled)
    place = jnp.clip(centre - scaled, 0, 2 * scaled * (source - 1))
    low = lax.div(place, 2 * scaled)
    share = lax.rem(place, 2 * scaled).astype(jnp.float32) / (2 * scaled).astype(jnp.float32)
    return low, jnp.minimum(low + 1, source - 1), share, lax.div(centre, 2 * scaled)
