"""U-Net: Convolutional Networks for Biomedical Image Segmentation.

Ronneberger et al. 2015, arXiv:1505.04597. In two forms:

* `Model` is the paper's: valid convolutions without normalisation, an image mirrored at its border
  so that the shrunken output still covers all of it, up-convolutions. Where the paper is silent
  (which layers drop, ReLU after an up-convolution) it follows the network that the authors
  released.
* `Backbone` is what toolboxes train, as MMSegmentation's `unet` models: padded convolutions with
  batch normalisation, for any head on any of its features.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg import named
from jaxseg.errors import UserError
from jaxseg.models.common import BatchNorm, Conv, ConvNorm, Dropout
from jaxseg.models.segmenter import MEAN, STD, Segmenter
from jaxseg.models.upsample import METHODS, ConvTranspose, Upsample
from jaxseg.ops.pool import max_pool_indices

# Section 3: deviation sqrt(2 / N), N the values that enter a neuron. Into a pixel of a 2x2 up-
# convolution enter as many as there are input channels: a quarter of what "fan_out" counts.
he = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
he_up = nn.initializers.variance_scaling(8.0, "fan_out", "normal")


# ---- the paper's network ----


class ValidConvs(nn.Module):
    """Two 3x3 valid convolutions with ReLU: [b, h, w, c] -> [b, h - 4, w - 4, features]."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(2):
            x = nn.relu(Conv(self.features, 3, kernel_init=he, padding=0, name=f"conv{i}")(x))
        return x


class UpConv(nn.Module):
    """To double the size and half the width: [b, h, w, 2 features] -> [b, 2h, 2w, features].

    The paper's is a 2x2 transposed convolution. Other methods have no kernel of their own, and a
    1x1 convolution halves the width: after interpolation, or before unpooling, whose positions are
    for the half.
    """

    features: int
    method: str

    @nn.compact
    def __call__(self, x: jax.Array, indices: jax.Array) -> jax.Array:
        if self.method == "transposed":
            return nn.relu(ConvTranspose(self.features, kernel_init=he_up, name="conv")(x))
        size = (2 * x.shape[1], 2 * x.shape[2])
        if self.method in ("bilinear", "nearest"):
            x = Upsample(self.method)(x, size)
        x = nn.relu(Conv(self.features, kernel_init=he, name="conv")(x))
        if self.method in ("unpool", "unpool_fixed"):
            x = Upsample(self.method)(x, size, indices)
        return x


class ValidUNet(nn.Module):
    """Figure 1: [b, h, w, c] -> [b, h - 2m, w - 2m, width], m as in `tile`; 572 -> 388.

    h and w must be even at every pooling, as those of `tile` are; else it raises ValueError.
    """

    width: int = 64
    stages: int = 5
    upsample: str = "transposed"
    dropout: float = 0.5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        skips, places = [], []
        for i in range(1, self.stages + 1):  # the contracting path
            if i > 1:
                if x.shape[1] % 2 or x.shape[2] % 2:
                    raise ValueError(f"ValidUNet: a map of {x.shape[1:3]} at pooling {i - 1}")
                x, indices = max_pool_indices(x)  # [b, h / 2^(i-1), ...]
                places.append(indices)
            x = ValidConvs(self.width * 2 ** (i - 1), name=f"encoder{i}")(x)
            if i >= self.stages - 1:  # its last two maps, of which the first is a skip too
                x = Dropout(self.dropout)(x, train)
            skips.append(x)
        for i in range(self.stages - 1, 0, -1):  # the expansive path
            features = self.width * 2 ** (i - 1)
            indices = crop(places[i - 1], x.shape[1:3])
            x = UpConv(features, self.upsample, name=f"up{i}")(x, indices)
            x = jnp.concatenate([crop(skips[i - 1], x.shape[1:3]), x], -1)  # copy and crop
            x = ValidConvs(features, name=f"decoder{i}")(x)
        return x


def crop(x: jax.Array, size: Sequence[int]) -> jax.Array:
    """The centre of [b, h, w, c], of `size`."""
    top, left = ((n - m) // 2 for n, m in zip(x.shape[1:3], size, strict=True))
    return x[:, top : top + size[0], left : left + size[1]]


def tile(n: int, stages: int = 5) -> tuple[int, int, int]:
    """The smallest valid tile whose output covers n pixels: (input size, output size, margin).

    The margin is what the network needs to see on each side of its output: 92 pixels for 5 stages.
    """
    scale = 2 ** (stages - 1)
    lost = 4 * (scale - 1)  # on the way down, and again on the way up, by the convolutions
    lowest = -(-(n + lost) // scale)  # the lowest map after its convolutions; 4 more before
    return scale * (lowest + 4) + lost, scale * lowest - lost, 6 * scale - 4


class OverlapTile(nn.Module):
    """Figure 2: the image, mirrored at its border, through `net`: scores for every pixel.

    [b, h, w, 3] of any size -> {'decoder1': [b, h, w, width]}. It pays to choose sizes that are the
    output of a `tile`, as 388: all others are computed on the next larger and cropped.
    """

    net: ValidUNet

    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        h, w = x.shape[1:3]
        edges = [(0, 0)]
        for n in (h, w):
            _, covered, margin = tile(n, self.net.stages)
            edges.append((margin, margin + covered - n))
        x = jnp.pad(x, [*edges, (0, 0)], mode="reflect")
        return {"decoder1": self.net(x, train)[:, :h, :w]}


class ScoreHead(nn.Module):
    """The last 1x1 convolution: features['decoder1'] -> {'logits': [b, h, w, classes]}."""

    num_classes: int

    @nn.compact
    def __call__(self, features: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        conv = Conv(self.num_classes, kernel_init=he, name="conv")
        return {"logits": conv(features["decoder1"])}


def Model(
    num_classes: int,
    width: int = 64,
    stages: int = 5,
    upsample: str = "transposed",
    dropout: float = 0.5,
    align_corners: bool = False,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> Segmenter:
    """The original U-Net; 'logits' have the size of the image, whatever that is.

    An image too large for the device is cut into windows by `config.predict.slide`. These are
    mirrored at their own borders, where the paper's tiles continue into their neighbours: a stride
    smaller than the window by up to two margins (`tile`) lets windows average there.

    Args:
      width: channels of the first stage; each further one has twice as many.
      stages: of the contracting path, poolings plus one.
      upsample: how the expansive path grows maps: one of `upsample.METHODS`.
      dropout: of the values of the last two maps of the contracting path.
      align_corners: of resizing logits to sizes other than the image's.

    Raises:
      UserError: values out of range.
    """
    _check("config.model", width, stages, upsample)
    return Segmenter(
        backbone=OverlapTile(ValidUNet(width, stages, upsample, dropout)),
        head=ScoreHead(num_classes),
        mean=tuple(mean),
        std=tuple(std),
        align_corners=align_corners,
    )


# ---- the padded form ----


class Convs(nn.Module):
    """Two 3x3 convolutions, each with batch normalisation and ReLU."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i in range(2):
            x = ConvNorm(self.features, 3, name=f"conv{i}")(x, train)
        return x


class UpNorm(nn.Module):
    """`UpConv` with batch normalisation: [b, h, w, c] -> [b, 2h, 2w, features].

    Transposed convolutions are 4x4 here, of which 2x2 reach each pixel.
    """

    features: int
    method: str

    @nn.compact
    def __call__(self, x: jax.Array, indices: jax.Array, train: bool) -> jax.Array:
        if self.method == "transposed":
            x = ConvTranspose(self.features, 4, padding=1, name="conv")(x)
            return nn.relu(BatchNorm(name="bn")(x, train))
        size = (2 * x.shape[1], 2 * x.shape[2])
        if self.method in ("bilinear", "nearest"):
            x = Upsample(self.method)(x, size)
        x = ConvNorm(self.features, name="reduce")(x, train)
        if self.method in ("unpool", "unpool_fixed"):
            x = Upsample(self.method)(x, size, indices)
        return x


class PaddedUNet(nn.Module):
    """[b, h, w, 3] -> {'encoder1': [b, h, w, width], ..., 'decoder1': [b, h, w, width]}.

    'encoderI' and 'decoderI' are of size h / 2^(I-1) and width 2^(I-1) width; the last encoder has
    no decoder. Where MMSegmentation demands multiples of 2^(stages-1), sizes are rounded up here
    in pooling, and maps that grew by two are cropped to the encoder's: pixels stay aligned.
    """

    width: int = 64
    stages: int = 5
    upsample: str = "bilinear"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        features, places = {}, []
        for i in range(1, self.stages + 1):
            if i > 1:
                x, indices = max_pool_indices(x)  # [b, h / 2^(i-1), ...]
                places.append(indices)
            x = Convs(self.width * 2 ** (i - 1), name=f"encoder{i}")(x, train)
            features[f"encoder{i}"] = x
        for i in range(self.stages - 1, 0, -1):
            skip = features[f"encoder{i}"]
            _, h, w, c = skip.shape
            x = UpNorm(c, self.upsample, name=f"up{i}")(x, places[i - 1], train)[:, :h, :w]
            x = Convs(c, name=f"decoder{i}")(jnp.concatenate([skip, x], -1), train)
            features[f"decoder{i}"] = x
        return features


def Backbone(width: int = 64, stages: int = 5, upsample: str = "bilinear") -> PaddedUNet:
    """A checked `PaddedUNet`; arguments as in `Model`.

    With upsample "bilinear" (MMSegmentation's InterpConv, the default there) or "transposed" (its
    DeconvModule) it is that of MMSegmentation, whose outputs 0 to 4 are 'encoder5', 'decoder4' to
    'decoder1'.

    Raises:
      UserError: values out of range.
    """
    _check("config.model.backbone", width, stages, upsample)
    return PaddedUNet(width, stages, upsample)


def _check(where: str, width: int, stages: int, upsample: str) -> None:
    named.check(f"{where}.upsample", "method", upsample, METHODS)
    for name, value, least in (("width", width, 1), ("stages", stages, 2)):
        if value < least:
            raise UserError(f"{where}.{name}={value!r}: expected a whole number from {least} on")


def torch_names(part: nn.Module) -> list[tuple[str, str]]:
    """MMSegmentation's module names -> paths in `PaddedUNet`; see `convert`.

    It has no counterpart of the original network, whose table is empty.
    """
    table = []
    if not isinstance(part, PaddedUNet):
        return table
    for i in range(part.stages):
        ours, up = i + 1, rf"decoder\.{i}\.upsample\."
        table += [
            # The first stage has no pool in front.
            (rf"encoder\.{i}\.{min(i, 1)}\.convs\.(\d)\.(conv|bn)", rf"encoder{ours}/conv\1/\2"),
            (rf"decoder\.{i}\.conv_block\.convs\.(\d)\.(conv|bn)", rf"decoder{ours}/conv\1/\2"),
            (rf"{up}interp_upsample\.1\.(conv|bn)", rf"up{ours}/reduce/\1"),
            (rf"{up}deconv_upsamping\.0", f"up{ours}/conv"),
            (rf"{up}deconv_upsamping\.1", f"up{ours}/bn"),
        ]
    return table
