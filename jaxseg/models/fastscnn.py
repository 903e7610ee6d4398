"""Fast-SCNN: Fast Semantic Segmentation Network (Poudel et al. 2019, arXiv:1902.04502), table 1.

Few layers at high resolution, shared by two branches: one goes deep at low resolution, the other
waits for it. In the form of MMSegmentation's `FastSCNN`, which pools after the bottlenecks, joins
the pyramid by a convolution and scores two maps on the way in training.
"""

import flax.linen as nn
import jax

from jaxseg.errors import UserError
from jaxseg.models.common import Classifier, ConvNorm
from jaxseg.models.fcn import auxiliary, select
from jaxseg.models.mobilenetv2 import InvertedResidual
from jaxseg.models.pspnet import PyramidPooling
from jaxseg.models.segmenter import MEAN, STD, Segmenter
from jaxseg.ops.resize import resize

# Table 1: channels, number of bottlenecks and the stride of the first.
BOTTLENECKS = ((64, 3, 2), (96, 3, 2), (128, 3, 1))
EXPANSION = 6


class DSConv(nn.Module):
    """Depthwise separable 3x3 convolution, without a nonlinearity in between (section 3.2.1)."""

    features: int
    strides: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        c = x.shape[-1]
        x = ConvNorm(c, 3, self.strides, groups=c, act=None, name="depthwise_conv")(x, train)
        return ConvNorm(self.features, name="pointwise_conv")(x, train)


class FastSCNN(nn.Module):
    """[b, h, w, 3] -> {'downsampled': [b, h/8, w/8, 64], 'global': [b, h/32, w/32, 128],
    'fused': [b, h/8, w/8, 128]}, sizes rounded up.

    Attributes:
      align_corners: of every resize.
    """

    align_corners: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        # Learning to downsample
        x = ConvNorm(32, 3, 2, name="conv")(x, train)  # [b, h/2, w/2, 32]
        x = DSConv(48, 2, name="dsconv1")(x, train)  # [b, h/4, w/4, 48]
        x = downsampled = DSConv(64, 2, name="dsconv2")(x, train)  # [b, h/8, w/8, 64]
        # Global feature extractor: inverted residuals of MobileNetV2, but with ReLU
        for i, (c, number, strides) in enumerate(BOTTLENECKS, start=1):
            for n in range(number):
                stride, name = strides if n == 0 else 1, f"bottleneck{i}_{n}"
                block = InvertedResidual(c, stride, 1, EXPANSION, nn.relu, name=name)
                x = block(x, train)  # at last [b, h/32, w/32, 128]
        x = PyramidPooling((1, 2, 3, 6), 32, align_corners=self.align_corners, name="pyramid")(
            x, train
        )
        x = context = ConvNorm(128, 3, name="project")(x, train)  # [b, h/32, w/32, 128]
        # Feature fusion
        x = resize(x, downsampled.shape[1:3], "bilinear", self.align_corners)
        x = ConvNorm(128, 3, groups=128, name="low_depthwise")(x, train)  # [b, h/8, w/8, 128]
        x = ConvNorm(128, act=None, name="low")(x, train)
        x = nn.relu(x + ConvNorm(128, act=None, name="high")(downsampled, train))
        return {"downsampled": downsampled, "global": context, "fused": x}


class SeparableFCNHead(nn.Module):
    """The classifier: features['fused'] -> {'logits': [b, h/8, w/8, classes]}."""

    num_classes: int
    channels: int = 128
    dropout: float = 0.1

    @nn.compact
    def __call__(self, features: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        x = select(features, "fused")
        for i in (1, 2):
            x = DSConv(self.channels, name=f"dsconv{i}")(x, train)
        return {"logits": Classifier(self.num_classes, self.dropout, name="classifier")(x, train)}


def Model(
    num_classes: int,
    channels: int = 128,
    aux_channels: int = 32,
    dropout: float = 0.1,
    align_corners: bool = False,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> Segmenter:
    """Fast-SCNN. Its training scores each class by a sigmoid, `losses.sigmoid_cross_entropy`.

    Args:
      channels: width of the classifier's convolutions.
      aux_channels: width of the two auxiliary heads, 'aux_logits_0' on the global features and
        'aux_logits_1' on the downsampled image; 0 leaves them out.
      dropout: of the channels before all classifiers.
      align_corners: see `ops.resize`; holds for every resize, that of the logits included.

    Raises:
      UserError: a width out of its range.
    """
    for name, value, least in (("channels", channels, 1), ("aux_channels", aux_channels, 0)):
        if value < least:
            raise UserError(f"config.model.{name}={value}: expected a number from {least} on")
    aux_heads = tuple(
        auxiliary(num_classes, feature, aux_channels, dropout)
        for feature in ("global", "downsampled")
    )
    return Segmenter(
        backbone=FastSCNN(align_corners),
        head=SeparableFCNHead(num_classes, channels, dropout),
        aux_head=aux_heads if aux_channels else None,
        mean=tuple(mean),
        std=tuple(std),
        align_corners=align_corners,
    )


def torch_names(part: FastSCNN | SeparableFCNHead) -> list[tuple[str, str]]:
    """MMSegmentation's module names -> paths in either part; see `convert`."""
    halves = r"(depthwise_conv|pointwise_conv)\.(conv|bn)"
    if isinstance(part, SeparableFCNHead):
        table = [(rf"convs\.{i}\.{halves}", rf"dsconv{i + 1}/\1/\2") for i in range(2)]
        return [*table, ("conv_seg", "classifier/conv")]
    first, deep = r"learning_to_downsample\.", r"global_feature_extractor\."
    table = [
        (first + r"conv\.(conv|bn)", r"conv/\1"),
        (first + r"(dsconv\d)\." + halves, r"\1/\2/\3"),
        (deep + r"ppm\.(\d)\.1\.(conv|bn)", r"pyramid/level\1/\2"),
        (deep + r"out\.(conv|bn)", r"project/\1"),
        (r"feature_fusion\.dwconv\.(conv|bn)", r"low_depthwise/\1"),
        (r"feature_fusion\.conv_lower_res\.(conv|bn)", r"low/\1"),
        (r"feature_fusion\.conv_higher_res\.(conv|bn)", r"high/\1"),
    ]
    for i, name in enumerate(("expand", "depthwise", "project")):
        theirs = rf"{deep}bottleneck(\d)\.(\d)\.conv\.{i}\.(conv|bn)"
        table.append((theirs, rf"bottleneck\1_\2/{name}/\3"))
    return table
