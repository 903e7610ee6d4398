"""Backbone, neck and heads joined into one model, and its one forward pass."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

# Of ImageNet's training images, RGB, in units of pixel values.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


class Segmenter(nn.Module):
    """image -> backbone -> neck -> head: a dict of everything that has a name.

    The only module that casts and normalises. Logits keep the heads' resolution: whoever needs
    them at the size of the image or label calls `ops.resize.resize` with `align_corners`.

    Attributes:
      backbone: image [b, h, w, 3], train -> dict of features.
      head: dict of features, train -> dict with 'logits' [b, h', w', classes].
      neck: dict of features, train -> dict of features, or None.
      aux_head: like `head`; its logits are 'aux_logits'. Those of a tuple of such heads are
        'aux_logits_0', 'aux_logits_1' and so on.
      mean, std: per channel, RGB, of pixels in 0..255.
      align_corners: how the logits are to be resized.
    """

    backbone: nn.Module
    head: nn.Module
    neck: nn.Module | None = None
    aux_head: nn.Module | tuple[nn.Module, ...] | None = None
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    align_corners: bool = False

    def __call__(
        self, image: jax.Array, train: bool, dtype: Any = jnp.float32
    ) -> dict[str, jax.Array]:
        """image [b, h, w, 3], RGB in 0..255, uint8 or float -> backbone features and head outputs.

        `dtype` is that of the computation; `forward` casts the parameters to the same.
        """
        exact = jnp.promote_types(dtype, jnp.float32)
        mean, std = jnp.asarray(self.mean, exact), jnp.asarray(self.std, exact)
        x = ((image.astype(exact) - mean) / std).astype(dtype)
        outputs = self.backbone(x, train)
        features = self.neck(outputs, train) if self.neck is not None else outputs
        scores = self.head(features, train)
        for name, aux_head in self._aux_heads().items():
            scores = scores | {name: aux_head(features, train)["logits"]}
        clash = outputs.keys() & scores.keys()
        assert not clash, f"heads reuse the backbone's feature names {sorted(clash)}"
        return outputs | scores

    def _aux_heads(self) -> dict[str, nn.Module]:
        """Auxiliary heads by the name of their output."""
        if isinstance(self.aux_head, tuple):
            return {f"aux_logits_{i}": head for i, head in enumerate(self.aux_head)}
        return {} if self.aux_head is None else {"aux_logits": self.aux_head}


def forward(
    model: Segmenter,
    variables: dict[str, Any],
    image: jax.Array,
    *,
    train: bool,
    dtype: Any = jnp.float32,
    rngs: dict[str, jax.Array] | None = None,
) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """The one forward pass, pure: (outputs, the model's new state).

    Args:
      variables: {'params': ..., 'batch_stats': ...}, of any float dtype.
      image: [b, h, w, 3], RGB in 0..255, uint8 or float.
      train: normalise by the batch's statistics (and update the running ones), apply dropout.
      dtype: of the computation, see `compute_dtype`. Parameters are cast to it once, here, but for
        those of normalisation, which is computed in float32 or better.
      rngs: {'dropout': key, 'points': key} when training; a dropout key at test time makes the
        model drop there too, see `common.Dropout`.

    Returns:
      the outputs in `dtype`, and the collections besides 'params': updated if `train`, else as
      they came.
    """
    dtype = compute_dtype(dtype)
    params = cast_params(variables["params"], dtype)
    state = {name: value for name, value in variables.items() if name != "params"}
    if not train:
        outputs = model.apply({"params": params, **state}, image, False, dtype, rngs=rngs)
        return outputs, state
    return model.apply(
        {"params": params, **state}, image, True, dtype, mutable=list(state), rngs=rngs
    )


def compute_dtype(dtype: Any) -> jnp.dtype:
    """The dtype that a config names: 'auto' is bfloat16, but float32 on a CPU."""
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(dtype)


def cast_params(params: Any, dtype: Any) -> Any:
    """Casts parameters to `dtype`, but those of normalisation (that have a scale) to float32+."""
    flat = traverse_util.flatten_dict(params)
    exact = jnp.promote_types(dtype, jnp.float32)
    return traverse_util.unflatten_dict(
        {
            path: leaf.astype(exact if (*path[:-1], "scale") in flat else dtype)
            for path, leaf in flat.items()
        }
    )
