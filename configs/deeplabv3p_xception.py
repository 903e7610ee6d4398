"""DeepLabv3+ on modified aligned Xception-65, both of Chen et al. 2018, arXiv:1802.02611.

    python -m jaxseg.main --config configs/deeplabv3p_xception.py:DATASET --workdir runs/NAME

DATASET is one of `jaxseg.recipes`; without one it is cityscapes. The large recipes are the paper's
(section 4, which refers to DeepLabv3's, arXiv:1706.05587): crops of 513 pixels, 769 on Cityscapes,
scaled by 0.5 to 2 and flipped, batch 16, SGD from 0.007 with the poly policy, output stride 16, no
auxiliary loss. Their targets are its single-scale mIoU at output stride 16 (tables 5 and 7), and
that of the authors' public models:

    voc2012     30k steps on the augmented train list: 79.79; from COCO weights 82.20, and 83.58
                at output stride 8 with scales and flips (test 87.8)
    cityscapes  90k steps: 78.79; with image_pool=False 79.14, and with backbone.depth=71 as well
                79.55 (test, with the coarse annotations: 82.1)
    ade20k      150k steps: 45.65 at output stride 8 with scales and flips
    camvid      two middle blocks a quarter as wide, from scratch, sized for two CPU cores
    synthetic   the same; needs no files                folder  your own images and masks

All of them start from ImageNet weights. The released ones lack the ReLU after the depthwise
convolutions that the paper describes: for those set backbone.act_between=False.

Verified here are the networks: the backbone's features against a public port of the release, the
whole against published figures: its parameters, and to 0.3 % its 54.17 billion multiply-adds.
Not verified are these scores. The release drops out before the decoder, this model after it.
"""

from ml_collections import ConfigDict

from jaxseg import recipes
from jaxseg.recipes import RECIPES  # noqa: F401 (all of them)


def get_config(dataset: str = "cityscapes") -> ConfigDict:
    config = recipes.get(dataset, losses=dict(logits=1.0))
    config.model = dict(
        name="deeplabv3p",
        backbone=dict(
            name="xception", depth=65, output_stride=16, multi_grid=(), middle_blocks=0, width=1.0,
            act_between=True,
        ),
        rates=(6, 12, 18), channels=256, low_channels=48, aux_channels=0, dropout=0.1,
        align_corners=True, low_feature="stage1", upsample="bilinear", image_pool=True, project=1,
        mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5),
    )  # fmt: skip
    config.losses.logits.average = "valid"
    if recipes.is_small(dataset):
        config.model.update(channels=64, low_channels=24)
        config.model.backbone.update(middle_blocks=2, width=0.25)
        return config
    config.batch_size = 16
    config.steps = dict(cityscapes=90_000, ade20k=150_000).get(dataset, 30_000)
    config.augment.update(crop=(513, 513), photometric=False)
    if dataset == "cityscapes":
        config.augment.crop = (769, 769)
    config.optimizer.update(lr=0.007, weight_decay=4e-5)
    config.schedule.end = 0.0
    return config
