"""From images to labels: a chain of functions around the model's forward.

    forward -> samples -> slide -> at_size -> flip -> scales -> crf -> to_labels

Each link takes the function before it and returns one of the same kind, so that a chain is built by
wrapping, and `config.predict` only names which links are in. The order is MMSegmentation's: logits
are upsampled to the image's size, windows are averaged there, the result is resized to the original
size, and what averages several looks at an image averages probabilities at that size. Images are
resized on the way in, for a look each, by the same link that averages them, `scales`. `samples`
turns logits into probabilities at once; from there on, those are averaged and resized. The CRF is
DeepLab's last step, after all averages. The links are in `jaxseg.links`; `jaxseg.large` does the
same for images whose scores would not fit into memory.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg import named
from jaxseg.data import plan
from jaxseg.errors import UserError
from jaxseg.links import (
    Logits,
    Scores,
    at_size,
    crf,
    flip,
    forward,
    probabilities,
    samples,
    scales,
    slide,
    to_labels,
    whole,
)
from jaxseg.ops.dense_crf import dense_crf

LINKS = {
    "samples": (),
    "slide": ("crop", "stride", "batch"),
    "flip": (),
    "scales": (),
    "crf": tuple(inspect.signature(dense_crf).parameters)[2:],
}


def make_scores(
    model: nn.Module,
    config: Mapping[str, Any] | None,
    *,
    dtype: str,
    base_size: Sequence[int] = (),
) -> Scores:
    """Builds the chain up to scores: logits, or probabilities where links average or refine them.

    Args:
      model: a Segmenter.
      config: `config.predict`: `samples`, how many random passes are averaged; `slide`, the
        arguments of that link; `flip`, true or false; `scales`, factors of the image's size; and
        `crf`, the arguments of `jaxseg.ops.dense_crf`. What is absent, 0 samples, a slide without a
        crop, and a CRF of 0 iterations are left out.
      dtype: of the computation, 'float32', 'bfloat16' or 'auto'.
      base_size: `config.eval.base_size`, (long edge, short edge) of the box that images are resized
        to fill first, their aspect kept; empty: they go through the model as they are.

    Returns:
      `(variables, image uint8 [b, h, w, 3], size) -> float32 [b, *size, C]`.

    Raises:
      UserError: `config` names an unknown link or arguments that a link does not take, or asks for
        samples of a model without dropout.
    """
    return whole(scores_in_bands(model, config, dtype=dtype, base_size=base_size))


def make_probabilities(
    model: nn.Module,
    config: Mapping[str, Any] | None,
    *,
    dtype: str,
    base_size: Sequence[int] = (),
) -> Scores:
    """The chain up to probabilities, whatever the links; arguments and result as `make_scores`."""
    return whole(probabilities_in_bands(model, config, dtype=dtype, base_size=base_size))


def make_labels(
    model: nn.Module,
    config: Mapping[str, Any] | None,
    *,
    dtype: str,
    base_size: Sequence[int] = (),
) -> Callable[[Any, jax.Array, tuple[int, int]], jax.Array]:
    """The whole chain, `(variables, image uint8 [b, h, w, 3], size) -> labels int32 [b, *size]`.

    Scores are made and used up band by band (`ops.bands`), unless windows are averaged or a CRF
    refines them: these need them all at once. Arguments as in `make_scores`.
    """
    scores = scores_in_bands(model, config, dtype=dtype, base_size=base_size)

    def labels(variables, image, size):
        return to_labels(scores(variables, image, size))

    return labels


def scores_in_bands(
    model: nn.Module,
    config: Mapping[str, Any] | None,
    *,
    dtype: str,
    base_size: Sequence[int] = (),
) -> Scores:
    """`make_scores`, but what that gives as an array, this describes as in `ops.bands`."""
    links = checked(config)
    if links["samples"]:
        number = links["samples"]
        moments = make_moments(model, config, number, dtype=dtype, base_size=base_size)

        def scores(*arguments):
            return moments(*arguments)[0]

    else:
        scores = at_size(_slid(forward(model, dtype), links), model.align_corners)
        if links["flip"] or links["scales"] or links["crf"]:
            scores = probabilities(scores)
        scores = _averaged(scores, links, base_size)
    return crf(scores, **links["crf"]) if links["crf"] else scores


def probabilities_in_bands(
    model: nn.Module,
    config: Mapping[str, Any] | None,
    *,
    dtype: str,
    base_size: Sequence[int] = (),
) -> Scores:
    """`make_probabilities`, but what that gives as an array, this describes as in `ops.bands`."""
    scores = scores_in_bands(model, config, dtype=dtype, base_size=base_size)
    links = checked(config)
    if any(links[name] for name in ("samples", "flip", "scales", "crf")):
        return scores
    return probabilities(scores)


def make_moments(
    model: nn.Module,
    config: Mapping[str, Any] | None,
    number: int,
    *,
    dtype: str,
    base_size: Sequence[int] = (),
) -> Callable:
    """The chain with `number` random passes, up to what the model is sure of and what it is not.

    Links that average or resize do the same to the variance as to the mean: it is the mean of the
    variances of windows and of looks, and does not contain how these differ. The CRF is left out.

    Args:
      model, config, dtype, base_size: as in `make_scores`.
      number: takes the place of `config`'s samples.

    Returns:
      `(variables, image uint8 [b, h, w, 3], size) -> (mean, variance)` of the probabilities over
      the passes, float32 [b, *size, C] each. The passes are the same at every call.

    Raises:
      UserError: as `make_scores`.
    """
    links = checked({**(config or {}), "samples": number})
    if not has_dropout(model):
        raise UserError(
            f"config.predict.samples={number}: the model has no dropout, all samples would be the "
            "same; set it to 0, or take a model trained with config.model.dropout above 0"
        )
    logits = _slid(samples(forward(model, dtype), number), links)
    scores = whole(_averaged(at_size(logits, model.align_corners), links, base_size))
    return lambda *arguments: tuple(jnp.split(scores(*arguments), 2, axis=-1))


def _slid(logits: Logits, links: Mapping[str, Any]) -> Logits:
    return slide(logits, **links["slide"]) if links["slide"] else logits


def _averaged(scores: Scores, links: Mapping[str, Any], base_size: Sequence[int]) -> Scores:
    """The links that resize images and average several looks at them, whatever the channels are."""
    plan.check_base_size(base_size, "config.eval.base_size")
    scores = flip(scores) if links["flip"] else scores
    if not links["scales"] and not base_size:
        return scores
    return scales(scores, links["scales"] or (1.0,), base_size)


def checked(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Every link of `LINKS` with its arguments, falsy where `config.predict` leaves it out.

    Raises:
      UserError: what no link takes.
    """
    links = dict.fromkeys(LINKS) | dict(config or {})
    for link in links:
        named.check("config.predict", "link", link, LINKS)
    for link in ("slide", "crf"):
        links[link] = dict(links[link] or {})
        for key in links[link]:
            named.check(f"config.predict.{link}", "argument", key, LINKS[link])
    windows = links["slide"]
    if windows.get("crop") and not windows.get("stride"):
        raise UserError("config.predict.slide: give both crop=(h, w) and stride=(h, w)")
    if not windows.get("crop"):
        links["slide"] = {}
    links["samples"] = links["samples"] or 0
    for name, number in (("samples", links["samples"]), ("crf", links["crf"].get("iterations", 0))):
        if not isinstance(number, int) or number < 0:
            name = f"config.predict.{name}" + (".iterations" if name == "crf" else "")
            raise UserError(f"{name}={number!r}: expected a whole number, 0 to leave it out")
    if not links["crf"].get("iterations"):
        links["crf"] = {}
    factors = tuple(links["scales"] or ())
    if not all(isinstance(factor, int | float) and 0.05 <= factor <= 20 for factor in factors):
        raise UserError(
            f"config.predict.scales={factors}: expected factors of the image's size from 0.05 to "
            "20, as in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), or () for the image as it is"
        )
    links["scales"] = () if factors == (1,) else factors
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


def make_predict(
    model: nn.Module,
    config: Mapping[str, Any] | None,
    *,
    dtype: str,
    base_size: Sequence[int] = (),
) -> Callable:
    """The jitted `(variables, image uint8 [b, h, w, 3], size) -> labels int32 [b, *size]`.

    It is compiled once for each shape of `image` and each `size`. Arguments as in `make_scores`.
    """
    labels = make_labels(model, config, dtype=dtype, base_size=base_size)
    return jax.jit(labels, static_argnames="size")
