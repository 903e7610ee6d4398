"""DDRNet (Hong et al. 2021, arXiv:2101.06085).

    python -m jaxseg.main --config configs/ddrnet.py:DATASET --workdir runs/NAME

DATASET is one of `RECIPES`; without one it is cityscapes. The large recipe is MMSegmentation's
`ddrnet_23-slim`, whose published mIoU is the target. It starts there from weights of the backbone
trained on ImageNet: the default of --config.init_from.

    cityscapes  1024x1024, batch 12, 120k steps: 77.84 (one scale), 80.15 (scales and flips)
    camvid      half as wide, from scratch, sized for two CPU cores
    synthetic   the same; needs no files                folder  your own images and masks

DDRNet-23 is model.channels=64, model.head_channels=128: 79.99 and 81.71. Both are trained on hard
pixels: those whose class has a probability below 0.9, and at least 131,072 of six crops, a 48th.

The paper: Cityscapes' test set 77.4 at 102 frames per second (slim), CamVid's 74.7 at 230.

Verified here are the networks (forward and training step), not yet these scores.
"""

from ml_collections import ConfigDict

from jaxseg import recipes

RECIPES = ("cityscapes", "camvid", "synthetic", "folder")


def get_config(dataset: str = "cityscapes") -> ConfigDict:
    config = recipes.get(dataset, losses=dict(logits=1.0, aux_logits=0.4))
    config.model = dict(
        name="ddrnet", channels=32, ppm_channels=128, head_channels=64, dropout=0.0
    )  # fmt: skip
    if dataset == "cityscapes":
        config.batch_size, config.steps = 12, 120_000
        config.augment.crop = (1024, 1024)
        config.schedule.end = 0.0
    if recipes.is_small(dataset):
        config.model.update(channels=16, ppm_channels=64, head_channels=32)
    h, w = config.augment.crop
    for loss in config.losses.values():
        loss.update(
            name="ohem_cross_entropy", threshold=0.9, min_kept=h * w // 48, average="kept_pixels"
        )
        if dataset == "cityscapes":
            loss.class_weights = recipes.CITYSCAPES_WEIGHTS
    return config
