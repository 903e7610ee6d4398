"""Lite reduced ASPP, the segmentation head of MobileNetV3.

Howard et al. 2019, arXiv:1905.02244, section 6.4 and figure 10, in the form of MMSegmentation's
`LRASPPHead`, which has one low-level feature more than the figure and joins where that adds.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxseg import models
from jaxseg.errors import UserError
from jaxseg.models.common import Classifier, Conv
from jaxseg.models.fcn import select
from jaxseg.models.mobilenetv3 import Norm
from jaxseg.models.segmenter import MEAN, STD, Segmenter
from jaxseg.ops.resize import resize

# Of the pooling, pixels of the feature map: figure 10.
WINDOW, STRIDES = 49, (16, 20)


class LRASPPHead(nn.Module):
    """-> {'logits': [b, h', w', classes]}, at the size of the first of `low_features`.

    Attributes:
      feature: the deep feature, gated by sigmoids of its own means over large windows.
      low_features, low_channels: finer features, finest first, and what each is reduced to.
      channels: width of everything else.
    """

    num_classes: int
    feature: str = "stage4"
    low_features: tuple[str, ...] = ("stage0", "stage1")
    low_channels: tuple[int, ...] = (32, 64)
    channels: int = 128
    dropout: float = 0.1
    align_corners: bool = False

    @nn.compact
    def __call__(self, features: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        def fit(x, like):
            return resize(x, like.shape[1:3], "bilinear", self.align_corners)

        x = select(features, self.feature)  # [b, h/8, w/8, c], or h/16
        gate = window_means(x, WINDOW, STRIDES)  # [b, 1, 4, c] for 64 x 128 pixels
        gate = nn.sigmoid(Conv(self.channels, use_bias=False, name="gate")(gate))
        x = Norm(self.channels, name="deep")(x, train)
        x = Conv(self.channels, name="gated")(x * fit(gate, x))  # [b, h/8, w/8, channels]
        for i in reversed(range(len(self.low_features))):
            low = select(features, self.low_features[i])
            low_conv = Conv(self.low_channels[i], use_bias=False, name=f"low{i}")
            x = jnp.concatenate([fit(x, low), low_conv(low)], -1)
            x = Norm(self.channels, name=f"join{i}")(x, train)  # h/4, then h/2
        return {"logits": Classifier(self.num_classes, self.dropout, name="classifier")(x, train)}


def window_means(x: jax.Array, window: int, strides: tuple[int, int]) -> jax.Array:
    """Means over square windows that lie wholly inside: [b, h, w, c] -> [b, h', w', c].

    h' = floor((h - k) / strides[0]) + 1 for k = min(window, h), and so w': an axis shorter than the
    window has one window, itself.
    """
    rows, cols = (_means(n, window, s) for n, s in zip(x.shape[1:3], strides, strict=True))
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    y = jnp.einsum("yh,bhwc->bywc", rows.astype(y.dtype), y, precision=jax.lax.Precision.HIGHEST)
    y = jnp.einsum("xw,bywc->byxc", cols.astype(y.dtype), y, precision=jax.lax.Precision.HIGHEST)
    return y.astype(x.dtype)


def _means(n: int, window: int, stride: int) -> np.ndarray:
    """The means along an axis as a matrix [m, n]: each row is 1/window over its window."""
    window = min(window, n)
    starts = np.arange(0, n - window + 1, stride)[:, None]
    place = np.arange(n)
    return ((place >= starts) & (place < starts + window)) / window


def Model(
    num_classes: int,
    backbone: Mapping[str, Any],
    feature: str = "stage4",
    low_features: tuple[str, ...] = ("stage0", "stage1"),
    low_channels: tuple[int, ...] = (32, 64),
    channels: int = 128,
    dropout: float = 0.1,
    align_corners: bool = False,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> Segmenter:
    """LR-ASPP on any backbone, by default one with 'stage0' (stride 2), 'stage1' and 'stage4'.

    Args:
      backbone: name and arguments of a backbone, e.g. `dict(name="mobilenetv3", output_stride=8)`.
      feature: the deep feature, low_features and low_channels: finer ones, finest first, and how
        many channels of each enter the decoder.
      channels: width of the head.
      dropout: of the channels before the classifier.
      align_corners: see `ops.resize`; holds for every resize, that of the logits included.

    Raises:
      UserError: unless `low_features` and `low_channels` are of equal length.
    """
    low_features, low_channels = tuple(low_features), tuple(low_channels)
    if len(low_features) != len(low_channels):
        raise UserError(
            f"config.model.low_channels={low_channels}: give one number for each of "
            f"config.model.low_features={low_features}"
        )
    return Segmenter(
        backbone=models.get_backbone(backbone),
        head=LRASPPHead(
            num_classes, feature, low_features, low_channels, channels, dropout, align_corners
        ),
        mean=tuple(mean),
        std=tuple(std),
        align_corners=align_corners,
    )


def torch_names(head: LRASPPHead) -> list[tuple[str, str]]:
    """MMSegmentation's module names -> paths in `LRASPPHead`; see `convert`."""
    return [
        (r"image_pool\.1\.conv", "gate"),
        (r"aspp_conv\.(conv|bn)", r"deep/\1"),
        (r"conv_up_input", "gated"),
        (r"convs\.conv(\d)", r"low\1"),
        (r"conv_ups\.conv_up(\d)\.(conv|bn)", r"join\1/\2"),
        (r"conv_seg", "classifier/conv"),
    ]
