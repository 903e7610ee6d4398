"""Labels of images whose scores do not fit into memory, band by band.

Scores take 4 bytes a pixel and class: 8,000 x 8,000 pixels and 150 classes are 38 GB. Here nothing
of that size exists: logits are made at the resolution that the model sees and enlarged a band of
rows at a time, and where that resolution is large too, windows slide along one band of rows, whose
labels are done when the next band begins. The labels are those of the ordinary chain.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxseg import links, predict
from jaxseg.data.plan import scaled_size
from jaxseg.errors import UserError
from jaxseg.ops.resize import resize_rows

# Scores of one image that are held at once, 4 bytes each.
WHOLE = 2**29
BAND = 2**26


def is_large(size: tuple[int, int], classes: int) -> bool:
    """Whether the scores of an image of (height, width) are more than `WHOLE`, 2 GiB."""
    return size[0] * size[1] * classes > WHOLE


def make_segment(
    model: nn.Module,
    config: Mapping[str, Any] | None,
    classes: int,
    *,
    dtype: str,
    base_size: Sequence[int] = (),
) -> Callable[[Any, np.ndarray, tuple[int, int]], np.ndarray]:
    """The chain of `predict.make_predict` for one image at a time, in bounded memory.

    Besides image and labels it needs, where the image itself is not large, the logits of each look
    at it, and else 4 * crop height * width * classes bytes for a band of windows, twice that when
    flipping; on top of that what the model takes for a batch of windows, and 3 times 4 * `BAND`
    bytes for the enlarged rows.

    Args:
      model, config, dtype, base_size: as in `predict.make_scores`.
      classes: C.

    Returns:
      `(variables, image uint8 [h, w, 3], (H, W)) -> int32 [H, W]`, NumPy.

    Raises:
      UserError: when called, a link that needs the whole image, or no windows for a large image.
    """
    chain = predict.checked(config)
    forward = links.forward(model, dtype)
    slid = links.slide(forward, **chain["slide"]) if chain["slide"] else forward
    flips = (False, True) if chain["flip"] else (False,)
    averaged = len(flips) > 1 or bool(chain["scales"])

    @jax.jit
    def look(variables, image):
        """Logits [h, w, C] of an image and, flipped back, of its mirror image."""
        both = [slid(variables, image[:, :, ::-1] if f else image) for f in flips]
        return [x[0, :, ::-1] if f else x[0] for x, f in zip(both, flips, strict=True)]

    def enlarge(looks, start, size, rows):
        """Labels [rows, W] of the rows from `start` on of the looks, brought to `size`."""
        bands = [resize_rows(x[None], size, start, rows, model.align_corners)[0] for x in looks]
        return links.to_labels(sum(map(jax.nn.softmax, bands)) if averaged else bands[0])

    enlarge = jax.jit(enlarge, static_argnums=(2, 3))

    def segment(variables, image, size):
        if chain["samples"] or chain["crf"]:
            link = "samples=0" if chain["samples"] else "crf.iterations=0"
            raise UserError(
                f"an image of {size[1]}x{size[0]} and {classes} classes is too large for "
                f"config.predict.{link[:-2]}: cut it into tiles, or set --config.predict.{link}"
            )
        factors = chain["scales"] or (1.0,)
        largest = scaled_size(image.shape[:2], max(factors), base_size)
        if is_large(largest, classes):
            if not chain["slide"] or factors != (1.0,) or not largest == image.shape[:2] == size:
                raise UserError(
                    f"an image of {size[1]}x{size[0]} and {classes} classes is too large for one "
                    "piece: let windows slide over it by --config.predict.slide.crop='(1024,1024)' "
                    "--config.predict.slide.stride='(768,768)', without scales and "
                    "config.eval.base_size, or make it smaller"
                )
            return _by_bands(look, chain["slide"], variables, image)
        looks = []
        for factor in factors:
            looks += look(variables, links.resize_image(image[None], factor, base_size))
        rows = min(max(1, BAND // (size[1] * classes * len(looks))), size[0])
        labels = np.empty(size, np.int32)
        for top in range(0, size[0], rows):
            top = min(top, size[0] - rows)
            labels[top : top + rows] = enlarge(looks, top, size, rows)
        return labels

    return segment


def _by_bands(
    look: Callable, windows: Mapping[str, Any], variables: Any, image: np.ndarray
) -> np.ndarray:
    """int32 [h, w]: `look` slides along bands as high as a window, added where they overlap."""
    height = min(windows["crop"][0], image.shape[0])
    labels = np.empty(image.shape[:2], np.int32)
    tops = links.starts(image.shape[0], height, windows["stride"][0])
    weights = 1 / links.coverage(image.shape[0], height, tops)
    total = None
    for top, after in zip(tops, (*tops[1:], image.shape[0]), strict=True):
        band = look(variables, image[None, top : top + height])
        total = band if total is None else [_add(x, y) for x, y in zip(total, band, strict=True)]
        done = after - top
        found = np.asarray(_vote(total, weights[top : top + height]))
        labels[top:after] = found[:done]
        total = [_advance(x, done) for x in total]
    return labels


_add = jax.jit(jnp.add, donate_argnums=0)


@jax.jit
def _vote(looks: list[jax.Array], weights: np.ndarray) -> jax.Array:
    """Labels [rows, w] from sums of logits [rows, w, C] and one over how many were added."""
    if len(looks) == 1:
        return links.to_labels(looks[0])
    return links.to_labels(sum(jax.nn.softmax(x * weights[:, None, None]) for x in looks))


@jax.jit
def _advance(x: jax.Array, rows: jax.Array) -> jax.Array:
    """x without its first `rows` rows, zeros behind it."""
    shifted = jnp.roll(x, -rows, axis=0)
    return jnp.where(jnp.arange(len(x))[:, None, None] < len(x) - rows, shifted, 0)
