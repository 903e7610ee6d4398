"""Semantic FPN (Kirillov et al. 2019, arXiv:1901.02446) on a ResNet.

    python -m jaxseg.main --config configs/sem_fpn.py:DATASET --workdir runs/NAME

DATASET is one of `RECIPES`; without one it is cityscapes. The large recipes are MMSegmentation's
`fpn_r50`, whose published single-scale mIoU is the target. They start there from ImageNet weights
of ResNet-50-v1c: the default of --config.init_from.

    cityscapes  512x1024, batch 8, 80k steps: 74.52     ade20k  512x512, batch 16, 160k: 37.49
    camvid      ResNet-18 from scratch, sized for two CPU cores
    synthetic   the same, smaller; needs no files       folder  your own images and masks

With --config.model.backbone.depth=101: 75.80 and 39.35. The paper: from ImageNet weights, 512x1024,
batch 32, 65k steps, group normalisation: 77.7 on Cityscapes (val) with ResNet-101.

Verified here are the network, forward and training step, not yet these scores.
"""

from ml_collections import ConfigDict

from jaxseg import recipes

RECIPES = ("cityscapes", "ade20k", "camvid", "synthetic", "folder")


def get_config(dataset: str = "cityscapes") -> ConfigDict:
    config = recipes.get(dataset, losses=dict(logits=1.0))
    config.model = dict(
        name="sem_fpn", backbone=recipes.RESNET | dict(output_stride=32),
        features=("stage1", "stage2", "stage3", "stage4"), strides=(4, 8, 16, 32),
        neck_channels=256, channels=128, upsample="nearest", dropout=0.1, align_corners=False,
    )  # fmt: skip
    if recipes.is_small(dataset):
        config.model.backbone.depth = 18
        config.model.update(neck_channels=64, channels=64)
    else:
        config.steps = 160_000 if dataset == "ade20k" else 80_000
    return config
