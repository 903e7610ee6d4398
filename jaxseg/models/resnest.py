"""ResNeSt: Split-Attention Networks (Zhang et al. 2020, arXiv:2004.08955), dilated.

A ResNet-D (see `resnet`) whose 3x3 convolutions are split attention (figures 1 and 2), with one
cardinal group and two splits: the models that the authors call ResNeSt-50 and so on. A block that
strides does so by an average pool after its split attention (their "average downsampling"). Past
`output_stride`, dilation takes the place of that pool too, as in MMSegmentation's `ResNeSt`.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.errors import UserError
from jaxseg.models import resnet
from jaxseg.models.common import BatchNorm, ConvNorm, kaiming
from jaxseg.ops.adaptive_pool import adaptive_avg_pool
from jaxseg.ops.pool import avg_pool_padded, max_pool

RADIX = 2  # R, the number of splits
PARTS = 16  # see Dense
# Depth -> channels of the stem, blocks of each stage.
BLOCKS = {
    50: (64, (3, 4, 6, 3)),
    101: (128, (3, 4, 23, 3)),
    200: (128, (3, 24, 36, 3)),
    269: (128, (3, 30, 48, 8)),
}


class Dense(nn.Module):
    """A fully connected layer: [b, 1, 1, c] -> [b, 1, 1, features].

    It adds the products up in `PARTS` sums, and then these. A softmax of large scores magnifies
    what rounding takes from them, and so do the blocks after it: at the end of ResNeSt-101 with
    weights drawn at random, float32 on a CPU is 2e-5 off in this way, and 4e-5 in one sum.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, f = x.shape[-1], self.features
        kernel = self.param("kernel", kaiming, (1, 1, c, f), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (f,), jnp.float32)
        n = math.gcd(c, PARTS)
        parts = jnp.einsum(
            "bhwnc,ncf->bhwnf",
            x.reshape(*x.shape[:3], n, c // n),
            kernel.reshape(n, c // n, f),
            preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
        )
        return parts.sum(-2).astype(x.dtype) + bias


class SplitAttention(nn.Module):
    """Sums `RADIX` convolved maps, each channel weighted by what the whole image shows (figure 2).

    [b, h, w, c] -> [b, h, w, features]. Each split convolves c / RADIX channels of its own.
    """

    features: int
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = ConvNorm(RADIX * self.features, 3, 1, self.dilation, RADIX, name="conv")(x, train)
        splits = jnp.split(x, RADIX, -1)  # each [b, h, w, features]
        y = adaptive_avg_pool(sum(splits), (1, 1))  # [b, 1, 1, features]
        y = Dense(max(RADIX * self.features // 4, 32), name="fc1")(y)
        y = nn.relu(BatchNorm(name="bn")(y, train))
        y = Dense(RADIX * self.features, name="fc2")(y)  # [b, 1, 1, RADIX * features]
        weights = nn.softmax(jnp.stack(jnp.split(y, RADIX, -1)), 0)
        return sum(weight * split for weight, split in zip(weights, splits, strict=True))


class Bottleneck(nn.Module):
    """1x1 down, split attention, an average pool where it strides, 1x1 up (figure 1)."""

    width: int
    strides: int
    dilation: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = ConvNorm(self.width, name="conv1")(x, train)
        y = SplitAttention(self.width, self.dilation, name="conv2")(y, train)
        if self.strides > 1:
            y = avg_pool_padded(y, 3, self.strides, 1)
        y = ConvNorm(4 * self.width, act=None, scale_init=nn.initializers.zeros, name="conv3")(
            y, train
        )
        return nn.relu(resnet.shortcut(x, y, self.strides, True, train) + y)


class ResNeSt(nn.Module):
    """[b, h, w, 3] -> {'stem': [b, h/2, w/2, c], 'stage1': [b, h/4, w/4, 256], ..., 'stage4'}.

    The stages have 256, 512, 1024 and 2048 channels at strides 4, 8, 16 and 32, each at most
    `output_stride`; the stem has 64, from depth 101 on 128.

    Attributes:
      depth: 50, 101, 200 or 269.
      output_stride: of the last stages: 4, 8, 16 or 32.
      freeze_norm: as in `resnet.ResNet`.
    """

    depth: int = 50
    output_stride: int = 32
    freeze_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        train = train and not self.freeze_norm
        channels, depths = BLOCKS[self.depth]
        x = ConvNorm(channels // 2, 3, 2, name="stem0")(x, train)
        x = ConvNorm(channels // 2, 3, name="stem1")(x, train)
        x = ConvNorm(channels, 3, name="stem2")(x, train)  # [b, h/2, w/2, channels]
        features = {"stem": x}
        x = max_pool(x, 3, 2, 1)  # [b, h/4, w/4, channels]
        stride, dilation = 4, 1
        for stage, depth in enumerate(depths, start=1):
            first, rate = (1 if stage == 1 else 2), dilation
            if stride * first > self.output_stride:
                dilation, first = dilation * first, 1
            stride *= first
            for i in range(depth):
                # The first block keeps the rate before: it sees the grid it would have strided.
                x = Bottleneck(
                    64 * 2 ** (stage - 1),
                    first if i == 0 else 1,
                    rate if i == 0 else dilation,
                    name=f"stage{stage}_{i}",
                )(x, train)
            features[f"stage{stage}"] = x
        return features


def Backbone(depth: int = 50, output_stride: int = 32, freeze_norm: bool = False) -> ResNeSt:
    """A checked `ResNeSt`; raises `UserError` for a value that it does not know."""
    for name, value, known in (
        ("depth", depth, tuple(BLOCKS)),
        ("output_stride", output_stride, resnet.OUTPUT_STRIDES),
    ):
        if value not in known:
            raise UserError(f"config.model.backbone.{name}={value!r}: expected one of {known}")
    return ResNeSt(depth, output_stride, freeze_norm)


def torch_names(backbone: ResNeSt) -> list[tuple[str, str]]:
    """MMSegmentation's module names -> paths in `ResNeSt`; see `convert`."""
    part, here = r"layer(\d)\.(\d+)\.conv2\.", r"stage\1_\2/conv2"
    return [
        (part + "conv", f"{here}/conv/conv"),
        (part + "bn0", f"{here}/conv/bn"),
        (part + "bn1", f"{here}/bn"),
        (part + r"(fc\d)", rf"{here}/\3"),
        *resnet.torch_names(resnet.ResNet(stem="v1d")),
    ]
