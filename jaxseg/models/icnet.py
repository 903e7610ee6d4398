"""ICNet for Real-Time Semantic Segmentation on High-Resolution Images, figure 2.

Zhao et al. 2018, arXiv:1704.08545. A cascade of three resolutions: the deep and dear part of a
ResNet, with PSPNet's pyramid pooling, sees a quarter of the image's size, its first half half the
size, and a few light convolutions the whole. From coarse to fine they are fused, and the coarser
ones are scored in training too. In the form and widths of MMSegmentation's `icnet` models, which
train the whole network at once where the paper compresses a trained one.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.errors import UserError
from jaxseg.models import resnet
from jaxseg.models.common import ConvNorm
from jaxseg.models.fcn import FCNHead, auxiliary
from jaxseg.models.pspnet import PyramidPooling
from jaxseg.models.segmenter import MEAN, STD, Segmenter
from jaxseg.ops.pool import max_pool
from jaxseg.ops.resize import resize

RATES = (1, 1, 2, 4)  # of the stages: of the third and the fourth in place of their strides


class ICNet(nn.Module):
    """-> 'whole' [b, h/8, w/8, c], 'half' [b, h/16, w/16, c'], 'quarter' [b, h/32, w/32, c''].

    Named by the share of the image's size that each has seen. 'half' has a row and a column more
    where 16 divides h and w, as MMSegmentation's has. Attributes are those of `Model`.
    """

    depth: int = 50
    bins: tuple[int, ...] = (1, 2, 3, 6)
    pyramid_channels: int = 512
    light_channels: int = 32
    branch_channels: tuple[int, int, int] = (64, 256, 256)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        whole, half, quarter = self.branch_channels
        # The light branch, on the whole image.
        y = ConvNorm(self.light_channels, 3, 2, name="whole0")(x, train)  # [b, h/2, w/2]
        y = ConvNorm(self.light_channels, 3, 2, name="whole1")(y, train)  # [b, h/4, w/4]
        y = ConvNorm(whole, 3, 2, name="whole2")(y, train)  # [b, h/8, w/8, whole]
        features = {"whole": y}

        # The first half of the ResNet (stem "v1c"), on half the size.
        x = halve(x)
        x = ConvNorm(32, 3, 2, name="stem0")(x, train)  # [b, h/4, w/4]
        x = ConvNorm(32, 3, name="stem1")(x, train)
        x = ConvNorm(64, 3, name="stem2")(x, train)
        x = max_pool(x, 3, 2, 1, ceil_mode=True)  # [b, h/8 + 1, w/8 + 1, 64]
        x = self.stage(1, x, train)
        x = self.stage(2, x, train)  # [b, h/16, w/16, 128e]
        features["half"] = ConvNorm(half, name="half")(x, train)

        # The rest of it, on a quarter: dilated, and ended by PSPNet's pyramid.
        x = halve(x)  # [b, h/32, w/32, 128e]
        x = self.stage(3, x, train)
        x = self.stage(4, x, train)  # [b, h/32, w/32, 512e]
        y = PyramidPooling(self.bins, self.pyramid_channels, name="pyramid")(x, train)
        x = jnp.roll(y, -x.shape[-1], -1)  # published weights have the map after its summaries
        x = ConvNorm(self.pyramid_channels, 3, name="project")(x, train)
        return features | {"quarter": ConvNorm(quarter, name="quarter")(x, train)}

    def stage(self, number: int, x: jax.Array, train: bool) -> jax.Array:
        """Stage 1 to 4 of the ResNet, named as there."""
        block, depths = resnet.BLOCKS[self.depth]
        for i in range(depths[number - 1]):
            strides = 2 if number == 2 and i == 0 else 1
            rate = RATES[number - 1] if i else max(RATES[number - 1] // 2, 1)
            width = 64 * 2 ** (number - 1)
            x = block(width, strides, rate, False, name=f"stage{number}_{i}")(x, train)
        return x


def halve(x: jax.Array) -> jax.Array:
    """Means of squares of four pixels, a last odd row or column left out: [b, h/2, w/2, c]."""
    h, w = (n // 2 for n in x.shape[1:3])
    return resize(x[:, : 2 * h, : 2 * w], (h, w))


class CascadeFeatureFusion(nn.Module):
    """Section 3.3, figure 3: (coarse, fine) -> (their fusion, what is to be scored in training).

    Both have the size of `fine` and `channels`. The second is the enlarged coarse map after its
    convolution, as in MMSegmentation; the paper scores it before.
    """

    channels: int

    @nn.compact
    def __call__(
        self, coarse: jax.Array, fine: jax.Array, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        coarse = resize(coarse, fine.shape[1:3])
        coarse = ConvNorm(self.channels, 3, dilation=2, name="coarse")(coarse, train)
        fine = ConvNorm(self.channels, name="fine")(fine, train)
        return nn.relu(coarse + fine), coarse


class ICNeck(nn.Module):
    """ICNet's branches -> 'guide16' [b, h/16, w/16, c], 'guide8' and 'fused' [b, h/8, w/8, c]."""

    channels: int = 128

    @nn.compact
    def __call__(self, features: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        fuse16 = CascadeFeatureFusion(self.channels, name="fuse16")
        fuse8 = CascadeFeatureFusion(self.channels, name="fuse8")
        x, guide16 = fuse16(features["quarter"], features["half"], train)
        x, guide8 = fuse8(x, features["whole"], train)
        return {"guide16": guide16, "guide8": guide8, "fused": x}


def Model(
    num_classes: int,
    depth: int = 50,
    bins: tuple[int, ...] = (1, 2, 3, 6),
    pyramid_channels: int = 512,
    light_channels: int = 32,
    branch_channels: tuple[int, int, int] = (64, 256, 256),
    channels: int = 128,
    aux_channels: int = 128,
    dropout: float = 0.0,
    aux_dropout: float = 0.1,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> Segmenter:
    """ICNet on a ResNet.

    Args:
      depth: of the ResNet, see `resnet.Backbone`.
      bins, pyramid_channels: see `pspnet.PyramidPooling`; the latter is also the width after it.
      light_channels: width of the first layers of the branch that sees the whole image.
      branch_channels: widths of what the branches put out: whole image, half, quarter.
      channels: width of the fusions, and of the head.
      aux_channels: width of the heads that guide the cascade in training, 'aux_logits_0' of the
        coarser fusion and 'aux_logits_1' of the finer; zero leaves them out.
      dropout, aux_dropout: of the channels before the classifiers.

    Raises:
      UserError: a depth that no ResNet has, or not three widths of branches.
    """
    resnet.Backbone(depth)
    branch_channels = tuple(branch_channels)
    if len(branch_channels) != 3:
        raise UserError(
            f"config.model.branch_channels={branch_channels}: expected three widths, of the "
            "branches on the whole image, on half and on a quarter of its size"
        )
    guides = (auxiliary(num_classes, f"guide{s}", aux_channels, aux_dropout) for s in (16, 8))
    return Segmenter(
        backbone=ICNet(depth, tuple(bins), pyramid_channels, light_channels, branch_channels),
        neck=ICNeck(channels),
        head=FCNHead(num_classes, "fused", channels, 1, False, dropout),
        aux_head=tuple(guides) if aux_channels else None,
        mean=tuple(mean),
        std=tuple(std),
    )


def torch_names(part: ICNet | ICNeck) -> list[tuple[str, str]]:
    """MMSegmentation's module names -> paths in the part; see `convert`."""
    if isinstance(part, ICNeck):
        return [
            (r"cff_24\.conv_low\.(conv|bn)", r"fuse16/coarse/\1"),
            (r"cff_24\.conv_high\.(conv|bn)", r"fuse16/fine/\1"),
            (r"cff_12\.conv_low\.(conv|bn)", r"fuse8/coarse/\1"),
            (r"cff_12\.conv_high\.(conv|bn)", r"fuse8/fine/\1"),
        ]
    of_resnet = resnet.torch_names(resnet.Backbone(part.depth, stem="v1c"))
    return [(rf"backbone\.{theirs}", ours) for theirs, ours in of_resnet] + [
        (r"psp_modules\.(\d)\.1\.(conv|bn)", r"pyramid/level\1/\2"),
        (r"psp_bottleneck\.(conv|bn)", r"project/\1"),
        (r"conv_sub1\.(\d)\.(conv|bn)", r"whole\1/\2"),
        (r"conv_sub2\.(conv|bn)", r"half/\1"),
        (r"conv_sub4\.(conv|bn)", r"quarter/\1"),
    ]
