"""Rethinking BiSeNet For Real-time Semantic Segmentation (Fan et al. 2021, arXiv:2104.13188).

The short-term dense concatenate network (figure 3), whose stage 3 takes the place of BiSeNet's
spatial path, the context path of BiSeNet V1 and a fusion (figure 4). Detail guidance is a head on
stage 3 that is trained to find the edges of the labels, see `losses.detail`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.errors import UserError
from jaxseg.models.bisenetv1 import ContextPath
from jaxseg.models.common import Conv, ConvNorm
from jaxseg.models.fcn import FCNHead, auxiliary
from jaxseg.models.segmenter import MEAN, STD, Segmenter
from jaxseg.ops.adaptive_pool import adaptive_avg_pool
from jaxseg.ops.pool import avg_pool_padded

CONVS = 4  # of a module (section 3.1)
REDUCTION = 4  # of the fusion's gate


class STDCModule(nn.Module):
    """Figure 3b and, strided, 3c: convolutions in a row, each half as wide, joined.

    [b, h, w, c] -> [b, ceil(h / strides), ceil(w / strides), channels].
    """

    channels: int
    strides: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        half = self.channels // 2
        x = first = ConvNorm(half, name="conv0")(x, train)
        if self.strides > 1:
            x = ConvNorm(half, 3, self.strides, groups=half, act=None, name="down")(x, train)
            first = avg_pool_padded(first, 3, self.strides, 1)
        levels = [first]
        for i in range(1, CONVS):
            # The last is as wide as the one before, so that all add up to `channels`.
            width = self.channels // 2 ** min(i + 1, CONVS - 1)
            x = ConvNorm(width, 3, name=f"conv{i}")(x, train)
            levels.append(x)
        return jnp.concatenate(levels, -1)


class FeatureFusion(nn.Module):
    """Joins two maps and adds what a gate selects, as in BiSeNet: -> [b, h, w, channels]."""

    channels: int

    @nn.compact
    def __call__(self, spatial: jax.Array, context: jax.Array, train: bool) -> jax.Array:
        x = jnp.concatenate([spatial, context], -1)
        x = ConvNorm(self.channels, name="conv")(x, train)
        gate = adaptive_avg_pool(x, (1, 1))  # [b, 1, 1, channels]
        gate = Conv(self.channels // REDUCTION, use_bias=False, name="gate0")(gate)
        gate = Conv(self.channels, use_bias=False, name="gate1")(nn.relu(gate))
        return x * nn.sigmoid(gate) + x


class STDC(nn.Module):
    """[b, h, w, 3] -> {'stage3': [b, h/8, w/8, c3], 'context8', 'context16', 'fused'}.

    'context8' and 'fused' are of the size of 'stage3', 'context16' is [b, h/16, w/16, c].
    Attributes are those of `Model`.
    """

    blocks: tuple[int, ...] = (2, 2, 2)
    widths: tuple[int, ...] = (32, 64, 256, 512, 1024)
    context_channels: int = 128
    channels: int = 256

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        x = ConvNorm(self.widths[0], 3, 2, name="stage1")(x, train)  # [b, h/2, w/2, 32]
        x = ConvNorm(self.widths[1], 3, 2, name="stage2")(x, train)  # [b, h/4, w/4, 64]
        maps = []
        for stage, (width, blocks) in enumerate(
            zip(self.widths[2:], self.blocks, strict=True), start=3
        ):
            for i in range(blocks):
                x = STDCModule(width, 2 if i == 0 else 1, name=f"stage{stage}_{i}")(x, train)
            maps.append(x)  # [b, h/8, w/8, 256], then h/16, then h/32
        context8, context16 = ContextPath(self.context_channels, name="context")(*maps, train)
        fused = FeatureFusion(self.channels, name="fusion")(maps[0], context8, train)
        return dict(stage3=maps[0], context8=context8, context16=context16, fused=fused)


def Model(
    num_classes: int,
    blocks: tuple[int, int, int] = (2, 2, 2),
    widths: tuple[int, int, int, int, int] = (32, 64, 256, 512, 1024),
    context_channels: int = 128,
    channels: int = 256,
    aux_channels: int = 64,
    dropout: float = 0.1,
    align_corners: bool = True,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> Segmenter:
    """STDC-Seg.

    The auxiliary heads are on the context path's maps at strides 8 and 16, 'aux_logits_0' and
    'aux_logits_1', and on stage 3: 'aux_logits_2' are the detail head's two classes, no edge and
    edge. At test time it is left out.

    Args:
      blocks: modules of stages 3 to 5: (2, 2, 2) is STDC1, (4, 5, 3) is STDC2 (table 2).
      widths: of stages 1 to 5; the last three are multiples of 8.
      context_channels: of the context path.
      channels: of the fusion and of the head.
      aux_channels: of the three auxiliary heads; zero leaves them out.
      dropout: of the channels before every classifier.
      align_corners: how the logits are enlarged, see `ops.resize`.

    Raises:
      UserError: tuples of other lengths, or a width or number of modules that is none.
    """
    blocks, widths = tuple(blocks), tuple(widths)
    if len(blocks) != 3 or min(blocks) < 1:
        raise UserError(
            f"config.model.blocks={blocks}: expected three numbers of modules, such as (2, 2, 2) "
            "or (4, 5, 3)"
        )
    if len(widths) != 5 or any(width % 8 for width in widths[2:]):
        raise UserError(
            f"config.model.widths={widths}: expected five, the last three multiples of 8, such as "
            "(32, 64, 256, 512, 1024)"
        )
    aux_heads = (
        auxiliary(num_classes, "context8", aux_channels, dropout),
        auxiliary(num_classes, "context16", aux_channels, dropout),
        auxiliary(2, "stage3", aux_channels, dropout),
    )
    return Segmenter(
        backbone=STDC(blocks, widths, context_channels, channels),
        head=FCNHead(num_classes, "fused", channels, 1, False, dropout),
        aux_head=aux_heads if aux_channels else None,
        mean=tuple(mean),
        std=tuple(std),
        align_corners=align_corners,
    )


def torch_names(backbone: STDC) -> list[tuple[str, str]]:
    """MMSegmentation's module names -> paths in `STDC`; see `convert`."""
    stages = []
    for i in range(5):
        theirs, ours = rf"backbone\.stages\.{i}\.", f"stage{i + 1}"
        stages += [
            (theirs + r"(conv|bn)", ours + r"/\1"),
            (theirs + r"(\d)\.layers\.(\d)\.(conv|bn)", ours + r"_\1/conv\2/\3"),
            (theirs + r"(\d)\.downsample\.(conv|bn)", ours + r"_\1/down/\2"),
        ]
    context = []
    for i, stride in enumerate((32, 16)):  # there from the deepest up
        context += [
            (rf"arms\.{i}\.conv_layer\.(conv|bn)", rf"context/refine{stride}/conv/\1"),
            (rf"arms\.{i}\.atten_conv_layer\.1\.(conv|bn)", rf"context/refine{stride}/gate/\1"),
            (rf"convs\.{i}\.(conv|bn)", rf"context/up{stride}/\1"),
        ]
    return (
        stages
        + context
        + [
            (r"conv_avg\.(conv|bn)", r"context/tail/\1"),
            (r"ffm\.conv0\.(conv|bn)", r"fusion/conv/\1"),
            (r"ffm\.attention\.1\.conv", "fusion/gate0"),
            (r"ffm\.attention\.2\.conv", "fusion/gate1"),
        ]
    )
