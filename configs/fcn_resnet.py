"""FCN (Long et al. 2015, arXiv:1411.4038) on a dilated ResNet.

    python -m jaxseg.main --config configs/fcn_resnet.py:DATASET --workdir runs/NAME

DATASET is one of `jaxseg.recipes`; without one it is cityscapes. No paper has this form, which
toolboxes train: the large recipes are MMSegmentation's `fcn_r50-d8`, whose published single-scale
mIoU is the target. They start there from ImageNet weights of ResNet-50-v1c: the default of
--config.init_from.

    cityscapes  512x1024, batch 8, 40k steps: 72.25     ade20k  512x512, batch 16, 80k: 35.94
    voc2012     512x512, batch 16, 20k (augmented train list): 67.08
    camvid      ResNet-18 from scratch, sized for two CPU cores
    synthetic   the same, smaller; needs no files       folder  your own images and masks

With output_stride=16 and dilation=6 in both heads it is their `fcn-d6_r50-d16`: 77.06 on
cityscapes. Verified here are the networks (forward and training step), not yet these scores.
"""

from ml_collections import ConfigDict

from jaxseg import recipes
from jaxseg.recipes import RECIPES  # noqa: F401 (all of them)


def get_config(dataset: str = "cityscapes") -> ConfigDict:
    config = recipes.get(dataset, losses=dict(logits=1.0, aux_logits=0.4))
    config.model = dict(
        name="fcn", backbone=recipes.RESNET, feature="stage4", channels=512, num_convs=2, kernel=3,
        dilation=1, concat_input=True, aux_feature="stage3", aux_channels=256, dropout=0.1,
        align_corners=False,
    )  # fmt: skip
    if recipes.is_small(dataset):
        config.model.update(backbone=recipes.SMALL_RESNET, channels=128, aux_channels=64)
    return config
