"""Xception (Chollet 2017, arXiv:1610.02357), aligned and modified for DeepLabv3+.

Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation, Chen et al. 2018,
arXiv:1802.02611, section 3.2 and figure 4: a deeper middle flow, strided separable convolutions
where there was max pooling, batch normalisation and ReLU after each depthwise convolution. Past
`output_stride`, dilation takes the place of stride.
"""

import flax.linen as nn
import jax

from jaxseg.errors import UserError
from jaxseg.models.common import BatchNorm, Conv, ConvNorm

# Channels and stride of the blocks of the entry flow; number of blocks in the middle flow. A block
# has three separable convolutions; 41, 65 and 71 count all of them and the stem's two convolutions.
ENTRY = {
    41: ((128, 2), (256, 2), (728, 2)),
    65: ((128, 2), (256, 2), (728, 2)),
    71: ((128, 2), (256, 1), (256, 2), (728, 1), (728, 2)),
}
MIDDLE = {41: 8, 65: 16, 71: 16}
OUTPUT_STRIDES = (4, 8, 16, 32)
EPSILON = 1e-3  # of the normalisation, as in the authors' release

# Of a depthwise kernel [3, 3, 1, c]: an output channel sees nine pixels of one input channel.
depthwise_init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class SepConv(nn.Module):
    """3x3 convolution of each channel, 1x1 across channels, normalised after each.

    Attributes:
      act_between, act_after: ReLU after the first and the second normalisation.
    """

    features: int
    strides: int = 1
    dilation: int = 1
    act_between: bool = True
    act_after: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        c = x.shape[-1]
        x = Conv(
            c, 3, self.strides, self.dilation, c, False, depthwise_init, name="depthwise_conv"
        )(x)
        x = BatchNorm(epsilon=EPSILON, name="depthwise_bn")(x, train)
        x = nn.relu(x) if self.act_between else x
        x = Conv(self.features, use_bias=False, name="pointwise_conv")(x)
        x = BatchNorm(epsilon=EPSILON, name="pointwise_bn")(x, train)
        return nn.relu(x) if self.act_after else x


class Block(nn.Module):
    """Three separable convolutions, each after a ReLU, the last strided; and a shortcut.

    -> the sum, and what the second convolution gave: the last map before the stride.
    """

    widths: tuple[int, int, int]
    strides: int
    dilation: int
    act_between: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        outputs = [x]
        for i, features in enumerate(self.widths):
            strides = self.strides if i == 2 else 1
            conv = SepConv(features, strides, self.dilation, self.act_between, name=f"conv{i}")
            outputs.append(conv(nn.relu(outputs[-1]), train))
        if self.strides > 1 or x.shape[-1] != self.widths[2]:
            x = ConvNorm(
                self.widths[2], 1, self.strides, act=None, epsilon=EPSILON, name="shortcut"
            )(x, train)
        return x + outputs[3], outputs[2]


class Xception(nn.Module):
    """[b, h, w, 3] -> {'stage0': [b, h/2, w/2, 128], 'stage1': [b, h/4, w/4, 256], ..., 'stage4'}.

    'stage2', 'stage3' and 'stage4' have 728, 1024 and 2048 channels at strides 8, 16 and 32, each
    at most `output_stride`. Those before 'stage4' are taken inside the blocks that stride, after
    their second convolution, as in the authors' release; they are not rectified.

    Attributes:
      depth: 41, 65 or 71.
      output_stride: of the last stages: 4, 8, 16 or 32.
      multi_grid: the dilation of each separable convolution of the last block, in place of the one
        that follows from `output_stride`. The rates themselves, as in `resnet`.
      middle_blocks: of the middle flow; 0 for the number that belongs to `depth`.
      width: multiplier of all channels.
      act_between: ReLU between the halves of a separable convolution, as the paper says. In the
        released networks only the last block has it.
    """

    depth: int = 65
    output_stride: int = 32
    multi_grid: tuple[int, ...] = ()
    middle_blocks: int = 0
    width: float = 1.0
    act_between: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        def scaled(channels: int) -> int:
            return max(1, round(channels * self.width))

        x = ConvNorm(scaled(32), 3, 2, epsilon=EPSILON, name="stem0")(x, train)  # [b, h/2, w/2, 32]
        x = ConvNorm(scaled(64), 3, epsilon=EPSILON, name="stem1")(x, train)
        features = {}
        stride, dilation = 2, 1
        for name, widths, first in blocks(self.depth, self.middle_blocks):
            rate = dilation
            strided = first > 1
            if stride * first > self.output_stride:
                # This block keeps the previous rate: it sees the grid it would have strided.
                dilation, first = dilation * first, 1
            stride *= first
            widths = tuple(scaled(c) for c in widths)
            block = Block(widths, first, rate, self.act_between, name=name)
            x, before = block(x, train)
            if strided:
                features[f"stage{len(features)}"] = before
        rates = self.multi_grid or (dilation,) * 3
        for i, (channels, rate) in enumerate(zip((1536, 1536, 2048), rates, strict=True)):
            conv = SepConv(scaled(channels), 1, rate, act_after=True, name=f"exit1_conv{i}")
            x = conv(x, train)
        return features | {"stage4": x}  # [b, h/32, w/32, 2048]


def blocks(depth: int, middle_blocks: int = 0) -> list[tuple[str, tuple[int, int, int], int]]:
    """Name, channels and stride of each block with a shortcut: all but the exit flow's last."""
    table = [(f"entry{i}", (c, c, c), s) for i, (c, s) in enumerate(ENTRY[depth])]
    table += [(f"middle{i}", (728,) * 3, 1) for i in range(middle_blocks or MIDDLE[depth])]
    return [*table, ("exit0", (728, 1024, 1024), 2)]


def Backbone(
    depth: int = 65,
    output_stride: int = 32,
    multi_grid: tuple[int, ...] = (),
    middle_blocks: int = 0,
    width: float = 1.0,
    act_between: bool = True,
) -> Xception:
    """A checked `Xception`; raises `UserError` for a value that it does not know."""
    for name, value, known in (
        ("depth", depth, tuple(ENTRY)),
        ("output_stride", output_stride, OUTPUT_STRIDES),
    ):
        if value not in known:
            raise UserError(f"config.model.backbone.{name}={value!r}: expected one of {known}")
    for name, value, good, expected in (
        ("width", width, width > 0, "a positive factor, such as 1.0"),
        ("middle_blocks", middle_blocks, middle_blocks >= 0, "a number of blocks, 0 for depth's"),
        ("multi_grid", multi_grid, len(multi_grid) in (0, 3), "three rates, or () for none"),
    ):
        if not good:
            raise UserError(f"config.model.backbone.{name}={value!r}: expected {expected}")
    return Xception(depth, output_stride, tuple(multi_grid), middle_blocks, width, act_between)


def torch_names(backbone: Xception) -> list[tuple[str, str]]:
    """timm's module names, of its port of the released weights -> paths in `Xception`."""
    table = [(r"stem\.(\d)\.(conv|bn)", r"stem\1/\2")]
    halves = {"dw": "depthwise", "pw": "pointwise"}
    names = [name for name, _, _ in blocks(backbone.depth, backbone.middle_blocks)]
    for n, block in enumerate([*names, "exit1"]):
        # timm counts a block's convolutions from one.
        for i in range(3):
            path = f"exit1_conv{i}" if block == "exit1" else f"{block}/conv{i}"
            table += [
                (rf"blocks\.{n}\.stack\.conv{i + 1}\.(conv|bn)_{half}", rf"{path}/{whole}_\1")
                for half, whole in halves.items()
            ]
        table.append((rf"blocks\.{n}\.shortcut\.(conv|bn)", rf"{block}/shortcut/\1"))
    return table
