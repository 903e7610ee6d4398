"""Deep Dual-resolution Networks for Road Scenes (Hong et al. 2021, arXiv:2101.06085).

After a common stem the network runs at two resolutions: a high one that stays at stride 8 and a low
one that goes down to 64. Twice they exchange what they have (bilateral fusion); at the end the low
one is pooled at many scales (DAPPM) and added to the high one. Sizes and widths are those of
MMSegmentation's `ddrnet` models.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.models.common import BatchNorm, Classifier, Conv, ConvNorm
from jaxseg.models.resnet import shortcut
from jaxseg.models.segmenter import MEAN, STD, Segmenter
from jaxseg.ops.adaptive_pool import adaptive_avg_pool
from jaxseg.ops.pool import avg_pool_padded
from jaxseg.ops.resize import resize


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, not rectified after: what is fused are the sums."""

    width: int
    strides: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = ConvNorm(self.width, 3, self.strides, name="conv1")(x, train)
        y = ConvNorm(self.width, 3, act=None, name="conv2")(y, train)
        return shortcut(x, y, self.strides, False, train) + y


class Bottleneck(nn.Module):
    """1x1, 3x3, and 1x1 up to twice the width, not rectified after."""

    width: int
    strides: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = ConvNorm(self.width, name="conv1")(x, train)
        y = ConvNorm(self.width, 3, self.strides, name="conv2")(y, train)
        y = ConvNorm(2 * self.width, act=None, name="conv3")(y, train)
        return shortcut(x, y, self.strides, False, train) + y


def basic_blocks(
    name: str, x: jax.Array, width: int, blocks: int, train: bool, strides: int = 1
) -> jax.Array:
    """Basic blocks in a row, rectified between them but not after; call it inside a module."""
    for i in range(blocks):
        x = BasicBlock(width, 1 if i else strides, name=f"{name}_{i}")(
            nn.relu(x) if i else x, train
        )
    return x


def stem(x: jax.Array, width: int, blocks: int, train: bool) -> jax.Array:
    """[b, h, w, 3] -> [b, h/8, w/8, 2 width], PIDNet's too; call it inside a module."""
    x = ConvNorm(width, 3, 2, name="stem0")(x, train)  # [b, h/2, w/2, width]
    x = ConvNorm(width, 3, 2, name="stem1")(x, train)  # [b, h/4, w/4, width]
    x = nn.relu(basic_blocks("stage2", x, width, blocks, train))
    return nn.relu(basic_blocks("stage3", x, 2 * width, blocks, train, 2))


class BilateralFusion(nn.Module):
    """Each resolution receives the other: (high, low) -> (high, low), of equal shapes.

    The high one goes down by `halvings` strided convolutions, the width doubling from one to the
    next; the low one goes up by interpolation. Both are read rectified, and sums are returned.
    """

    halvings: int

    @nn.compact
    def __call__(self, high: jax.Array, low: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        up = ConvNorm(high.shape[-1], act=None, name="compress")(nn.relu(low), train)
        down = nn.relu(high)
        for i in range(self.halvings):
            left = self.halvings - 1 - i
            act = nn.relu if left else None
            down = ConvNorm(low.shape[-1] // 2**left, 3, 2, act=act, name=f"down{i}")(down, train)
        return high + resize(up, high.shape[1:3]), low + down


class NormConv(nn.Module):
    """Batch normalisation, ReLU and a convolution without bias, in this order."""

    features: int
    kernel: int = 1
    groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.relu(BatchNorm(name="bn")(x, train))
        return Conv(self.features, self.kernel, groups=self.groups, use_bias=False, name="conv")(x)


def pooled(x: jax.Array) -> list[jax.Array]:
    """A map at half, a quarter and an eighth of its size, and its mean; windows overlap by half."""
    levels = [avg_pool_padded(x, 2 * stride + 1, stride, stride) for stride in (2, 4, 8)]
    return [*levels, adaptive_avg_pool(x, (1, 1))]


class DAPPM(nn.Module):
    """Deep aggregation pyramid pooling (equation 2): each scale is added to what came before it.

    [b, h, w, c] -> [b, h, w, features]; `width` is that of each scale.
    """

    width: int
    features: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        scales = [NormConv(self.width, name="scale0")(x, train)]
        for i, level in enumerate(pooled(x)):
            y = NormConv(self.width, name=f"scale{i + 1}")(level, train)
            y = resize(y, x.shape[1:3]) + scales[-1]
            scales.append(NormConv(self.width, 3, name=f"process{i}")(y, train))
        y = NormConv(self.features, name="compress")(jnp.concatenate(scales, -1), train)
        return y + NormConv(self.features, name="shortcut")(x, train)


class DDRNet(nn.Module):
    """[b, h, w, 3] -> {'high': [b, h/8, w/8, 2c], 'fused': [b, h/8, w/8, 4c]}.

    'high' is the high resolution after the first fusion; neither is rectified. Attributes are
    those of `Model`.
    """

    channels: int = 32
    ppm_channels: int = 128

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        c = self.channels
        x = stem(x, c, 2, train)  # [b, h/8, w/8, 2c]
        high = basic_blocks("high4", x, 2 * c, 2, train)  # [b, h/8, w/8, 2c]
        low = basic_blocks("low4", x, 4 * c, 2, train, 2)  # [b, h/16, w/16, 4c]
        high, low = BilateralFusion(1, name="fusion4")(high, low, train)
        features = {"high": high}
        high = basic_blocks("high5", nn.relu(high), 2 * c, 2, train)  # [b, h/8, w/8, 2c]
        low = basic_blocks("low5", nn.relu(low), 8 * c, 2, train, 2)  # [b, h/32, w/32, 8c]
        high, low = BilateralFusion(2, name="fusion5")(high, low, train)
        high = Bottleneck(2 * c, name="high6_0")(nn.relu(high), train)  # [b, h/8, w/8, 4c]
        low = Bottleneck(8 * c, 2, name="low6_0")(nn.relu(low), train)  # [b, h/64, w/64, 16c]
        low = DAPPM(self.ppm_channels, 4 * c, name="pyramid")(low, train)  # [b, h/64, w/64, 4c]
        return features | {"fused": high + resize(low, high.shape[1:3])}


class SegmentationHead(nn.Module):
    """A 3x3 convolution, normalised before and after, and a score: [b, h, w, c] -> classes."""

    num_classes: int
    channels: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = NormConv(self.channels, 3, name="conv")(x, train)
        x = nn.relu(BatchNorm(name="bn")(x, train))
        return Classifier(self.num_classes, self.dropout, name="classifier")(x, train)


class DDRHead(nn.Module):
    """-> {'logits': [b, h/8, w/8, classes], 'aux_logits': likewise, of the high resolution}.

    The second is for training (deep supervision); prediction does without it.
    """

    num_classes: int
    channels: int = 64
    dropout: float = 0.0

    @nn.compact
    def __call__(self, features: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        head = SegmentationHead(self.num_classes, self.channels, self.dropout, name="main")
        aux = SegmentationHead(self.num_classes, self.channels, name="aux")
        return {
            "logits": head(features["fused"], train),
            "aux_logits": aux(features["high"], train),
        }


def Model(
    num_classes: int,
    channels: int = 32,
    ppm_channels: int = 128,
    head_channels: int = 64,
    dropout: float = 0.0,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> Segmenter:
    """DDRNet-23-slim; DDRNet-23 has 64 channels, and 128 in the head.

    Args:
      channels: c, width of the stem, from which all other widths follow.
      ppm_channels: width of each scale of the DAPPM.
      head_channels: width of both heads, 'logits' and 'aux_logits'.
      dropout: of the channels before the classifier of 'logits'.
    """
    return Segmenter(
        backbone=DDRNet(channels, ppm_channels),
        head=DDRHead(num_classes, head_channels, dropout),
        mean=tuple(mean),
        std=tuple(std),
    )


def torch_names(part: DDRNet | DDRHead) -> list[tuple[str, str]]:
    """MMSegmentation's module names -> paths in the part; see `convert`."""
    if isinstance(part, DDRHead):
        return [
            (r"head\.0\.(conv|bn)", r"main/conv/\1"),
            (r"head\.1", "main/bn"),
            (r"conv_seg", "main/classifier/conv"),
            (r"aux_head\.0\.(conv|bn)", r"aux/conv/\1"),
            (r"aux_head\.1", "aux/bn"),
            (r"aux_cls_seg", "aux/classifier/conv"),
        ]
    branches = []
    for i, stage in enumerate((4, 5, 6)):
        branches += block_names(rf"context_branch_layers\.{i}\.(\d)", rf"low{stage}_\1")
        branches += block_names(rf"spatial_branch_layers\.{i}\.(\d)", rf"high{stage}_\1")
    return [
        *stem_names(),
        *branches,
        (r"compression_1\.(conv|bn)", r"fusion4/compress/\1"),
        (r"compression_2\.(conv|bn)", r"fusion5/compress/\1"),
        (r"down_1\.(conv|bn)", r"fusion4/down0/\1"),
        (r"down_2\.(\d)\.(conv|bn)", r"fusion5/down\1/\2"),
        *pyramid_names(),
    ]


def stem_names(shortcut: tuple[str, str] = ("0", "1")) -> list[tuple[str, str]]:
    """Rows of `stem`."""
    return [
        (r"stem\.([01])\.(conv|bn)", r"stem\1/\2"),
        *block_names(r"stem\.2\.(\d)", r"stage2_\1", shortcut),
        *block_names(r"stem\.4\.(\d)", r"stage3_\1", shortcut),
    ]


def block_names(
    theirs: str, ours: str, shortcut: tuple[str, str] = ("0", "1")
) -> list[tuple[str, str]]:
    """Rows of the blocks called `theirs`, a regex; `shortcut` is its convolution and its norm."""
    return [
        (rf"{theirs}\.(?P<at>conv\d)\.(?P<leaf>conv|bn)", rf"{ours}/\g<at>/\g<leaf>"),
        (rf"{theirs}\.downsample\.{shortcut[0]}", f"{ours}/shortcut/conv"),
        (rf"{theirs}\.downsample\.{shortcut[1]}", f"{ours}/shortcut/bn"),
    ]


def pyramid_names() -> list[tuple[str, str]]:
    """Rows of a pyramid pooling that is called 'pyramid', `DAPPM` or PIDNet's."""
    return [
        (r"spp\.scales\.0\.(conv|bn)", r"pyramid/scale0/\1"),
        (r"spp\.scales\.(\d)\.1\.(conv|bn)", r"pyramid/scale\1/\2"),
        (r"spp\.processes\.(\d)\.(conv|bn)", r"pyramid/process\1/\2"),
        (r"spp\.processes\.(conv|bn)", r"pyramid/process/\1"),
        (r"spp\.compression\.(conv|bn)", r"pyramid/compress/\1"),
        (r"spp\.shortcut\.(conv|bn)", r"pyramid/shortcut/\1"),
    ]
