"""BiSeNet V2: Bilateral Network with Guided Aggregation for Real-time Semantic Segmentation.

Yu et al. 2020, arXiv:2004.02147, figure 3. A shallow, wide detail branch and a deep, narrow
semantic branch, each of which gates the other. In the form of MMSegmentation's `bisenetv2`, which
has activations where figures 4 and 5 have none and heads of two convolutions for the booster.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.errors import UserError
from jaxseg.models.common import BatchNorm, Conv, ConvNorm
from jaxseg.models.fcn import FCNHead
from jaxseg.models.segmenter import MEAN, STD, Segmenter
from jaxseg.ops.adaptive_pool import adaptive_avg_pool
from jaxseg.ops.pool import avg_pool_padded, max_pool
from jaxseg.ops.resize import resize

# Of the semantic branch, in the order of its auxiliary heads: strides 4, 8, 16, 32.
FEATURES = ("stem", "stage3", "stage4", "stage5")
DETAIL_BLOCKS = (2, 3, 3)  # table 1: convolutions of S1, S2 and S3, the first of each strided
SEMANTIC_BLOCKS = (2, 2, 4)  # gather-and-expansion layers of S3, S4 and S5


class DetailBranch(nn.Module):
    """Section 4.1: [b, h, w, 3] -> [b, h/8, w/8, c]."""

    channels: tuple[int, ...] = (64, 64, 128)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i, (channels, blocks) in enumerate(zip(self.channels, DETAIL_BLOCKS, strict=True)):
            for j in range(blocks):
                strides = 2 if j == 0 else 1
                x = ConvNorm(channels, 3, strides, name=f"stage{i + 1}_{j}")(x, train)
        return x


class Stem(nn.Module):
    """Figure 4a: two ways to shrink, joined: [b, h, w, 3] -> [b, h/4, w/4, channels]."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        c = self.channels
        x = ConvNorm(c, 3, 2, name="first")(x, train)  # [b, h/2, w/2, c]
        left = ConvNorm(c // 2, name="left0")(x, train)
        left = ConvNorm(c, 3, 2, name="left1")(left, train)  # [b, h/4, w/4, c]
        x = jnp.concatenate([left, max_pool(x, 3, 2, 1)], -1)
        return ConvNorm(c, 3, name="join")(x, train)


class GatherExpansion(nn.Module):
    """Figure 5b and, strided, 5c: gathers by 3x3, expands depthwise, projects.

    [b, h, w, c] -> [b, ceil(h / strides), ceil(w / strides), channels].
    """

    channels: int
    expansion: int
    strides: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        c = x.shape[-1]
        wide = c * self.expansion
        y = ConvNorm(c, 3, name="gather")(x, train)
        if self.strides == 1:
            y = ConvNorm(wide, 3, groups=c, name="expand")(y, train)
        else:
            y = ConvNorm(wide, 3, self.strides, groups=c, act=None, name="expand")(y, train)
            y = ConvNorm(wide, 3, groups=wide, name="expand1")(y, train)
            x = ConvNorm(c, 3, self.strides, groups=c, act=None, name="shortcut0")(x, train)
            x = ConvNorm(self.channels, act=None, name="shortcut1")(x, train)
        y = ConvNorm(self.channels, act=None, name="project")(y, train)
        return nn.relu(x + y)


class ContextEmbedding(nn.Module):
    """Figure 4b: adds the mean of the whole map to every pixel: [b, h, w, c] -> the same."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        c = x.shape[-1]
        context = BatchNorm(name="bn")(adaptive_avg_pool(x, (1, 1)), train)  # [b, 1, 1, c]
        x = x + ConvNorm(c, name="embed")(context, train)
        return ConvNorm(c, 3, name="last")(x, train)


class SemanticBranch(nn.Module):
    """Section 4.2: [b, h, w, 3] -> `FEATURES`, and 'context' [b, h/32, w/32, c] after stage 5."""

    channels: tuple[int, ...] = (16, 32, 64, 128)
    expansion: int = 6

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        stem, *stages = self.channels
        x = Stem(stem, name="stem")(x, train)  # [b, h/4, w/4, 16]
        features = {"stem": x}
        for stage, channels, blocks in zip(FEATURES[1:], stages, SEMANTIC_BLOCKS, strict=True):
            for j in range(blocks):
                strides = 2 if j == 0 else 1
                x = GatherExpansion(channels, self.expansion, strides, name=f"{stage}_{j}")(
                    x, train
                )
            features[stage] = x  # [b, h/8, w/8, 32], then h/16, then h/32
        return features | {"context": ContextEmbedding(name="context")(x, train)}


class GuidedAggregation(nn.Module):
    """Figure 6: each branch gates the other, at its own resolution; then they are summed.

    detail [b, h/8, w/8, c], semantic [b, h/32, w/32, c] -> [b, h/8, w/8, c].
    """

    align_corners: bool = False

    @nn.compact
    def __call__(self, detail: jax.Array, semantic: jax.Array, train: bool) -> jax.Array:
        c, size = detail.shape[-1], detail.shape[1:3]

        def separable(x, name):
            x = ConvNorm(c, 3, groups=c, act=None, name=f"{name}_depthwise")(x, train)
            return Conv(c, name=f"{name}_pointwise")(x)

        def enlarge(x):
            return resize(x, size, "bilinear", self.align_corners)

        fine_gate = ConvNorm(c, 3, act=None, name="semantic_gate")(semantic, train)
        fine = separable(detail, "detail") * nn.sigmoid(enlarge(fine_gate))
        small = ConvNorm(c, 3, 2, act=None, name="detail_down")(detail, train)
        small = avg_pool_padded(small, 3, 2, 1)  # [b, h/32, w/32, c]
        coarse = small * nn.sigmoid(separable(semantic, "semantic"))
        return ConvNorm(c, 3, name="conv")(fine + enlarge(coarse), train)


class BiSeNetV2(nn.Module):
    """[b, h, w, 3] -> {'fused': [b, h/8, w/8, c], 'stem': [b, h/4, w/4, c1], 'stage3', ...}.

    The features of the semantic branch, 'stem', 'stage3', 'stage4' and 'stage5', are at strides 4,
    8, 16 and 32. Attributes are those of `Model`.
    """

    detail_channels: tuple[int, ...] = (64, 64, 128)
    semantic_channels: tuple[int, ...] = (16, 32, 64, 128)
    expansion: int = 6
    align_corners: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        detail = DetailBranch(self.detail_channels, name="detail")(x, train)
        features = SemanticBranch(self.semantic_channels, self.expansion, name="semantic")(x, train)
        semantic = features.pop("context")
        fused = GuidedAggregation(self.align_corners, name="aggregate")(detail, semantic, train)
        return {"fused": fused} | features


def Model(
    num_classes: int,
    detail_channels: tuple[int, int, int] = (64, 64, 128),
    semantic_channels: tuple[int, int, int, int] = (16, 32, 64, 128),
    expansion: int = 6,
    channels: int = 1024,
    aux_channels: tuple[int, ...] = (16, 64, 256, 1024),
    dropout: float = 0.1,
    align_corners: bool = False,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> Segmenter:
    """BiSeNet V2.

    Args:
      detail_channels: of the detail branch's stages.
      semantic_channels: of the semantic branch's stem and stages 3 to 5; a quarter of the detail
        branch's in the paper, but for the last, which is equal.
      expansion: of the gather-and-expansion layers (epsilon in table 1).
      channels: of the head's convolution (section 4.4, C_t).
      aux_channels: of the auxiliary heads on the stem and stages 3 to 5 (the booster of section
        4.4), 'aux_logits_0' to 'aux_logits_3'; () leaves them out.
      dropout: of the channels before every classifier.
      align_corners: see `ops.resize`; holds for every resize, that of the logits included.

    Raises:
      UserError: tuples of other lengths, or branches that end in unequal widths.
    """
    lengths = dict(detail_channels=(3,), semantic_channels=(4,), aux_channels=(0, 4))
    given = dict(
        detail_channels=tuple(detail_channels),
        semantic_channels=tuple(semantic_channels),
        aux_channels=tuple(aux_channels),
    )
    for name, value in given.items():
        if len(value) not in lengths[name]:
            expected = " or ".join(map(str, lengths[name]))
            raise UserError(f"config.model.{name}={value}: expected {expected} numbers")
    if detail_channels[-1] != semantic_channels[-1]:
        raise UserError(
            f"config.model.semantic_channels={given['semantic_channels']}: the last has to be that "
            f"of config.model.detail_channels={given['detail_channels']}, for each branch gates "
            "the other"
        )
    aux_heads = tuple(
        FCNHead(num_classes, feature, width, 2, False, dropout)
        for feature, width in zip(FEATURES, given["aux_channels"], strict=False)
    )
    return Segmenter(
        backbone=BiSeNetV2(
            given["detail_channels"], given["semantic_channels"], expansion, align_corners
        ),
        head=FCNHead(num_classes, "fused", channels, 1, False, dropout),
        aux_head=aux_heads or None,
        mean=tuple(mean),
        std=tuple(std),
        align_corners=align_corners,
    )


def torch_names(backbone: BiSeNetV2) -> list[tuple[str, str]]:
    """MMSegmentation's module names -> paths in `BiSeNetV2`; see `convert`."""
    detail = [
        (rf"detail\.detail_branch\.{i}\.(\d)\.(conv|bn)", rf"detail/stage{i + 1}_\1/\2")
        for i in range(len(DETAIL_BLOCKS))
    ]
    layers = []
    for i, stage in enumerate(FEATURES[1:], start=2):
        theirs, ours = rf"semantic\.stage{i}\.(\d)\.", rf"semantic/{stage}_\1/"
        layers += [
            (theirs + r"conv1\.(conv|bn)", ours + r"gather/\2"),
            (theirs + r"dwconv\.0\.(conv|bn)", ours + r"expand/\2"),
            (theirs + r"dwconv\.1\.(conv|bn)", ours + r"expand1/\2"),
            (theirs + r"conv2\.0\.(conv|bn)", ours + r"project/\2"),
            (theirs + r"shortcut\.0\.depthwise_conv\.(conv|bn)", ours + r"shortcut0/\2"),
            (theirs + r"shortcut\.0\.pointwise_conv\.(conv|bn)", ours + r"shortcut1/\2"),
        ]
    context = r"semantic\.stage4_CEBlock\."
    return (
        detail
        + layers
        + [
            (r"semantic\.stage1\.conv_first\.(conv|bn)", r"semantic/stem/first/\1"),
            (r"semantic\.stage1\.convs\.(\d)\.(conv|bn)", r"semantic/stem/left\1/\2"),
            (r"semantic\.stage1\.fuse_last\.(conv|bn)", r"semantic/stem/join/\1"),
            (context + r"gap\.1", "semantic/context/bn"),
            (context + r"conv_gap\.(conv|bn)", r"semantic/context/embed/\1"),
            (context + r"conv_last\.(conv|bn)", r"semantic/context/last/\1"),
            (r"bga\.(\w+)_dwconv\.0\.depthwise_conv\.(conv|bn)", r"aggregate/\1_depthwise/\2"),
            (r"bga\.(\w+)_dwconv\.0\.pointwise_conv\.conv", r"aggregate/\1_pointwise"),
            (r"bga\.detail_down\.0\.(conv|bn)", r"aggregate/detail_down/\1"),
            (r"bga\.semantic_conv\.0\.(conv|bn)", r"aggregate/semantic_gate/\1"),
            (r"bga\.conv\.(conv|bn)", r"aggregate/conv/\1"),
        ]
    )
