"""Rethinking Atrous Convolution for Semantic Image Segmentation.

DeepLabv3, Chen et al. 2017, arXiv:1706.05587, figure 5, with the widths and the auxiliary head of
MMSegmentation's `deeplabv3` models. Output stride and multi-grid are the backbone's.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxseg import models
from jaxseg.models.common import Classifier, ConvNorm
from jaxseg.models.fcn import auxiliary, select
from jaxseg.models.segmenter import MEAN, STD, Segmenter


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a 1x1, one 3x3 convolution per rate, and the whole image.

    [b, h, w, c] -> [b, h, w, channels]

    Attributes:
      branch: the module of the 3x3 convolutions: `ConvNorm`, or `SepConvNorm` as in DeepLabv3+.
      image_pool: whether there is the branch that sees the whole image.
      project: kernel of the convolution that joins the branches: 1 in the paper.
    """

    channels: int
    rates: tuple[int, ...]
    branch: type[nn.Module] = ConvNorm
    image_pool: bool = True
    project: int = 3

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        branches = []
        if self.image_pool:
            pool = x.mean((1, 2), keepdims=True)  # [b, 1, 1, c]
            pool = ConvNorm(self.channels, name="pool")(pool, train)
            branches.append(jnp.broadcast_to(pool, (*x.shape[:3], self.channels)))
        branches.append(ConvNorm(self.channels, name="branch0")(x, train))
        for i, rate in enumerate(self.rates, start=1):
            conv = self.branch(self.channels, 3, dilation=rate, name=f"branch{i}")
            branches.append(conv(x, train))
        x = jnp.concatenate(branches, -1)  # [b, h, w, (2 + rates) * channels]
        return ConvNorm(self.channels, self.project, name="project")(x, train)


class ASPPHead(nn.Module):
    """features[feature] [b, h, w, c] -> {'logits': [b, h, w, classes]}.

    Attributes:
      project: kernel of the convolution that joins the ASPP's branches.
      refine: 3x3 convolutions after it.
    """

    num_classes: int
    feature: str = "stage4"
    rates: tuple[int, ...] = (12, 24, 36)
    channels: int = 512
    dropout: float = 0.1
    project: int = 3
    refine: int = 0

    @nn.compact
    def __call__(self, features: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        x = select(features, self.feature)
        x = ASPP(self.channels, self.rates, project=self.project, name="aspp")(x, train)
        for i in range(self.refine):
            x = ConvNorm(self.channels, 3, name=f"refine{i}")(x, train)
        return {"logits": Classifier(self.num_classes, self.dropout, name="classifier")(x, train)}


def Model(
    num_classes: int,
    backbone: Mapping[str, Any],
    feature: str = "stage4",
    rates: tuple[int, ...] = (12, 24, 36),
    channels: int = 512,
    project: int = 3,
    refine: int = 0,
    aux_feature: str = "stage3",
    aux_channels: int = 256,
    dropout: float = 0.1,
    align_corners: bool = False,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> Segmenter:
    """DeepLabv3 on any backbone.

    Args:
      backbone: name and arguments of a backbone. The paper's is `dict(name="resnet", depth=101,
        output_stride=16, multi_grid=(2, 4, 8))`, its grid (1, 2, 4) times the stage's rate 2.
      feature: which of its features the head reads.
      rates: dilations of the ASPP's 3x3 convolutions, as many as you like: (6, 12, 18) at output
        stride 16, (12, 24, 36) at 8.
      channels: width of the ASPP; the paper's is 256.
      project: kernel of the convolution that joins the ASPP's branches: 1 in the paper (section
        3.3) and in torchvision, 3 in MMSegmentation.
      refine: 3x3 convolutions between that and the classifier: 1 in torchvision.
      aux_feature, aux_channels: input and width of the auxiliary head, 'aux_logits'; zero
        channels (as in the paper) leave it out.
      dropout: of the channels before both classifiers.
      align_corners: see `ops.resize`; holds for the logits.
    """
    return Segmenter(
        backbone=models.get_backbone(backbone),
        head=ASPPHead(num_classes, feature, tuple(rates), channels, dropout, project, refine),
        aux_head=auxiliary(num_classes, aux_feature, aux_channels, dropout),
        mean=tuple(mean),
        std=tuple(std),
        align_corners=align_corners,
    )


def torch_names(head: ASPPHead) -> list[tuple[str, str]]:
    """MMSegmentation's module names -> paths in `ASPPHead`; see `convert`."""
    return [
        (r"image_pool\.1\.(conv|bn)", r"aspp/pool/\1"),
        (r"aspp_modules\.(\d+)\.(conv|bn)", r"aspp/branch\1/\2"),
        (r"bottleneck\.(conv|bn)", r"aspp/project/\1"),
        (r"conv_seg", "classifier/conv"),
    ]


def torchvision_names(head: ASPPHead) -> list[tuple[str, str]]:
    """torchvision's module names of its `DeepLabHead` -> paths in `ASPPHead`; see `convert`."""
    last, table = len(head.rates) + 1, []
    for i, leaf in enumerate(("conv", "bn")):
        table += [
            # The branch of the whole image has a pool, without parameters, first.
            (rf"0\.convs\.{last}\.{i + 1}", f"aspp/pool/{leaf}"),
            (rf"0\.convs\.(\d+)\.{i}", rf"aspp/branch\1/{leaf}"),
            (rf"0\.project\.{i}", f"aspp/project/{leaf}"),
            (rf"{i + 1}", f"refine0/{leaf}"),
        ]
    return [*table, ("4", "classifier/conv")]


def torchvision_values(head: ASPPHead, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict for `torchvision_names`: its ASPP joins the whole image's branch last."""
    key = "classifier.0.project.0.weight"  # [out, in, 1, 1]
    if key not in state_dict:
        return dict(state_dict)
    return {**state_dict, key: np.roll(state_dict[key], head.channels, axis=1)}
