"""Training losses, one function each, and their weighted sum over a model's named outputs.

A loss is a public function `loss(logits, labels, *, ignore_label, mask, **options)` that returns
(sum, count) in float32: `total` divides once, so under `jax.jit` with a batch sharded over devices
the mean is the global one, whatever share of the valid pixels each device holds.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxseg import named
from jaxseg.errors import UserError
from jaxseg.losses.boundary import boundary_weighted_cross_entropy
from jaxseg.losses.cross_entropy import cross_entropy, focal, ohem_cross_entropy
from jaxseg.losses.overlap import dice, lovasz_softmax, tversky
from jaxseg.ops.points import sample
from jaxseg.ops.resize import resize

LOSSES = {
    f.__name__: f
    for f in (
        cross_entropy,
        ohem_cross_entropy,
        focal,
        dice,
        tversky,
        lovasz_softmax,
        boundary_weighted_cross_entropy,
    )
}
NEED_MAPS = (boundary_weighted_cross_entropy,)  # they look at neighbours, which points lack
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
        resolution, which are resized (bilinear, float32) to the size of the labels, once however
        many terms share them; or points {'xy': [b, n, 2] in 0..1, right and down from the image's
        corner, 'logits': [b, n, C]}, which are scored as a map [b, n, 1] against the labels of the
        pixels that they fall in.
      batch: 'label' int32 [b, h, w] and 'mask' bool [b].
      spec: config.losses: term -> {'name': one of `LOSSES`, or the dotted name of a function like
        them; 'weight': 1.0 unless given; 'output': what it scores, by default the output that has
        the term's name; and that loss's own keywords}. So several terms may score one output.
      ignore_label: label of pixels that do not count.
      align_corners: how the model resizes its logits.

    Returns:
      The loss, float32 [], 0 where no pixel counts, and its addends by term, each already times its
      weight: {'loss/logits': ..., 'loss/aux_logits': ...}.

    Raises:
      UserError: a name or keyword in `spec` that does not exist, an option out of range, or points
        given to a loss that needs a map.
    """
    if not spec:
        raise UserError("config.losses is empty: name at least one output and its loss")
    scored = {}  # output -> (logits, labels) of one size
    parts = {}
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
        allowed = [k for k in named.keywords(loss) if k not in _SUPPLIED] + ["weight", "output"]
        for option in options:
            named.check(key, "option", option, allowed)
        weight = options.pop("weight", 1.0)
        if loss in NEED_MAPS and isinstance(outputs[output], Mapping):
            raise UserError(
                f"{key}: {loss.__name__} compares neighbouring pixels, but the output {output!r} "
                "is scattered points: choose another loss for it, cross_entropy say"
            )
        if output not in scored:
            scored[output] = _match(outputs[output], batch["label"], align_corners)
        try:
            value, count = loss(
                *scored[output], ignore_label=ignore_label, mask=batch["mask"], **options
            )
        except UserError as error:
            raise UserError(f"{key}: {error}") from error
        # Without a pixel that counts the sum is 0 already; only the division has to be safe.
        parts[f"loss/{term}"] = weight * value / jnp.where(count > 0, count, 1.0)
    return sum(parts.values()), parts


def _match(output: Any, labels: jax.Array, align_corners: bool) -> tuple[jax.Array, jax.Array]:
    """Logits and the labels to compare them with, [b, h, w, C] and [b, h, w], of maps or points."""
    h, w = labels.shape[1:3]
    if not isinstance(output, Mapping):
        logits = output.astype(jnp.float32)
        return resize(logits, (h, w), method="bilinear", align_corners=align_corners), labels
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
