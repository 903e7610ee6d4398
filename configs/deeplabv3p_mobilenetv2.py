"""DeepLabv3+ (Chen et al. 2018, arXiv:1802.02611) on MobileNetV2 (arXiv:1801.04381).

    python -m jaxseg.main --config configs/deeplabv3p_mobilenetv2.py:DATASET --workdir runs/NAME

DATASET is one of `jaxseg.recipes`; without one it is cityscapes. The recipes for cityscapes and
ade20k are MMSegmentation's `mobilenet-v2-d8_deeplabv3plus`, whose published single-scale mIoU is
the target. They start there from ImageNet weights: the default of --config.init_from.

    cityscapes  512x1024, batch 8, 80k steps: 75.20     ade20k  512x512, batch 16, 160k: 34.02
    voc2012     512x512, batch 16, 20k (augmented train list): no published figure
    camvid      half as wide, from scratch, sized for two CPU cores
    synthetic   the same; needs no files                folder  your own images and masks

MobileNetV2's paper (section 6.3) has DeepLabv3 on it, without this decoder: 75.70 on VOC 2012 (val,
one scale, output stride 16, with ASPP), pretrained on COCO.
Verified here is the network (forward), not yet these scores. The same backbone serves every head
that takes a ResNet: --config.model.backbone of `configs/fcn_resnet.py`, `pspnet.py` and
`deeplabv3.py`, where MMSegmentation reaches 71.19, 70.23 and 73.84 on Cityscapes.
"""

from ml_collections import ConfigDict

from jaxseg import recipes
from jaxseg.recipes import RECIPES  # noqa: F401 (all of them)


def get_config(dataset: str = "cityscapes") -> ConfigDict:
    config = recipes.get(dataset, losses=dict(logits=1.0, aux_logits=0.4))
    config.model = dict(
        name="deeplabv3p", backbone=dict(name="mobilenetv2", width=1.0, output_stride=8),
        rates=(12, 24, 36), channels=512, low_channels=48, aux_channels=256, dropout=0.1,
        align_corners=False, low_feature="stage1", upsample="bilinear", image_pool=True, project=3,
    )  # fmt: skip
    if dataset in ("cityscapes", "ade20k"):
        config.steps *= 2
    if recipes.is_small(dataset):
        config.model.update(rates=(6, 12, 18), channels=128, aux_channels=64)
        config.model.backbone.update(width=0.5, output_stride=16)
    return config
