"""ICNet (Zhao et al. 2018, arXiv:1704.08545) on a ResNet.

    python -m jaxseg.main --config configs/icnet.py:DATASET --workdir runs/NAME

DATASET is one of `RECIPES`; without one it is cityscapes. The large recipe is MMSegmentation's
`icnet`, crops of 832x832 and batch 8, whose published mIoU on Cityscapes (val, one scale) is the
target, by config.model.depth, config.steps, and the ResNet's weights at the start (ImageNet's of
ResNet-v1c: the default of --config.init_from; or none):

    depth   from ImageNet: 80k, 160k steps    from scratch: 80k, 160k
    18                     72.51, 74.43                     68.14, 71.64
    50                     74.58, 76.29                     68.91, 73.82
    101                    75.57, 76.15                     70.28, 73.80

    camvid      ResNet-18 from scratch, sized for two CPU cores
    synthetic   the same, smaller; needs no files       folder  your own images and masks

The paper compresses a trained PSPNet-50, and reports 69.5 on Cityscapes' test set at 30 frames per
second; the parts here are as MMSegmentation has them, see jaxseg/models/icnet.py.

Verified here are the networks (forward and training step), not yet these scores.
"""

from ml_collections import ConfigDict

from jaxseg import recipes

RECIPES = ("cityscapes", "camvid", "synthetic", "folder")


def get_config(dataset: str = "cityscapes") -> ConfigDict:
    config = recipes.get(dataset, losses=dict(logits=1.0, aux_logits_0=0.4, aux_logits_1=0.4))
    config.model = dict(
        name="icnet", depth=50, bins=(1, 2, 3, 6), pyramid_channels=512, light_channels=32,
        branch_channels=(64, 256, 256), channels=128, aux_channels=128, dropout=0.0,
        aux_dropout=0.1,
    )  # fmt: skip
    if dataset == "cityscapes":
        config.steps, config.augment.crop = 160_000, (832, 832)
    if recipes.is_small(dataset):
        config.model.update(
            depth=18,
            pyramid_channels=64,
            branch_channels=(64, 64, 64),
            channels=64,
            aux_channels=64,
        )
    return config
