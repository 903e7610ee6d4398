"""UPerNet: Unified Perceptual Parsing for Scene Understanding (Xiao et al. 2018, arXiv:1807.10221).

Figure 4 of the paper, without its heads for anything but semantic classes: a feature pyramid whose
top level has seen the whole image through pyramid pooling, and the fusion of all its levels. Unlike
in `fpn`, and as in MMSegmentation, whose `upernet` models these are, every convolution is followed
by batch normalisation and ReLU, the way down is bilinear, and the top level is not smoothed again.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from jaxseg import models
from jaxseg.errors import UserError
from jaxseg.models.common import Classifier, ConvNorm
from jaxseg.models.fcn import auxiliary, select
from jaxseg.models.pspnet import PyramidPooling
from jaxseg.models.segmenter import MEAN, STD, Segmenter
from jaxseg.ops.resize import resize

STAGES = ("stage1", "stage2", "stage3", "stage4")


class UPerHead(nn.Module):
    """Scores a pyramid of the `features`, finest first: -> {'logits': [b, h/4, w/4, classes]}.

    The logits have the size of the first of the `features`.
    """

    num_classes: int
    features: tuple[str, ...] = STAGES
    channels: int = 512
    bins: tuple[int, ...] = (1, 2, 3, 6)
    dropout: float = 0.1
    align_corners: bool = False

    @nn.compact
    def __call__(self, features: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        *fine, top = (select(features, name) for name in self.features)
        top = PyramidPooling(
            self.bins, self.channels, align_corners=self.align_corners, name="pyramid"
        )(top, train)
        top = ConvNorm(self.channels, 3, name="project")(top, train)  # [b, h/32, w/32, channels]
        levels = [
            ConvNorm(self.channels, name=f"lateral{i}")(x, train) for i, x in enumerate(fine)
        ] + [top]
        for i in reversed(range(len(fine))):
            size = levels[i].shape[1:3]
            levels[i] += resize(levels[i + 1], size, align_corners=self.align_corners)
        outputs = {
            f"p{i + 1}": ConvNorm(self.channels, 3, name=f"output{i}")(x, train)
            for i, x in enumerate(levels[:-1])
        } | {f"p{len(levels)}": top}
        x = select(outputs, tuple(outputs), self.align_corners)  # [b, h/4, w/4, 4 channels]
        x = ConvNorm(self.channels, 3, name="fuse")(x, train)  # [b, h/4, w/4, channels]
        return {"logits": Classifier(self.num_classes, self.dropout, name="classifier")(x, train)}


def Model(
    num_classes: int,
    backbone: Mapping[str, Any],
    features: tuple[str, ...] = STAGES,
    channels: int = 512,
    bins: tuple[int, ...] = (1, 2, 3, 6),
    aux_feature: str = "stage3",
    aux_channels: int = 256,
    dropout: float = 0.1,
    align_corners: bool = False,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> Segmenter:
    """UPerNet on any backbone with the `features`; it wants one that is not dilated.

    Args:
      backbone: name and arguments of a backbone, e.g. `dict(name="resnet", output_stride=32)`.
      features: the backbone's levels that go into the pyramid, finest first; the last is pooled.
      channels: width of the pooled levels, of the pyramid and of their fusion.
      bins: cells per side of each level of the pyramid pooling.
      aux_feature, aux_channels: input and width of the auxiliary head, 'aux_logits'; zero
        channels leave it out.
      dropout: of the channels before both classifiers.
      align_corners: see `ops.resize`; holds for every resize, that of the logits included.

    Raises:
      UserError: fewer than two `features`.
    """
    features = tuple(features)
    if len(features) < 2:
        raise UserError(
            f"config.model.features={features}: a pyramid has at least two levels, finest first, "
            f"such as {STAGES}"
        )
    return Segmenter(
        backbone=models.get_backbone(backbone),
        head=UPerHead(num_classes, features, channels, tuple(bins), dropout, align_corners),
        aux_head=auxiliary(num_classes, aux_feature, aux_channels, dropout),
        mean=tuple(mean),
        std=tuple(std),
        align_corners=align_corners,
    )


def torch_names(head: UPerHead) -> list[tuple[str, str]]:
    """MMSegmentation's module names -> paths in `UPerHead`; see `convert`."""
    return [
        (r"psp_modules\.(\d+)\.1\.(conv|bn)", r"pyramid/level\1/\2"),
        (r"bottleneck\.(conv|bn)", r"project/\1"),
        (r"lateral_convs\.(\d+)\.(conv|bn)", r"lateral\1/\2"),
        (r"fpn_convs\.(\d+)\.(conv|bn)", r"output\1/\2"),
        (r"fpn_bottleneck\.(conv|bn)", r"fuse/\1"),
        (r"conv_seg", "classifier/conv"),
    ]
