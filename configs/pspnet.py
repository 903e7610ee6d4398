"""PSPNet (Zhao et al. 2017, arXiv:1612.01105) on a dilated ResNet.

    python -m jaxseg.main --config configs/pspnet.py:DATASET --workdir runs/NAME

DATASET is one of `jaxseg.recipes`; without one it is cityscapes. The large recipes are
MMSegmentation's `pspnet_r50-d8`, whose published single-scale mIoU is the target. They start there
from ImageNet weights of ResNet-50-v1c: the default of --config.init_from.

    cityscapes  512x1024, batch 8, 40k steps: 77.85     ade20k  512x512, batch 16, 80k: 41.13
    voc2012     512x512, batch 16, 20k (augmented train list): 76.78
    camvid      ResNet-18 from scratch, sized for two CPU cores
    synthetic   the same, smaller; needs no files       folder  your own images and masks

The paper: ResNet from ImageNet weights, batch 16, auxiliary loss 0.4; 150k steps on ADE20K, 90k on
Cityscapes, 30k on VOC 2012; the authors' release has crops of 473 (713 on Cityscapes) and
align_corners. Its ablation on ADE20K (val, one scale, ResNet-50; tables 1 and 4), in terms of
`config.model`:

    no pyramid: an FCN                            37.23
    bins=(1,), reduce=False, pool="max"           39.94     pool="average"            40.07
    bins=(1, 2, 3, 6), reduce=False, pool="max"   40.18     pool="average"            41.07
    bins=(1, 2, 3, 6), reduce=True, pool="max"    40.87     pool="average"            41.68

By backbone.depth: 50 41.68, 101 41.96, 152 42.62, 269 43.81. Test sets, with scales and flips:
Cityscapes 78.4 from the fine annotations, 80.2 with the coarse ones too; VOC 2012 82.6, and 85.4
with COCO.

Verified here are the networks (forward and training step), not yet these scores.
"""

from ml_collections import ConfigDict

from jaxseg import recipes
from jaxseg.recipes import RECIPES  # noqa: F401 (all of them)


def get_config(dataset: str = "cityscapes") -> ConfigDict:
    config = recipes.get(dataset, losses=dict(logits=1.0, aux_logits=0.4))
    config.model = dict(
        name="pspnet", backbone=recipes.RESNET, feature="stage4", channels=512, bins=(1, 2, 3, 6),
        pool="average", reduce=True, aux_feature="stage3", aux_channels=256, dropout=0.1,
        align_corners=False,
    )  # fmt: skip
    if recipes.is_small(dataset):
        config.model.update(backbone=recipes.SMALL_RESNET, channels=128, aux_channels=64)
    return config
