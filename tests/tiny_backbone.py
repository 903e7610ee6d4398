"""A backbone of five small convolutions, for tests of what is around a model: it compiles fast.

Named in a config as `tests.tiny_backbone`; takes the arguments of `models.resnet` and needs none.
"""

import flax.linen as nn
import jax

from jaxseg.models.common import ConvNorm


class TinyBackbone(nn.Module):
    """[b, h, w, 3] -> {'stage1': [b, h/4, w/4, 8], 'stage2': [b, h/8, w/8, 16], ..., 'stage4'}."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        x = ConvNorm(8, 3, 2, name="stem")(x, train)
        stage1 = ConvNorm(8, 3, 2, name="conv1")(x, train)
        stage2 = ConvNorm(16, 3, 2, name="conv2")(stage1, train)
        stage3 = ConvNorm(16, 3, name="conv3")(stage2, train)
        stage4 = ConvNorm(16, 3, dilation=2, name="conv4")(stage3, train)
        return {"stage1": stage1, "stage2": stage2, "stage3": stage3, "stage4": stage4}


def Backbone(depth=18, stem="", output_stride=8, multi_grid=(), freeze_norm=False, remat=False):
    return TinyBackbone()


def torch_names(backbone: TinyBackbone) -> list[tuple[str, str]]:
    return [(r"(stem|conv\d)\.(conv|bn)", r"\1/\2")]
