"""Fully Convolutional Networks for Semantic Segmentation (Long et al. 2015, arXiv:1411.4038).

FCN-32s, FCN-16s and FCN-8s on VGG-16, figure 3, in the form of the authors' released networks
(github.com/shelhamer/fcn.berkeleyvision.org):

* the image is padded by 100 zeros, fc6 is not padded, and what is left over is cropped off. The
  crops follow from where the first pixel of each map lies, as in Caffe's `coord_map`: with the
  padding of 100 they are 19 for FCN-32s, 5 and 27 for FCN-16s, and 5, 9 and 31 for FCN-8s;
* upsampling is bilinear at first. The paper learns it but for the last one (section 4.3); the
  released networks fix all of it: `upsample="bilinear"`, or a learning rate multiplier of 0 for
  the layers called upscore;
* the layers that score begin at zero (section 4.3);
* trained at once, FCN-8s scales pool4 by 0.01 and pool3 by 0.0001 before they are scored. Trained
  in stages, 32s, 16s, 8s, it does not: `skip_scales=(1.0, 1.0)`. Names agree between the strides,
  so that each stage starts from the last by `config.init_from`, new layers named by `init_skip`.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg import models, named
from jaxseg.errors import UserError
from jaxseg.models.common import Conv, Dropout
from jaxseg.models.segmenter import MEAN, STD, Segmenter
from jaxseg.models.upsample import ConvTranspose, bilinear_init
from jaxseg.models.vgg import VGG
from jaxseg.ops.resize import resize

STRIDES = (8, 16, 32)
UPSAMPLE = ("transposed", "bilinear")
# Padding of the image -> of fc6. 100 leaves fc6 something to see whatever the size of the image.
# With half padding everywhere, the maps of a small image are several times smaller.
FC6_PADDING = {100: 0, 1: 3}


class Upscore(nn.Module):
    """Bilinear upsampling by `factor` s, learned from there on or fixed.

    [b, h, w, c] -> [b, s (h + 1), s (w + 1), c]: pixels lie s apart and fade to zero over s pixels
    at the borders, where there are no more. A transposed convolution with a kernel of 2s.
    """

    factor: int
    method: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        s = self.factor
        if self.method == "transposed":
            up = ConvTranspose(
                x.shape[-1], 2 * s, s, use_bias=False, kernel_init=bilinear_init, name="conv"
            )
            return up(x)
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        h, w = (s * n for n in x.shape[1:3])
        return resize(x, (h, w))[:, s // 2 : h - s // 2, s // 2 : w - s // 2]


class FCNVGGHead(nn.Module):
    """fc6, fc7 and the scores of one to three maps -> {'logits': [b, h, w, classes]}, h x w pixels.

    Attributes:
      stride: of the finest map that is scored: 32, 16 or 8.
      fc_channels: of fc6 and fc7.
      padding: that of the image, see `FC6_PADDING`.
      skip_scales: of pool4 and pool3, before they are scored.
      dropout: of the values after fc6 and after fc7.
      upsample: "transposed" or "bilinear", see `Upscore`.
    """

    num_classes: int
    stride: int = 8
    fc_channels: int = 4096
    padding: int = 100
    skip_scales: tuple[float, float] = (0.01, 0.0001)
    dropout: float = 0.5
    upsample: str = "transposed"

    @nn.compact
    def __call__(self, features: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        size = tuple(n - 2 * (self.padding - 1) for n in features["conv1"].shape[1:3])
        fc6_padding = FC6_PADDING[self.padding]
        x = Conv(self.fc_channels, 7, padding=fc6_padding, name="fc6")(features["pool5"])
        x = Dropout(self.dropout, name="drop6")(nn.relu(x), train)
        x = Conv(self.fc_channels, name="fc7")(x)
        x = Dropout(self.dropout, name="drop7")(nn.relu(x), train)
        x = self.score(x, "score_fr")  # [b, ~h/32, ~w/32, classes]
        stride = 32
        first = self.first(stride) + (3 - fc6_padding) * stride
        for level, up, scale in zip((4, 3), ("2", "_pool4"), self.skip_scales, strict=True):
            if stride == self.stride:
                break
            x = Upscore(2, self.upsample, name=f"upscore{up}")(x)
            stride //= 2
            first -= 1.5 * stride
            skip = self.score(scale * features[f"pool{level}"], f"score_pool{level}")
            x, first = fuse(x, first, skip, self.first(stride), stride)
        x = Upscore(stride, self.upsample, name=f"upscore{stride}")(x)
        first -= stride - 0.5
        rows, cols = (slice(-int(first), n - int(first)) for n in size)
        return {"logits": x[:, rows, cols]}  # [b, h, w, classes]

    def score(self, x: jax.Array, name: str) -> jax.Array:
        return Conv(self.num_classes, kernel_init=nn.initializers.zeros, name=name)(x)

    def first(self, stride: int) -> float:
        """Where in the image the first pixel of the pool at `stride` lies: its centre, pixels."""
        return (stride - 1) / 2 - (self.padding - 1)


def fuse(
    x: jax.Array, x_first: float, y: jax.Array, y_first: float, stride: int
) -> tuple[jax.Array, float]:
    """The sum of two maps where they overlap, and where its first pixel lies.

    Args:
      x, y: [b, h, w, c], each of its own size.
      x_first, y_first: where their first pixels lie, on both axes, in pixels of the image.
      stride: the distance of their pixels.
    """
    first = max(x_first, y_first)
    cut_x, cut_y = (int((first - f) / stride) for f in (x_first, y_first))
    h, w = (min(n - cut_x, m - cut_y) for n, m in zip(x.shape[1:3], y.shape[1:3], strict=True))
    x = x[:, cut_x : cut_x + h, cut_x : cut_x + w]
    return x + y[:, cut_y : cut_y + h, cut_y : cut_y + w], first


def Model(
    num_classes: int,
    backbone: Mapping[str, Any],
    stride: int = 8,
    fc_channels: int = 4096,
    skip_scales: tuple[float, float] = (0.01, 0.0001),
    dropout: float = 0.5,
    upsample: str = "transposed",
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> Segmenter:
    """FCN-32s, -16s or -8s. Its logits have the size of the image.

    Args:
      backbone: `dict(name="vgg", padding=100)` and further arguments of `vgg.Backbone`. A padding
        of 1 instead of 100 pads fc6 as well and computes less, above all for small images.
      stride: 32, 16 or 8.
      fc_channels: of fc6 and fc7.
      skip_scales: of pool4 and pool3: the defaults for training at once, (1.0, 1.0) in stages.
      dropout: of the values after fc6 and after fc7.
      upsample: "transposed", learned from bilinear kernels, or "bilinear", without parameters.

    Raises:
      UserError: a value that it does not know, or a backbone with other strides.
    """
    if stride not in STRIDES:
        raise UserError(f"config.model.stride={stride!r}: expected one of {STRIDES}")
    named.check("config.model.upsample", "upsampling", upsample, UPSAMPLE)
    if len(skip_scales) != 2:
        raise UserError(
            f"config.model.skip_scales={tuple(skip_scales)}: expected two factors, of pool4 and of "
            "pool3, such as (0.01, 0.0001)"
        )
    vgg = models.get_backbone(backbone)
    if not isinstance(vgg, VGG):
        raise UserError(
            f"config.model.backbone.name={backbone['name']!r}: FCN-{stride}s is made of VGG's "
            "layers, expected 'vgg'; config.model.name='fcn' takes other backbones"
        )
    if vgg.padding not in FC6_PADDING or vgg.pool != 2:
        raise UserError(
            f"config.model.backbone has padding={vgg.padding} and pool={vgg.pool}: expected "
            f"padding one of {tuple(FC6_PADDING)}, and pool=2"
        )
    head = FCNVGGHead(
        num_classes, stride, fc_channels, vgg.padding, tuple(skip_scales), dropout, upsample
    )
    return Segmenter(backbone=vgg, head=head, mean=tuple(mean), std=tuple(std))


def torch_names(head: FCNVGGHead) -> list[tuple[str, str]]:
    """The layers' names in the released networks -> paths in `FCNVGGHead`; see `convert`."""
    return [
        (r"(fc[67]|score_fr|score_pool[34])", r"\1"),
        (r"(upscore2|upscore_pool4|upscore8|upscore16)", r"\1/conv"),
        (r"upscore", "upscore32/conv"),
    ]
