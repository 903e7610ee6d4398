"""Training losses, one function each, and their weighted sum over a model's named outputs.

A loss is a public function `loss(logits, labels, *, ignore_label, mask, **options)` that returns
(sum, count) in float32: `total` divides once, so under `jax.jit` with a batch sharded over devices
the mean is the global one, whatever share of the valid pixels each device holds.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxseg import named
from jaxseg.errors import UserError
from jaxseg.ops.resize import resize

_SUPPLIED = ("ignore_label", "mask")  # by `total`; every other keyword of a loss is the config's


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    ignore_label: int,
    mask: jax.Array | None = None,
    class_weights: Sequence[float] = (),
    average: str = "valid",
    label_smoothing: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Softmax cross-entropy of every pixel.

    A pixel is valid when its label is in 0..C-1 and is not `ignore_label`; every other label
    (255, -1) weighs nothing, in the value and in the gradient.

    Args:
      logits: float [b, h, w, C], any precision; the arithmetic is float32.
      labels: int32 [b, h, w].
      ignore_label: label of pixels that do not count.
      mask: bool [b]; rows that are False (padding) count nowhere. None: all count.
      class_weights: C weights, one per class. Empty: all 1.
      average: what `count` is. 'valid': the number of valid pixels, or with `class_weights` the
        sum of their weights (the 'mean' of PyTorch's cross_entropy). 'all': the number of pixels,
        ignored ones included, weights or not (MMSegmentation's default, avg_non_ignore=False).
      label_smoothing: share e of the target spread evenly over all classes (Szegedy et al.,
        arXiv:1512.00567, section 7): with class weights w, pixel loss (1 - e) w_y (-log p_y) +
        e/C sum_c w_c (-log p_c).

    Returns:
      (sum, count), float32 scalars; the loss is sum / count.

    Raises:
      UserError: an option out of its range, or not C class weights.
    """
    num_classes = logits.shape[-1]
    named.check("average", "rule", average, ("valid", "all"))
    if not 0 <= label_smoothing < 1:
        raise UserError(f"label_smoothing={label_smoothing}: expected a number in [0, 1)")
    if class_weights and len(class_weights) != num_classes:
        raise UserError(
            f"class_weights has {len(class_weights)} numbers, the model has {num_classes} classes: "
            "give one weight per class"
        )

    logits = logits.astype(jnp.float32)
    rows = jnp.ones(labels.shape[:1], bool) if mask is None else mask
    inside = jnp.broadcast_to(rows[:, None, None], labels.shape)  # [b, h, w]
    valid = inside & (labels != ignore_label) & (labels >= 0) & (labels < num_classes)
    # Compared with an iota, a label that is no class picks 0, where an index out of range would
    # give NaN, and NaN times weight 0 is NaN. The compare fuses into the sums around it; the
    # gradient of take_along_axis would be a scatter.
    classes = jax.lax.broadcasted_iota(jnp.int32, (1, 1, 1, num_classes), 3)
    is_label = labels[..., None] == classes

    def pick(values):  # [..., C] -> [b, h, w]
        return jnp.sum(jnp.where(is_label, values, 0.0), axis=-1)

    log_z = jax.nn.logsumexp(logits, axis=-1)  # [b, h, w]
    weights = jnp.ones(num_classes) if not class_weights else jnp.asarray(class_weights)
    weights = weights.astype(jnp.float32)
    pixel_weight = 1.0 if not class_weights else pick(weights)
    loss = pixel_weight * (log_z - pick(logits))
    if label_smoothing:
        spread = log_z * jnp.sum(weights) - jnp.sum(weights * logits, axis=-1)
        loss = (1 - label_smoothing) * loss + label_smoothing / num_classes * spread
    total_loss = jnp.sum(loss * valid)

    # Pixels are counted in integers: a float32 sum of ones may stop growing at 2^24.
    if average == "all":
        count = jnp.sum(inside, dtype=jnp.int32)
    elif not class_weights:
        count = jnp.sum(valid, dtype=jnp.int32)
    else:
        count = jnp.sum(pixel_weight * valid)
    return total_loss, count.astype(jnp.float32)


def total(
    outputs: Mapping[str, jax.Array],
    batch: Mapping[str, jax.Array],
    spec: Mapping[str, Mapping[str, Any]],
    *,
    ignore_label: int,
    align_corners: bool,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted sum of the losses that a config names.

    Args:
      outputs: the model's outputs; those named in `spec` are logits [b, h', w', C] at the head's
        resolution and are resized (bilinear, float32) to the size of the labels.
      batch: 'label' int32 [b, h, w] and 'mask' bool [b].
      spec: config.losses: output name -> {'name': a loss of this module, 'weight': 1.0 unless
        given, and that loss's own keywords}.
      ignore_label: label of pixels that do not count.
      align_corners: how the model resizes its logits.

    Returns:
      The loss, float32 [], 0 where no pixel counts, and its addends by output name, each already
      times its weight: {'loss/logits': ..., 'loss/aux_logits': ...}.

    Raises:
      UserError: a name or keyword in `spec` that does not exist, or an option out of range.
    """
    if not spec:
        raise UserError("config.losses is empty: name at least one output and its loss")
    labels = batch["label"]
    parts = {}
    for output, entry in spec.items():
        key = f"config.losses.{output}"
        named.check("config.losses", "model output", output, outputs)
        options = dict(entry)
        loss = _find(key, options.pop("name", None))
        allowed = [k for k in named.keywords(loss) if k not in _SUPPLIED] + ["weight"]
        for option in options:
            named.check(key, "option", option, allowed)
        weight = options.pop("weight", 1.0)
        logits = outputs[output].astype(jnp.float32)
        logits = resize(logits, labels.shape[1:3], method="bilinear", align_corners=align_corners)
        try:
            value, count = loss(
                logits, labels, ignore_label=ignore_label, mask=batch["mask"], **options
            )
        except UserError as error:
            raise UserError(f"{key}: {error}") from error
        # Without a pixel that counts the sum is 0 already; only the division has to be safe.
        parts[f"loss/{output}"] = weight * value / jnp.where(count > 0, count, 1.0)
    return sum(parts.values()), parts


def _find(key: str, name: str | None) -> Callable:
    """The loss of this module that `name` says."""
    losses = {
        k: v
        for k, v in vars(sys.modules[__name__]).items()
        if getattr(v, "__module__", None) == __name__ and k[0] != "_" and v is not total
    }
    named.check(f"{key}.name", "loss", name, losses)
    return losses[name]
