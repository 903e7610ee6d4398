"""What the losses share: which pixels count, the probability of a pixel's own class, weights."""

import math
import numbers
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxseg.errors import UserError


def which(
    labels: jax.Array, num_classes: int, ignore_label: int, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """(inside, valid), bool [b, h, w]: pixels of the rows in `mask`, and those of them to learn.

    A pixel is valid when its label is in 0..C-1 and is not `ignore_label`.

    Args:
      labels: int32 [b, h, w].
      num_classes: C.
      ignore_label: label of pixels that do not count.
      mask: bool [b]; rows that are False (padding) count nowhere. None: all count.
    """
    rows = jnp.ones(labels.shape[:1], bool) if mask is None else mask
    inside = jnp.broadcast_to(rows[:, None, None], labels.shape)
    return inside, inside & (labels != ignore_label) & (labels >= 0) & (labels < num_classes)


def is_class(labels: jax.Array, num_classes: int) -> jax.Array:
    """bool [b, h, w, C]: where a pixel's label is the class.

    Compared with an iota, a label that is no class picks nothing, where an index out of range would
    give NaN, and NaN times weight 0 is NaN. The compare fuses into the sums around it; the gradient
    of take_along_axis would be a scatter.
    """
    return labels[..., None] == jax.lax.broadcasted_iota(jnp.int32, (1, 1, 1, num_classes), 3)


def pick(values: jax.Array, labels: jax.Array) -> jax.Array:
    """The value of each pixel's own class, [..., C] and [b, h, w] -> [b, h, w]; 0 without one."""
    return jnp.sum(jnp.where(is_class(labels, values.shape[-1]), values, 0.0), axis=-1)


def check_weights(class_weights: Sequence[float] | None, num_classes: int) -> jax.Array | None:
    """`class_weights` as float32 [C], or None where it is empty.

    Raises:
      UserError: not C numbers.
    """
    if isinstance(class_weights, str) or any(isinstance(w, str) for w in class_weights or ()):
        raise UserError(
            f"class_weights={class_weights!r}: a loss takes numbers, one per class. Training "
            "replaces 'median_frequency' by the weights it computes from the training data; "
            "elsewhere give the numbers"
        )
    if class_weights is None or len(class_weights) == 0:
        return None
    if len(class_weights) != num_classes:
        raise UserError(
            f"class_weights has {len(class_weights)} numbers, the model has {num_classes} classes: "
            "give one weight per class"
        )
    return jnp.asarray(class_weights, jnp.float32)


def check_number(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raises `UserError` unless `value` is a number in [low, high)."""
    if not (isinstance(value, numbers.Real) and low <= value < high):
        wanted = f"of at least {low:g}" if high == math.inf else f"in [{low:g}, {high:g})"
        raise UserError(f"{name}={value!r}: expected a number {wanted}")
