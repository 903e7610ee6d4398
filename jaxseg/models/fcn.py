"""Fully Convolutional Networks for Semantic Segmentation (Long et al. 2015, arXiv:1411.4038).

In the form that toolboxes train: no skips, a dilated backbone in place of them, and a head of 3x3
convolutions on its features, as in MMSegmentation's `fcn` models. One convolution without the
concatenated input is the customary auxiliary head (Zhao et al. 2016, arXiv:1612.01105, section
3.2); one 1x1 convolution over the features of all resolutions is HRNet's (Sun et al. 2019,
arXiv:1904.04514, section 3).
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg import models, named
from jaxseg.models.common import Classifier, ConvNorm
from jaxseg.models.segmenter import MEAN, STD, Segmenter
from jaxseg.ops.resize import resize


class FCNHead(nn.Module):
    """Scores a feature map: features[feature] [b, h, w, c] -> {'logits': [b, h, w, classes]}.

    Attributes:
      feature: a name, or several: those are joined at the size of the first, see `select`.
      num_convs: convolutions in a row, each with batch normalisation and ReLU; may be 0.
      concat_input: join the feature map to the convolved one and convolve once more.
      kernel, dilation: of the convolutions; the one after the join is not dilated.
    """

    num_classes: int
    feature: str | tuple[str, ...] = "stage4"
    channels: int = 512
    num_convs: int = 2
    concat_input: bool = True
    dropout: float = 0.1
    kernel: int = 3
    dilation: int = 1
    align_corners: bool = False

    @nn.compact
    def __call__(self, features: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        x = y = select(features, self.feature, self.align_corners)
        for i in range(self.num_convs):
            y = ConvNorm(self.channels, self.kernel, 1, self.dilation, name=f"conv{i}")(y, train)
        if self.concat_input:
            y = jnp.concatenate([x, y], -1)
            y = ConvNorm(self.channels, self.kernel, name="join")(y, train)
        return {"logits": Classifier(self.num_classes, self.dropout, name="classifier")(y, train)}


def auxiliary(
    num_classes: int, feature: str, channels: int, dropout: float, dilation: int = 1
) -> FCNHead | None:
    """The customary auxiliary head: one convolution on one feature; without channels, none."""
    if not channels:
        return None
    return FCNHead(num_classes, feature, channels, 1, False, dropout, dilation=dilation)


def select(
    features: Mapping[str, jax.Array], names: str | tuple[str, ...], align_corners: bool = False
) -> jax.Array:
    """The feature map of that name, or several resized to the first's size and concatenated.

    Raises:
      UserError: no such feature.
    """
    names = (names,) if isinstance(names, str) else names
    for name in names:
        named.check("config.model (a head's input)", "feature", name, features)
    size = features[names[0]].shape[1:3]
    maps = [resize(features[name], size, "bilinear", align_corners) for name in names]
    return maps[0] if len(maps) == 1 else jnp.concatenate(maps, -1)


def Model(
    num_classes: int,
    backbone: Mapping[str, Any],
    feature: str | tuple[str, ...] = "stage4",
    channels: int = 512,
    num_convs: int = 2,
    kernel: int = 3,
    dilation: int = 1,
    concat_input: bool = True,
    aux_feature: str = "stage3",
    aux_channels: int = 256,
    dropout: float = 0.1,
    align_corners: bool = False,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> Segmenter:
    """FCN on any backbone.

    Args:
      backbone: name and arguments of a backbone, e.g. `dict(name="resnet", output_stride=8)`.
      feature: what the head reads: one of the backbone's features, or several, which it resizes to
        the size of the first and concatenates.
      channels: width of the head.
      num_convs, kernel, concat_input: see `FCNHead`.
      dilation: of the convolutions of both heads.
      aux_feature, aux_channels: input and width of the auxiliary head, 'aux_logits'; zero
        channels leave it out.
      dropout: of the channels before both classifiers.
      align_corners: see `ops.resize`; holds for every resize, that of the logits included.
    """
    feature = feature if isinstance(feature, str) else tuple(feature)
    return Segmenter(
        backbone=models.get_backbone(backbone),
        head=FCNHead(
            num_classes,
            feature,
            channels,
            num_convs,
            concat_input,
            dropout,
            kernel,
            dilation,
            align_corners,
        ),
        aux_head=auxiliary(num_classes, aux_feature, aux_channels, dropout, dilation),
        mean=tuple(mean),
        std=tuple(std),
        align_corners=align_corners,
    )


def torch_names(head: FCNHead) -> list[tuple[str, str]]:
    """MMSegmentation's module names -> paths in `FCNHead`; see `convert`."""
    return [
        (r"convs\.(\d+)\.(conv|bn)", r"conv\1/\2"),
        (r"conv_cat\.(conv|bn)", r"join/\1"),
        (r"conv_seg", "classifier/conv"),
    ]


def torchvision_names(head: FCNHead) -> list[tuple[str, str]]:
    """torchvision's module names of its `FCNHead` -> paths in ours, of one convolution."""
    return [("0", "conv0/conv"), ("1", "conv0/bn"), ("4", "classifier/conv")]
