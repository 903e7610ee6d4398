"""SegNet-Basic: four encoders and four decoders of one 7x7 convolution each.

Badrinarayanan, Kendall and Cipolla 2015, arXiv:1511.00561, section 3.1; with dropout it is Bayesian
SegNet-Basic (arXiv:1511.02680). No decoder has a ReLU. Where the paper leaves room, this follows
the authors' released network (SegNet-Tutorial): "local contrast normalisation" of the input is a
response normalisation over its channels, all convolutions are batch-normalised, the decoders' too,
and a 1x1 convolution classifies. Convolutions here have no bias where a norm follows and undoes it.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg import named
from jaxseg.models.common import Conv, ConvNorm, Dropout, classifier_init
from jaxseg.models.segmenter import Segmenter
from jaxseg.models.upsample import METHODS, Upsample
from jaxseg.ops.pool import max_pool_indices

STAGES = (1, 2, 3, 4)
DROPPED = (3, 4)  # the stages whose ends drop values, in the encoder and in the decoder


def normalise_response(x: jax.Array) -> jax.Array:
    """Divides pixels by (1 + 2e-5 |x|^2)^0.75: bright ones become more like dark ones.

    Krizhevsky et al. 2012 (AlexNet), section 3.3, as in Caffe with its default alpha = 1e-4 and
    beta = 0.75 over 5 channels, here all three of an image: [b, h, w, 3], values in 0..255.
    """
    exact = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    energy = jnp.square(exact).sum(-1, keepdims=True)
    return (exact * (1 + 1e-4 / 5 * energy) ** -0.75).astype(x.dtype)


class Encoder(nn.Module):
    """[b, h, w, 3] -> 'conv1' [b, h, w, c], 'pool1', 'indices1' [b, ~h/2, ~w/2, c] to 'pool4'."""

    width: int = 64
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        features = {}
        x = normalise_response(x)
        for stage in STAGES:
            x = ConvNorm(self.width, 7, name=f"stage{stage}")(x, train)
            features[f"conv{stage}"] = x  # [b, h / 2^(stage - 1), ...]
            x, features[f"indices{stage}"] = max_pool_indices(x)  # [b, h / 2^stage, ...]
            if stage in DROPPED:
                x = Dropout(self.dropout)(x, train)
            features[f"pool{stage}"] = x
        return features


class Decoder(nn.Module):
    """The encoder mirrored, linear but for its norms: -> {'logits': [b, h, w, classes]}."""

    num_classes: int
    width: int = 64
    dropout: float = 0.0
    upsample: str = "unpool"
    align_corners: bool = False

    @nn.compact
    def __call__(self, features: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        x = features["pool4"]
        for stage in reversed(STAGES):
            grow = Upsample(self.upsample, align_corners=self.align_corners, name=f"up{stage}")
            size = features[f"conv{stage}"].shape[1:3]
            x = grow(x, size, features[f"indices{stage}"])  # [b, h / 2^(stage - 1), ...]
            x = ConvNorm(self.width, 7, act=None, name=f"stage{stage}")(x, train)
            if stage in DROPPED:
                x = Dropout(self.dropout)(x, train)
        logits = Conv(self.num_classes, kernel_init=classifier_init, name="classifier")(x)
        return {"logits": logits}


def Model(
    num_classes: int,
    width: int = 64,
    dropout: float = 0.0,
    upsample: str = "unpool",
    align_corners: bool = False,
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
    std: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Segmenter:
    """SegNet-Basic.

    Args:
      width: channels of every layer.
      dropout: rate at the ends of the inner encoders and decoders: 0 is SegNet-Basic, 0.5 is its
        Bayesian form, whose config.predict.samples is meant to be above 0.
      upsample: how the decoder grows maps, one of `upsample.METHODS`.
      align_corners: for upsample="bilinear", see `ops.resize`.
      mean, std: left at 0 and 1, since the network normalises pixels by itself.

    Raises:
      UserError: another `upsample`.
    """
    named.check("config.model.upsample", "way of upsampling", upsample, METHODS)
    return Segmenter(
        backbone=Encoder(width, dropout),
        head=Decoder(num_classes, width, dropout, upsample, align_corners),
        mean=tuple(mean),
        std=tuple(std),
        align_corners=align_corners,
    )


def torch_names(part: nn.Module) -> list[tuple[str, str]]:
    """None: there are no PyTorch weights of the authors."""
    return []
