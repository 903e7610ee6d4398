"""ERFNet: Efficient Residual Factorized ConvNet for Real-time Semantic Segmentation.

Romera, Alvarez, Bergasa and Arroyo 2018, IEEE Transactions on Intelligent Transportation Systems
19(1). Residual blocks of 3x1 and 1x3 convolutions, figure 2 (c), in the disposition of table I. In
the form of MMSegmentation's `ERFNet`, which scores the last feature map by an FCN head at half the
image's size, where the paper has a transposed convolution, and drops values in all blocks of the
encoder alike. Batch normalisation has an epsilon of 1e-3.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.errors import UserError
from jaxseg.models.common import BatchNorm, Conv, Dropout
from jaxseg.models.fcn import FCNHead
from jaxseg.models.segmenter import MEAN, STD, Segmenter
from jaxseg.models.upsample import ConvTranspose
from jaxseg.ops.pool import max_pool
from jaxseg.ops.resize import resize

# Table I, the encoder: channels after each halving, and the dilation of each block behind it.
ENCODER = ((16, ()), (64, (1,) * 5), (128, (2, 4, 8, 16) * 2))
# The decoder: channels after each doubling, each with two blocks behind it.
DECODER = (64, 16)
EPSILON = 1e-3  # of the normalisation


class Downsampler(nn.Module):
    """A convolution and a pooling side by side: [b, h, w, c] -> [b, h/2, w/2, features].

    Sizes are rounded up. Pooling rounds them down, and stretches what it gets over an odd map.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = Conv(self.features - x.shape[-1], 3, 2, name="conv")(x)
        pooled = resize(max_pool(x, 2, 2, 0), y.shape[1:3])
        y = jnp.concatenate([y, pooled], -1)
        return nn.relu(BatchNorm(epsilon=EPSILON, name="bn")(y, train))


class NonBottleneck1D(nn.Module):
    """Two 3x3 convolutions, each factorised into 3x1 and 1x3, the second two dilated."""

    dilation: int = 1
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        c, y = x.shape[-1], x
        for i, dilation in enumerate((1, self.dilation)):
            y = nn.relu(Conv(c, (3, 1), dilation=dilation, name=f"conv{i}_3x1")(y))
            y = Conv(c, (1, 3), dilation=dilation, name=f"conv{i}_1x3")(y)
            y = BatchNorm(epsilon=EPSILON, name=f"bn{i}")(y, train)
            y = nn.relu(y) if i == 0 else Dropout(self.dropout)(y, train)
        return nn.relu(x + y)


class Upsampler(nn.Module):
    """A transposed convolution: [b, h, w, c] -> [b, 2h, 2w, features]."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = ConvTranspose(self.features, 3, padding=1, output_padding=1, name="conv")(x)
        return nn.relu(BatchNorm(epsilon=EPSILON, name="bn")(x, train))


class ERFNet(nn.Module):
    """[b, h, w, 3] -> {'encoder': [b, h/8, w/8, 128], 'decoder': [b, h/2, w/2, 16]}.

    Sizes are rounded up in the encoder and doubled in the decoder, whose map is four times as large
    as the encoder's.

    Attributes:
      dropout: of values, in the encoder's blocks.
    """

    dropout: float = 0.1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        for i, (width, rates) in enumerate(ENCODER, start=1):
            x = Downsampler(width, name=f"encoder{i}")(x, train)  # [b, h / 2^i, w / 2^i, width]
            for j, rate in enumerate(rates):
                x = NonBottleneck1D(rate, self.dropout, name=f"encoder{i}_{j}")(x, train)
        features = {"encoder": x}
        for i, width in enumerate(DECODER, start=1):
            x = Upsampler(width, name=f"decoder{i}")(x, train)  # [b, 2^i h/8, 2^i w/8, width]
            for j in range(2):
                x = NonBottleneck1D(name=f"decoder{i}_{j}")(x, train)
        return features | {"decoder": x}


def Model(
    num_classes: int,
    channels: int = 128,
    block_dropout: float = 0.1,
    dropout: float = 0.1,
    align_corners: bool = False,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> Segmenter:
    """ERFNet with an FCN head.

    Args:
      channels: width of the head's one 3x3 convolution.
      block_dropout: of values in the encoder's blocks.
      dropout: of the channels before the classifier.
      align_corners: of resizing the logits, see `ops.resize`.

    Raises:
      UserError: a width or a share out of its range.
    """
    for name, value, good, expected in (
        ("channels", channels, channels >= 1, "a number from 1 on"),
        ("block_dropout", block_dropout, 0 <= block_dropout < 1, "a share in [0, 1)"),
    ):
        if not good:
            raise UserError(f"config.model.{name}={value}: expected {expected}")
    return Segmenter(
        backbone=ERFNet(block_dropout),
        head=FCNHead(num_classes, "decoder", channels, 1, False, dropout),
        mean=tuple(mean),
        std=tuple(std),
        align_corners=align_corners,
    )


def torch_names(backbone: ERFNet) -> list[tuple[str, str]]:
    """MMSegmentation's module names -> paths in `ERFNet`; see `convert`.

    There encoder and decoder are one list of blocks each; here, as in table I, a block counts from
    the last change of size.
    """
    layers = [f"conv{i}_{k}" for i in range(2) for k in ("3x1", "1x3")]
    # In a block's list, after each convolution or norm comes ReLU or dropout.
    leaves = {0: layers[0], 2: layers[1], 3: "bn0", 5: layers[2], 7: layers[3], 8: "bn1"}
    blocks = {"encoder": [len(rates) for _, rates in ENCODER], "decoder": [2] * len(DECODER)}
    table = []
    for part, counts in blocks.items():
        place = 0
        for i, count in enumerate(counts, start=1):
            table.append((rf"{part}\.{place}\.(conv|bn)", rf"{part}{i}/\1"))
            for j in range(count):
                table += [
                    (rf"{part}\.{place + 1 + j}\.convs_layers\.{n}", f"{part}{i}_{j}/{leaf}")
                    for n, leaf in leaves.items()
                ]
            place += 1 + count
    return table
