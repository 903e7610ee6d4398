"""STDC's loss: a head that has to find where the labels change."""

import jax
import jax.numpy as jnp

from jaxseg.errors import UserError
from jaxseg.losses import pixels
from jaxseg.losses.overlap import dice
from jaxseg.ops.resize import resize

# Stride -> weight of its edges in the 1x1 convolution that joins them. The paper has it trained;
# nothing can be learned through the threshold, and in the authors' code these are constants.
FUSION = {1: 0.6, 2: 0.3, 4: 0.1}
THRESHOLD = 0.1


def detail(
    logits: jax.Array, labels: jax.Array, *, ignore_label: int, mask: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Binary cross-entropy plus Dice of 'no edge' and 'edge' against `detail_target`.

    Fan et al. 2021, arXiv:2104.13188, detail guidance of low-level features, in the form of
    MMSegmentation's `STDCHead`: the two logits are two sigmoids, whose cross-entropies are averaged
    and which have one Dice ratio per image.

    Every pixel counts, for each is an edge or none; see `detail_target` for ignored ones.

    Args:
      logits: float [b, h, w, 2], any precision; the arithmetic is float32.
      labels: int32 [b, h, w], the classes.
      ignore_label: is not treated apart.
      mask: bool [b]; rows that are False (padding) count nowhere. None: all count.

    Returns:
      (sum over the images, number of images), float32 scalars; the loss is sum / count.

    Raises:
      UserError: other than two logits.
    """
    if logits.shape[-1] != 2:
        raise UserError(
            f"detail: expected an output with two logits per pixel, no edge and edge, not "
            f"{logits.shape[-1]}; config.losses.NAME.output says which output it scores"
        )
    target = detail_target(labels)
    overlap, count = dice(
        logits, target, ignore_label=-1, mask=mask, smooth=0.0, activation="sigmoid",
        classes="together",
    )  # fmt: skip
    z = logits.astype(jnp.float32)
    t = pixels.is_class(target, 2)
    entropy = jnp.mean(jax.nn.softplus(jnp.where(t, -z, z)), (1, 2, 3))  # [b]
    if mask is not None:
        entropy = jnp.where(mask, entropy, 0.0)
    return jnp.sum(entropy) + overlap, count


def detail_target(labels: jax.Array) -> jax.Array:
    """Where the labels have an edge: int32 [b, h, w] -> 1 or 0, int32 [b, h, w].

    A pixel has one at stride s if the Laplacian of the labels (8 in the middle, -1 around), taken
    at every s-th pixel, is positive at the nearest of these: where the label is larger than the
    mean of its neighbours, so on one side of a boundary alone. Outside the image labels are 0.
    Strides 1, 2 and 4 are weighted by `FUSION` and summed; an edge is more than `THRESHOLD`, which
    stride 4 on its own is not. Labels count as the numbers they are, that of ignored pixels too:
    where it is 255, the edge of an ignored region lies inside it.
    """
    size = labels.shape[1:3]
    fused = 0.0
    for stride, weight in FUSION.items():
        around = jax.lax.reduce_window(
            labels, 0, jax.lax.add, (1, 3, 3), (1, stride, stride), ((0, 0), (1, 1), (1, 1))
        )
        edges = 9 * labels[:, ::stride, ::stride] - around > 0  # [b, ceil(h / s), ceil(w / s)]
        edges = resize(edges[..., None].astype(jnp.float32), size, "nearest")[..., 0]
        fused += weight * edges
    return (fused > THRESHOLD).astype(jnp.int32)
