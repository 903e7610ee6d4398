"""FastFCN: Rethinking Dilated Convolution in the Backbone for Semantic Segmentation.

Wu et al. 2019, arXiv:1903.11816: a backbone that keeps all of its strides, and joint pyramid
upsampling (JPU) after it, which approximates the map that a dilated backbone would give.
On that go the heads that were made for one: PSPNet's, DeepLabv3's, EncNet's or any other.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg import models
from jaxseg.errors import UserError
from jaxseg.models.common import ConvNorm
from jaxseg.models.fcn import select
from jaxseg.models.segmenter import MEAN, STD, Segmenter


class JPU(nn.Module):
    """Puts an upsampled map in the place of the last of `features`; the others stay as they are.

    {'stage2': [b, h/8, w/8, c2], 'stage3': [b, h/16, w/16, c3], 'stage4': [b, h/32, w/32, c4]}
    -> the same with 'stage4': [b, h/8, w/8, rates * channels].

    Attributes:
      features: the levels that are joined, finest first.
      channels: width of each level, and of each branch of the result.
      rates: dilations of the branches' separable convolutions.
    """

    features: tuple[str, ...] = ("stage2", "stage3", "stage4")
    channels: int = 512
    rates: tuple[int, ...] = (1, 2, 4, 8)
    align_corners: bool = False

    @nn.compact
    def __call__(self, features: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        levels = {
            name: ConvNorm(self.channels, 3, name=f"level{i}")(select(features, name), train)
            for i, name in enumerate(self.features)
        }
        x = select(levels, self.features, self.align_corners)  # [b, h/8, w/8, levels * channels]
        c, branches = x.shape[-1], []
        for i, rate in enumerate(self.rates):
            # Separable, but unlike `common.SepConvNorm` not rectified in between.
            y = ConvNorm(c, 3, 1, rate, c, act=None, name=f"branch{i}_depthwise")(x, train)
            branches.append(ConvNorm(self.channels, name=f"branch{i}_pointwise")(y, train))
        return features | {self.features[-1]: jnp.concatenate(branches, -1)}


def Model(
    num_classes: int,
    backbone: Mapping[str, Any],
    head: Mapping[str, Any],
    features: tuple[str, ...] = ("stage2", "stage3", "stage4"),
    neck_channels: int = 512,
    rates: tuple[int, ...] = (1, 2, 4, 8),
    align_corners: bool = False,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> Segmenter:
    """Another model with its backbone's last feature made by joint pyramid upsampling.

    Args:
      backbone: name and arguments of a backbone that is not dilated in place of its strides, e.g.
        `dict(name="resnet", output_stride=32)`.
      head: name and arguments of the model whose heads to put on it, without its backbone, e.g.
        `dict(name="pspnet")`, 'deeplabv3' or 'encnet'. What they read as the last of `features` is
        the upsampled map; everything else is the backbone's.
      features: the backbone's levels that are joined, finest first. The result has the size of the
        first and takes the name of the last.
      neck_channels: width of each level, and of each of the result's branches.
      rates: dilation of each branch.
      align_corners: see `ops.resize`; holds for the heads too.

    Raises:
      UserError: fewer than two levels, no rate, or a model with a neck of its own.
    """
    features, rates = tuple(features), tuple(rates)
    if len(features) < 2:
        raise UserError(f"config.model.features={features}: expected two or more, finest first")
    if not rates or min(rates) < 1:
        raise UserError(f"config.model.rates={rates}: expected dilations, each at least 1")
    common = dict(backbone=backbone, align_corners=align_corners, mean=mean, std=std)
    for key in common.keys() & dict(head).keys():
        raise UserError(f"config.model.head.{key}: give it by config.model.{key} alone")
    models.get_backbone(backbone)  # what is wrong with it is not the head's mistake
    try:
        model = models.get(dict(head) | common, num_classes)
    except UserError as error:
        raise UserError(str(error).replace("config.model.", "config.model.head.")) from error
    if model.neck is not None:
        raise UserError(
            f"config.model.head.name={head['name']!r}: that model has a neck of its own; choose "
            "one whose heads read the backbone's features, such as pspnet, deeplabv3 or encnet"
        )
    return model.clone(neck=JPU(features, neck_channels, rates, align_corners))


def torch_names(neck: JPU) -> list[tuple[str, str]]:
    """MMSegmentation's module names -> paths in `JPU`; see `convert`."""
    return [
        (r"conv_layers\.(\d+)\.0\.(conv|bn)", r"level\1/\2"),
        (
            r"dilation_layers\.(\d+)\.0\.(depthwise|pointwise)_conv\.(conv|bn)",
            r"branch\1_\2/\3",
        ),
    ]
