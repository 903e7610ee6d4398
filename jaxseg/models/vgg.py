"""Very Deep Convolutional Networks for Large-Scale Image Recognition (arXiv:1409.1556).

Simonyan and Zisserman 2014, the convolutional part, with and without batch normalisation. Pools
round their sizes up, as in Caffe, so that no pixel is lost. Two changes for segmentation:

* the first convolution can pad further than its kernel asks for (FCN, arXiv:1411.4038);
* past `output_stride` pools keep the size and the convolutions after them are dilated (DeepLab,
  arXiv:1412.7062, section 3.1). The pools are then 3x3 and padded, so that pixel i of a map at
  stride s lies on pixel s i of the image, whatever the image's size.
"""

import flax.linen as nn
import jax

from jaxseg.errors import UserError
from jaxseg.models.common import BatchNorm, Conv
from jaxseg.ops.pool import max_pool

# Convolutions before each pool: table 1 of the paper, columns A, B, D and E.
DEPTHS = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
WIDTHS = (1, 2, 4, 8, 8)  # of the stages, in units of the first one's
OUTPUT_STRIDES = (8, 16, 32)
POOLS = (2, 3)


class VGG(nn.Module):
    """[b, h, w, 3] -> {'conv1': [b, h, w, c], 'pool1': [b, ~h/2, ~w/2, c], ..., 'pool5'}.

    The pools have c, 2c, 4c, 8c and 8c channels, c = `width`, at strides 2, 4, 8, 16 and 32, each
    at most `output_stride`. 'conv1' is what the first pool sees: 2 (padding - 1) pixels larger per
    axis than the image.

    Attributes:
      depth: 11, 13, 16 or 19.
      width: of the first stage.
      norm: batch normalisation after every convolution; these keep their biases.
      padding: zeros around the image, for the first convolution.
      pool: the pools' window: 2, or 3 with one pixel of padding.
      output_stride: of the last maps: 8, 16 or 32.
    """

    depth: int = 16
    width: int = 64
    norm: bool = False
    padding: int = 1
    pool: int = 2
    output_stride: int = 32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        features, stride, dilation = {}, 1, 1
        for stage, (depth, width) in enumerate(zip(DEPTHS[self.depth], WIDTHS, strict=True), 1):
            for i in range(1, depth + 1):
                padding = self.padding if not features and i == 1 else dilation
                x = Conv(
                    width * self.width,
                    kernel=3,
                    dilation=dilation,
                    padding=padding,
                    name=f"conv{stage}_{i}",
                )(x)
                if self.norm:
                    x = BatchNorm(name=f"norm{stage}_{i}")(x, train)
                x = nn.relu(x)
            if stage == 1:
                features["conv1"] = x  # [b, h + 2 (padding - 1), w + 2 (padding - 1), width]
            step = 2 if stride < self.output_stride else 1
            x = max_pool(x, self.pool, step, self.pool // 2 if self.pool == 3 else 0, True)
            features[f"pool{stage}"] = x
            stride, dilation = stride * step, dilation * (2 // step)
        return features


def Backbone(
    depth: int = 16,
    width: int = 64,
    norm: bool = False,
    padding: int = 1,
    pool: int = 2,
    output_stride: int = 32,
) -> VGG:
    """A checked `VGG`; raises `UserError` for a value that it does not know."""
    for name, value, known in (
        ("depth", depth, tuple(DEPTHS)),
        ("pool", pool, POOLS),
        ("output_stride", output_stride, OUTPUT_STRIDES),
    ):
        if value not in known:
            raise UserError(f"config.model.backbone.{name}={value!r}: expected one of {known}")
    for name, value in (("width", width), ("padding", padding)):
        if value < 1:
            raise UserError(f"config.model.backbone.{name}={value}: expected 1 or more")
    if output_stride < 32 and pool == 2:
        raise UserError(
            f"config.model.backbone.output_stride={output_stride} takes the stride out of pools, "
            "and 2x2 ones would then shift the map: set config.model.backbone.pool=3"
        )
    return VGG(depth, width, norm, padding, pool, output_stride)


def torch_names(backbone: VGG) -> list[tuple[str, str]]:
    """torchvision's module names (vgg16, vgg16_bn) -> paths in `VGG`; see `convert`.

    The convolutions only: in torchvision the layers after them are linear ones, of matrices.
    """
    table, index = [], 0
    for stage, depth in enumerate(DEPTHS[backbone.depth], 1):
        for i in range(1, depth + 1):
            table.append((rf"features\.{index}", f"conv{stage}_{i}"))
            if backbone.norm:
                index += 1
                table.append((rf"features\.{index}", f"norm{stage}_{i}"))
            index += 2  # past the ReLU
        index += 1  # past the pool
    return table
