"""Object-Contextual Representations for Semantic Segmentation (OCRNet), figure 3.

Yuan, Chen and Wang 2019, arXiv:1909.11065 (ECCV 2020). A coarse head says how much each pixel
belongs to each class; the pixels of a class, averaged by that, represent its region; and each pixel
is described anew by the regions that it resembles. In the form of MMSegmentation's `OCRHead`: what
is compared goes through two convolutions, and the scale of its products is that of attention.
"""

import sys
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg import models
from jaxseg.errors import UserError
from jaxseg.models.common import Classifier, ConvNorm
from jaxseg.models.fcn import FCNHead, select
from jaxseg.models.segmenter import MEAN, STD, Segmenter


def gather(pixels: jax.Array, logits: jax.Array) -> jax.Array:
    """Object region representations (section 3.2): for each class a weighted mean of the pixels.

    pixels [b, h, w, c], logits [b, h, w, classes] -> [b, classes, c] in the dtype of `pixels`. The
    weights of a class are the softmax of its logits over the pixels of the image.
    """
    b, h, w, c = pixels.shape
    exact = jnp.promote_types(pixels.dtype, jnp.float32)
    shares = jax.nn.softmax(logits.reshape(b, h * w, -1).astype(exact), axis=1)
    regions = jnp.einsum(
        "bnk,bnc->bkc",
        shares.astype(pixels.dtype),
        pixels.reshape(b, h * w, c),
        preferred_element_type=exact,
    )
    return regions.astype(pixels.dtype)


def attend(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    """What the regions tell each pixel: the mean of `values`, weighted by how alike they are.

    queries [b, h, w, c], keys [b, classes, c], values [b, classes, d] -> [b, h, w, d] in the dtype
    of `values`. The weights are the softmax over the classes of dot products divided by the root
    of c.
    """
    exact = jnp.promote_types(values.dtype, jnp.float32)
    relation = jnp.einsum("bhwc,bkc->bhwk", queries, keys, preferred_element_type=exact)
    relation = jax.nn.softmax(relation * queries.shape[-1] ** -0.5, axis=-1)
    context = jnp.einsum(
        "bhwk,bkd->bhwd", relation.astype(values.dtype), values, preferred_element_type=exact
    )
    return context.astype(values.dtype)


class Transform(nn.Module):
    """1x1 convolutions in a row, each with batch normalisation and ReLU."""

    features: int
    layers: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i in range(self.layers):
            x = ConvNorm(self.features, name=f"conv{i}")(x, train)
        return x


class ObjectContext(nn.Module):
    """Pixels joined to their object context: [b, h, w, c], [b, classes, c] -> [b, h, w, c].

    The transforms have the paper's letters: phi of pixels and psi of regions are compared, delta of
    regions averaged, rho is of that average and g of it and the pixels together.
    """

    channels: int

    @nn.compact
    def __call__(self, pixels: jax.Array, regions: jax.Array, train: bool) -> jax.Array:
        c = pixels.shape[-1]
        regions = regions[:, :, None]  # [b, classes, 1, c], an image of as many rows
        queries = Transform(self.channels, 2, name="phi")(pixels, train)  # [b, h, w, channels]
        keys = Transform(self.channels, 2, name="psi")(regions, train)  # [b, classes, 1, channels]
        values = Transform(self.channels, 1, name="delta")(regions, train)
        context = attend(queries, keys[:, :, 0], values[:, :, 0])  # [b, h, w, channels]
        context = Transform(c, 1, name="rho")(context, train)  # [b, h, w, c]
        joined = jnp.concatenate([context, pixels], -1)
        return Transform(c, 1, name="g")(joined, train)


class OCRHead(nn.Module):
    """-> {'logits': [b, h, w, classes], 'coarse_logits': [b, h, w, classes]}.

    Attributes are those of `Model`; `coarse` scores a feature of the same size as `feature`.
    """

    coarse: nn.Module
    num_classes: int
    feature: str | tuple[str, ...] = "stage4"
    channels: int = 512
    ocr_channels: int = 256
    dropout: float = 0.1
    align_corners: bool = False

    @nn.compact
    def __call__(self, features: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        coarse = self.coarse(features, train)["logits"]  # [b, h, w, classes], soft object regions
        x = select(features, self.feature, self.align_corners)  # [b, h, w, c]
        if x.shape[1:3] != coarse.shape[1:3]:
            raise UserError(
                f"config.model.feature={self.feature!r} has {x.shape[1]}x{x.shape[2]} pixels, "
                f"coarse_feature {coarse.shape[1]}x{coarse.shape[2]}: choose features of one size, "
                "such as stages 4 and 3 of a backbone with output_stride=8"
            )
        x = ConvNorm(self.channels, 3, name="pixels")(x, train)  # [b, h, w, channels]
        regions = gather(x, coarse)  # [b, classes, channels]
        x = ObjectContext(self.ocr_channels, name="context")(x, regions, train)
        logits = Classifier(self.num_classes, self.dropout, name="classifier")(x, train)
        return {"logits": logits, "coarse_logits": coarse}


def Model(
    num_classes: int,
    backbone: Mapping[str, Any],
    feature: str | tuple[str, ...] = "stage4",
    channels: int = 512,
    ocr_channels: int = 256,
    coarse_feature: str | tuple[str, ...] = "stage3",
    coarse_channels: int = 256,
    coarse_kernel: int = 3,
    dropout: float = 0.1,
    align_corners: bool = False,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> Segmenter:
    """OCRNet on any backbone.

    Args:
      backbone: name and arguments of a backbone, e.g. `dict(name="resnet", output_stride=8)`.
      feature: what the head reads: one of the backbone's features, or several, which it resizes to
        the size of the first and concatenates.
      channels: width of the pixels' and regions' representations.
      ocr_channels: width in which pixels and regions are compared.
      coarse_feature: what the coarse head reads, likewise; of the same size.
      coarse_channels, coarse_kernel: of the coarse head's one convolution.
      dropout: of the channels before both classifiers.
      align_corners: see `ops.resize`; holds for every resize, that of the logits included.

    Raises:
      UserError: a number out of its range; when it runs, features of unequal sizes.
    """
    for name, value in (
        ("channels", channels),
        ("ocr_channels", ocr_channels),
        ("coarse_channels", coarse_channels),
    ):
        if value < 1:
            raise UserError(f"config.model.{name}={value}: give a positive number")
    if coarse_kernel < 1 or coarse_kernel % 2 == 0:
        raise UserError(f"config.model.coarse_kernel={coarse_kernel}: give an odd number, 1 or 3")
    feature, coarse_feature = (
        names if isinstance(names, str) else tuple(names) for names in (feature, coarse_feature)
    )
    coarse = FCNHead(
        num_classes, coarse_feature, coarse_channels, 1, False, dropout, coarse_kernel,
        align_corners=align_corners,
    )  # fmt: skip
    return Segmenter(
        backbone=models.get_backbone(backbone),
        head=OCRHead(coarse, num_classes, feature, channels, ocr_channels, dropout, align_corners),
        mean=tuple(mean),
        std=tuple(std),
        align_corners=align_corners,
    )


def torch_names(head: OCRHead) -> list[tuple[str, str]]:
    """MMSegmentation's module names -> paths in `OCRHead`; see `convert`.

    There the head is a list of the coarse head and this one.
    """
    coarse = sys.modules[type(head.coarse).__module__].torch_names(head.coarse)
    block = r"1\.object_context_block\."
    return [(rf"0\.{row}", f"coarse/{path}") for row, path in coarse] + [
        (r"1\.bottleneck\.(conv|bn)", r"pixels/\1"),
        (rf"{block}query_project\.(\d)\.(conv|bn)", r"context/phi/conv\1/\2"),
        (rf"{block}key_project\.(\d)\.(conv|bn)", r"context/psi/conv\1/\2"),
        (rf"{block}value_project\.(conv|bn)", r"context/delta/conv0/\1"),
        (rf"{block}out_project\.(conv|bn)", r"context/rho/conv0/\1"),
        (rf"{block}bottleneck\.(conv|bn)", r"context/g/conv0/\1"),
        (r"1\.conv_seg", "classifier/conv"),
    ]
