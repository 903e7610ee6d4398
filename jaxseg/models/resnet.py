"""Deep Residual Learning for Image Recognition (He et al. 2015, arXiv:1512.03385), dilated.

Stems: "plain", one 7x7 convolution; "v1c", three 3x3 ones; "v1d", those and shortcuts that average
before they project (He et al. 2018, arXiv:1812.01187, figures 1 and 2). The stride of a block is
on its 3x3 convolution, as in torchvision. Past `output_stride`, dilation takes the place of stride
(Chen et al. 2017, arXiv:1706.05587, section 3.1).
"""

import flax.linen as nn
import jax

from jaxseg.errors import UserError
from jaxseg.models.common import ConvNorm
from jaxseg.ops.pool import avg_pool, max_pool

STEMS = ("plain", "v1c", "v1d")
OUTPUT_STRIDES = (4, 8, 16, 32)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, of which only the first is dilated, as in MMSegmentation."""

    width: int
    strides: int
    dilation: int
    avg_down: bool

    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = ConvNorm(self.width, 3, self.strides, self.dilation, name="conv1")(x, train)
        y = ConvNorm(self.width, 3, act=None, scale_init=nn.initializers.zeros, name="conv2")(
            y, train
        )
        return nn.relu(shortcut(x, y, self.strides, self.avg_down, train) + y)


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up to four times the width."""

    width: int
    strides: int
    dilation: int
    avg_down: bool

    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = ConvNorm(self.width, name="conv1")(x, train)
        y = ConvNorm(self.width, 3, self.strides, self.dilation, name="conv2")(y, train)
        y = ConvNorm(4 * self.width, act=None, scale_init=nn.initializers.zeros, name="conv3")(
            y, train
        )
        return nn.relu(shortcut(x, y, self.strides, self.avg_down, train) + y)


def shortcut(x: jax.Array, y: jax.Array, strides: int, avg_down: bool, train: bool) -> jax.Array:
    """The input of a block brought to the shape of its output; call it inside the block."""
    if strides == 1 and x.shape[-1] == y.shape[-1]:
        return x
    if avg_down:
        x, strides = avg_pool(x, strides), 1
    return ConvNorm(y.shape[-1], 1, strides, act=None, name="shortcut")(x, train)


BLOCKS = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
    269: (Bottleneck, (3, 30, 48, 8)),  # of PSPNet (Zhao et al. 2016, arXiv:1612.01105)
}


class ResNet(nn.Module):
    """[b, h, w, 3] -> {'stem': [b, h/2, w/2, 64], 'stage1': [b, h/4, w/4, 64e], ..., 'stage4'}.

    The stages have 64e, 128e, 256e and 512e channels, e = 1 for depths 18 and 34 and 4 above, at
    strides 4, 8, 16 and 32, each at most `output_stride`.

    Attributes:
      depth: 18, 34, 50, 101, 152 or 269.
      stem: "plain", "v1c" or "v1d".
      output_stride: of the last stages: 4, 8, 16 or 32.
      multi_grid: the dilation of each block of stage 4, in place of the one that follows from
        `output_stride`. These are the rates themselves, as in MMSegmentation: the paper's
        (arXiv:1706.05587, section 3.2.1) are to be multiplied by the stage's rate.
      dilations: the rate of each stage, in place of those that follow from `output_stride`: for
        stages that are dilated and strided. The first block of a stage has half its rate.
      freeze_norm: normalise by the running statistics in training too, and leave them alone.
    """

    depth: int = 50
    stem: str = "v1c"
    output_stride: int = 32
    multi_grid: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    freeze_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        train = train and not self.freeze_norm
        block, depths = BLOCKS[self.depth]
        if self.stem == "plain":
            x = ConvNorm(64, 7, 2, name="stem0")(x, train)  # [b, h/2, w/2, 64]
        else:
            x = ConvNorm(32, 3, 2, name="stem0")(x, train)
            x = ConvNorm(32, 3, name="stem1")(x, train)
            x = ConvNorm(64, 3, name="stem2")(x, train)
        features = {"stem": x}
        x = max_pool(x, 3, 2, 1)  # [b, h/4, w/4, 64]
        stride, dilation = 4, 1
        for stage, depth in enumerate(depths, start=1):
            first = 1 if stage == 1 else 2
            if stride * first > self.output_stride:
                dilation, first = dilation * first, 1
            stride *= first
            rate = self.dilations[stage - 1] if self.dilations else dilation
            # Half is the rate before: the first block sees the grid that it would have strided.
            rates = [max(rate // 2, 1)] + [rate] * (depth - 1)
            if stage == 4 and self.multi_grid:
                rates = self.multi_grid
            for i, rate in enumerate(rates):
                x = block(
                    64 * 2 ** (stage - 1),
                    first if i == 0 else 1,
                    rate,
                    self.stem == "v1d",
                    name=f"stage{stage}_{i}",
                )(x, train)
            features[f"stage{stage}"] = x
        return features


def Backbone(
    depth: int = 50,
    stem: str = "v1c",
    output_stride: int = 32,
    multi_grid: tuple[int, ...] = (),
    dilations: tuple[int, ...] = (),
    freeze_norm: bool = False,
) -> ResNet:
    """A checked `ResNet`; raises `UserError` for a value that it does not know."""
    for name, value, known in (
        ("depth", depth, tuple(BLOCKS)),
        ("stem", stem, STEMS),
        ("output_stride", output_stride, OUTPUT_STRIDES),
    ):
        if value not in known:
            raise UserError(f"config.model.backbone.{name}={value!r}: expected one of {known}")
    if multi_grid:
        multi_grid = tuple(multi_grid)
        blocks = BLOCKS[depth][1][3]
        if len(multi_grid) != blocks:
            raise UserError(
                f"config.model.backbone.multi_grid={multi_grid}: stage 4 of ResNet-{depth} has "
                f"{blocks} blocks; give one rate for each"
            )
    dilations = tuple(dilations)
    if dilations and len(dilations) != 4:
        raise UserError(
            f"config.model.backbone.dilations={dilations}: give one rate for each of the 4 stages, "
            "or () for those of output_stride"
        )
    return ResNet(depth, stem, output_stride, multi_grid, dilations, freeze_norm)


def torch_names(backbone: ResNet) -> list[tuple[str, str]]:
    """torchvision's and MMSegmentation's module names -> paths in `ResNet`; see `convert`."""
    if backbone.stem == "plain":
        stem = [("conv1", "stem0/conv"), ("bn1", "stem0/bn")]
    else:
        stem = [(rf"stem\.{3 * i}", f"stem{i}/conv") for i in range(3)]
        stem += [(rf"stem\.{3 * i + 1}", f"stem{i}/bn") for i in range(3)]
    first = int(backbone.stem == "v1d")  # there an average pool, without parameters, comes first
    block = r"layer(\d)\.(\d+)\."
    return stem + [
        (block + r"(conv\d)", r"stage\1_\2/\3/conv"),
        (block + r"bn(\d)", r"stage\1_\2/conv\3/bn"),
        (block + rf"downsample\.{first}", r"stage\1_\2/shortcut/conv"),
        (block + rf"downsample\.{first + 1}", r"stage\1_\2/shortcut/bn"),
    ]


torchvision_names = smp_names = torch_names  # they all follow torchvision's first ResNet
