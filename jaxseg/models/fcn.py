"""Fully Convolutional Networks for Semantic Segmentation (Long et al. 2015, arXiv:1411.4038).

The head as MMSegmentation has it: 3x3 convolutions on one dilated feature map, then a classifier.
One convolution without the concatenated input is the customary auxiliary head (Zhao et al. 2016,
arXiv:1612.01105, section 3.2).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.models.common import Classifier, ConvNorm


class FCNHead(nn.Module):
    """Scores one feature map: features[feature] [b, h, w, c] -> {'logits': [b, h, w, classes]}.

    Attributes:
      concat_input: join the feature map to the convolved one and convolve once more.
    """

    num_classes: int
    feature: str = "stage4"
    channels: int = 512
    num_convs: int = 2
    concat_input: bool = True
    dropout: float = 0.1

    @nn.compact
    def __call__(self, features: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        x = y = features[self.feature]
        for i in range(self.num_convs):
            y = ConvNorm(self.channels, 3, name=f"conv{i}")(y, train)
        if self.concat_input:
            y = ConvNorm(self.channels, 3, name="join")(jnp.concatenate([x, y], -1), train)
        return {"logits": Classifier(self.num_classes, self.dropout, name="classifier")(y, train)}


def torch_names(head: FCNHead) -> list[tuple[str, str]]:
    """MMSegmentation's module names -> paths in `FCNHead`; see `convert`."""
    return [
        (r"convs\.(\d+)\.(conv|bn)", r"conv\1/\2"),
        (r"conv_cat\.(conv|bn)", r"join/\1"),
        (r"conv_seg", "classifier/conv"),
    ]
