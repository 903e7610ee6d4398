"""A backbone of five small convolutions, for tests of what is around a model: it compiles fast.

Named in a config as `tests.tiny_backbone`; takes the arguments of the backbones and needs none.
"""

import flax.linen as nn
import jax

from jaxseg.models.common import ConvNorm


class TinyBackbone(nn.Module):
    """[b, h, w, 3] -> {'stage0': [b, h/2, w/2, 8], 'stage1': [b, h/4, w/4, 8], ..., 'stage4'}.

    'stage2' to 'stage4' are [b, h/8, w/8, 16].
    """

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        stage0 = ConvNorm(8, 3, 2, name="stem")(x, train)
        stage1 = ConvNorm(8, 3, 2, name="conv1")(stage0, train)
        stage2 = ConvNorm(16, 3, 2, name="conv2")(stage1, train)
        stage3 = ConvNorm(16, 3, name="conv3")(stage2, train)
        stage4 = ConvNorm(16, 3, dilation=2, name="conv4")(stage3, train)
        features = (stage0, stage1, stage2, stage3, stage4)
        return {f"stage{i}": x for i, x in enumerate(features)}


def Backbone(
    depth=0, stem="", output_stride=8, multi_grid=(), dilations=(), freeze_norm=False,
    width=0, modules=(), blocks=0, size="", middle_blocks=0, act_between=False,
):  # fmt: skip
    return TinyBackbone()


def torch_names(backbone: TinyBackbone) -> list[tuple[str, str]]:
    return [(r"(stem|conv\d)\.(conv|bn)", r"\1/\2")]
