"""From images to labels: a chain of functions around the model's forward.

    forward -> samples -> slide -> at_size -> flip -> to_labels

Each link takes the function before it and returns one of the same kind, so that a chain is built by
wrapping, and `config.predict` only names which links are in. The order is MMSegmentation's: logits
are upsampled to the image's size, windows are averaged there, the result is resized to the original
size, and what averages several looks at an image averages probabilities at that size. `samples`
turns logits into probabilities at once; from there on, those are averaged and resized.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxseg import named
from jaxseg.errors import UserError
from jaxseg.models import segmenter
from jaxseg.ops.resize import resize

# (variables, image [b, h, w, 3]) -> float32 logits [b, h, w, C]
Logits = Callable[[Any, jax.Array], jax.Array]
# (variables, image [b, h, w, 3], dropout key) -> the same, by chance
RandomLogits = Callable[[Any, jax.Array, jax.Array], jax.Array]
# (variables, image [b, h, w, 3], (H, W)) -> float32 scores [b, H, W, C]
Scores = Callable[[Any, jax.Array, tuple[int, int]], jax.Array]


SEED = 0  # of the samples: the same image in the same batch gives the same result


# ---- the links ----


def forward(model: nn.Module, dtype: str) -> Logits | RandomLogits:
    """The model's logits at the image's size, computed in `dtype` and resized in float32.

    Given a key as third argument, they are those of one draw of the model's dropout.
    """

    def logits(variables, image, key=None):
        rngs = None if key is None else {"dropout": key}
        outputs, _ = segmenter.forward(model, variables, image, train=False, dtype=dtype, rngs=rngs)
        coarse = outputs["logits"].astype(jnp.float32)
        return resize(coarse, image.shape[1:3], align_corners=model.align_corners)

    return logits


def samples(logits: RandomLogits, number: int) -> Logits:
    """Monte-Carlo dropout: mean and variance of the probabilities over random forward passes.

    Kendall et al. 2015, arXiv:1511.02680 (Bayesian SegNet), after Gal and Ghahramani
    2015, arXiv:1506.02142. One pass after the other, so that memory does not grow with `number`.

    Returns:
      `(variables, image) -> float32 [b, h, w, 2 C]`: the C means of the softmax's outputs, which
      are probabilities, then their C variances (the sum of squares over `number`, not one less).
    """

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

    def averaged(variables, image):
        b, h, w, channels = image.shape
        height, width = min(crop[0], h), min(crop[1], w)
        tops, lefts = _starts(h, height, stride[0]), _starts(w, width, stride[1])
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
        rows, columns = _coverage(h, height, tops), _coverage(w, width, lefts)
        return total / rows[:, None, None] / columns[:, None]

    return averaged


def _starts(size: int, crop: int, stride: int) -> list[int]:
    return [min(i * stride, size - crop) for i in range(-(-(size - crop) // stride) + 1)]


def _coverage(size: int, crop: int, starts: Sequence[int]) -> np.ndarray:
    """float32 [size]: how many windows cover each position."""
    count = np.zeros(size, np.float32)
    for start in starts:
        count[start : start + crop] += 1
    return count


def at_size(logits: Logits, align_corners: bool) -> Scores:
    """Resizes from the image's size to the one asked for, that of the original picture."""

    def resized(variables, image, size):
        return resize(logits(variables, image), size, align_corners=align_corners)

    return resized


def probabilities(scores: Scores) -> Scores:
    """The softmax of logits."""

    def normalised(variables, image, size):
        return jax.nn.softmax(scores(variables, image, size))

    return normalised


def flip(scores: Scores) -> Scores:
    """The mean of what `scores`, probabilities, says of an image and of its mirror image."""

    def averaged(variables, image, size):
        straight = scores(variables, image, size)
        mirrored = scores(variables, image[:, :, ::-1], size)
        return (straight + mirrored[:, :, ::-1]) / 2

    return averaged


def to_labels(scores: jax.Array) -> jax.Array:
    """[b, H, W, C] -> int32 [b, H, W], the index of the highest score."""
    return jnp.argmax(scores, axis=-1).astype(jnp.int32)


# ---- the chain ----


def make_scores(model: nn.Module, config: Mapping[str, Any] | None, *, dtype: str) -> Scores:
    """Builds the chain up to scores: logits, or probabilities where links average them.

    Args:
      model: a Segmenter.
      config: `config.predict`: `samples`, how many random passes are averaged; `slide`, the
        arguments of that link; and `flip`, true or false. A link that is absent, 0 samples, or a
        slide without a crop, is left out.
      dtype: of the computation, 'float32', 'bfloat16' or 'auto'.

    Returns:
      `(variables, image uint8 [b, h, w, 3], size) -> float32 [b, *size, C]`.

    Raises:
      UserError: `config` names an unknown link or arguments that a link does not take, or asks for
        samples of a model without dropout.
    """
    links = _checked(config)
    if links.get("samples"):
        moments = make_moments(model, config, links["samples"], dtype=dtype)
        return lambda *arguments: moments(*arguments)[0]
    scores = _resized(forward(model, dtype), model, links)
    return flip(probabilities(scores)) if links.get("flip") else scores


def make_moments(
    model: nn.Module, config: Mapping[str, Any] | None, number: int, *, dtype: str
) -> Callable:
    """The chain with `number` random passes, up to what the model is sure of and what it is not.

    Links that average or resize do the same to the variance as to the mean: it is the mean of the
    variances of windows and of looks, and does not contain how these differ.

    Args:
      model, config, dtype: as in `make_scores`.
      number: takes the place of `config`'s samples.

    Returns:
      `(variables, image uint8 [b, h, w, 3], size) -> (mean, variance)` of the probabilities over
      the passes, float32 [b, *size, C] each. The passes are the same at every call.

    Raises:
      UserError: as `make_scores`.
    """
    links = _checked({**(config or {}), "samples": number})
    if not has_dropout(model):
        raise UserError(
            f"config.predict.samples={number}: the model has no dropout, all samples would be the "
            "same; set it to 0, or take a model trained with config.model.dropout above 0"
        )
    scores = _resized(samples(forward(model, dtype), number), model, links)
    scores = flip(scores) if links.get("flip") else scores
    return lambda *arguments: tuple(jnp.split(scores(*arguments), 2, axis=-1))


def _resized(logits: Logits, model: nn.Module, links: Mapping[str, Any]) -> Scores:
    """The links that average and resize, whatever the channels are."""
    windows = links.get("slide") or {}
    if windows.get("crop"):
        logits = slide(logits, **windows)
    return at_size(logits, model.align_corners)


def _checked(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The links of `config.predict`; raises `UserError` for what no link takes."""
    links = dict(config or {})
    for link in links:
        named.check("config.predict", "link", link, ("samples", "slide", "flip"))
    windows = links.get("slide") or {}
    for key in windows:
        named.check("config.predict.slide", "argument", key, ("crop", "stride", "batch"))
    if windows.get("crop") and not windows.get("stride"):
        raise UserError("config.predict.slide: give both crop=(h, w) and stride=(h, w)")
    number = links.get("samples", 0)
    if not isinstance(number, int) or number < 0:
        raise UserError(
            f"config.predict.samples={number!r}: expected a whole number of random passes, or 0 "
            "for one pass without dropout"
        )
    return links


def has_dropout(model: nn.Module) -> bool:
    """Whether tracing the model with a dropout key meets a `flax.linen.Dropout` that drops."""
    active = []

    def watch(call, arguments, keywords, context):
        module = context.module
        if isinstance(module, nn.Dropout) and context.method_name == "__call__":
            active.append(module.rate > 0 and module.deterministic is False)
        return call(*arguments, **keywords)

    def init(image, key):
        return model.init({"params": key, "dropout": key, "points": key}, image, False)

    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8)
    with nn.intercept_methods(watch):
        jax.eval_shape(init, image, jax.random.key(0))
    return any(active)


def make_predict(model: nn.Module, config: Mapping[str, Any] | None, *, dtype: str) -> Callable:
    """The jitted `(variables, image uint8 [b, h, w, 3], size) -> labels int32 [b, *size]`.

    It is compiled once for each shape of `image` and each `size`. Arguments as in `make_scores`.
    """
    scores = make_scores(model, config, dtype=dtype)

    def predict(variables, image, size):
        return to_labels(scores(variables, image, size))

    return jax.jit(predict, static_argnames="size")
