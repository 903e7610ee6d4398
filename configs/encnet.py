"""EncNet (Zhang et al. 2018, arXiv:1803.08904) on a dilated ResNet.

    python -m jaxseg.main --config configs/encnet.py:DATASET --workdir runs/NAME

DATASET is one of `RECIPES`; without one it is cityscapes. The large recipes are MMSegmentation's
`encnet_r50-d8`, whose published single-scale mIoU is the target. They start there from ImageNet
weights of ResNet-50-v1c: the default of --config.init_from.

    cityscapes  512x1024, batch 8, 40k steps: 75.67     ade20k  512x512, batch 16, 80k: 39.53
    camvid      ResNet-18 from scratch, sized for two CPU cores
    synthetic   the same, smaller; needs no files       folder  your own images and masks

With --config.steps=80000 on Cityscapes 77.94, 160000 on ADE20K 40.10; with backbone.depth=101:
75.81, after 80k 78.55; 42.11, after 160k 42.61. 'loss/presence_logits' is the SE-loss, weight 0.2.

The paper: ResNet from ImageNet weights, 32 codewords, a second SE-loss on the feature before. With
scales and flips on ADE20K (val) 41.11 with ResNet-50, 44.65 with ResNet-101.

Verified here are the networks (forward and training step), not yet these scores.
"""

from ml_collections import ConfigDict

from jaxseg import recipes

RECIPES = ("cityscapes", "ade20k", "camvid", "synthetic", "folder")


def get_config(dataset: str = "cityscapes") -> ConfigDict:
    config = recipes.get(dataset, losses=dict(logits=1.0, aux_logits=0.4))
    config.losses.presence_logits = dict(name="presence_cross_entropy", weight=0.2)
    config.model = dict(
        name="encnet", backbone=recipes.RESNET, feature="stage4", channels=512, codes=32,
        aux_feature="stage3", aux_channels=256, dropout=0.1, align_corners=False,
    )  # fmt: skip
    if recipes.is_small(dataset):
        config.model.update(backbone=recipes.SMALL_RESNET, channels=128, aux_channels=64)
    return config
