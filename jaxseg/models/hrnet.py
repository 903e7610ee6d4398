"""Deep High-Resolution Representation Learning (HRNet) for semantic segmentation.

HRNetV2, Sun et al. 2019, arXiv:1904.04514, figures 1 and 2 (also Wang et al. 2019,
arXiv:1908.07919). Branches of resolution 1/4, 1/8, 1/16 and 1/32 run side by side, one more in each
stage, and exchange what they know after every few blocks; none is ever restored from a coarser one
alone. As in MMSegmentation's `HRNet`, coarse maps are upsampled bilinearly; the first HRNet, for
poses (arXiv:1902.09212), repeated pixels. Residual blocks start as the identity, as all here do.

The paper's head joins the four branches at the finest resolution and convolves them by 1x1:
`fcn.Model(feature=("stage1", "stage2", "stage3", "stage4"), kernel=1, num_convs=1,
concat_input=False, channels=15 * width)`.
"""

import flax.linen as nn
import jax

from jaxseg.errors import UserError
from jaxseg.models.common import ConvNorm
from jaxseg.models.resnet import BasicBlock, Bottleneck
from jaxseg.ops.resize import resize


class Module(nn.Module):
    """Blocks on every branch, then an exchange: a list of maps -> a list of maps of equal shapes.

    Map i of the list is [b, h / 2^i, w / 2^i, width * 2^i], sizes rounded up.
    """

    blocks: int

    @nn.compact
    def __call__(self, branches: list[jax.Array], train: bool) -> list[jax.Array]:
        maps = []
        for i, x in enumerate(branches):
            for n in range(self.blocks):
                x = BasicBlock(x.shape[-1], 1, 1, False, name=f"branch{i}_{n}")(x, train)
            maps.append(x)
        return [self._fuse(maps, i, train) for i in range(len(maps))]

    def _fuse(self, maps: list[jax.Array], i: int, train: bool) -> jax.Array:
        """The sum of all maps, each brought to the shape of map i (arXiv:1904.04514, figure 2)."""
        total, width = 0, maps[i].shape[-1]
        for j, x in enumerate(maps):
            if j < i:  # finer: halved i - j times, and widened by the last
                for k in range(i - j - 1):
                    x = ConvNorm(x.shape[-1], 3, 2, name=f"fuse{i}_{j}_{k}")(x, train)
                last = f"fuse{i}_{j}_{i - j - 1}"
                x = ConvNorm(width, 3, 2, act=None, name=last)(x, train)
            elif j > i:  # coarser: narrowed and grown
                x = ConvNorm(width, act=None, name=f"fuse{i}_{j}")(x, train)
                x = grow(x, 2 ** (j - i), maps[i].shape[1:3])
            total = total + x
        return nn.relu(total)


def grow(x: jax.Array, factor: int, size: tuple[int, int]) -> jax.Array:
    """Resizes [b, h, w, c] by a power of two, and from there to [b, *size, c].

    Where rounding up made a coarse map reach over the edge of the image, `size` is less than
    `factor` times its own, and MMSegmentation interpolates twice. Models trained there expect that.
    """
    h, w = x.shape[1:3]
    return resize(resize(x, (factor * h, factor * w)), size)


class HRNet(nn.Module):
    """[b, h, w, 3] -> {'stage1': [b, h/4, w/4, width], ..., 'stage4': [b, h/32, w/32, 8 width]}.

    Here 'stage1' to 'stage4' are the branches, finest first, as they leave the last stage.

    Attributes:
      width: channels of the finest branch; every coarser one has twice as many.
      modules: how many modules (exchanges) stages 2, 3 and 4 have.
      blocks: residual blocks of stage 1, and of each branch of a module.
    """

    width: int = 18
    modules: tuple[int, int, int] = (1, 4, 3)
    blocks: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        x = ConvNorm(64, 3, 2, name="stem0")(x, train)  # [b, h/2, w/2, 64]
        x = ConvNorm(64, 3, 2, name="stem1")(x, train)  # [b, h/4, w/4, 64]
        for n in range(self.blocks):
            x = Bottleneck(64, 1, 1, False, name=f"stage1_{n}")(x, train)  # [b, h/4, w/4, 256]
        branches = [ConvNorm(self.width, 3, name="enter0")(x, train)]
        for stage, modules in enumerate(self.modules, start=2):
            # The new branch starts from the coarsest one (stage 1's output, for the second).
            coarsest = branches[-1] if stage > 2 else x
            new = ConvNorm(self.width * 2 ** (stage - 1), 3, 2, name=f"enter{stage - 1}")
            branches = [*branches, new(coarsest, train)]
            for n in range(modules):
                branches = Module(self.blocks, name=f"stage{stage}_{n}")(branches, train)
        return {f"stage{i}": x for i, x in enumerate(branches, start=1)}


def Backbone(width: int = 18, modules: tuple[int, int, int] = (1, 4, 3), blocks: int = 4) -> HRNet:
    """A checked `HRNet`. Published: widths 18, 32, 40, 48; "small" W18: (1, 3, 2), 2 blocks.

    Raises:
      UserError: a width, number of modules or number of blocks that is not positive.
    """
    modules = tuple(modules)
    for name, value in (("width", width), ("blocks", blocks)):
        if value < 1:
            raise UserError(f"config.model.backbone.{name}={value}: give a positive number")
    if len(modules) != 3 or min(modules) < 1:
        raise UserError(
            f"config.model.backbone.modules={modules}: give three positive numbers, the modules of "
            "stages 2, 3 and 4, such as (1, 4, 3)"
        )
    return HRNet(width, modules, blocks)


def torch_names(backbone: HRNet) -> list[tuple[str, str]]:
    """MMSegmentation's module names -> paths in `HRNet`; see `convert`.

    There a convolution and its norm are numbers 0 and 1 of a sequence.
    """
    table = [(rf"conv{i + 1}", f"stem{i}/conv") for i in range(2)]
    table += [(rf"bn{i + 1}", f"stem{i}/bn") for i in range(2)]
    blocks = (
        (r"layer1\.(\d+)\.", r"stage1_\1/", 2),
        (r"stage(\d)\.(\d+)\.branches\.(\d)\.(\d+)\.", r"stage\1_\2/branch\3_\4/", 5),
    )
    for theirs, ours, group in blocks:
        table += [
            (theirs + r"conv(\d)", rf"{ours}conv\{group}/conv"),
            (theirs + r"bn(\d)", rf"{ours}conv\{group}/bn"),
        ]
    for i, leaf in enumerate(("conv", "bn")):
        fuse = r"stage(\d)\.(\d+)\.fuse_layers\.(\d)\.(\d)"
        table += [
            (rf"layer1\.(\d+)\.downsample\.{i}", rf"stage1_\1/shortcut/{leaf}"),
            # transitionN.M: a new branch is one deeper in sequences than one that goes on.
            (rf"transition1\.0\.{i}", f"enter0/{leaf}"),
            *((rf"transition{n}\.{n}\.0\.{i}", f"enter{n}/{leaf}") for n in (1, 2, 3)),
            (rf"{fuse}\.{i}", rf"stage\1_\2/fuse\3_\4/{leaf}"),
            (rf"{fuse}\.(\d)\.{i}", rf"stage\1_\2/fuse\3_\4_\5/{leaf}"),
        ]
    return table
