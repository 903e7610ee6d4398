"""SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image Segmentation.

Badrinarayanan, Kendall and Cipolla 2015, arXiv:1511.00561, figure 2; with dropout it is Bayesian
SegNet (Kendall et al. 2015, arXiv:1511.02680, figure 2). The layers and places are those of the
authors' released networks (SegNet-Tutorial): the last layer of the decoder is the classifier, a 3x3
convolution. Here odd sizes are pooled and unpooled without loss, and any other way of growing a
map can take the place of unpooling.
"""

import flax.linen as nn
import jax

from jaxseg import named
from jaxseg.models import vgg
from jaxseg.models.common import BatchNorm, Conv, Dropout, classifier_init
from jaxseg.models.segmenter import MEAN, STD, Segmenter
from jaxseg.models.upsample import METHODS, Upsample
from jaxseg.ops.pool import max_pool_indices

# Of the encoder's five stages: convolutions, and their width in units of the first one's.
STAGES = tuple(zip(vgg.DEPTHS[16], vgg.WIDTHS, strict=True))
DROPPED = (3, 4, 5)  # the stages, counted from 1, whose ends drop values: the central six


def convolve(x: jax.Array, features: int, name: str, train: bool) -> jax.Array:
    """3x3 convolution, normalised and rectified; for use within a compact method."""
    x = Conv(features, kernel=3, name=f"conv{name}")(x)
    return nn.relu(BatchNorm(name=f"norm{name}")(x, train))


class Encoder(nn.Module):
    """VGG-16's convolutions, normalised, whose pooling remembers where each maximum was.

    [b, h, w, 3] -> 'conv1' [b, h, w, c], 'pool1' and 'indices1' [b, ~h/2, ~w/2, c], ..., 'pool5'.
    Parameters are named as in `vgg.VGG` with norms, so that a checkpoint of its fits.
    """

    width: int = 64
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        features = {}
        for stage, (depth, factor) in enumerate(STAGES, 1):
            for i in range(1, depth + 1):
                x = convolve(x, factor * self.width, f"{stage}_{i}", train)
            features[f"conv{stage}"] = x  # [b, h / 2^(stage - 1), ...]
            x, features[f"indices{stage}"] = max_pool_indices(x)  # [b, h / 2^stage, ...]
            if stage in DROPPED:
                x = Dropout(self.dropout)(x, train)
            features[f"pool{stage}"] = x
        return features


class Decoder(nn.Module):
    """The encoder mirrored: -> {'logits': [b, h, w, classes]}, at the image's size.

    Each stage grows the map to the size before the encoder's pooling, then makes it dense.
    """

    num_classes: int
    width: int = 64
    dropout: float = 0.0
    upsample: str = "unpool"
    align_corners: bool = False

    @nn.compact
    def __call__(self, features: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        x = features["pool5"]
        for stage, (depth, factor) in reversed(list(enumerate(STAGES, 1))):
            grow = Upsample(self.upsample, align_corners=self.align_corners, name=f"up{stage}")
            size = features[f"conv{stage}"].shape[1:3]
            x = grow(x, size, features[f"indices{stage}"])  # [b, h / 2^(stage - 1), ...]
            for i in range(depth, 1, -1):
                x = convolve(x, factor * self.width, f"{stage}_{i}", train)
            if stage > 1:  # the first layer of a stage changes the width, as in the encoder
                x = convolve(x, STAGES[stage - 2][1] * self.width, f"{stage}_1", train)
            if stage in DROPPED:
                x = Dropout(self.dropout)(x, train)
        return {"logits": Conv(self.num_classes, 3, kernel_init=classifier_init, name="conv1_1")(x)}


def Model(
    num_classes: int,
    width: int = 64,
    dropout: float = 0.0,
    upsample: str = "unpool",
    align_corners: bool = False,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> Segmenter:
    """SegNet.

    Args:
      width: channels of the first stage and the last; the widest have eight times as many.
      dropout: rate at the ends of the central encoder and decoder stages: 0 is SegNet, 0.5 is
        Bayesian SegNet, whose config.predict.samples is meant to be above 0.
      upsample: how the decoder grows maps, one of `upsample.METHODS`; the paper compares some of
        them in its table 1, on SegNet-Basic.
      align_corners: for upsample="bilinear", see `ops.resize`.

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
    """torchvision's names of VGG-16 with norms -> paths in `Encoder`; the decoder has none."""
    return vgg.torch_names(vgg.VGG(16, norm=True)) if isinstance(part, Encoder) else []
