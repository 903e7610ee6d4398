"""PIDNet: a Real-time Semantic Segmentation Network Inspired by PID Controllers.

Xu et al. 2023, arXiv:2206.02066. Two branches like DDRNet's, one for detail (P,
proportional) and one for context (I, integral), overshoot at boundaries; a third (D, derivative)
finds these, and says where detail is to prevail. Sizes and widths are those of MMSegmentation's
`pidnet` models, in which PIDNet-S and -M are the "light" form and PIDNet-L is not.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.errors import UserError
from jaxseg.models.common import ConvNorm
from jaxseg.models.ddrnet import (
    DAPPM,
    BasicBlock,
    Bottleneck,
    NormConv,
    SegmentationHead,
    basic_blocks,
    block_names,
    pooled,
    pyramid_names,
    stem,
    stem_names,
)
from jaxseg.models.segmenter import MEAN, STD, Segmenter
from jaxseg.ops.resize import resize


class Pag(nn.Module):
    """Pixel-attention-guided fusion, Pag: takes context up where it agrees with the detail.

    detail [b, h, w, c], context [b, h', w', c] -> [b, h, w, c]; agreement is the inner product of
    embeddings of `channels` dimensions, put through a sigmoid.
    """

    channels: int

    @nn.compact
    def __call__(self, detail: jax.Array, context: jax.Array, train: bool) -> jax.Array:
        size = detail.shape[1:3]
        query = ConvNorm(self.channels, act=None, name="detail")(detail, train)
        key = ConvNorm(self.channels, act=None, name="context")(context, train)
        agreement = jnp.sum(query * resize(key, size), -1, keepdims=True)
        share = nn.sigmoid(agreement)  # [b, h, w, 1]
        return share * resize(context, size) + (1 - share) * detail


class PAPPM(nn.Module):
    """Parallel aggregation pyramid pooling, PAPPM: as `ddrnet.DAPPM`, but no scale waits.

    [b, h, w, c] -> [b, h, w, features]; `width` is that of each scale.
    """

    width: int
    features: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        whole = NormConv(self.width, name="scale0")(x, train)
        scales = []
        for i, level in enumerate(pooled(x), start=1):
            y = NormConv(self.width, name=f"scale{i}")(level, train)
            scales.append(resize(y, x.shape[1:3]) + whole)
        y = jnp.concatenate(scales, -1)  # [b, h, w, 4 width]
        y = NormConv(y.shape[-1], 3, groups=len(scales), name="process")(y, train)
        y = NormConv(self.features, name="compress")(jnp.concatenate([whole, y], -1), train)
        return y + NormConv(self.features, name="shortcut")(x, train)


class Bag(nn.Module):
    """Boundary-attention-guided fusion, Bag: detail at boundaries, context elsewhere."""

    features: int

    @nn.compact
    def __call__(
        self, detail: jax.Array, context: jax.Array, boundary: jax.Array, train: bool
    ) -> jax.Array:
        share = nn.sigmoid(boundary)
        return NormConv(self.features, 3, name="conv")(
            share * detail + (1 - share) * context, train
        )


class LightBag(nn.Module):
    """The same with 1x1 convolutions, Light-Bag: each side takes up some of the other first."""

    features: int

    @nn.compact
    def __call__(
        self, detail: jax.Array, context: jax.Array, boundary: jax.Array, train: bool
    ) -> jax.Array:
        share = nn.sigmoid(boundary)
        detail, context = detail + (1 - share) * context, context + share * detail
        x = ConvNorm(self.features, act=None, name="detail")(detail, train)
        return x + ConvNorm(self.features, act=None, name="context")(context, train)


class PIDNet(nn.Module):
    """[b, h, w, 3] -> 'detail', 'boundary' [b, h/8, w/8, 2c] and 'fused' [b, h/8, w/8, 4c].

    The first is the P branch after its first exchange with the I branch, the second the D branch
    after its last one; none is rectified. Attributes are those of `Model`.
    """

    channels: int = 32
    ppm_channels: int = 96
    stem_blocks: int = 2
    branch_blocks: int = 3
    light: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        c = self.channels
        x = stem(x, c, self.stem_blocks, train)  # [b, h/8, w/8, 2c]
        size = x.shape[1:3]

        def compressed(x, name):
            return ConvNorm(2 * c, act=None, name=name)(x, train)

        def difference(x, width, name):
            return resize(ConvNorm(width, 3, act=None, name=name)(x, train), size)

        # Stage 4.
        i = nn.relu(basic_blocks("i4", x, 4 * c, self.branch_blocks, train, 2))  # [b, h/16, w/16]
        p = basic_blocks("p4", x, 2 * c, self.stem_blocks, train)  # [b, h/8, w/8, 2c]
        p = Pag(c, name="pag4")(p, compressed(i, "compress4"), train)
        d_width = c if self.light else 2 * c
        d = BasicBlock(d_width, name="d4_0")(x, train)  # [b, h/8, w/8, c or 2c]
        d = d + difference(i, d_width, "difference4")
        features = {"detail": p}

        # Stage 5.
        i = nn.relu(basic_blocks("i5", i, 8 * c, self.branch_blocks, train, 2))  # [b, h/32, w/32]
        p = basic_blocks("p5", nn.relu(p), 2 * c, self.stem_blocks, train)
        p = Pag(c, name="pag5")(p, compressed(i, "compress5"), train)
        block = Bottleneck(c, name="d5_0") if self.light else BasicBlock(2 * c, name="d5_0")
        d = block(nn.relu(d), train)  # [b, h/8, w/8, 2c]
        d = d + difference(i, 2 * c, "difference5")
        features["boundary"] = d

        # Stage 6.
        i = Bottleneck(8 * c, 2, name="i6_0")(i, train)  # [b, h/64, w/64, 16c]
        i = Bottleneck(8 * c, name="i6_1")(i, train)  # as published, not rectified between
        p = Bottleneck(2 * c, name="p6_0")(nn.relu(p), train)  # [b, h/8, w/8, 4c]
        d = Bottleneck(2 * c, name="d6_0")(nn.relu(d), train)  # [b, h/8, w/8, 4c]
        pyramid, fusion = (PAPPM, LightBag) if self.light else (DAPPM, Bag)
        i = resize(pyramid(self.ppm_channels, 4 * c, name="pyramid")(i, train), size)
        return features | {"fused": fusion(4 * c, name="bag")(p, i, d, train)}


class PIDHead(nn.Module):
    """-> 'logits' and 'aux_logits' [b, h/8, w/8, classes], 'boundary_logits' [b, h/8, w/8, 1].

    The scores of what is fused, of the P branch and of the D branch: a positive boundary logit says
    that the pixel is near a boundary. Training scores all three, prediction wants the first only.
    """

    num_classes: int
    channels: int = 128
    dropout: float = 0.1

    @nn.compact
    def __call__(self, features: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        fused = SegmentationHead(self.num_classes, self.channels, self.dropout, name="fused")
        detail = SegmentationHead(self.num_classes, self.channels, name="detail")
        d = features["boundary"]
        boundary = SegmentationHead(1, d.shape[-1] // 2, name="boundary")
        return {
            "logits": fused(features["fused"], train),
            "aux_logits": detail(features["detail"], train),
            "boundary_logits": boundary(d, train),
        }


def Model(
    num_classes: int,
    channels: int = 32,
    ppm_channels: int = 96,
    stem_blocks: int = 2,
    branch_blocks: int = 3,
    light: bool = True,
    head_channels: int = 128,
    dropout: float = 0.1,
    align_corners: bool = True,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> Segmenter:
    """PIDNet-S; PIDNet-M has 64 channels.

    PIDNet-L has 64 channels, 112 in the pyramid, 256 in the head, stem blocks 3, branch blocks 4
    and is not `light`.

    Args:
      channels: c, width of the stem, from which most other widths follow.
      ppm_channels: width of each scale of the pyramid pooling.
      stem_blocks: blocks of each stage of the stem, and of the P branch.
      branch_blocks: blocks of each stage of the I branch.
      light: `PAPPM` and `LightBag`, and a D branch that is narrow at first; else `ddrnet.DAPPM` and
        `Bag`.
      head_channels: width of the heads of 'logits' and 'aux_logits'.
      dropout: of the channels before the classifier of 'logits'.
      align_corners: how the logits are resized, see `ops.resize`; inside, corners are not aligned.

    Raises:
      UserError: a number of blocks that is not at least 1.
    """
    for name, value in (("stem_blocks", stem_blocks), ("branch_blocks", branch_blocks)):
        if value < 1:
            raise UserError(f"config.model.{name}={value}: expected at least 1")
    return Segmenter(
        backbone=PIDNet(channels, ppm_channels, stem_blocks, branch_blocks, light),
        head=PIDHead(num_classes, head_channels, dropout),
        mean=tuple(mean),
        std=tuple(std),
        align_corners=align_corners,
    )


def torch_names(part: PIDNet | PIDHead) -> list[tuple[str, str]]:
    """MMSegmentation's module names -> paths in the part; see `convert`."""
    if isinstance(part, PIDHead):
        rows = [("conv_seg", "fused/classifier/conv")]
        for theirs, ours in (("i", "fused"), ("p", "detail"), ("d", "boundary")):
            rows += [
                (rf"{theirs}_head\.conv\.(conv|bn)", rf"{ours}/conv/\1"),
                (rf"{theirs}_head\.norm", f"{ours}/bn"),
                (rf"{theirs}_cls_seg", f"{ours}/classifier/conv"),
            ]
        return rows
    branches, shortcut = [], ("conv", "bn")
    for i, stage in enumerate((4, 5, 6)):
        single = i < (1 if part.light else 2)  # not in a sequence of blocks
        d = rf"d_branch_layers\.{i}" if single else rf"d_branch_layers\.{i}\.0"
        ip = rf"([ip])_branch_layers\.{i}\.(\d)"
        branches += block_names(d, f"d{stage}_0", shortcut)
        branches += block_names(ip, rf"\g<1>{stage}_\2", shortcut)
    for i, stage in enumerate((4, 5), start=1):
        branches += [
            (rf"compression_{i}\.(conv|bn)", rf"compress{stage}/\1"),
            (rf"diff_{i}\.(conv|bn)", rf"difference{stage}/\1"),
            (rf"pag_{i}\.f_p\.(conv|bn)", rf"pag{stage}/detail/\1"),
            (rf"pag_{i}\.f_i\.(conv|bn)", rf"pag{stage}/context/\1"),
        ]
    return [
        *stem_names(shortcut),
        *branches,
        *pyramid_names(),
        (r"dfm\.conv\.(conv|bn)", r"bag/conv/\1"),
        (r"dfm\.f_p\.(conv|bn)", r"bag/detail/\1"),
        (r"dfm\.f_i\.(conv|bn)", r"bag/context/\1"),
    ]
