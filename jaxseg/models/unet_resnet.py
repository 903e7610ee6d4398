"""U-Net's decoder (Ronneberger et al. 2015, arXiv:1505.04597) on a pretrained backbone.

The contracting path is a classifier's, usually a ResNet: each of its resolutions is a skip. In the
form that segmentation_models.pytorch made common (its `Unet`): the deepest map is doubled by
repeating pixels, joined to the skip and convolved twice, until the image's size is reached.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg import models, named
from jaxseg.errors import UserError
from jaxseg.models.common import Conv, ConvNorm, classifier_init
from jaxseg.models.segmenter import MEAN, STD, Segmenter
from jaxseg.ops.resize import resize

FEATURES = ("stem", "stage1", "stage2", "stage3", "stage4")  # of a ResNet: strides 2 to 32


class UNetDecoder(nn.Module):
    """The expanding path: features -> {'logits': [b, 2h', 2w', classes]}.

    h' and w' are those of the finest feature: half the image's, rounded up.

    Attributes:
      features: names, finest first.
      channels: width of each step up, coarsest first; one for each feature.
    """

    num_classes: int
    features: tuple[str, ...] = FEATURES
    channels: tuple[int, ...] = (256, 128, 64, 32, 16)

    @nn.compact
    def __call__(self, features: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        for name in self.features:
            named.check("config.model.features", "feature", name, features)
        x, *skips = [features[name] for name in reversed(self.features)]  # [b, h/32, w/32, c]
        for i, channels in enumerate(self.channels):
            if skips:
                skip = skips.pop(0)
                x = jnp.concatenate([resize(x, skip.shape[1:3], "nearest"), skip], -1)
            else:  # the image itself is no skip
                x = resize(x, (2 * x.shape[1], 2 * x.shape[2]), "nearest")
            for n in range(2):
                x = ConvNorm(channels, 3, name=f"up{i}_conv{n}")(x, train)
        classifier = Conv(self.num_classes, 3, kernel_init=classifier_init, name="classifier")
        return {"logits": classifier(x)}


def Model(
    num_classes: int,
    backbone: Mapping[str, Any],
    features: tuple[str, ...] = FEATURES,
    channels: tuple[int, ...] = (256, 128, 64, 32, 16),
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> Segmenter:
    """U-Net on a backbone that is not dilated.

    Args:
      backbone: name and arguments, e.g. `dict(name="resnet", depth=34, stem="plain")`.
      features: what it offers at strides 2, 4, 8, 16 and 32, in that order.
      channels: width of each step up, coarsest first; as many as there are features.

    Raises:
      UserError: there are more widths than features, or less.
    """
    if len(channels) != len(features):
        raise UserError(
            f"config.model.channels={tuple(channels)}: give {len(features)} numbers, one for each "
            f"of the features {', '.join(features)}"
        )
    return Segmenter(
        backbone=models.get_backbone(backbone),
        head=UNetDecoder(num_classes, tuple(features), tuple(channels)),
        mean=tuple(mean),
        std=tuple(std),
    )


def smp_names(head: UNetDecoder) -> list[tuple[str, str]]:
    """Module names of segmentation_models.pytorch -> paths in `UNetDecoder`; see `convert`."""
    table = [(r"segmentation_head\.0", "classifier")]
    for n in range(2):
        for i, leaf in enumerate(("conv", "bn")):
            block = rf"decoder\.blocks\.(\d)\.conv{n + 1}\.{i}"
            table.append((block, rf"up\1_conv{n}/{leaf}"))
    return table
