"""BiSeNet (Yu et al. 2018, arXiv:1808.00897) with a ResNet as its context path.

    python -m jaxseg.main --config configs/bisenetv1.py:DATASET --workdir runs/NAME

DATASET is one of `RECIPES`; without one it is cityscapes. The large recipe is MMSegmentation's
`bisenetv1`, crops of 1024x1024, batch 16 and 160k steps, whose published mIoU on Cityscapes (val;
one scale, and scales with flips) is the target:

    ResNet-18   from scratch 74.44, 77.05       from ImageNet 74.37, 76.91; batch 32 75.16, 77.24
    ResNet-50   from scratch 76.92, 78.87       from ImageNet 77.68, 79.57

ResNet-50 is config.model.backbone.depth=50 .spatial_channels='(256,256,256,512)'
.context_channels=512 .channels=1024 .aux_channels=256 with config.optimizer.lr=0.05. ImageNet
weights of the ResNet are the default of --config.init_from.

    camvid      ResNet-18 from scratch and half the other widths, sized for two CPU cores
    synthetic   the same; needs no files                folder  your own images and masks

The paper: 68.4 on Cityscapes' test set at 105 frames per second, with Xception39 in the context
path. The parts are as MMSegmentation has them, see jaxseg/models/bisenetv1.py.

Verified here are the networks (forward and training step), not yet these scores.
"""

from ml_collections import ConfigDict

from jaxseg import recipes

RECIPES = ("cityscapes", "camvid", "synthetic", "folder")


def get_config(dataset: str = "cityscapes") -> ConfigDict:
    config = recipes.get(dataset, losses=dict(logits=1.0, aux_logits_0=1.0, aux_logits_1=1.0))
    config.model = dict(
        name="bisenetv1", backbone=recipes.RESNET | dict(depth=18, stem="plain", output_stride=32),
        spatial_channels=(64, 64, 64, 128), context_channels=128, channels=256, aux_channels=64,
        dropout=0.1, align_corners=False,
    )  # fmt: skip
    if dataset == "cityscapes":
        config.batch_size, config.steps = 16, 160_000
        config.augment.crop = (1024, 1024)
        config.optimizer.lr = 0.025
        config.schedule.update(warmup=1000, warmup_factor=0.1)
    if recipes.is_small(dataset):
        config.model.update(
            spatial_channels=(32, 32, 32, 64), context_channels=64, channels=128, aux_channels=32
        )
    return config
