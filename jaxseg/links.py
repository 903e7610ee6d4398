"""The links of the predict chain: each takes the function before it and returns one of its kind.

What they are chained to, and in which order, is in `jaxseg.predict`. What the functions return need
not be an array: resizing, the softmax and averages over looks are only written down, as `ops.bands`
has it, and done when someone asks for the whole, or band by band for the labels.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.data.plan import scaled_size
from jaxseg.errors import UserError
from jaxseg.models import segmenter
from jaxseg.ops import bands, opencv
from jaxseg.ops.dense_crf import dense_crf
from jaxseg.ops.resize import resize

# (variables, image [b, h, w, 3]) -> float32 logits [b, h, w, C]
Logits = Callable[[Any, jax.Array], bands.Scores]
# (variables, image [b, h, w, 3], dropout key) -> the same, by chance
RandomLogits = Callable[[Any, jax.Array, jax.Array], bands.Scores]
# (variables, image [b, h, w, 3], (H, W)) -> float32 scores [b, H, W, C]
Scores = Callable[[Any, jax.Array, tuple[int, int]], bands.Scores]

SEED = 0  # of the samples: the same image in the same batch gives the same result


def forward(model: nn.Module, dtype: str) -> Logits | RandomLogits:
    """The model's logits at the image's size, computed in `dtype` and resized in float32.

    Given a key as third argument, they are those of one draw of the model's dropout.
    """

    def logits(variables, image, key=None):
        rngs = None if key is None else {"dropout": key}
        outputs, _ = segmenter.forward(model, variables, image, train=False, dtype=dtype, rngs=rngs)
        return bands.Enlarged(outputs["logits"], image.shape[1:3], model.align_corners)

    return logits


def whole(scores: Callable[..., bands.Scores]) -> Callable[..., jax.Array]:
    """The same function, but what it returns are arrays."""
    return lambda *arguments: bands.whole(scores(*arguments))


def samples(logits: RandomLogits, number: int) -> Logits:
    """Monte-Carlo dropout: mean and variance of the probabilities over random forward passes.

    Kendall et al. 2015, arXiv:1511.02680 (Bayesian SegNet), after Gal and Ghahramani
    2015, arXiv:1506.02142. One pass after the other, so that memory does not grow with `number`.

    Returns:
      `(variables, image) -> float32 [b, h, w, 2 C]`: the C means of the softmax's outputs, which
      are probabilities, then their C variances (the sum of squares over `number`, not one less).
    """

    logits = whole(logits)

    def moments(variables, image):
        def look(so_far, draw):
            i, key = draw
            mean, squares = so_far
            p = jax.nn.softmax(logits(variables, image, key))
            # Welford's update: small variances do not cancel.
            delta = p - mean
            mean = mean + delta / (i + 1)
            return (mean, squares + delta * (p - mean)), None

        keys = jax.random.split(jax.random.key(SEED), number)
        zeros = jnp.zeros(jax.eval_shape(logits, variables, image, keys[0]).shape, jnp.float32)
        (mean, squares), _ = jax.lax.scan(look, (zeros, zeros), (jnp.arange(number), keys))
        return jnp.concatenate([mean, squares / number], -1)

    return moments


def slide(logits: Logits, crop: tuple[int, int], stride: tuple[int, int], batch: int = 4) -> Logits:
    """Logits of overlapping windows, averaged where they overlap.

    Args:
      logits: what each window goes through.
      crop: window height and width in pixels; an image smaller than that is one smaller window.
      stride: vertical and horizontal distance of windows, at most `crop`; the last row and column
        of windows are moved back so that they end at the border.
      batch: windows of an image that go through the model at once.
    """
    pairs = len(crop) == len(stride) == 2
    if not pairs or not all(0 < s <= c for s, c in zip(stride, crop, strict=True)) or batch < 1:
        raise UserError(
            f"config.predict.slide: crop={crop}, stride={stride}, batch={batch}: expected (height, "
            "width) twice, stride from 1 to crop so that windows cover each pixel, and batch >= 1"
        )
    logits = whole(logits)

    def averaged(variables, image):
        b, h, w, channels = image.shape
        height, width = min(crop[0], h), min(crop[1], w)
        tops, lefts = starts(h, height, stride[0]), starts(w, width, stride[1])
        corners = np.array([(top, left) for top in tops for left in lefts], np.int32)
        k = min(batch, len(corners))
        padding = -len(corners) % k  # the last group is filled up with windows of weight zero
        weights = np.array([1] * len(corners) + [0] * padding, np.float32).reshape(-1, k)
        corners = np.concatenate([corners, corners[:padding]]).reshape(-1, k, 2)

        def add_group(total, group):
            corner, weight = group
            windows = jnp.stack(
                [
                    jax.lax.dynamic_slice(image, (0, *corner[i], 0), (b, height, width, channels))
                    for i in range(k)
                ],
                axis=1,  # the batch axis stays first, so that a sharded batch stays where it is
            )
            part = logits(variables, windows.reshape(b * k, height, width, channels))
            part = part.reshape(b, k, height, width, -1)
            for i in range(k):
                at = (0, *corner[i], 0)
                before = jax.lax.dynamic_slice(total, at, part[:, i].shape)
                total = jax.lax.dynamic_update_slice(total, before + weight[i] * part[:, i], at)
            return total, None

        window = jax.ShapeDtypeStruct((b, height, width, channels), image.dtype)
        classes = jax.eval_shape(logits, variables, window).shape[-1]
        total = jnp.zeros((b, h, w, classes), jnp.float32)
        total, _ = jax.lax.scan(add_group, total, (corners, weights))
        rows, columns = coverage(h, height, tops), coverage(w, width, lefts)
        return total / rows[:, None, None] / columns[:, None]

    return averaged


def starts(size: int, crop: int, stride: int) -> list[int]:
    """Where windows begin on an axis; the last one ends at the border."""
    return [min(i * stride, size - crop) for i in range(-(-(size - crop) // stride) + 1)]


def coverage(size: int, crop: int, starts: Sequence[int]) -> np.ndarray:
    """float32 [size]: how many windows cover each position."""
    count = np.zeros(size, np.float32)
    for start in starts:
        count[start : start + crop] += 1
    return count


def at_size(logits: Logits, align_corners: bool) -> Scores:
    """Resizes from the image's size to the one asked for, that of the original picture."""

    def resized(variables, image, size):
        return bands.Enlarged(logits(variables, image), size, align_corners)

    return resized


def probabilities(scores: Scores) -> Scores:
    """The softmax of logits."""

    def normalised(variables, image, size):
        return bands.Combined(jax.nn.softmax, (scores(variables, image, size),))

    return normalised


def flip(scores: Scores) -> Scores:
    """The mean of what `scores`, probabilities, says of an image and of its mirror image."""

    def mean(straight, mirrored):
        return (straight + mirrored[:, :, ::-1]) / 2

    def averaged(variables, image, size):
        looks = scores(variables, image, size), scores(variables, image[:, :, ::-1], size)
        return bands.Combined(mean, looks)

    return averaged


def scales(scores: Scores, factors: Sequence[float], base_size: Sequence[int] = ()) -> Scores:
    """The mean of what `scores`, probabilities, says of an image at several sizes.

    Chen et al. 2016, arXiv:1606.00915, section 4.3 (multi-scale inputs), as an average at the
    size asked for. With the one factor 1 it fits images into `base_size` and averages nothing.

    Args:
      scores: probabilities; with one factor, any scores.
      factors: of the box, or else of the image's size.
      base_size: (long edge, short edge) of a box that images are to fill, their aspect kept; empty:
        none. An image is resized once, from its own size, whatever the factor.
    """

    def mean(*looks):
        return sum(looks) / len(looks)

    def averaged(variables, image, size):
        looks = (
            scores(variables, resize_image(image, factor, base_size), size) for factor in factors
        )
        return bands.Combined(mean, tuple(looks))

    return averaged


def resize_image(image: jax.Array, factor: float, base_size: Sequence[int] = ()) -> jax.Array:
    """uint8 [b, h, w, 3] -> [b, h', w', 3], see `scales`; size and grey levels as MMSegmentation's.

    Factors are of the box `base_size`, or else of the image.
    """
    size = scaled_size(image.shape[1:3], factor, base_size)
    if size == image.shape[1:3]:
        return image
    return opencv.resize(image, size)


def crf(scores: Scores, **settings: Any) -> Scores:
    """The marginals of a dense CRF whose unary terms are what `scores`, probabilities, says.

    Args:
      scores: probabilities.
      **settings: of `jaxseg.ops.dense_crf.dense_crf`. The CRF looks at the image at the size asked
        for: an image that was resized for the model is resized back.
    """

    scores = whole(scores)

    def refined(variables, image, size):
        picture = resize(image.astype(jnp.float32), size)
        return dense_crf(scores(variables, image, size), picture, **settings)

    return refined


def to_labels(scores: bands.Scores) -> jax.Array:
    """[b, H, W, C] -> int32 [b, H, W], the index of the highest score, the first of equals."""
    return bands.each(lambda x: jnp.argmax(x, axis=-1).astype(jnp.int32), scores)


def to_labels_and_highest(scores: bands.Scores) -> tuple[jax.Array, jax.Array]:
    """`to_labels`, and those highest scores, float32 [b, H, W]."""

    def both(x):
        return jnp.argmax(x, axis=-1).astype(jnp.int32), x.max(-1)

    return bands.each(both, scores)
