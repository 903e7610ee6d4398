"""PointRend: Image Segmentation as Rendering (Kirillov et al. 2019, arXiv:1912.08193).

A head that holds another model's head, the coarse one. A small network scores single points from
the coarse prediction and fine features there; it is trained at points that are mostly uncertain,
and at test time it redraws, after each doubling of the map, the pixels that are (figure 4).
"""

import sys
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg import models, named
from jaxseg.errors import UserError
from jaxseg.models.common import classifier_init, kaiming
from jaxseg.models.segmenter import MEAN, STD, Segmenter
from jaxseg.ops.points import sample
from jaxseg.ops.resize import resize


class PointLayer(nn.Module):
    """The same linear map at every point: [b, n, c] -> [b, n, features]."""

    features: int
    kernel_init: nn.initializers.Initializer = kaiming

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # The leading 1 is the window of PyTorch's one-dimensional convolution.
        kernel = self.param("kernel", self.kernel_init, (1, x.shape[-1], self.features))
        return x @ kernel[0] + self.param("bias", nn.initializers.zeros, (self.features,))


class PointHead(nn.Module):
    """Scores points (section 3.2): fine [b, n, c], coarse [b, n, classes] -> [b, n, classes].

    Attributes:
      num_fcs, channels: hidden layers and their width.
      coarse_each_layer: give the coarse prediction to every layer, not to the first alone.
    """

    num_classes: int
    num_fcs: int = 3
    channels: int = 256
    coarse_each_layer: bool = True

    @nn.compact
    def __call__(self, fine: jax.Array, coarse: jax.Array) -> jax.Array:
        x = jnp.concatenate([fine, coarse], -1)
        for i in range(self.num_fcs):
            x = nn.relu(PointLayer(self.channels, name=f"fc{i}")(x))
            if self.coarse_each_layer:
                x = jnp.concatenate([x, coarse], -1)
        return PointLayer(self.num_classes, classifier_init, name="classifier")(x)


class PointRendHead(nn.Module):
    """The coarse head's outputs, and what the point head makes of them.

    In training: {'points': {'xy': [b, points, 2], 'logits': [b, points, classes]}}, with (x, y) as
    in `ops.points.sample`. The points come from the rng stream 'points'.

    At test time, after s subdivision steps from coarse logits [b, h', w', classes]:
    {'logits': [b, 2^s h', 2^s w', classes], 'coarse_logits': [b, h', w', classes]}.

    Attributes are those of `Model`.
    """

    coarse: nn.Module
    num_classes: int
    fine_features: tuple[str, ...] = ("p1",)
    points: int = 2048
    oversample: float = 3.0
    importance: float = 0.75
    subdivision_steps: int = 2
    subdivision_points: int = 8096
    num_fcs: int = 3
    channels: int = 256
    coarse_each_layer: bool = True
    align_corners: bool = False

    @nn.compact
    def __call__(self, features: dict[str, jax.Array], train: bool) -> dict[str, Any]:
        outputs = self.coarse(features, train)
        coarse = outputs["logits"]  # [b, h', w', classes]
        for name in self.fine_features:
            named.check("config.model.fine_features", "feature", name, features)
        fine = [features[name] for name in self.fine_features]
        head = PointHead(
            self.num_classes, self.num_fcs, self.channels, self.coarse_each_layer, name="point"
        )

        def score(xy):
            at_points = [sample(x, xy, align_corners=self.align_corners) for x in (*fine, coarse)]
            return head(jnp.concatenate(at_points[:-1], -1), at_points[-1])

        if train:
            xy = training_points(
                self.make_rng("points"),
                coarse,
                self.points,
                self.oversample,
                self.importance,
                self.align_corners,
            )
            return outputs | {"points": {"xy": xy, "logits": score(xy)}}
        logits = coarse.astype(jnp.promote_types(coarse.dtype, jnp.float32))
        for _ in range(self.subdivision_steps):
            h, w = (2 * n for n in logits.shape[1:3])
            logits = resize(logits, (h, w), align_corners=self.align_corners)
            pixels = uncertain_pixels(logits, self.subdivision_points)
            redrawn = score(centres(pixels, h, w, self.align_corners))
            logits = put(logits, pixels, redrawn)
        if not self.subdivision_steps and self.is_initializing():
            score(jnp.zeros((len(coarse), 1, 2)))  # has the parameters that training needs
        return outputs | {"logits": logits.astype(coarse.dtype), "coarse_logits": coarse}


def uncertainty(logits: jax.Array) -> jax.Array:
    """How close the second class is to the first: [..., classes] -> [...], at most 0."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    classes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    is_first = classes == jnp.argmax(logits, -1, keepdims=True)
    return jnp.where(is_first, -jnp.inf, logits).max(-1) - logits.max(-1)


def training_points(
    key: jax.Array,
    logits: jax.Array,
    points: int,
    oversample: float,
    importance: float,
    align_corners: bool = False,
) -> jax.Array:
    """Section 3.1, training: `points` places (x, y) in each image, float32 [b, points, 2].

    The share `importance` of them are the most uncertain of oversample * points that are drawn
    evenly; the rest are drawn evenly. Not differentiable: where to look is not learned.
    """
    b = len(logits)
    drawn, uncertain = int(oversample * points), int(importance * points)
    over, rest = jax.random.split(key)
    candidates = jax.random.uniform(over, (b, drawn, 2), jnp.float32)
    # Of the interpolated logits: between two pixels that are sure of different classes, the
    # interpolated uncertainty would be low where it is highest.
    at_candidates = sample(jax.lax.stop_gradient(logits), candidates, align_corners=align_corners)
    # A full sort, of few numbers: unlike top_k it gathers a split batch on no platform.
    order = jnp.argsort(uncertainty(at_candidates), axis=-1, descending=True)[:, :uncertain]
    chosen = jnp.take_along_axis(candidates, order[..., None], 1)
    evenly = jax.random.uniform(rest, (b, points - uncertain, 2), jnp.float32)
    return jnp.concatenate([chosen, evenly], 1)


def uncertain_pixels(logits: jax.Array, points: int) -> jax.Array:
    """Section 3.1, inference: the most uncertain pixels of [b, h, w, classes]: int32 [b, n].

    A pixel is y * w + x; n is `points`, or all pixels if they are fewer.
    """
    b, h, w, _ = logits.shape
    # Of a batch that is split over GPUs or TPUs, each finds those of its own images; XLA:CPU alone
    # gathers the batch for it, which is quicker than a full sort of so many.
    _, pixels = jax.lax.top_k(uncertainty(logits).reshape(b, h * w), min(points, h * w))
    return pixels


def centres(pixels: jax.Array, h: int, w: int, align_corners: bool = False) -> jax.Array:
    """(x, y) of the centres of `pixels` [b, n] of an h x w map: float32 [b, n, 2]."""
    places = jnp.stack([pixels % w, pixels // w], -1).astype(jnp.float32)
    size = jnp.array([w, h], jnp.float32)
    return places / jnp.maximum(size - 1, 1) if align_corners else (places + 0.5) / size


def put(logits: jax.Array, pixels: jax.Array, values: jax.Array) -> jax.Array:
    """`logits` [b, h, w, c] with `values` [b, n, c] at `pixels` [b, n], no pixel twice."""
    b, h, w, c = logits.shape

    def put_in_image(image, index, value):
        return image.at[index].set(value, mode="promise_in_bounds", unique_indices=True)

    # By vmap, as in `ops.points`: no image looks at another.
    flat = jax.vmap(put_in_image)(logits.reshape(b, h * w, c), pixels, values.astype(logits.dtype))
    return flat.reshape(logits.shape)


def Model(
    num_classes: int,
    backbone: Mapping[str, Any],
    coarse: Mapping[str, Any],
    fine_features: tuple[str, ...] = ("p1",),
    points: int = 2048,
    oversample: float = 3.0,
    importance: float = 0.75,
    subdivision_steps: int = 2,
    subdivision_points: int = 8096,
    num_fcs: int = 3,
    channels: int = 256,
    coarse_each_layer: bool = True,
    align_corners: bool = False,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> Segmenter:
    """PointRend on any model of this package.

    Args:
      backbone: name and arguments of a backbone.
      coarse: name and arguments of the model to refine, without its backbone, e.g.
        `dict(name="sem_fpn", dropout=0.0)` or `dict(name="deeplabv3", aux_channels=0)`.
      fine_features: what the point head sees besides the coarse prediction: 'p1' and so on of
        the coarse model's neck if it has one, else features of the backbone, such as 'stage1'.
      points: N, points per image in training.
      oversample: k, how many times as many are drawn to find the uncertain ones.
      importance: beta, the share of the points that are the most uncertain ones.
      subdivision_steps: doublings of the map at test time: 2 from stride 4, 4 from stride 16.
      subdivision_points: how many pixels are redrawn after each.
      num_fcs, channels: hidden layers of the point head and their width.
      coarse_each_layer: give the coarse prediction to each of its layers.
      align_corners: see `ops.resize`; holds for the coarse model too.

    Raises:
      UserError: a number out of its range.
    """
    for name, value, good, expected in (
        ("points", points, points >= 1, "at least 1"),
        ("oversample", oversample, oversample >= 1, "at least 1"),
        ("importance", importance, 0 <= importance <= 1, "a share in [0, 1]"),
        ("subdivision_steps", subdivision_steps, subdivision_steps >= 0, "0 or more"),
        ("subdivision_points", subdivision_points, subdivision_points >= 1, "at least 1"),
        ("fine_features", fine_features, len(fine_features) > 0, "at least one feature"),
    ):
        if not good:
            raise UserError(f"config.model.{name}={value}: expected {expected}")
    common = dict(backbone=backbone, align_corners=align_corners, mean=mean, std=std)
    for key in common.keys() & dict(coarse).keys():
        raise UserError(f"config.model.coarse.{key}: give it by config.model.{key} alone")
    models.get_backbone(backbone)  # what is wrong with it is not the coarse model's mistake
    try:
        model = models.get(dict(coarse) | common, num_classes)
    except UserError as error:
        raise UserError(str(error).replace("config.model.", "config.model.coarse.")) from error
    head = PointRendHead(
        coarse=model.head,
        num_classes=num_classes,
        fine_features=tuple(fine_features),
        points=points,
        oversample=oversample,
        importance=importance,
        subdivision_steps=subdivision_steps,
        subdivision_points=subdivision_points,
        num_fcs=num_fcs,
        channels=channels,
        coarse_each_layer=coarse_each_layer,
        align_corners=align_corners,
    )
    return model.clone(head=head)


def torch_names(head: PointRendHead) -> list[tuple[str, str]]:
    """MMSegmentation's module names -> paths in `PointRendHead`; see `convert`.

    There the head is a list of the coarse head and the point head.
    """
    coarse = sys.modules[type(head.coarse).__module__].torch_names(head.coarse)
    return [(rf"0\.{row}", f"coarse/{path}") for row, path in coarse] + [
        (r"1\.fcs\.(\d+)\.conv", r"point/fc\1"),
        (r"1\.fc_seg", "point/classifier"),
    ]
