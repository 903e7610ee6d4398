"""Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs.

DeepLab, later called v1: Chen et al. 2014, arXiv:1412.7062, on VGG-16 without the CRF. The two last
pools keep the size, the convolutions after them are dilated (section 3.1), and the fully connected
layers become convolutions whose field of view is a choice of kernel and dilation. Of VGG's 7x7
kernel, the paper subsamples (section 3.2, and its table on the field of view):

    model     kernel  dilation  channels  field of view, pixels  parameters
    7x7       7       4         4096      224                    134.3 M
    (plain)   4       4         4096      128                     65.1 M
    4x4       4       8         4096      224                     65.1 M
    LargeFOV  3       12        1024      224                     20.5 M

The average of pool5 before fc6, and the standard deviation of 0.01 with which the layer that scores
begins, are those of the released LargeFOV network.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from jaxseg import models
from jaxseg.errors import UserError
from jaxseg.models.common import Conv, Dropout, classifier_init
from jaxseg.models.segmenter import MEAN, STD, Segmenter
from jaxseg.models.vgg import VGG
from jaxseg.ops.resize import resize


class DeepLabV1Head(nn.Module):
    """fc6 to fc8 on pool5, upsampled: -> {'logits': [b, h, w, classes]}, h x w that of the image.

    Attributes:
      kernel, dilation: of fc6; kernel - 1 times dilation is even.
      channels: of fc6 and fc7.
      dropout: of the values after fc6 and after fc7.
      output_stride: of pool5.
    """

    num_classes: int
    kernel: int = 3
    dilation: int = 12
    channels: int = 1024
    dropout: float = 0.5
    output_stride: int = 8

    @nn.compact
    def __call__(self, features: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        x = features["pool5"]  # [b, ~h/8, ~w/8, c]
        around = ((1, 1), (1, 1))
        x = nn.avg_pool(x, (3, 3), (1, 1), around, count_include_pad=True)
        reach = (self.kernel - 1) * self.dilation // 2
        x = Conv(self.channels, self.kernel, dilation=self.dilation, padding=reach, name="fc6")(x)
        x = Dropout(self.dropout, name="drop6")(nn.relu(x), train)
        x = Conv(self.channels, name="fc7")(x)
        x = Dropout(self.dropout, name="drop7")(nn.relu(x), train)
        x = Conv(self.num_classes, kernel_init=classifier_init, name="fc8")(x)
        # Score i lies on pixel 8 i of the image, and the last one on its border or past it.
        grown = tuple(self.output_stride * (n - 1) + 1 for n in x.shape[1:3])
        h, w = features["conv1"].shape[1:3]
        return {"logits": resize(x, grown, align_corners=True)[:, :h, :w]}


def Model(
    num_classes: int,
    backbone: Mapping[str, Any],
    kernel: int = 3,
    dilation: int = 12,
    channels: int = 1024,
    dropout: float = 0.5,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> Segmenter:
    """DeepLab-LargeFOV, and with other arguments its sisters. Logits have the size of the image.

    Args:
      backbone: `dict(name="vgg", pool=3, output_stride=8)` and further arguments of `vgg.Backbone`.
      kernel, dilation, channels: of fc6, see the table at the top; fc7 has as many channels.
      dropout: of the values after fc6 and after fc7.

    Raises:
      UserError: a field of view without a centre, or a backbone without aligned maps.
    """
    if kernel < 1 or dilation < 1 or (kernel - 1) * dilation % 2:
        raise UserError(
            f"config.model.kernel={kernel} with config.model.dilation={dilation}: expected "
            "positive numbers with (kernel - 1) * dilation even, so that fc6 keeps the size"
        )
    vgg = models.get_backbone(backbone)
    if not isinstance(vgg, VGG):
        raise UserError(
            f"config.model.backbone.name={backbone['name']!r}: DeepLab v1 is made of VGG's layers, "
            "expected 'vgg'; config.model.name='deeplabv3' takes other backbones"
        )
    if vgg.padding != 1 or vgg.pool != 3:
        raise UserError(
            f"config.model.backbone has padding={vgg.padding} and pool={vgg.pool}: expected "
            "padding=1 and pool=3, with which maps are aligned with the image"
        )
    head = DeepLabV1Head(num_classes, kernel, dilation, channels, dropout, vgg.output_stride)
    return Segmenter(backbone=vgg, head=head, mean=tuple(mean), std=tuple(std))


def torch_names(head: DeepLabV1Head) -> list[tuple[str, str]]:
    """The layers' names in the released networks -> paths in `DeepLabV1Head`; see `convert`."""
    return [(r"(fc[67])", r"\1"), (r"fc8.*", "fc8")]
