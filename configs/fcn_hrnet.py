"""HRNetV2 (Sun et al. 2019, arXiv:1904.04514; Wang et al. 2019, arXiv:1908.07919) with its head.

    python -m jaxseg.main --config configs/fcn_hrnet.py:DATASET --workdir runs/NAME

DATASET is one of `jaxseg.recipes`; without one it is cityscapes. The large recipes are
MMSegmentation's `fcn_hr18`, whose published single-scale mIoU is the target. They start there from
ImageNet weights of HRNetV2-W18: the default of --config.init_from.

    cityscapes  512x1024, batch 8, 40k steps: 77.19     ade20k  512x512, batch 16, 80k: 36.27
    voc2012     512x512, batch 16, 20k (augmented train list): 72.30
    camvid      a small one from scratch, sized for two CPU cores
    synthetic   the same, smaller; needs no files       folder  your own images and masks

Other sizes, as settings of `config.model`, and their targets in the order of the first three:

    W18 small: backbone.modules=(1,3,2), backbone.blocks=2             73.86  31.38  65.50
    W48:       backbone.width=48, channels=720 (15 times the width)    78.48  41.90  75.87

The paper: ImageNet weights, on Cityscapes 512x1024, batch 12, 120k steps of SGD from 0.01, power
0.9, weight decay 5e-4; W48 (65.9 M parameters) reaches 81.1 on the validation set.
Verified here are the networks (forward and training step), not yet these scores.
"""

from ml_collections import ConfigDict

from jaxseg import recipes
from jaxseg.recipes import RECIPES  # noqa: F401 (all of them)


def get_config(dataset: str = "cityscapes") -> ConfigDict:
    config = recipes.get(dataset, losses=dict(logits=1.0))
    config.model = dict(
        name="fcn", backbone=dict(name="hrnet", width=18, modules=(1, 4, 3), blocks=4),
        feature=("stage1", "stage2", "stage3", "stage4"), channels=270, num_convs=1, kernel=1,
        concat_input=False, aux_channels=0, dropout=0.0, align_corners=False,
    )  # fmt: skip
    if recipes.is_small(dataset):
        config.model.update(channels=120)
        config.model.backbone.update(width=8, modules=(1, 1, 1), blocks=2)
    return config
