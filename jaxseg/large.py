"""Labels of images whose scores do not fit into memory, band by band.

Scores take 4 bytes a pixel and class: 8,000 x 8,000 pixels and 150 classes are 38 GB. The ordinary
chain never holds them all, unless windows slide over the image and are averaged: then the windows
slide along one band of rows here, whose labels are done when the next band begins. The labels are
those of the ordinary chain.
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

# Scores of one image that are held at once, 4 bytes each.
WHOLE = 2**29


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

    Besides image and labels it needs, where windows slide over a large image, 4 * crop height *
    width * classes bytes for a band of windows, twice that when flipping, and where they slide over
    one that is not large, 4 * height * width * classes bytes for each look at it; on top of that
    what the model takes for a batch of windows, or for the image.

    Args:
      model, config, dtype, base_size: as in `predict.make_scores`.
      classes: C.

    Returns:
      `(variables, image uint8 [h, w, 3], (H, W)) -> int32 [H, W]`, NumPy.

    Raises:
      UserError: when called, a link that needs the whole image, or no windows for a large image.
    """
    chain = predict.checked(config)
    ordinary = predict.make_predict(model, config, dtype=dtype, base_size=base_size)
    windows = chain["slide"]
    look = _make_look(links.forward(model, dtype), chain) if windows else None

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
            if not windows or factors != (1.0,) or not largest == image.shape[:2] == size:
                raise UserError(
                    f"an image of {size[1]}x{size[0]} and {classes} classes is too large for one "
                    "piece: let windows slide over it by --config.predict.slide.crop='(1024,1024)' "
                    "--config.predict.slide.stride='(768,768)', without scales and "
                    "config.eval.base_size, or make it smaller"
                )
            return _by_bands(look, windows, variables, image)
        return np.asarray(ordinary(variables, image[None], size))[0]

    return segment


def _make_look(forward: links.Logits, chain: Mapping[str, Any]) -> Callable:
    """`(variables, image [1, h, w, 3])` -> logits [h, w, C], and of its mirror image if need be."""
    slid = links.slide(forward, **chain["slide"])

    def look(variables, image):
        straight = [slid(variables, image)[0]]
        if not chain["flip"]:
            return straight
        return [*straight, slid(variables, image[:, :, ::-1])[0, :, ::-1]]

    return jax.jit(look)


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
