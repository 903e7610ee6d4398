"""Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation.

DeepLabv3+, Chen et al. 2018, arXiv:1802.02611, figure 2, with the widths and the auxiliary head of
MMSegmentation's `deeplabv3plus` models.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg import models
from jaxseg.models.common import Classifier, ConvNorm, SepConvNorm
from jaxseg.models.fcn import FCNHead
from jaxseg.models.segmenter import MEAN, STD, Segmenter
from jaxseg.ops.resize import resize


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (arXiv:1706.05587, figure 5), its atrous branches separable.

    [b, h, w, c] -> [b, h, w, channels]
    """

    channels: int
    rates: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        pool = x.mean((1, 2), keepdims=True)  # [b, 1, 1, c]
        pool = ConvNorm(self.channels, name="pool")(pool, train)
        branches = [jnp.broadcast_to(pool, (*x.shape[:3], self.channels))]
        branches.append(ConvNorm(self.channels, name="branch0")(x, train))
        for i, rate in enumerate(self.rates, start=1):
            branches.append(SepConvNorm(self.channels, 3, rate, name=f"branch{i}")(x, train))
        x = jnp.concatenate(branches, -1)  # [b, h, w, (2 + rates) * channels]
        return ConvNorm(self.channels, 3, name="project")(x, train)


class DeepLabV3PlusHead(nn.Module):
    """Context from stage 4, edges from stage 1: -> {'logits': [b, h/4, w/4, classes]}."""

    num_classes: int
    rates: tuple[int, ...] = (12, 24, 36)
    channels: int = 512
    low_channels: int = 48
    dropout: float = 0.1
    align_corners: bool = False

    @nn.compact
    def __call__(self, features: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        x = ASPP(self.channels, self.rates, name="aspp")(features["stage4"], train)
        low = ConvNorm(self.low_channels, name="low")(features["stage1"], train)
        x = resize(x, low.shape[1:3], "bilinear", self.align_corners)  # [b, h/4, w/4, channels]
        x = jnp.concatenate([x, low], -1)
        for i in range(2):
            x = SepConvNorm(self.channels, name=f"fuse{i}")(x, train)
        return {"logits": Classifier(self.num_classes, self.dropout, name="classifier")(x, train)}


def Model(
    num_classes: int,
    backbone: Mapping[str, Any],
    rates: tuple[int, ...] = (12, 24, 36),
    channels: int = 512,
    low_channels: int = 48,
    aux_feature: str = "stage3",
    aux_channels: int = 256,
    dropout: float = 0.1,
    align_corners: bool = False,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> Segmenter:
    """DeepLabv3+ on any backbone with features 'stage1' and 'stage4'.

    Args:
      backbone: name and arguments of a backbone, e.g. `dict(name="resnet", output_stride=8)`.
      rates: dilations of the ASPP's separable branches: (12, 24, 36) at output stride 8,
        (6, 12, 18) at 16.
      channels: width of the ASPP and the decoder.
      low_channels: width of the low-level features in the decoder.
      aux_feature, aux_channels: input and width of the auxiliary head, 'aux_logits'; zero
        channels leave it out.
      dropout: of the channels before both classifiers.
      align_corners: see `ops.resize`; holds for every resize, that of the logits included.
    """
    aux = FCNHead(num_classes, aux_feature, aux_channels, 1, False, dropout)
    return Segmenter(
        backbone=models.get_backbone(backbone),
        head=DeepLabV3PlusHead(
            num_classes, tuple(rates), channels, low_channels, dropout, align_corners
        ),
        aux_head=aux if aux_channels else None,
        mean=tuple(mean),
        std=tuple(std),
        align_corners=align_corners,
    )


def torch_names(head: DeepLabV3PlusHead) -> list[tuple[str, str]]:
    """MMSegmentation's module names -> paths in `DeepLabV3PlusHead`; see `convert`."""
    separable = r"(depthwise_conv|pointwise_conv)\.(conv|bn)"
    return [
        (r"image_pool\.1\.(conv|bn)", r"aspp/pool/\1"),
        (r"aspp_modules\.0\.(conv|bn)", r"aspp/branch0/\1"),
        (rf"aspp_modules\.(\d+)\.{separable}", r"aspp/branch\1/\2/\3"),
        (r"bottleneck\.(conv|bn)", r"aspp/project/\1"),
        (r"c1_bottleneck\.(conv|bn)", r"low/\1"),
        (rf"sep_bottleneck\.(\d+)\.{separable}", r"fuse\1/\2/\3"),
        (r"conv_seg", "classifier/conv"),
    ]
