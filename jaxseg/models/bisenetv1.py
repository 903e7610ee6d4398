"""BiSeNet: Bilateral Segmentation Network for Real-time Semantic Segmentation.

Yu et al. 2018, arXiv:1808.00897, figure 2. Two paths see the image: the spatial path keeps its
detail, at stride 8, and the context path, a backbone to stride 32, has the field of view. In the
form of MMSegmentation's `bisenetv1`, which convolves after each step up in the context path and
gates the fusion by one convolution where the figure has two.
"""

import sys
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg import models
from jaxseg.errors import UserError
from jaxseg.models.common import ConvNorm
from jaxseg.models.fcn import FCNHead, auxiliary, select
from jaxseg.models.segmenter import MEAN, STD, Segmenter
from jaxseg.ops.adaptive_pool import adaptive_avg_pool
from jaxseg.ops.resize import resize

FEATURES = ("stage2", "stage3", "stage4")  # of the context path's backbone: strides 8, 16, 32


class SpatialPath(nn.Module):
    """Three strided convolutions and one 1x1 (section 3.1): [b, h, w, 3] -> [b, h/8, w/8, c]."""

    channels: tuple[int, ...] = (64, 64, 64, 128)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        first, *strided, last = self.channels
        x = ConvNorm(first, 7, 2, name="layer1")(x, train)  # [b, h/2, w/2, 64]
        for i, channels in enumerate(strided, start=2):
            x = ConvNorm(channels, 3, 2, name=f"layer{i}")(x, train)  # h/4, then h/8
        return ConvNorm(last, name=f"layer{len(self.channels)}")(x, train)


class AttentionRefinement(nn.Module):
    """Figure 2b: convolves, and gates every channel by the mean of all: -> [b, h, w, channels]."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = ConvNorm(self.channels, 3, name="conv")(x, train)
        gate = ConvNorm(self.channels, act=None, name="gate")(adaptive_avg_pool(x, (1, 1)), train)
        return x * nn.sigmoid(gate)


class ContextPath(nn.Module):
    """From the tail of a backbone back up to stride 8 (section 3.2).

    Maps at strides 8, 16 and 32 -> two of `channels`: at the size of the first, and of the second.
    """

    channels: int = 128

    @nn.compact
    def __call__(
        self, x8: jax.Array, x16: jax.Array, x32: jax.Array, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        c = self.channels
        tail = ConvNorm(c, name="tail")(adaptive_avg_pool(x32, (1, 1)), train)  # [b, 1, 1, c]
        y = AttentionRefinement(c, name="refine32")(x32, train) + tail
        context16 = resize(y, x16.shape[1:3], "nearest")  # [b, h/16, w/16, c]
        context16 = ConvNorm(c, 3, name="up32")(context16, train)
        y = AttentionRefinement(c, name="refine16")(x16, train) + context16
        context8 = resize(y, x8.shape[1:3], "nearest")  # [b, h/8, w/8, c]
        return ConvNorm(c, 3, name="up16")(context8, train), context16


class FeatureFusion(nn.Module):
    """Figure 2c: joins the paths and adds what a gate selects: two maps -> [b, h, w, channels]."""

    channels: int

    @nn.compact
    def __call__(self, spatial: jax.Array, context: jax.Array, train: bool) -> jax.Array:
        x = jnp.concatenate([spatial, context], -1)
        x = ConvNorm(self.channels, name="conv")(x, train)
        # The ReLU leaves a gate of at least 1/2.
        gate = ConvNorm(self.channels, name="gate")(adaptive_avg_pool(x, (1, 1)), train)
        return x * nn.sigmoid(gate) + x


class BiSeNetV1(nn.Module):
    """[b, h, w, 3] -> {'fused': [b, h/8, w/8, channels], 'context8', 'context16'}.

    'context8' is [b, h/8, w/8, c], 'context16' is [b, h/16, w/16, c].

    Attributes:
      trunk: the context path's backbone, with 'stage2' to 'stage4' at strides 8, 16 and 32.
      spatial_channels: of the spatial path's four convolutions.
      context_channels: c, of the context path.
      channels: of the fusion.
    """

    trunk: nn.Module
    spatial_channels: tuple[int, ...] = (64, 64, 64, 128)
    context_channels: int = 128
    channels: int = 256

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        spatial = SpatialPath(self.spatial_channels, name="spatial")(x, train)
        features = self.trunk(x, train)
        maps = [select(features, name) for name in FEATURES]
        context8, context16 = ContextPath(self.context_channels, name="context")(*maps, train)
        if context8.shape[1:3] != spatial.shape[1:3]:
            raise UserError(
                f"config.model.backbone: 'stage2' of {x.shape[1]}x{x.shape[2]} pixels is "
                f"{context8.shape[1]}x{context8.shape[2]}; BiSeNet takes a backbone that has it at "
                f"stride 8, {spatial.shape[1]}x{spatial.shape[2]}, such as a ResNet with "
                "output_stride=32"
            )
        fused = FeatureFusion(self.channels, name="fusion")(spatial, context8, train)
        return {"fused": fused, "context8": context8, "context16": context16}


def Model(
    num_classes: int,
    backbone: Mapping[str, Any],
    spatial_channels: tuple[int, int, int, int] = (64, 64, 64, 128),
    context_channels: int = 128,
    channels: int = 256,
    aux_channels: int = 64,
    dropout: float = 0.1,
    align_corners: bool = False,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> Segmenter:
    """BiSeNet with any backbone that has 'stage2', 'stage3', 'stage4' at strides 8, 16 and 32.

    Args:
      backbone: that of the context path, e.g. `dict(name="resnet", depth=18, output_stride=32)`.
      spatial_channels: of the four convolutions of the spatial path.
      context_channels: of the context path.
      channels: of the fusion and of the head.
      aux_channels: of the auxiliary heads on the context path's maps at strides 8 and 16,
        'aux_logits_0' and 'aux_logits_1'; zero leaves them out.
      dropout: of the channels before every classifier.
      align_corners: how the logits are enlarged, see `ops.resize`.

    Raises:
      UserError: other than four spatial channels, or a backbone that ends before stride 32.
    """
    spatial_channels = tuple(spatial_channels)
    if len(spatial_channels) != 4:
        raise UserError(
            f"config.model.spatial_channels={spatial_channels}: give four numbers, one for each "
            "convolution of the spatial path"
        )
    aux_heads = (
        auxiliary(num_classes, "context8", aux_channels, dropout),
        auxiliary(num_classes, "context16", aux_channels, dropout),
    )
    return Segmenter(
        backbone=BiSeNetV1(
            models.get_backbone(backbone), spatial_channels, context_channels, channels
        ),
        head=FCNHead(num_classes, "fused", channels, 1, False, dropout),
        aux_head=aux_heads if aux_channels else None,
        mean=tuple(mean),
        std=tuple(std),
        align_corners=align_corners,
    )


def torch_names(backbone: BiSeNetV1) -> list[tuple[str, str]]:
    """MMSegmentation's module names -> paths in `BiSeNetV1`; see `convert`."""
    trunk = sys.modules[type(backbone.trunk).__module__].torch_names(backbone.trunk)
    return [(rf"context_path\.backbone\.{row}", f"trunk/{path}") for row, path in trunk] + [
        (r"spatial_path\.(layer\d)\.(conv|bn)", r"spatial/\1/\2"),
        (r"context_path\.gap_conv\.1\.(conv|bn)", r"context/tail/\1"),
        (r"context_path\.arm(\d+)\.conv_layer\.(conv|bn)", r"context/refine\1/conv/\2"),
        (r"context_path\.arm(\d+)\.atten_conv_layer\.1\.(conv|bn)", r"context/refine\1/gate/\2"),
        (r"context_path\.conv_head(\d+)\.(conv|bn)", r"context/up\1/\2"),
        (r"ffm\.conv1\.(conv|bn)", r"fusion/conv/\1"),
        (r"ffm\.conv_atten\.0\.(conv|bn)", r"fusion/gate/\1"),
    ]
