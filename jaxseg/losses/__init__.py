"""Training losses, one function each, and their weighted sum over a model's named outputs.

A loss is a public function `loss(logits, labels, *, ignore_label, mask, **options)` that returns
(sum, count) in float32: `total` divides once, so under `jax.jit` with a batch sharded over devices
the mean is the global one, whatever share of the valid pixels each device holds.
"""

import numbers
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxseg import named
from jaxseg.errors import UserError
from jaxseg.losses.boundary import boundary_weighted_cross_entropy
from jaxseg.losses.cross_entropy import (
    cross_entropy,
    focal,
    ohem_cross_entropy,
    sigmoid_cross_entropy,
)
from jaxseg.losses.detail import detail
from jaxseg.losses.edges import boundary_cross_entropy
from jaxseg.losses.overlap import dice, lovasz_softmax, tversky
from jaxseg.losses.presence import presence_cross_entropy
from jaxseg.ops import bands
from jaxseg.ops.points import sample

LOSSES = {
    f.__name__: f
    for f in (
        cross_entropy,
        sigmoid_cross_entropy,
        ohem_cross_entropy,
        focal,
        dice,
        tversky,
        lovasz_softmax,
        boundary_weighted_cross_entropy,
        boundary_cross_entropy,
        presence_cross_entropy,
        detail,
    )
}
# What an output may be, and the losses that do not score maps and points alike.
MAP, POINTS, IMAGES = "a map of scores", "scattered points", "scores of whole images"
TAKES = {
    boundary_weighted_cross_entropy: (MAP,),  # it compares neighbours, which points lack
    boundary_cross_entropy: (MAP,),
    presence_cross_entropy: (IMAGES,),
    detail: (MAP,),
}
# Those that sum over pixels by `ops.bands`; every other one gets the enlarged logits as an array.
IN_BANDS = (cross_entropy, sigmoid_cross_entropy, ohem_cross_entropy, focal)
_SUPPLIED = ("ignore_label", "mask")  # by `total`; every other keyword of a loss is the config's


def total(
    outputs: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    spec: Mapping[str, Mapping[str, Any]],
    *,
    ignore_label: int,
    align_corners: bool,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted sum of the losses that a config names.

    Args:
      outputs: the model's outputs. Those named in `spec` are logits [b, h', w', C] at the head's
        resolution, which are resized (bilinear, float32) to the size of the labels, band by band
        for the losses of `IN_BANDS`, once for however many others share them; or points {'xy':
        [b, n, 2] in 0..1, right and down from the image's corner, 'logits': [b, n, C]}, which are
        scored as a map [b, n, 1] against the labels of the pixels that they fall in; or scores of
        whole images [b, C], which a loss gets as they are.
      batch: 'label' int32 [b, h, w] and 'mask' bool [b].
      spec: config.losses: term -> {'name': one of `LOSSES`, or the dotted name of a function like
        them; 'weight': 1.0 unless given; 'output': what it scores, by default the output that has
        the term's name; 'align_corners': how that is resized, by default as the model's logits;
        'where': {'output': a map of one logit, 'above': a probability}, to score those pixels only
        at which its sigmoid is above that, as if the others' labels were ignored; and that loss's
        own keywords}. So several terms may score one output.
      ignore_label: label of pixels that do not count.
      align_corners: how the model resizes its logits.

    Returns:
      The loss, float32 [], 0 where no pixel counts, and its addends by term, each already times its
      weight: {'loss/logits': ..., 'loss/aux_logits': ...}.

    Raises:
      UserError: a name or keyword in `spec` that does not exist, an option out of range, or an
        output of another kind than a loss or 'where' takes.
    """
    if not spec:
        raise UserError("config.losses is empty: name at least one output and its loss")
    arrays = {}  # output and how it is resized -> its logits at the size of their labels
    parts = {}

    def whole(name: str, corners: bool, logits: bands.Scores) -> jax.Array:
        if (name, corners) not in arrays:
            arrays[name, corners] = bands.whole(logits)
        return arrays[name, corners]

    for term, entry in spec.items():
        key = f"config.losses.{term}"
        options = dict(entry)
        output = options.pop("output", term)
        named.check(
            f"{key}.output" if "output" in entry else "config.losses",
            "model output",
            output,
            outputs,
        )
        loss = _find(key, options.pop("name", None))
        allowed = [k for k in named.keywords(loss) if k not in _SUPPLIED]
        allowed += ["weight", "output", "align_corners", "where"]
        for option in options:
            named.check(key, "option", option, allowed)
        weight = options.pop("weight", 1.0)
        _check_kind(key, loss, output, outputs[output])
        corners = options.pop("align_corners", align_corners)
        logits, labels = _match(outputs[output], batch["label"], corners)
        if loss not in IN_BANDS:
            logits = whole(output, corners, logits)
        where = options.pop("where", None)
        if where is not None:
            name, above = _check_where(f"{key}.where", where, outputs, outputs[output])
            gate, _ = _match(outputs[name], labels, corners)
            chosen = jax.nn.sigmoid(whole(name, corners, gate)[..., 0]) > above
            labels = jnp.where(chosen, labels, ignore_label)
        try:
            value, count = loss(
                logits, labels, ignore_label=ignore_label, mask=batch["mask"], **options
            )
        except UserError as error:
            raise UserError(f"{key}: {error}") from error
        # Without a pixel that counts the sum is 0 already; only the division has to be safe.
        parts[f"loss/{term}"] = weight * value / jnp.where(count > 0, count, 1.0)
    return sum(parts.values()), parts


def _kind(output: Any) -> str:
    if isinstance(output, Mapping):
        return POINTS
    return IMAGES if output.ndim == 2 else MAP


def _check_kind(key: str, loss: Callable, name: str, output: Any) -> None:
    """Raises `UserError` where a loss of this package does not score what that output is."""
    kind = _kind(output)
    fit = [f.__name__ for f in LOSSES.values() if kind in TAKES.get(f, (MAP, POINTS))]
    if loss in LOSSES.values() and loss.__name__ not in fit:
        raise UserError(
            f"{key}: {loss.__name__} scores {' or '.join(TAKES.get(loss, (MAP, POINTS)))}, but the "
            f"output {name!r} is {kind}: choose {', '.join(fit)}"
        )


def _check_where(
    key: str, where: Mapping[str, Any], outputs: Mapping[str, Any], scored: Any
) -> tuple[str, float]:
    """(output, above) of a term's 'where'; raises `UserError` for what it does not take."""
    if not hasattr(where, "items"):
        raise UserError(f"{key}={where!r}: expected dict(output=NAME, above=PROBABILITY)")
    options = dict(where)
    for option in options:
        named.check(key, "option", option, ("output", "above"))
    name, above = options.get("output"), options.get("above")
    named.check(f"{key}.output", "model output", name, outputs)
    if _kind(outputs[name]) != MAP or outputs[name].shape[-1] != 1:
        raise UserError(f"{key}.output={name!r}: expected a map with one logit per pixel")
    if _kind(scored) != MAP:
        raise UserError(f"{key}: picks pixels of a map, but what is scored is {_kind(scored)}")
    if not (isinstance(above, numbers.Real) and 0 <= above < 1):
        raise UserError(f"{key}.above={above!r}: expected a probability in [0, 1)")
    return name, above


def _match(output: Any, labels: jax.Array, align_corners: bool) -> tuple[Any, jax.Array]:
    """Logits and the labels to compare them with, [b, h, w, C] and [b, h, w], of maps or points.

    Scores of whole images stay [b, C], and are compared with all labels.
    """
    h, w = labels.shape[1:3]
    kind = _kind(output)
    if kind == IMAGES:
        return output.astype(jnp.float32), labels
    if kind == MAP:
        return bands.Enlarged(output, (h, w), align_corners), labels
    xy = output["xy"].astype(jnp.float32)
    at_points = sample(labels[..., None], xy, "nearest", align_corners)  # [b, n, 1]
    return output["logits"].astype(jnp.float32)[:, :, None], at_points


def _find(key: str, name: str | None) -> Callable:
    """The loss that a config names; with a dot, any importable function."""
    if not isinstance(name, str) or "." not in name:
        named.check(f"{key}.name", "loss", name, LOSSES)
        return LOSSES[name]
    module, _, function = name.rpartition(".")
    expected = (
        "the dotted name of an importable function, loss(logits, labels, *, ignore_label, mask, "
        "...)"
    )
    return named.imported(f"{key}.name={name!r}", module, function, expected)
