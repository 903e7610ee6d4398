"""Context Encoding for Semantic Segmentation (Zhang et al. 2018, arXiv:1803.08904): EncNet.

The context encoding module, and the branch that predicts which classes an image shows,
with the widths of MMSegmentation's `encnet` models. As there and in the authors' release, what is
encoded has passed a convolution of its own, and the attended map is added to the one before. The
paper has a second such module with its loss on the feature before; here that one has the customary
auxiliary head.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg import models
from jaxseg.errors import UserError
from jaxseg.models.common import BatchNorm, Classifier, ConvNorm
from jaxseg.models.fcn import auxiliary, select
from jaxseg.models.segmenter import MEAN, STD, Segmenter


def uniform(low: float, high: float) -> Callable[..., jax.Array]:
    """An initialiser that draws evenly from [low, high)."""
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, low, high)


class Encoding(nn.Module):
    """The paper's Encoding Layer: what pixels add to the codewords nearest to them, summed.

    [b, h, w, c] -> [b, c, codes], float32 (float64 for float64 inputs) whatever the dtype of `x`:
    e_k = sum_i a_ik (x_i - d_k) with a_ik = softmax_k(-s_k |x_i - d_k|^2). 'codewords' are d,
    'scale' is -s.
    """

    codes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = x.shape[-1]
        bound = (self.codes * c) ** -0.5
        d = self.param("codewords", uniform(-bound, bound), (c, self.codes), jnp.float32)
        scale = self.param("scale", uniform(-1.0, 0.0), (self.codes,), jnp.float32)
        # Distances are large, and the softmax sees their differences.
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        exact = jax.lax.Precision.HIGHEST
        # As matrix products: the residuals themselves would be [b, h, w, c, codes].
        cross = jnp.einsum("bhwc,ck->bhwk", x, d, precision=exact)
        distance = jnp.square(x).sum(-1, keepdims=True) - 2 * cross + jnp.square(d).sum(0)
        weights = nn.softmax(scale * distance)  # [b, h, w, codes]
        pixels = jnp.einsum("bhwc,bhwk->bck", x, weights, precision=exact)
        return pixels - d * weights.sum((1, 2))[:, None]


class ContextEncoding(nn.Module):
    """Lets the whole image say which channels matter ("featuremap attention").

    [b, h, w, c] -> that map with its channels scaled, and the image's encoding [b, c].
    """

    codes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        c = x.shape[-1]
        y = ConvNorm(c, name="project")(x, train)
        e = Encoding(self.codes, name="encoding")(y)  # [b, c, codes]
        # A codeword is what the norm takes for a channel.
        e = nn.relu(BatchNorm(name="bn")(e, train)).mean(-1).astype(x.dtype)  # [b, c]
        gamma = nn.sigmoid(nn.Dense(c, name="fc")(e))
        return nn.relu(x + x * gamma[:, None, None]), e


class EncHead(nn.Module):
    """features[feature] -> {'logits': [b, h, w, classes], 'presence_logits': [b, classes]}.

    'presence_logits' score whether the image shows a class at all, for the loss
    `presence_cross_entropy` (the paper's SE-loss); nothing else depends on them.
    """

    num_classes: int
    feature: str = "stage4"
    channels: int = 512
    codes: int = 32
    dropout: float = 0.1

    @nn.compact
    def __call__(self, features: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        x = select(features, self.feature)  # [b, h/8, w/8, c]
        x = ConvNorm(self.channels, 3, name="reduce")(x, train)  # [b, h/8, w/8, channels]
        x, encoding = ContextEncoding(self.codes, name="context")(x, train)
        return {
            "logits": Classifier(self.num_classes, self.dropout, name="classifier")(x, train),
            "presence_logits": nn.Dense(self.num_classes, name="presence")(encoding),
        }


def Model(
    num_classes: int,
    backbone: Mapping[str, Any],
    feature: str = "stage4",
    channels: int = 512,
    codes: int = 32,
    aux_feature: str = "stage3",
    aux_channels: int = 256,
    dropout: float = 0.1,
    align_corners: bool = False,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> Segmenter:
    """EncNet on any backbone.

    Args:
      backbone: name and arguments of a backbone, e.g. `dict(name="resnet", output_stride=8)`.
      feature: which of its features the head reads.
      channels: width of the head, and of the encoding.
      codes: K, the number of codewords.
      aux_feature, aux_channels: input and width of the auxiliary head, 'aux_logits'; zero
        channels leave it out.
      dropout: of the channels before both classifiers.
      align_corners: see `ops.resize`; holds for the logits.

    Raises:
      UserError: no codeword.
    """
    if codes < 1:
        raise UserError(f"config.model.codes={codes}: expected at least 1 codeword")
    return Segmenter(
        backbone=models.get_backbone(backbone),
        head=EncHead(num_classes, feature, channels, codes, dropout),
        aux_head=auxiliary(num_classes, aux_feature, aux_channels, dropout),
        mean=tuple(mean),
        std=tuple(std),
        align_corners=align_corners,
    )


def torch_names(head: EncHead) -> list[tuple[str, str]]:
    """MMSegmentation's module names -> paths in `EncHead`; see `convert`."""
    return [
        (r"bottleneck\.(conv|bn)", r"reduce/\1"),
        (r"enc_module\.encoding_project\.(conv|bn)", r"context/project/\1"),
        (r"enc_module\.encoding\.0\.(codewords|scale)", r"context/encoding/\1"),
        (r"enc_module\.encoding\.1", "context/bn"),
        (r"enc_module\.fc\.0", "context/fc"),
        (r"se_layer", "presence"),
        (r"conv_seg", "classifier/conv"),
    ]
