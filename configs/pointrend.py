"""PointRend (Kirillov et al. 2019, arXiv:1912.08193) on Semantic FPN.

    python -m jaxseg.main --config configs/pointrend.py:DATASET --workdir runs/NAME

DATASET is one of `RECIPES`; without one it is cityscapes. The large recipes are MMSegmentation's
`pointrend_r50`, whose published single-scale mIoU is the target. They start there from ImageNet
weights of ResNet-50-v1c: the default of --config.init_from.

    cityscapes  512x1024, batch 8, 80k steps: 76.47     ade20k  512x512, batch 16, 160k: 37.64
    camvid      ResNet-18 from scratch, sized for two CPU cores
    synthetic   the same, smaller; needs no files       folder  your own images and masks

With --config.model.backbone.depth=101: 78.30 and 40.02. MMSegmentation redraws 8196 pixels at test
time, here it is the paper's 8096. The paper, from ImageNet weights of ResNet-101, Cityscapes (val):
77.7 without and 78.6 with PointRend; on DeepLabv3 see `pointrend_deeplabv3.py`.

Verified here are the networks at test time, not yet these scores.
"""

from ml_collections import ConfigDict

from jaxseg import recipes

RECIPES = ("cityscapes", "ade20k", "camvid", "synthetic", "folder")


def get_config(dataset: str = "cityscapes") -> ConfigDict:
    config = recipes.get(dataset, losses=dict(logits=1.0, points=1.0))
    config.model = dict(
        name="pointrend", backbone=recipes.RESNET | dict(output_stride=32),
        coarse=dict(name="sem_fpn", neck_channels=256, channels=128, dropout=0.0),
        fine_features=("p1",),
        # In training, per image: so many points, of which the share `importance` are the most
        # uncertain of oversample * points.
        points=2048, oversample=3.0, importance=0.75,
        # At test time: doublings of the map, and pixels to redraw after each.
        subdivision_steps=2, subdivision_points=8096,
        num_fcs=3, channels=256, coarse_each_layer=True, align_corners=False,
    )  # fmt: skip
    if recipes.is_small(dataset):
        config.model.backbone.depth = 18
        config.model.coarse.update(neck_channels=64, channels=64)
        config.model.update(points=512, subdivision_points=1024, channels=64)
    else:
        config.steps = 160_000 if dataset == "ade20k" else 80_000
        config.schedule.update(warmup=200, warmup_factor=0.1)
    return config
