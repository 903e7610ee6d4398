"""Feature Pyramid Networks for Object Detection (Lin et al. 2016, arXiv:1612.03144), as a neck.

Figure 3 of the paper: 1x1 convolutions bring the backbone's levels to one width, a top-down path
adds the coarser level to the finer, a 3x3 convolution smooths each sum. No normalisation and no
non-linearity anywhere, as in the paper and in MMSegmentation.
"""

import flax.linen as nn
import jax

from jaxseg.models.common import Conv
from jaxseg.models.upsample import Upsample

# There is no non-linearity to make up for.
xavier = nn.initializers.xavier_uniform()
# Those of `upsample` that need no pooling indices. The transposed convolution is learned.
METHODS = ("nearest", "bilinear", "transposed", "unpool_fixed")


class FPN(nn.Module):
    """{'stage1': [b, h/4, w/4, c1], ...} -> {'p1': [b, h/4, w/4, channels], ...}, finest first.

    'p1' has the size of the first of `features`, and so on: with those of a ResNet, the paper's
    P2 to P5 are 'p1' to 'p4' here.

    Attributes:
      features: names of the backbone's levels to use, finest first.
      channels: of every level that comes out.
      upsample: of the top-down path, one of `METHODS`: "nearest" in the paper. The last two need
        levels that are each about half as large as the one before.
      align_corners: of "bilinear".
    """

    features: tuple[str, ...] = ("stage1", "stage2", "stage3", "stage4")
    channels: int = 256
    upsample: str = "nearest"
    align_corners: bool = False

    @nn.compact
    def __call__(self, features: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        levels = [
            Conv(self.channels, kernel_init=xavier, name=f"lateral{i}")(features[name])
            for i, name in enumerate(self.features)
        ]
        for i in reversed(range(len(levels) - 1)):
            up = Upsample(self.upsample, align_corners=self.align_corners, name=f"up{i}")
            levels[i] += up(levels[i + 1], levels[i].shape[1:3])
        return {
            f"p{i + 1}": Conv(self.channels, 3, kernel_init=xavier, name=f"output{i}")(level)
            for i, level in enumerate(levels)
        }


def torch_names(neck: FPN) -> list[tuple[str, str]]:
    """MMSegmentation's module names -> paths in `FPN`; see `convert`."""
    return [
        (r"lateral_convs\.(\d+)\.conv", r"lateral\1"),
        (r"fpn_convs\.(\d+)\.conv", r"output\1"),
    ]
