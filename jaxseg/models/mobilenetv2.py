"""MobileNetV2: Inverted Residuals and Linear Bottlenecks (Sandler et al. 2018, arXiv:1801.04381).

Table 2 up to its 320 channels, dilated: the layers after them are ImageNet's classifier. As in
MMSegmentation's `MobileNetV2`, past `output_stride` only the first block of a stage is dilated, and
already that first one, where ResNet's would keep the rate before.
"""

from collections.abc import Callable

import flax.linen as nn
import jax

from jaxseg.errors import UserError
from jaxseg.models.common import ConvNorm

OUTPUT_STRIDES = (4, 8, 16, 32)
# Table 2: expansion t, channels c, blocks n, stride s of the first block.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# The last stage at each resolution. Stride 16 is reached twice over: 64 channels, then 96.
FEATURES = {1: "stage0", 2: "stage1", 3: "stage2", 5: "stage3", 7: "stage4"}


def scaled(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor`, but at least `divisor` and at least 90 % of `channels`.

    How the authors of the MobileNets round channels that a width multiplier has scaled.
    """
    nearest = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * channels else nearest


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter each channel by 3x3, project by 1x1 without activation (figure 4)."""

    features: int
    strides: int
    dilation: int
    expansion: int
    act: Callable[[jax.Array], jax.Array] = jax.nn.relu6

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        c = x.shape[-1] * self.expansion
        y = x
        if self.expansion > 1:
            y = ConvNorm(c, act=self.act, name="expand")(y, train)
        y = ConvNorm(c, 3, self.strides, self.dilation, c, self.act, name="depthwise")(y, train)
        y = ConvNorm(self.features, act=None, name="project")(y, train)
        return x + y if self.strides == 1 and x.shape[-1] == self.features else y


class MobileNetV2(nn.Module):
    """[b, h, w, 3] -> {'stage0': [b, h/2, w/2, 16], 'stage1': [b, h/4, w/4, 24], ..., 'stage4'}.

    'stage2', 'stage3' and 'stage4' have 32, 96 and 320 channels, all times `width`, at strides 8,
    16 and 32, each at most `output_stride`.

    Attributes:
      width: multiplier of all channels, rounded by `scaled`.
      output_stride: of the last stages: 4, 8, 16 or 32.
    """

    width: float = 1.0
    output_stride: int = 32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        x = ConvNorm(scaled(32 * self.width), 3, 2, act=jax.nn.relu6, name="stem")(x, train)
        features = {}
        stride, dilation = 2, 1
        for stage, (expansion, channels, blocks, first) in enumerate(STAGES, start=1):
            if stride * first > self.output_stride:
                dilation, first = dilation * first, 1
            stride *= first
            for i in range(blocks):
                x = InvertedResidual(
                    scaled(channels * self.width),
                    first if i == 0 else 1,
                    dilation if i == 0 else 1,
                    expansion,
                    name=f"layer{stage}_{i}",
                )(x, train)
            if stage in FEATURES:
                features[FEATURES[stage]] = x
        return features


def Backbone(width: float = 1.0, output_stride: int = 32) -> MobileNetV2:
    """A checked `MobileNetV2`; raises `UserError` for a value that it does not know."""
    check(width, output_stride)
    return MobileNetV2(width, output_stride)


def check(width: float, output_stride: int) -> None:
    """Raises `UserError` unless MobileNets can have this width and output stride."""
    if width <= 0:
        raise UserError(f"config.model.backbone.width={width}: give a positive factor, such as 1.0")
    if output_stride not in OUTPUT_STRIDES:
        raise UserError(
            f"config.model.backbone.output_stride={output_stride!r}: expected one of "
            f"{OUTPUT_STRIDES}"
        )


def torch_names(backbone: MobileNetV2) -> list[tuple[str, str]]:
    """MMSegmentation's module names -> paths in `MobileNetV2`; see `convert`."""
    block = r"layer(\d)\.(\d+)\.conv\."
    # The convolutions of a block are numbered; the first stage, unexpanded, has one less.
    table = [
        (rf"layer1\.0\.conv\.{i}\.(conv|bn)", rf"layer1_0/{name}/\1")
        for i, name in enumerate(("depthwise", "project"))
    ]
    table += [
        (rf"{block}{i}\.(conv|bn)", rf"layer\1_\2/{name}/\3")
        for i, name in enumerate(("expand", "depthwise", "project"))
    ]
    return [(r"conv1\.(conv|bn)", r"stem/\1"), *table]
