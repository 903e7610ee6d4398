"""DeepLabv3+ (Chen et al. 2018, arXiv:1802.02611) on a dilated ResNet.

    python -m jaxseg.main --config configs/deeplabv3p.py:DATASET --workdir runs/NAME

DATASET is one of `jaxseg.recipes`; without one it is cityscapes. The large recipes are
MMSegmentation's `deeplabv3plus_r50-d8`, whose published single-scale mIoU is the target. They start
there from ImageNet weights of ResNet-50-v1c: the default of --config.init_from.

    cityscapes  512x1024, batch 8, 40k steps: 79.61     ade20k  512x512, batch 16, 80k: 42.72
    voc2012     512x512, batch 16, 20k (augmented train list): 75.93
    camvid      ResNet-18 from scratch, sized for two CPU cores; the README has the figure reached
    synthetic   the same, smaller; needs no files       folder  your own images and masks
"""

from ml_collections import ConfigDict

from jaxseg import recipes
from jaxseg.recipes import RECIPES  # noqa: F401 (all of them)


def get_config(dataset: str = "cityscapes") -> ConfigDict:
    config = recipes.get(dataset, losses=dict(logits=1.0, aux_logits=0.4))
    config.model = dict(
        name="deeplabv3p", backbone=recipes.RESNET, rates=(12, 24, 36), channels=512,
        low_channels=48, aux_channels=256, dropout=0.1, align_corners=False, low_feature="stage1",
        upsample="bilinear", image_pool=True, project=3,
    )  # fmt: skip
    if recipes.is_small(dataset):
        config.model.update(
            backbone=recipes.SMALL_RESNET, rates=(6, 12, 18), channels=128, aux_channels=64
        )
    return config
