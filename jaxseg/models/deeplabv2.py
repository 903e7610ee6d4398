"""DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution, and Fully
Connected CRFs (DeepLabv2, Chen et al. 2016, arXiv:1606.00915), without the CRF.

Atrous spatial pyramid pooling here is a sum: each branch scores every class by itself (section
3.2, figures 4 and 7). The same network sees the image at several scales, and each pixel's score is
the largest of them (section 4.1.2). Scores are fused at the resolution of the largest scale's, as
in the authors' release, not at the image's.
"""

import functools
import sys
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg import models
from jaxseg.errors import UserError
from jaxseg.models.common import Conv, Dropout, classifier_init
from jaxseg.models.fcn import select
from jaxseg.models.segmenter import MEAN, STD, Segmenter
from jaxseg.ops.resize import resize


def suffix(scale: float) -> str:
    """What a scale appends to names: '_050' at 0.5."""
    return f"_{round(100 * scale):03d}"


class MultiScale(nn.Module):
    """One backbone, applied to the image at each scale.

    [b, h, w, 3] -> {'stage4_050': ..., 'stage4_075': ..., 'stage4_100': ...} and so on. An axis of
    n pixels shrinks to floor(scale (n - 1)) + 1.
    """

    backbone: nn.Module
    scales: tuple[float, ...]
    align_corners: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        features = {}
        for scale in self.scales:
            h, w = (int(scale * (n - 1)) + 1 for n in x.shape[1:3])
            small = resize(x, (h, w), "bilinear", self.align_corners)
            for name, value in self.backbone(small, train).items():
                features[name + suffix(scale)] = value
        return features


class Branch(nn.Module):
    """The classes' scores at one rate: [b, h, w, c] -> [b, h, w, classes].

    One 3x3 convolution on a ResNet (`hidden` 0); on VGG-16 the layers fc6, fc7 and fc8, the first
    of them atrous (figure 7b).
    """

    num_classes: int
    rate: int
    hidden: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        kernel, rate = 3, self.rate
        for name in ("fc6", "fc7") if self.hidden else ():
            x = nn.relu(Conv(self.hidden, kernel, dilation=rate, name=name)(x))
            x = Dropout(self.dropout)(x, train)
            kernel, rate = 1, 1
        return Conv(
            self.num_classes, kernel, dilation=rate, kernel_init=classifier_init, name="fc8"
        )(x)


class SumASPPHead(nn.Module):
    """Sums the branches' scores, at each scale, and takes the largest over the scales.

    features['stage4_050'], ... -> {'logits': [b, h, w, classes], 'logits_050': ..., ...}. Without
    `scales`, features['stage4'] -> {'logits'}.
    """

    num_classes: int
    feature: str = "stage4"
    rates: tuple[int, ...] = (6, 12, 18, 24)
    hidden: int = 0
    scales: tuple[float, ...] = ()
    dropout: float = 0.5
    align_corners: bool = False

    @nn.compact
    def __call__(self, features: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        branches = [
            Branch(self.num_classes, rate, self.hidden, self.dropout, name=f"branch{i}")
            for i, rate in enumerate(self.rates)
        ]
        scores = {}
        for end in [suffix(scale) for scale in self.scales] or [""]:
            x = select(features, self.feature + end)
            scores["logits" + end] = sum(branch(x, train) for branch in branches)
        if not self.scales:
            return scores
        size = scores["logits" + suffix(max(self.scales))].shape[1:3]
        grown = [resize(y, size, "bilinear", self.align_corners) for y in scores.values()]
        return {"logits": functools.reduce(jnp.maximum, grown), **scores}


def Model(
    num_classes: int,
    backbone: Mapping[str, Any],
    feature: str = "stage4",
    rates: tuple[int, ...] = (6, 12, 18, 24),
    hidden: int = 0,
    scales: tuple[float, ...] = (0.5, 0.75, 1.0),
    dropout: float = 0.5,
    align_corners: bool = False,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> Segmenter:
    """DeepLabv2 on any backbone of output stride 8.

    Args:
      backbone: name and arguments of a backbone, e.g. `dict(name="resnet", depth=101,
        stem="plain", output_stride=8)` or `dict(name="vgg", pool=3, output_stride=8)`.
      feature: which of its features the head reads: "stage4" of ResNet, "pool5" of VGG.
      rates: dilations of the branches: (6, 12, 18, 24) is ASPP-L, (2, 4, 8, 12) ASPP-S and (12,)
        LargeFOV.
      hidden: width of fc6 and fc7 in each branch, 1024 on VGG-16; 0 leaves them out (ResNet).
      scales: of the image, for training and prediction alike; each also has an output of its own,
        'logits_050' at 0.5, for a loss. (): the image as it is, and 'logits' alone.
      dropout: after fc6 and fc7.
      align_corners: see `ops.resize`; holds for every resize, that of the logits included.

    Raises:
      UserError: a scale that is no positive number, or two that agree to the percent.
    """
    scales = tuple(scales)
    if min(scales, default=1) <= 0 or len({suffix(scale) for scale in scales}) < len(scales):
        raise UserError(
            f"config.model.scales={scales}: expected positive numbers that differ by a percent or "
            "more, e.g. (0.5, 0.75, 1.0), or ()"
        )
    inner = models.get_backbone(backbone)
    return Segmenter(
        backbone=MultiScale(inner, scales, align_corners) if scales else inner,
        head=SumASPPHead(
            num_classes, feature, tuple(rates), hidden, scales, dropout, align_corners
        ),
        mean=tuple(mean),
        std=tuple(std),
        align_corners=align_corners,
    )


def torch_names(part: MultiScale | SumASPPHead) -> list[tuple[str, str]]:
    """PyTorch module names -> paths; see `convert`.

    The backbone's are its own: those of released ImageNet weights. MMSegmentation has no DeepLabv2;
    the head's are those of the usual ports, whose branches are a list `conv2d_list`.
    """
    if isinstance(part, MultiScale):
        rows = sys.modules[type(part.backbone).__module__].torch_names(part.backbone)
        return [(pattern, f"backbone/{path}") for pattern, path in rows]
    return [(r"conv2d_list\.(\d+)", r"branch\1/fc8")]
