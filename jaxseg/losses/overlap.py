"""Losses on the overlap of a class's prediction with its region: Dice, Tversky and Lovasz-softmax.

None of them is a sum over pixels. Each is defined on a group of pixels, one image or the whole
batch (`per_image`); `sum` adds up the groups that have a valid pixel and `count` is their number.
The batch is that of all devices. Ignored pixels count nowhere, in the value and in the gradient.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxseg import named
from jaxseg.errors import UserError
from jaxseg.losses import pixels
from jaxseg.ops.lovasz import jaccard_extension


def dice(
    logits: jax.Array,
    labels: jax.Array,
    *,
    ignore_label: int,
    mask: jax.Array | None = None,
    smooth: float = 1.0,
    exponent: float = 2.0,
    activation: str = "softmax",
    classes: str | Sequence[int] = "all",
    per_image: bool = True,
    class_weights: Sequence[float] = (),
) -> tuple[jax.Array, jax.Array]:
    """1 - (2 sum p t + s) / (sum p^e + sum t + s), p the prediction for a class, t its 0/1 label.

    Milletari et al. 2016 (arXiv:1606.04797, section 3), whose exponent is 2. The defaults are those
    of MMSegmentation before 1.0; its 1.x DiceLoss is activation='sigmoid', classes='together',
    smooth=0 (to which it adds 0.002 in the denominator).

    The backward pass computes the predictions again. Besides the logits and their gradient, both
    float32, it needs at most two arrays of their size (600 MiB for 2 images of 512x512 and 150
    classes, where cross_entropy takes 300; figures of XLA's CPU compiler).

    Args:
      logits: float [b, h, w, C], any precision; the arithmetic is float32.
      labels: int32 [b, h, w].
      ignore_label: label of pixels that do not count.
      mask: bool [b]; rows that are False (padding) count nowhere. None: all count.
      smooth: s above. With 0, a class that is absent and not predicted either has loss 0.
      exponent: e above, 1 or more.
      activation: what makes predictions of logits, 'softmax' or 'sigmoid'.
      classes: 'all': the mean over all classes. 'present': over those that the group's labels
        have. Indices: over these. 'together': one ratio, whose sums run over all classes.
      per_image: the sums run over an image; if False, over the batch.
      class_weights: C factors of the classes' losses (the mean still divides by the number of
        classes), or of their sums where `classes` is 'together'. Empty: all 1.

    Returns:
      (sum, count), float32 scalars; the loss is sum / count.

    Raises:
      UserError: an option out of its range, or not C class weights.
    """
    pixels.check_number("smooth", smooth, 0)
    pixels.check_number("exponent", exponent, 1)
    named.check("activation", "function", activation, ("softmax", "sigmoid"))
    if classes != "together":
        _check_classes(classes, logits.shape[-1], ("all", "present", "together"))
    weights = pixels.check_weights(class_weights, logits.shape[-1])
    both, predicted, labelled = _class_sums(
        logits, labels, ignore_label, mask, exponent, activation, per_image
    )
    top, bottom = 2 * both, predicted + labelled  # [groups, C]
    if classes == "together":
        top, bottom = (jnp.sum(x if weights is None else weights * x, -1) for x in (top, bottom))
        groups = jnp.any(labelled > 0, axis=-1)
        return jnp.sum(groups * (1 - _ratio(top, bottom, smooth))), _float_sum(groups)
    return _mean_over_classes(1 - _ratio(top, bottom, smooth), labelled, classes, weights)


def tversky(
    logits: jax.Array,
    labels: jax.Array,
    *,
    ignore_label: int,
    mask: jax.Array | None = None,
    alpha: float = 0.3,
    beta: float = 0.7,
    gamma: float = 1.0,
    smooth: float = 1.0,
    classes: str | Sequence[int] = "all",
    per_image: bool = True,
    class_weights: Sequence[float] = (),
) -> tuple[jax.Array, jax.Array]:
    """(1 - (TP + s) / (TP + alpha FP + beta FN + s))^(1 / gamma), counts weighted by probability.

    Salehi et al. 2017 (arXiv:1706.05721, equations 3 and 4), softmax probabilities; the defaults
    are MMSegmentation's. Alpha and beta of 0.5 are Dice of exponent 1 (and twice the smoothing),
    of 1 Jaccard. `gamma` makes it the focal Tversky loss (Abraham and Khan 2018, arXiv:1810.07842,
    equation 4, there 4/3). In memory it is `dice`.

    Args:
      logits, labels, ignore_label, mask, per_image, class_weights: as in `dice`.
      alpha: what a false positive costs.
      beta: what a false negative costs; more than alpha favours recall.
      gamma: 1 is Tversky's; above, regions that are hardly found weigh more.
      smooth: s above.
      classes: 'all', 'present' or indices, as in `dice`.

    Returns:
      (sum, count), float32 scalars; the loss is sum / count.

    Raises:
      UserError: an option out of its range, or not C class weights.
    """
    for name, value in (("alpha", alpha), ("beta", beta), ("smooth", smooth)):
        pixels.check_number(name, value, 0)
    pixels.check_number("gamma", gamma, 1)
    _check_classes(classes, logits.shape[-1], ("all", "present"))
    weights = pixels.check_weights(class_weights, logits.shape[-1])
    both, predicted, labelled = _class_sums(
        logits, labels, ignore_label, mask, 1, "softmax", per_image
    )
    false_positive, false_negative = predicted - both, labelled - both
    loss = 1 - _ratio(both, both + alpha * false_positive + beta * false_negative, smooth)
    if gamma != 1:
        # The power has no derivative at 0, where rounding may also go below it.
        perfect = loss <= 0
        loss = jnp.where(perfect, 0.0, jnp.where(perfect, 1.0, loss) ** (1 / gamma))
    return _mean_over_classes(loss, labelled, classes, weights)


def lovasz_softmax(
    logits: jax.Array,
    labels: jax.Array,
    *,
    ignore_label: int,
    mask: jax.Array | None = None,
    classes: str | Sequence[int] = "present",
    per_image: bool = False,
    class_weights: Sequence[float] = (),
) -> tuple[jax.Array, jax.Array]:
    """The convex surrogate of the mean Jaccard loss 1 - IoU, by its Lovasz extension.

    Berman et al. 2018 (arXiv:1705.08790, equations 9 to 11); the defaults are those of the authors'
    code and MMSegmentation. Where every probability is 0 or 1 it is the Jaccard loss itself.

    Classes are sorted one after the other, those that are absent not at all ('present'), so a sort
    works on one number and one index per pixel; half a million pixels take 0.2 s on a CPU. Besides
    the logits and their gradient this needs three float32 arrays of their size, among them the
    softmax and its slopes, which are kept for the backward pass (900 MiB where cross_entropy takes
    300, see `dice`). With `per_image` each device sorts its own images; else a sharded batch is
    gathered, a class at a time, and every device sorts the pixels of all.

    Args:
      logits, labels, ignore_label, mask: as in `dice`.
      classes: 'present', 'all' or indices. The loss of an absent class is its largest probability.
      per_image: one Jaccard loss per image; if False, one over the batch.
      class_weights: C factors of the classes' losses. Empty: all 1.

    Returns:
      (sum, count), float32 scalars; the loss is sum / count.

    Raises:
      UserError: an option out of its range, or not C class weights.
    """
    num_classes = logits.shape[-1]
    _check_classes(classes, num_classes, ("all", "present"))
    weights = pixels.check_weights(class_weights, num_classes)
    _, valid = pixels.which(labels, num_classes, ignore_label, mask)
    groups = labels.shape[0] if per_image else 1
    probability = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    probability = jnp.moveaxis(probability, -1, 0).reshape(num_classes, groups, -1)
    targets = jnp.where(valid, labels, -1).reshape(groups, -1)  # -1: no class
    is_class = jnp.arange(num_classes)[:, None, None] == targets
    labelled = jnp.sum(is_class, axis=-1, dtype=jnp.int32).T  # [groups, C]
    needed = jnp.any(_chosen(classes, labelled), axis=0)
    loss = jaccard_extension(probability, targets, needed).T  # [groups, C]
    return _mean_over_classes(loss, labelled, classes, weights)


def _class_sums(
    logits: jax.Array,
    labels: jax.Array,
    ignore_label: int,
    mask: jax.Array | None,
    exponent: float,
    activation: str,
    per_image: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums over valid pixels, float32 [groups, C]: p t, p^e, and t."""
    num_classes = logits.shape[-1]
    _, valid = pixels.which(labels, num_classes, ignore_label, mask)
    is_class = pixels.is_class(labels, num_classes) & valid[..., None]  # [b, h, w, C]
    axes = (1, 2) if per_image else (0, 1, 2)

    # Computed again on the way back: only the logits are kept.
    @jax.checkpoint
    def of_predictions(logits):
        logits = logits.astype(jnp.float32)
        p = jax.nn.softmax(logits, axis=-1) if activation == "softmax" else jax.nn.sigmoid(logits)
        power = p if exponent == 1 else p * p if exponent == 2 else p**exponent
        both = jnp.sum(jnp.where(is_class, p, 0.0), axes)
        return both, jnp.sum(jnp.where(valid[..., None], power, 0.0), axes)

    labelled = jnp.sum(is_class, axes, dtype=jnp.int32).astype(jnp.float32)
    sums = (*of_predictions(logits), labelled)
    return sums if per_image else tuple(x[None] for x in sums)


def _ratio(top: jax.Array, bottom: jax.Array, smooth: float) -> jax.Array:
    """(top + s) / (bottom + s), and 1 where there is nothing to divide by."""
    empty = bottom + smooth <= 0
    return jnp.where(empty, 1.0, (top + smooth) / jnp.where(empty, 1.0, bottom + smooth))


def _mean_over_classes(
    loss: jax.Array, labelled: jax.Array, classes: str | Sequence[int], weights: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Losses and numbers of pixels by class, both [groups, C] -> (sum, count) over the groups."""
    chosen = _chosen(classes, labelled)
    if weights is not None:
        loss = weights * loss
    mean = jnp.sum(jnp.where(chosen, loss, 0.0), -1) / jnp.maximum(jnp.sum(chosen, -1), 1)
    groups = jnp.any(labelled > 0, axis=-1)
    return jnp.sum(jnp.where(groups, mean, 0.0)), _float_sum(groups)


def _float_sum(groups: jax.Array) -> jax.Array:
    return jnp.sum(groups, dtype=jnp.int32).astype(jnp.float32)


def _chosen(classes: str | Sequence[int], labelled: jax.Array) -> jax.Array:
    """Which classes count in which group, bool [groups, C]."""
    if classes == "present":
        return labelled > 0
    every = range(labelled.shape[-1])
    chosen = [classes == "all" or c in classes for c in every]
    return jnp.broadcast_to(jnp.asarray(chosen), labelled.shape)


def _check_classes(classes: str | Sequence[int], num_classes: int, known: tuple[str, ...]) -> None:
    if isinstance(classes, str):
        named.check("classes", "choice", classes, known)
    elif not classes or not all(c in range(num_classes) for c in classes):
        raise UserError(
            f"classes={classes!r}: expected {', '.join(map(repr, known))} or a tuple of indices, "
            f"each in 0..{num_classes - 1}"
        )
