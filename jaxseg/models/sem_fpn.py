"""Panoptic Feature Pyramid Networks (Kirillov et al. 2019, arXiv:1901.02446): Semantic FPN.

The paper's semantic branch, figure 3, on a feature pyramid (`fpn`). As in MMSegmentation, whose
`fpn` models these are, its convolutions are followed by batch instead of group normalisation.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from jaxseg import models, named
from jaxseg.errors import UserError
from jaxseg.models import fpn
from jaxseg.models.common import Classifier, ConvNorm
from jaxseg.models.segmenter import MEAN, STD, Segmenter
from jaxseg.ops.resize import resize


class SemanticFPNHead(nn.Module):
    """Brings each level of a pyramid to the size of the first and scores their sum.

    {'p1': [b, h/4, w/4, c], ..., 'p4': [b, h/32, w/32, c]} -> {'logits': [b, h/4, w/4, classes]}

    Attributes:
      strides: of 'p1', 'p2', ..., powers of two: a level takes as many steps, of a 3x3 convolution
        and doubling each, as its stride has doublings over the first one's.
    """

    num_classes: int
    strides: tuple[int, ...] = (4, 8, 16, 32)
    channels: int = 128
    dropout: float = 0.1
    align_corners: bool = False

    @nn.compact
    def __call__(self, features: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        size = features["p1"].shape[1:3]
        total = 0
        for i, stride in enumerate(self.strides):
            x = features[f"p{i + 1}"]  # [b, h/stride, w/stride, c]
            doublings = doublings_between(self.strides[0], stride)
            for k in range(max(doublings, 1)):
                x = ConvNorm(self.channels, 3, name=f"level{i}_{k}")(x, train)
                if doublings:
                    x = resize(
                        x, (2 * x.shape[1], 2 * x.shape[2]), align_corners=self.align_corners
                    )
            # Only at sizes that the strides do not divide is there anything left to do here.
            total += resize(x, size, align_corners=self.align_corners)  # [b, h/4, w/4, channels]
        scores = Classifier(self.num_classes, self.dropout, name="classifier")(total, train)
        return {"logits": scores}


def doublings_between(fine: int, coarse: int) -> int:
    """How often `fine` is to be doubled to give `coarse`."""
    return (coarse // fine).bit_length() - 1


def Model(
    num_classes: int,
    backbone: Mapping[str, Any],
    features: tuple[str, ...] = ("stage1", "stage2", "stage3", "stage4"),
    strides: tuple[int, ...] = (4, 8, 16, 32),
    neck_channels: int = 256,
    channels: int = 128,
    upsample: str = "nearest",
    dropout: float = 0.1,
    align_corners: bool = False,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> Segmenter:
    """Semantic FPN on any backbone with the `features`; it wants one that is not dilated.

    Args:
      backbone: name and arguments of a backbone, e.g. `dict(name="resnet", output_stride=32)`.
      features: the backbone's levels that go into the pyramid, finest first.
      strides: of the `features`; from them follows how many convolutions a level takes.
      neck_channels: width of the pyramid.
      channels: width of the head.
      upsample: of the pyramid's top-down path, one of `fpn.METHODS`. The head's is bilinear.
      dropout: of the channels before the classifier.
      align_corners: see `ops.resize`; holds for every bilinear resize, the logits' included.

    Raises:
      UserError: `strides` that are not one power-of-two multiple of the first for each feature, or
        an unknown method.
    """
    features, strides = tuple(features), tuple(strides)
    multiples = [stride / strides[0] for stride in strides]
    if len(strides) != len(features) or any(m not in (1, 2, 4, 8, 16, 32) for m in multiples):
        raise UserError(
            f"config.model.strides={strides}: expected a stride for each of the {len(features)} "
            f"features {features}, each the first one times a power of two, such as (4, 8, 16, 32)"
        )
    named.check("config.model.upsample", "method", upsample, fpn.METHODS)
    return Segmenter(
        backbone=models.get_backbone(backbone),
        neck=fpn.FPN(features, neck_channels, upsample, align_corners),
        head=SemanticFPNHead(num_classes, strides, channels, dropout, align_corners),
        mean=tuple(mean),
        std=tuple(std),
        align_corners=align_corners,
    )


def torch_names(head: SemanticFPNHead) -> list[tuple[str, str]]:
    """MMSegmentation's module names -> paths in `SemanticFPNHead`; see `convert`."""
    # Convolutions alternate with upsamplings, which are numbered too.
    rows = [
        (rf"scale_heads\.(\d+)\.{2 * k}\.(conv|bn)", rf"level\1_{k}/\2")
        for k in range(max(doublings_between(head.strides[0], s) for s in head.strides) or 1)
    ]
    return [*rows, (r"conv_seg", "classifier/conv")]
