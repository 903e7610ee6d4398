"""Losses that are sums over pixels: cross-entropy by softmax or sigmoids, or of hard pixels.

Each says what a pixel costs and leaves the sum to `ops.bands.total`, so that logits which are to be
enlarged to the labels' size never exist there as a whole.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxseg import named
from jaxseg.losses import pixels
from jaxseg.ops import bands
from jaxseg.ops.select import kth_smallest


def cross_entropy(
    logits: jax.Array | bands.Enlarged,
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
      logits: float [b, h, w, C], any precision; the arithmetic is float32. Or how to enlarge them.
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
    pixels.check_number("label_smoothing", label_smoothing, 0, 1)
    weights = pixels.check_weights(class_weights, num_classes)
    inside, valid = pixels.which(labels, num_classes, ignore_label, mask)

    def of_pixels(logits, labels):
        logits = logits.astype(jnp.float32)
        log_z = jax.nn.logsumexp(logits, axis=-1)  # [b, h, w]
        loss = log_z - pixels.pick(logits, labels)
        if weights is not None:
            loss *= pixels.pick(weights, labels)
        if label_smoothing:
            spread = jnp.ones(num_classes) if weights is None else weights
            spread = log_z * jnp.sum(spread) - jnp.sum(spread * logits, axis=-1)
            loss = (1 - label_smoothing) * loss + label_smoothing / num_classes * spread
        return loss

    counted = inside if average == "all" else valid
    count = _count(counted, labels, None if average == "all" else weights)
    return bands.total(of_pixels, logits, valid, labels), count


def sigmoid_cross_entropy(
    logits: jax.Array | bands.Enlarged,
    labels: jax.Array,
    *,
    ignore_label: int,
    mask: jax.Array | None = None,
    class_weights: Sequence[float] = (),
    average: str = "valid",
) -> tuple[jax.Array, jax.Array]:
    """Binary cross-entropy of every class by itself: is the pixel of that class, yes or no?

    MMSegmentation's CrossEntropyLoss with use_sigmoid, which Fast-SCNN was trained with there. The
    loss of a pixel is the mean over the classes of -w_c t_c log s(z_c) - (1 - t_c) log(1 - s(z_c)),
    s the sigmoid and t_c 1 for the pixel's own class and 0 for the others.

    Args:
      logits, labels, ignore_label, mask: as in `cross_entropy`.
      class_weights: w_c, what a pixel's own class weighs against the others (pos_weight in PyTorch
        and there). Empty: all 1.
      average: what `count` is. 'valid': the number of valid pixels. 'all': the number of pixels,
        ignored ones included (MMSegmentation's default, avg_non_ignore=False). Neither depends on
        the weights.

    Returns:
      (sum, count), float32 scalars; the loss is sum / count.

    Raises:
      UserError: an option out of its range, or not C class weights.
    """
    num_classes = logits.shape[-1]
    named.check("average", "rule", average, ("valid", "all"))
    weights = pixels.check_weights(class_weights, num_classes)
    inside, valid = pixels.which(labels, num_classes, ignore_label, mask)

    def of_pixels(logits, labels):
        logits = logits.astype(jnp.float32)
        own = jax.nn.softplus(-logits)  # -log s(z); -log(1 - s(z)) is softplus(z)
        own = own if weights is None else weights * own
        is_own = pixels.is_class(labels, num_classes)
        return jnp.where(is_own, own, jax.nn.softplus(logits)).mean(-1)

    count = _count(inside if average == "all" else valid, labels, None)
    return bands.total(of_pixels, logits, valid, labels), count


def ohem_cross_entropy(
    logits: jax.Array | bands.Enlarged,
    labels: jax.Array,
    *,
    ignore_label: int,
    mask: jax.Array | None = None,
    threshold: float = 0.7,
    min_kept: int = 100_000,
    class_weights: Sequence[float] = (),
    average: str = "kept",
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of the hard pixels only (online hard example mining).

    Shrivastava et al. 2016 (arXiv:1604.03540) for regions; for pixels in the form that HRNet's
    authors and MMSegmentation's OHEMPixelSampler train with. With k = `min_kept` times the images
    of the batch, a valid pixel is kept if the probability of its class is below `threshold`, or
    below the (k+1)-th smallest of the batch where that is larger: at least k are kept, ties at the
    limit apart. Where k or fewer are valid the limit is their largest probability, so that all but
    the surest are kept, as there.

    The limit is found by counting (`ops.select.kth_smallest`), not by a sort: the logits are gone
    through once more than by cross_entropy, a few maps [b, h, w] are kept, one of them is read 31
    times, and on a batch that is sharded 31 integers are summed over the devices, whose limit is
    that of the whole batch.

    Args:
      logits, labels, ignore_label, mask, class_weights: as in `cross_entropy`.
      threshold: probability below which a pixel is hard; above 1 every pixel is. 0: no threshold,
        keep the k valid pixels of largest loss, class weights included (and ties with the last).
      min_kept: pixels to keep per image of the batch; they need not be spread evenly over images.
      average: what `count` is. 'kept': the number of kept pixels, or with `class_weights` the sum
        of their weights; 'kept_pixels': their number all the same (MMSegmentation's
        OhemCrossEntropy, whose min_kept is for the whole batch). 'valid', 'all': as in
        `cross_entropy` ('all' is MMSegmentation's OHEMPixelSampler).

    Returns:
      (sum, count), float32 scalars; the loss is sum / count.

    Raises:
      UserError: an option out of its range, or not C class weights.
    """
    num_classes = logits.shape[-1]
    named.check("average", "rule", average, ("kept", "kept_pixels", "valid", "all"))
    pixels.check_number("threshold", threshold, 0)
    pixels.check_number("min_kept", min_kept, 1)
    weights = pixels.check_weights(class_weights, num_classes)
    inside, valid = pixels.which(labels, num_classes, ignore_label, mask)
    surprise = bands.each(_surprise, logits, labels, valid)
    weight = 1.0 if weights is None else pixels.pick(weights, labels)

    images = labels.shape[0] if mask is None else jnp.sum(mask, dtype=jnp.int32)
    # More than an image has is the same as all it has, and cannot overflow.
    k = min(int(min_kept), labels[0].size) * images
    n = jnp.sum(valid, dtype=jnp.int32)
    if threshold:
        probability = jnp.exp(-surprise)
        limit = kth_smallest(probability, jnp.minimum(k, n - 1), valid)
        kept = valid & (probability < jnp.maximum(limit, threshold))
    else:
        loss = surprise * weight
        kept = valid & (loss >= kth_smallest(loss, jnp.maximum(n - k, 0), valid))
    counted = {"valid": valid, "all": inside}.get(average, kept)
    unweighted = average in ("kept_pixels", "all")
    count = _count(counted, labels, None if unweighted else weights)
    return bands.total(_surprise, logits, kept * weight, labels, valid), count


def focal(
    logits: jax.Array | bands.Enlarged,
    labels: jax.Array,
    *,
    ignore_label: int,
    mask: jax.Array | None = None,
    gamma: float = 2.0,
    class_weights: Sequence[float] = (),
    average: str = "valid",
) -> tuple[jax.Array, jax.Array]:
    """Focal loss: cross-entropy times (1 - p)^gamma, p the probability of a pixel's own class.

    Lin et al. 2017 (arXiv:1708.02002, equation 5), over a softmax: classes exclude each other here.
    The paper's own form, one sigmoid per class as detectors (and MMSegmentation) have it, is
    another loss. Alpha is `class_weights`. In memory it is cross_entropy.

    Args:
      logits, labels, ignore_label, mask, class_weights, average: as in `cross_entropy`.
      gamma: 0 is cross-entropy; the larger, the less do pixels count that are right already.

    Returns:
      (sum, count), float32 scalars; the loss is sum / count.

    Raises:
      UserError: an option out of its range, or not C class weights.
    """
    num_classes = logits.shape[-1]
    named.check("average", "rule", average, ("valid", "all"))
    pixels.check_number("gamma", gamma, 0)
    weights = pixels.check_weights(class_weights, num_classes)
    inside, valid = pixels.which(labels, num_classes, ignore_label, mask)

    def of_pixels(logits, labels, valid):
        loss = _surprise(logits, labels, valid)
        if gamma:
            wrong = -jnp.expm1(-loss)  # 1 - p, exact where p is nearly 1
            # Below gamma 1 the power has no derivative at 0; the loss is 0 there, and flat.
            right = wrong <= 0
            loss *= jnp.where(right, 0.0, jnp.where(right, 1.0, wrong) ** gamma)
        return loss

    weight = valid if weights is None else valid * pixels.pick(weights, labels)
    counted = inside if average == "all" else valid
    count = _count(counted, labels, None if average == "all" else weights)
    return bands.total(of_pixels, logits, weight, labels, valid), count


def _surprise(logits: jax.Array, labels: jax.Array, valid: jax.Array) -> jax.Array:
    """-log p of each pixel's own class, float32 [b, h, w], never negative; 0 where not valid."""
    logits = logits.astype(jnp.float32)
    loss = jax.nn.logsumexp(logits, axis=-1) - pixels.pick(logits, labels)
    return jnp.where(valid, loss, 0.0)


def _count(counted: jax.Array, labels: jax.Array, weights: jax.Array | None) -> jax.Array:
    """How many pixels are counted, or what the weights of their classes add up to; float32."""
    if weights is not None:
        return jnp.sum(pixels.pick(weights, labels) * counted)
    # In integers: a float32 sum of ones may stop growing at 2^24.
    return jnp.sum(counted, dtype=jnp.int32).astype(jnp.float32)
