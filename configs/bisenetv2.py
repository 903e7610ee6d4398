"""BiSeNet V2 (Yu et al. 2020, arXiv:2004.02147).

    python -m jaxseg.main --config configs/bisenetv2.py:DATASET --workdir runs/NAME

DATASET is one of `RECIPES`; without one it is cityscapes. The large recipe is MMSegmentation's
`bisenetv2_fcn`, whose published mIoU (val; one scale, and scales with flips) is the target. It
starts from scratch.

    cityscapes  1024x1024, batch 16, 160k steps: 73.21, 75.74; batch 32: 75.76, 77.79
    camvid      half as wide, sized for two CPU cores
    synthetic   the same; needs no files                folder  your own images and masks

The first with hard pixels alone: 73.57, 75.80; in half precision: 73.07, 75.13.

The paper: 72.6 on Cityscapes' test set at 156 frames per second. Its booster are the auxiliary
heads; config.model.aux_channels='()' with config.losses of 'logits' alone goes without.

Verified here is the network (forward and training step), not yet these scores.
"""

from ml_collections import ConfigDict

from jaxseg import recipes

RECIPES = ("cityscapes", "camvid", "synthetic", "folder")


def get_config(dataset: str = "cityscapes") -> ConfigDict:
    losses = dict(logits=1.0) | {f"aux_logits_{i}": 1.0 for i in range(4)}
    config = recipes.get(dataset, losses=losses)
    config.model = dict(
        name="bisenetv2", detail_channels=(64, 64, 128), semantic_channels=(16, 32, 64, 128),
        expansion=6, channels=1024, aux_channels=(16, 64, 256, 1024), dropout=0.1,
        align_corners=False,
    )  # fmt: skip
    if dataset == "cityscapes":
        config.batch_size, config.steps = 16, 160_000
        config.augment.crop = (1024, 1024)
        config.optimizer.lr = 0.05
        config.schedule.update(warmup=1000, warmup_factor=0.1)
    if recipes.is_small(dataset):
        config.model.update(
            detail_channels=(32, 32, 64), semantic_channels=(8, 16, 32, 64), channels=128,
            aux_channels=(8, 16, 32, 64),
        )  # fmt: skip
    return config
