"""FastFCN (Wu et al. 2019, arXiv:1903.11816): joint pyramid upsampling in place of dilation.

    python -m jaxseg.main --config configs/fastfcn.py:DATASET --workdir runs/NAME

DATASET is one of `RECIPES`; without one it is cityscapes. The large recipes are MMSegmentation's
`fastfcn_r50-d32_jpu_psp` (PSPNet's head), whose published single-scale mIoU is the target. They
start there from ImageNet weights of ResNet-50-v1c: the default of --config.init_from.

    cityscapes  512x1024, batch 8, 80k steps: 79.26     ade20k  512x512, batch 16, 80k: 41.40
    camvid      ResNet-18 from scratch, sized for two CPU cores
    synthetic   the same, smaller; needs no files       folder  your own images and masks

By config.model.head.name, on Cityscapes, there with batch 16, and on ADE20K, there after 160k:

    pspnet      79.26, 78.76    41.40, 42.63
    deeplabv3   79.12, 79.52    41.88, 43.58
    encnet      77.97, 78.60    40.88, 42.50    with the loss that configs/encnet.py adds

The paper, with EncNet's head: ADE20K (val, with scales and flips) 42.75 with ResNet-50, where the
dilated EncNet has 41.11; 44.34 with ResNet-101, where it has 44.65. On PASCAL Context (ResNet-50,
one scale) 51.05 for 49.91 at twice the images per second; PSPNet's head 50.89 for 50.58,
DeepLabv3's 50.07 for 49.19.

Verified here are the networks (forward and training step), not yet these scores.
"""

from ml_collections import ConfigDict

from jaxseg import recipes

RECIPES = ("cityscapes", "ade20k", "camvid", "synthetic", "folder")


def get_config(dataset: str = "cityscapes") -> ConfigDict:
    config = recipes.get(dataset, losses=dict(logits=1.0, aux_logits=0.4))
    config.model = dict(
        name="fastfcn", backbone=recipes.RESNET | dict(output_stride=32, dilations=(1, 1, 2, 4)),
        head=dict(
            name="pspnet", channels=512, aux_feature="stage3", aux_channels=256, dropout=0.1
        ),
        features=("stage2", "stage3", "stage4"), neck_channels=512, rates=(1, 2, 4, 8),
        align_corners=False,
    )  # fmt: skip
    if recipes.is_small(dataset):
        config.model.backbone.depth = 18
        config.model.neck_channels = 128
        config.model.head.update(channels=128, aux_channels=64)
    elif dataset == "cityscapes":
        config.steps = 80_000
    return config
