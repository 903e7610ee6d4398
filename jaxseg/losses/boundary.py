"""U-Net's loss: cross-entropy in which the gaps between cells weigh more."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxseg import named
from jaxseg.errors import UserError
from jaxseg.losses import pixels
from jaxseg.ops.distance import border_weights


def boundary_weighted_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    ignore_label: int,
    mask: jax.Array | None = None,
    w0: float = 10.0,
    sigma: float = 5.0,
    cells: Sequence[int] = (),
    class_weights: Sequence[float] = (),
    average: str = "valid",
) -> tuple[jax.Array, jax.Array]:
    """Softmax cross-entropy of each pixel, times w = wc + w0 exp(-(d1 + d2)^2 / (2 sigma^2)).

    Ronneberger et al. 2015, arXiv:1505.04597, equations 1 and 2. d1 and d2 are the pixel's
    distances to the borders of the two nearest cells; a cell is a connected region (4 neighbours)
    of one of the classes in `cells`. Where these are a foreground, the loss dwells on the
    background between objects that nearly touch, as in the paper; where they are all classes, as
    in a street scene, on both sides of every boundary. Weights are computed on the device, from
    `labels` as they come. Pixels that are not valid belong to no cell.

    Args:
      logits: float [b, h, w, C], any precision; the arithmetic is float32.
      labels: int32 [b, h, w].
      ignore_label: label of pixels that do not count; neither do labels outside 0..C-1.
      mask: bool [b]; rows that are False (padding) count nowhere. None: all count.
      w0: weight of a border between two cells that touch.
      sigma: how fast it falls with their distance, pixels; about 5 in the paper.
      cells: classes whose regions are cells. Empty: class 1 of two, each class of more.
      class_weights: wc, C numbers; in the paper they balance how frequent the classes are. Empty:
        all 1.
      average: what `count` is: 'valid', the sum of the valid pixels' weights w; 'all', the number
        of pixels, ignored ones included.

    Returns:
      (sum, count), float32 scalars; the loss is sum / count.

    Raises:
      UserError: an option out of its range, or not C class weights.
    """
    num_classes = logits.shape[-1]
    named.check("average", "rule", average, ("valid", "all"))
    pixels.check_number("w0", w0, 0)
    pixels.check_number("sigma", sigma, 1e-3)
    cells = tuple(cells) or ((1,) if num_classes == 2 else tuple(range(num_classes)))
    if not all(0 <= c < num_classes for c in cells):
        raise UserError(f"cells={cells}: expected classes from 0 to {num_classes - 1}")
    class_weights = pixels.check_weights(class_weights, num_classes)

    logits = logits.astype(jnp.float32)
    inside, valid = pixels.which(labels, num_classes, ignore_label, mask)
    in_cell = valid & jnp.isin(labels, jnp.array(cells, labels.dtype))
    balance = 1.0 if class_weights is None else pixels.pick(class_weights, labels)
    weights = valid * (balance + border_weights(labels, in_cell, w0, sigma))
    loss = jax.nn.logsumexp(logits, axis=-1) - pixels.pick(logits, labels)
    if average == "all":
        # Counted in integers: a float32 sum of ones may stop growing at 2^24.
        count = jnp.sum(inside, dtype=jnp.int32).astype(jnp.float32)
    else:
        count = jnp.sum(weights)
    return jnp.sum(weights * loss), count
