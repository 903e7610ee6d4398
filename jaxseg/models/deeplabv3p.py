"""Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation.

DeepLabv3+, Chen et al. 2018, arXiv:1802.02611, figure 2. Widths, the auxiliary head and the kernel
of the ASPP's last convolution are by default those of MMSegmentation's `deeplabv3plus` models.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg import models, named
from jaxseg.models.common import Classifier, ConvNorm, SepConvNorm
from jaxseg.models.deeplabv3 import ASPP
from jaxseg.models.fcn import auxiliary, select
from jaxseg.models.segmenter import MEAN, STD, Segmenter
from jaxseg.models.upsample import METHODS, Upsample, doublings

# The backbones stride where others pool: there is nothing to unpool by.
UPSAMPLE = tuple(method for method in METHODS if method != "unpool")


class DeepLabV3PlusHead(nn.Module):
    """Context from stage 4, edges from `low_feature`: -> {'logits': [b, h/4, w/4, classes]}."""

    num_classes: int
    rates: tuple[int, ...] = (12, 24, 36)
    channels: int = 512
    low_channels: int = 48
    dropout: float = 0.1
    align_corners: bool = False
    low_feature: str = "stage1"
    upsample: str = "bilinear"
    image_pool: bool = True
    project: int = 3

    @nn.compact
    def __call__(self, features: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        aspp = ASPP(
            self.channels, self.rates, SepConvNorm, self.image_pool, self.project, name="aspp"
        )
        x = aspp(features["stage4"], train)
        low = ConvNorm(self.low_channels, name="low")(select(features, self.low_feature), train)
        sizes = [low.shape[1:3]]
        if self.upsample not in ("bilinear", "nearest"):
            sizes = doublings(x.shape[1:3], low.shape[1:3])
        for i, size in enumerate(sizes):
            grow = Upsample(self.upsample, align_corners=self.align_corners, name=f"upsample{i}")
            x = grow(x, size)  # in the end [b, h/4, w/4, channels]
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
    low_feature: str = "stage1",
    upsample: str = "bilinear",
    image_pool: bool = True,
    project: int = 3,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> Segmenter:
    """DeepLabv3+ on any backbone with features 'stage4' and `low_feature`.

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
      low_feature: the map, at stride 4 in the paper, that the decoder refines by.
      upsample: how the decoder grows the ASPP's map to that size: one of `UPSAMPLE`.
      image_pool: whether the ASPP has the branch that sees the whole image; the paper's best
        models on Cityscapes (table 7) do without.
      project: kernel of the convolution that joins the ASPP's branches, 1 in the authors' release.

    Raises:
      UserError: an unknown `upsample`.
    """
    named.check("config.model.upsample", "method", upsample, UPSAMPLE)
    return Segmenter(
        backbone=models.get_backbone(backbone),
        head=DeepLabV3PlusHead(
            num_classes,
            tuple(rates),
            channels,
            low_channels,
            dropout,
            align_corners,
            low_feature,
            upsample,
            image_pool,
            project,
        ),
        aux_head=auxiliary(num_classes, aux_feature, aux_channels, dropout),
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
