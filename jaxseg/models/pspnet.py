"""Pyramid Scene Parsing Network (Zhao et al. 2017, arXiv:1612.01105), figure 3.

With the widths of MMSegmentation's `pspnet` models: every level of the pyramid is reduced to
`channels`, which is the paper's 1/N for 2048 channels and N = 4 levels.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg import models, named
from jaxseg.models.common import Classifier, ConvNorm
from jaxseg.models.fcn import auxiliary, select
from jaxseg.models.segmenter import MEAN, STD, Segmenter
from jaxseg.ops.adaptive_pool import adaptive_avg_pool, adaptive_max_pool
from jaxseg.ops.resize import resize

POOLS = {"average": adaptive_avg_pool, "max": adaptive_max_pool}


class PyramidPooling(nn.Module):
    """Joins a map to summaries of its regions, coarse to fine (section 3.1).

    [b, h, w, c] -> [b, h, w, c + bins * channels], or c + bins * c where it does not `reduce`.
    """

    bins: tuple[int, ...]
    channels: int
    pool: str = "average"
    reduce: bool = True
    align_corners: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        levels = [x]
        for i, k in enumerate(self.bins):
            y = POOLS[self.pool](x, (k, k))  # [b, k, k, c]
            if self.reduce:
                y = ConvNorm(self.channels, name=f"level{i}")(y, train)
            levels.append(resize(y, x.shape[1:3], "bilinear", self.align_corners))
        return jnp.concatenate(levels, -1)


class PSPHead(nn.Module):
    """Scores a map in its context: features[feature] -> {'logits': [b, h, w, classes]}."""

    num_classes: int
    feature: str = "stage4"
    channels: int = 512
    bins: tuple[int, ...] = (1, 2, 3, 6)
    pool: str = "average"
    reduce: bool = True
    dropout: float = 0.1
    align_corners: bool = False

    @nn.compact
    def __call__(self, features: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        x = select(features, self.feature)  # [b, h/8, w/8, c]
        x = PyramidPooling(
            self.bins, self.channels, self.pool, self.reduce, self.align_corners, name="pyramid"
        )(x, train)
        x = ConvNorm(self.channels, 3, name="project")(x, train)  # [b, h/8, w/8, channels]
        return {"logits": Classifier(self.num_classes, self.dropout, name="classifier")(x, train)}


def Model(
    num_classes: int,
    backbone: Mapping[str, Any],
    feature: str = "stage4",
    channels: int = 512,
    bins: tuple[int, ...] = (1, 2, 3, 6),
    pool: str = "average",
    reduce: bool = True,
    aux_feature: str = "stage3",
    aux_channels: int = 256,
    dropout: float = 0.1,
    align_corners: bool = False,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> Segmenter:
    """PSPNet on any backbone. `bins`, `pool` and `reduce` are the rows of the paper's table 1.

    Args:
      backbone: name and arguments of a backbone, e.g. `dict(name="resnet", output_stride=8)`.
      feature: which of its features the head reads.
      channels: width of the pyramid's levels and of the head.
      bins: cells per side of each level; (1,) is global pooling.
      pool: of the cells, "average" or "max".
      reduce: convolve each level down to `channels` (the paper's "DR").
      aux_feature, aux_channels: input and width of the auxiliary head, 'aux_logits'; zero
        channels leave it out.
      dropout: of the channels before both classifiers.
      align_corners: see `ops.resize`; holds for every resize, that of the logits included.
    """
    named.check("config.model.pool", "pooling", pool, POOLS)
    return Segmenter(
        backbone=models.get_backbone(backbone),
        head=PSPHead(
            num_classes, feature, channels, tuple(bins), pool, reduce, dropout, align_corners
        ),
        aux_head=auxiliary(num_classes, aux_feature, aux_channels, dropout),
        mean=tuple(mean),
        std=tuple(std),
        align_corners=align_corners,
    )


def torch_names(head: PSPHead) -> list[tuple[str, str]]:
    """MMSegmentation's module names -> paths in `PSPHead`; see `convert`."""
    return [
        (r"psp_modules\.(\d+)\.1\.(conv|bn)", r"pyramid/level\1/\2"),
        (r"bottleneck\.(conv|bn)", r"project/\1"),
        (r"conv_seg", "classifier/conv"),
    ]
