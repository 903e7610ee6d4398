"""UPerNet (Xiao et al. 2018, arXiv:1807.10221) on a ResNet.

    python -m jaxseg.main --config configs/upernet.py:DATASET --workdir runs/NAME

DATASET is one of `jaxseg.recipes`; without one it is cityscapes. The large recipes are
MMSegmentation's `upernet_r50`, whose published single-scale mIoU is the target. They start there
from ImageNet weights of ResNet-50-v1c: the default of --config.init_from.

    cityscapes  512x1024, batch 8, 40k steps: 77.10     ade20k  512x512, batch 16, 80k: 40.70
    voc2012     512x512, batch 16, 20k (augmented train list): 74.82
    camvid      ResNet-18 from scratch, sized for two CPU cores
    synthetic   the same, smaller; needs no files       folder  your own images and masks

With twice the steps, --config.steps: 78.19, 42.05 and 75.92. --config.model.backbone.depth=101:
78.69, 42.91 and 77.10; with twice the steps 79.40, 43.82 and 77.43. On Cityscapes in crops of 769
with align_corners, 40k and 80k steps: 77.98 and 79.39, with depth 101 79.03 and 80.10.

The authors' release for ADE20K alone (val, one scale): 40.44 with ResNet-50, 42.00 with ResNet-101.
The paper trains for materials, parts, textures and scenes at once, with further heads on the same
pyramid; this is its head for semantic classes.

Verified here are the networks, not yet these scores.
"""

from ml_collections import ConfigDict

from jaxseg import recipes
from jaxseg.recipes import RECIPES  # noqa: F401 (all of them)


def get_config(dataset: str = "cityscapes") -> ConfigDict:
    config = recipes.get(dataset, losses=dict(logits=1.0, aux_logits=0.4))
    config.model = dict(
        name="upernet", backbone=recipes.RESNET | dict(output_stride=32),
        features=("stage1", "stage2", "stage3", "stage4"), channels=512, bins=(1, 2, 3, 6),
        aux_feature="stage3", aux_channels=256, dropout=0.1, align_corners=False,
    )  # fmt: skip
    if recipes.is_small(dataset):
        config.model.backbone.depth = 18
        config.model.update(channels=64, aux_channels=64)
    return config
