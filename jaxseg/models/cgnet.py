"""CGNet: A Light-weight Context Guided Network for Semantic Segmentation.

Wu, Tang, Zhang and Zhang 2018, arXiv:1811.08201. Every block looks at a pixel's neighbours and, by
a dilated convolution, at what surrounds them, and weighs both by what the whole image shows. As in
MMSegmentation's `CGNet`: batch normalisation has an epsilon of 1e-3, and PReLU starts as ReLU.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.errors import UserError
from jaxseg.models.common import BatchNorm, Conv, kaiming
from jaxseg.models.fcn import FCNHead
from jaxseg.models.segmenter import MEAN, STD, Segmenter
from jaxseg.ops.adaptive_pool import adaptive_avg_pool
from jaxseg.ops.pool import avg_pool_padded

# Of stages 1 to 3, and of the blocks of stages 2 and 3: section 3.3, and the authors' release.
CHANNELS, DILATIONS, REDUCTIONS = (32, 64, 128), (2, 4), (8, 16)


class PReLU(nn.Module):
    """x where it is positive, else x times a learned factor per channel, at first 0.

    He et al. 2015, arXiv:1502.01852, section 2.1. The factor is called 'scale' like those of
    normalisation, whose precision and rules (no weight decay, which would pull to ReLU) it shares.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        return jnp.where(x > 0, x, x * scale.astype(x.dtype))


class NormPReLU(nn.Module):
    """Batch normalisation, then PReLU."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return PReLU(name="prelu")(BatchNorm(epsilon=1e-3, name="bn")(x, train))


class GlobalContext(nn.Module):
    """f_glo: channels weighed by the image's means, as in squeeze-and-excitation (1709.01507)."""

    reduction: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = x.shape[-1]
        gate = adaptive_avg_pool(x, (1, 1))  # [b, 1, 1, c]
        gate = nn.relu(nn.Dense(c // self.reduction, kernel_init=kaiming, name="reduce")(gate))
        return x * nn.sigmoid(nn.Dense(c, kernel_init=kaiming, name="expand")(gate))


class ContextGuidedBlock(nn.Module):
    """The CG block (section 3.1): local, surrounding, joint and global features.

    [b, h, w, c] -> [b, h, w, features] plus the input, or [b, h/2, w/2, features] if `down`.
    """

    features: int
    dilation: int
    reduction: int
    down: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        c = self.features if self.down else self.features // 2
        kernel, strides = (3, 2) if self.down else (1, 1)
        y = Conv(c, kernel, strides, use_bias=False, name="reduce")(x)
        y = NormPReLU(name="reduce_norm")(y, train)
        local = Conv(c, 3, groups=c, use_bias=False, name="local")(y)
        surrounding = Conv(c, 3, 1, self.dilation, c, use_bias=False, name="surrounding")(y)
        y = jnp.concatenate([local, surrounding], -1)  # [b, h, w, 2c]
        y = NormPReLU(name="joint_norm")(y, train)
        if self.down:
            y = Conv(self.features, use_bias=False, name="project")(y)
        y = GlobalContext(self.reduction, name="global")(y)
        return y if self.down else x + y


class CGNet(nn.Module):
    """Figure 3: [b, h, w, 3] -> {'stage1': [b, h/2, w/2, 35], 'stage2': [b, h/4, w/4, 131],
    'stage3': [b, h/8, w/8, 256]}.

    Attributes:
      blocks: M and N, the CG blocks of stages 2 and 3, of which the first halves the map.
    """

    blocks: tuple[int, int] = (3, 21)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        half = avg_pool_padded(x, 3, 2, 1)  # [b, h/2, w/2, 3], the image, given to stages 1 and 2
        quarter = avg_pool_padded(half, 3, 2, 1)  # [b, h/4, w/4, 3]
        for i in range(3):
            x = Conv(CHANNELS[0], 3, 2 if i == 0 else 1, use_bias=False, name=f"stem{i}")(x)
            x = NormPReLU(name=f"stem{i}_norm")(x, train)  # [b, h/2, w/2, 32]
        x = NormPReLU(name="stage1_norm")(jnp.concatenate([x, half], -1), train)
        features = {"stage1": x}
        x, first = self._stage(x, 2, train)  # [b, h/4, w/4, 64] each
        joined = jnp.concatenate([x, first, quarter], -1)
        features["stage2"] = x = NormPReLU(name="stage2_norm")(joined, train)
        x, first = self._stage(x, 3, train)  # [b, h/8, w/8, 128] each
        joined = jnp.concatenate([first, x], -1)
        features["stage3"] = NormPReLU(name="stage3_norm")(joined, train)
        return features

    def _stage(self, x: jax.Array, stage: int, train: bool) -> tuple[jax.Array, jax.Array]:
        """The outputs of the last and the first block of stage 2 or 3."""
        outputs = []
        for i in range(self.blocks[stage - 2]):
            x = ContextGuidedBlock(
                CHANNELS[stage - 1],
                DILATIONS[stage - 2],
                REDUCTIONS[stage - 2],
                down=i == 0,
                name=f"stage{stage}_{i}",
            )(x, train)
            outputs.append(x)
        return outputs[-1], outputs[0]


def Model(
    num_classes: int,
    blocks: tuple[int, int] = (3, 21),
    dropout: float = 0.0,
    align_corners: bool = False,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> Segmenter:
    """CGNet, its scores by a 1x1 convolution of stage 3.

    Args:
      blocks: M and N, the blocks of stages 2 and 3; (3, 21) is the published network.
      dropout: of the channels before the classifier.
      align_corners: of resizing the logits, see `ops.resize`.

    Raises:
      UserError: not two positive numbers of blocks.
    """
    blocks = tuple(blocks)
    if len(blocks) != 2 or min(blocks) < 1:
        raise UserError(
            f"config.model.blocks={blocks}: give two positive numbers, the blocks of stages 2 and "
            "3, such as (3, 21)"
        )
    return Segmenter(
        backbone=CGNet(blocks),
        head=FCNHead(num_classes, "stage3", num_convs=0, concat_input=False, dropout=dropout),
        mean=tuple(mean),
        std=tuple(std),
        align_corners=align_corners,
    )


def torch_names(backbone: CGNet) -> list[tuple[str, str]]:
    """MMSegmentation's module names -> paths in `CGNet`; see `convert`.

    There stages 2 and 3 are levels 1 and 2, and what joins a stage is numbered from 0.
    """
    norm = (("bn", "bn"), ("activate", "prelu"))
    table = [(r"stem\.(\d)\.conv", r"stem\1")]
    table += [(rf"stem\.(\d)\.{theirs}", rf"stem\1_norm/{ours}") for theirs, ours in norm]
    for i in range(3):
        table += [(rf"norm_prelu_{i}\.{n}", f"stage{i + 1}_norm/{norm[n][1]}") for n in range(2)]
    for stage in (2, 3):
        theirs, ours = rf"level{stage - 1}\.(\d+)\.", rf"stage{stage}_\1/"
        table += [
            (theirs + r"conv1x1\.conv", ours + "reduce"),
            (theirs + "f_loc", ours + "local"),
            (theirs + "f_sur", ours + "surrounding"),
            (theirs + "bottleneck", ours + "project"),
            (theirs + r"f_glo\.fc\.0", ours + "global/reduce"),
            (theirs + r"f_glo\.fc\.2", ours + "global/expand"),
        ]
        for name, leaf in norm:
            table += [
                (rf"{theirs}conv1x1\.{name}", f"{ours}reduce_norm/{leaf}"),
                (theirs + name, f"{ours}joint_norm/{leaf}"),
            ]
    return table
