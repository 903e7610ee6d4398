"""Searching for MobileNetV3 (Howard et al. 2019, arXiv:1905.02244), Large and Small, dilated.

Tables 1 and 2 up to the last 1x1 convolution before the pooling. As in MMSegmentation's
`MobileNetV3`: convolutions that the tables stride are padded as TensorFlow pads them ("SAME", more
at the bottom and right), past `output_stride` a block's dilation takes the place of its stride at
once, and batch normalisation has an epsilon of 1e-3.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg import named
from jaxseg.models.common import Conv, ConvNorm
from jaxseg.models.mobilenetv2 import check, scaled

Norm = functools.partial(ConvNorm, epsilon=1e-3)
relu, hswish = jax.nn.relu, jax.nn.hard_swish  # hswish: x * ReLU6(x + 3) / 6, section 5.2

# Tables 1 and 2: kernel, expanded channels, channels, squeeze-and-excite, nonlinearity, stride.
BLOCKS = {
    "large": (
        (3, 16, 16, False, relu, 1),
        (3, 64, 24, False, relu, 2),
        (3, 72, 24, False, relu, 1),
        (5, 72, 40, True, relu, 2),
        (5, 120, 40, True, relu, 1),
        (5, 120, 40, True, relu, 1),
        (3, 240, 80, False, hswish, 2),
        (3, 200, 80, False, hswish, 1),
        (3, 184, 80, False, hswish, 1),
        (3, 184, 80, False, hswish, 1),
        (3, 480, 112, True, hswish, 1),
        (3, 672, 112, True, hswish, 1),
        (5, 672, 160, True, hswish, 2),
        (5, 960, 160, True, hswish, 1),
        (5, 960, 160, True, hswish, 1),
    ),
    "small": (
        (3, 16, 16, True, relu, 2),
        (3, 72, 24, False, relu, 2),
        (3, 88, 24, False, relu, 1),
        (5, 96, 40, True, hswish, 2),
        (5, 240, 40, True, hswish, 1),
        (5, 240, 40, True, hswish, 1),
        (5, 120, 48, True, hswish, 1),
        (5, 144, 48, True, hswish, 1),
        (5, 288, 96, True, hswish, 2),
        (5, 576, 96, True, hswish, 1),
        (5, 576, 96, True, hswish, 1),
    ),
}


def same_pad(x: jax.Array, kernel: int, strides: int) -> jax.Array:
    """Zeros around [b, h, w, c] so that a valid convolution gives ceil(h / strides) rows.

    TensorFlow's "SAME": an odd number of zeros has the larger half at the bottom and right. Only
    strided convolutions of even sizes have one: for them it is one less than half padding.
    """
    outside = []
    for n in x.shape[1:3]:
        total = max((-(-n // strides) - 1) * strides + kernel - n, 0)
        outside.append((total // 2, total - total // 2))
    return jnp.pad(x, ((0, 0), *outside, (0, 0)))


class SqueezeExcite(nn.Module):
    """Scales each channel by what the mean of all says (Hu et al. 2017, arXiv:1709.01507).

    The squeeze is to a quarter of the channels, the gate a hard sigmoid (section 5.3).
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = x.shape[-1]
        gate = x.mean((1, 2), keepdims=True)  # [b, 1, 1, c]; XLA sums bfloat16 in float32
        gate = nn.relu(Conv(scaled(c // 4), name="reduce")(gate))
        return x * jax.nn.hard_sigmoid(Conv(c, name="expand")(gate))


class InvertedResidual(nn.Module):
    """MobileNetV2's block with squeeze and excite after the depthwise convolution (figure 4)."""

    kernel: int
    expanded: int
    features: int
    excite: bool
    act: Callable[[jax.Array], jax.Array]
    strides: int
    dilation: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        c, y = self.expanded, x
        if c != x.shape[-1]:
            y = Norm(c, act=self.act, name="expand")(y, train)
        depthwise = functools.partial(Norm, c, self.kernel, groups=c, act=self.act)
        if self.strides > 1:
            y = same_pad(y, self.kernel, self.strides)
            y = depthwise(strides=self.strides, padding=0, name="depthwise")(y, train)
        else:
            y = depthwise(dilation=self.dilation, name="depthwise")(y, train)
        if self.excite:
            y = SqueezeExcite(name="excite")(y)
        y = Norm(self.features, act=None, name="project")(y, train)
        return x + y if self.strides == 1 and x.shape == y.shape else y


class MobileNetV3(nn.Module):
    """[b, h, w, 3] -> {'stage0': [b, h/2, w/2, 16], 'stage1': [b, h/4, w/4, 24], ..., 'stage4'}.

    Each feature is the last one at its stride, 2 to 32, the strides at most `output_stride`. Large:
    16, 24, 40, 112 and 960 channels; small: 16, 16, 24, 48 and 576; all times `width`.

    Attributes:
      size: "large" or "small".
      width: multiplier of all channels, rounded by `mobilenetv2.scaled`.
      output_stride: of the last stages: 4, 8, 16 or 32.
    """

    size: str = "large"
    width: float = 1.0
    output_stride: int = 32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        stem = Norm(scaled(16 * self.width), 3, 2, act=hswish, padding=0, name="stem")
        x = stem(same_pad(x, 3, 2), train)  # [b, h/2, w/2, 16]
        features, stage = {"stage0": x}, 0
        stride, dilation = 2, 1
        for i, (kernel, expanded, channels, excite, act, strides) in enumerate(BLOCKS[self.size]):
            stage += strides > 1
            if stride * strides > self.output_stride:
                dilation, strides = dilation * strides, 1
            stride *= strides
            x = InvertedResidual(
                kernel,
                scaled(expanded * self.width),
                scaled(channels * self.width),
                excite,
                act,
                strides,
                dilation,
                name=f"block{i + 1}",
            )(x, train)
            features[f"stage{stage}"] = x
        features["stage4"] = Norm(6 * x.shape[-1], act=hswish, name="last")(x, train)
        return features


def Backbone(size: str = "large", width: float = 1.0, output_stride: int = 32) -> MobileNetV3:
    """A checked `MobileNetV3`; raises `UserError` for a value that it does not know."""
    named.check("config.model.backbone.size", "size", size, BLOCKS)
    check(width, output_stride)
    return MobileNetV3(size, width, output_stride)


def torch_names(backbone: MobileNetV3) -> list[tuple[str, str]]:
    """MMSegmentation's module names -> paths in `MobileNetV3`; see `convert`."""
    last = len(BLOCKS[backbone.size]) + 1
    return [
        (r"layer0\.(conv|bn)", r"stem/\1"),
        (rf"layer{last}\.(conv|bn)", r"last/\1"),
        (r"layer(\d+)\.(expand|depthwise)_conv\.(conv|bn)", r"block\1/\2/\3"),
        (r"layer(\d+)\.linear_conv\.(conv|bn)", r"block\1/project/\2"),
        (r"layer(\d+)\.se\.conv1\.conv", r"block\1/excite/reduce"),
        (r"layer(\d+)\.se\.conv2\.conv", r"block\1/excite/expand"),
    ]
