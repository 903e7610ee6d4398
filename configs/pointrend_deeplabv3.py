"""PointRend (Kirillov et al. 2019, arXiv:1912.08193) on DeepLabv3.

    python -m jaxseg.main --config configs/pointrend_deeplabv3.py:DATASET --workdir runs/NAME

DATASET is one of `RECIPES`; without one it is cityscapes.

    cityscapes  768x768, batch 16, 90k steps: 78.4, where DeepLabv3 alone gives 77.2 at output
                stride 16 and 77.8 at 8; from ImageNet weights: the default of --config.init_from
    camvid      ResNet-18 from scratch, sized for two CPU cores
    synthetic   the same, smaller; needs no files       folder  your own images and masks

These are the paper's scores (val), of ResNet-101 with a stem of three 3x3 convolutions. Its coarse
map has stride 16, so four doublings lead to the size of the image. The rest of the recipe, such as
weight decay, is that of this package's other configs.

Verified here is how the network is put together, not yet these scores: no released model has it.
"""

from ml_collections import ConfigDict

from jaxseg import recipes

RECIPES = ("cityscapes", "camvid", "synthetic", "folder")


def get_config(dataset: str = "cityscapes") -> ConfigDict:
    config = recipes.get(dataset, losses=dict(logits=1.0, points=1.0))
    config.model = dict(
        name="pointrend",
        backbone=recipes.RESNET | dict(depth=101, output_stride=16, multi_grid=(2, 4, 8)),
        coarse=dict(
            name="deeplabv3", rates=(6, 12, 18), channels=256, aux_channels=0, dropout=0.1
        ),
        # Of stride 4: the paper's res2.
        fine_features=("stage1",),
        points=2048, oversample=3.0, importance=0.75, subdivision_steps=4, subdivision_points=8096,
        num_fcs=3, channels=256, coarse_each_layer=True, align_corners=False,
    )  # fmt: skip
    if recipes.is_small(dataset):
        config.model.backbone.update(depth=18, multi_grid=())
        config.model.coarse.channels = 64
        config.model.update(points=512, subdivision_points=1024, channels=64)
    else:
        config.batch_size, config.steps = 16, 90_000
        config.augment.crop = (768, 768)
        config.schedule.update(warmup=1000, warmup_factor=1e-6)
    return config
