"""DeepLabv3 (Chen et al. 2017, arXiv:1706.05587) on a dilated ResNet.

    python -m jaxseg.main --config configs/deeplabv3.py:DATASET --workdir runs/NAME

DATASET is one of `jaxseg.recipes`; without one it is cityscapes. The large recipes are
MMSegmentation's `deeplabv3_r50-d8`, whose published single-scale mIoU is the target. They start
there from ImageNet weights of ResNet-50-v1c: the default of --config.init_from.

    cityscapes  512x1024, batch 8, 40k steps: 79.09     ade20k  512x512, batch 16, 80k: 42.42
    voc2012     512x512, batch 16, 20k (augmented train list): 76.17
    camvid      ResNet-18 from scratch, sized for two CPU cores
    synthetic   the same, smaller; needs no files       folder  your own images and masks

The paper: ResNet-101 from ImageNet weights, no auxiliary head, channels=256, trained at output
stride 16 with rates=(6, 12, 18) and multi_grid=(2, 4, 8) (its grid (1, 2, 4) times the stage's rate
2); crops of 513, batch 16, 30k steps from 0.007 and, norms frozen, 30k at output stride 8 from
0.001. VOC 2012 val: 77.21; evaluated at output stride 8 (rates doubled) 78.51, with scales and
flips 79.77; from COCO 82.70, test 85.7. Cityscapes val 77.82 at output stride 8, with scales and
flips 79.30; test, with the coarse annotations, 81.3.

Verified here are the networks (forward), not yet these scores.
"""

from ml_collections import ConfigDict

from jaxseg import recipes
from jaxseg.recipes import RECIPES  # noqa: F401 (all of them)


def get_config(dataset: str = "cityscapes") -> ConfigDict:
    config = recipes.get(dataset, losses=dict(logits=1.0, aux_logits=0.4))
    config.model = dict(
        name="deeplabv3", backbone=recipes.RESNET, feature="stage4", rates=(12, 24, 36),
        channels=512, aux_feature="stage3", aux_channels=256, dropout=0.1, align_corners=False,
    )  # fmt: skip
    if recipes.is_small(dataset):
        config.model.update(
            backbone=recipes.SMALL_RESNET, rates=(6, 12, 18), channels=128, aux_channels=64
        )
    return config
