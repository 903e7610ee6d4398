"""PIDNet (Xu et al. 2023, arXiv:2206.02066).

    python -m jaxseg.main --config configs/pidnet.py:DATASET --workdir runs/NAME

DATASET is one of `RECIPES`; without one it is cityscapes. The large recipe is MMSegmentation's
`pidnet-s`, whose published mIoU is the target. It starts there from weights of the backbone trained
on ImageNet: the default of --config.init_from.

    cityscapes  1024x1024, batch 12, 120k steps: 78.74 (one scale), 80.87 (scales and flips)
    camvid      half as wide, with fewer blocks, from scratch, sized for two CPU cores
    synthetic   the same; needs no files                folder  your own images and masks

    PIDNet-M    80.22, 82.05    model.channels=64
    PIDNet-L    80.89, 82.37    model.channels=64 .ppm_channels=112 .head_channels=256
                                .stem_blocks=3 .branch_blocks=4 .light=False

Four losses: cross-entropy of the P branch; of the fused map that of hard pixels, as DDRNet's; of
the D branch that of boundaries four pixels wide; and of the fused map's hard pixels once more where
the D branch is sure of a boundary.

The paper: PIDNet-S 78.6 on Cityscapes' test set at 93.2 frames per second, and 80.1 on CamVid's
at 153.7.

Verified here are the networks (forward and training step), not yet these scores.
"""

from ml_collections import ConfigDict

from jaxseg import recipes

RECIPES = ("cityscapes", "camvid", "synthetic", "folder")


def get_config(dataset: str = "cityscapes") -> ConfigDict:
    config = recipes.get(dataset, losses=dict(logits=1.0, aux_logits=0.4))
    config.model = dict(
        name="pidnet", channels=32, ppm_channels=96, stem_blocks=2, branch_blocks=3, light=True,
        head_channels=128, dropout=0.1, align_corners=True,
    )  # fmt: skip
    if dataset == "cityscapes":
        config.batch_size, config.steps = 12, 120_000
        config.augment.crop = (1024, 1024)
        config.schedule.end = 0.0
        for loss in config.losses.values():
            loss.class_weights = recipes.CITYSCAPES_WEIGHTS
    if recipes.is_small(dataset):
        config.model.update(
            channels=16, ppm_channels=48, head_channels=64, stem_blocks=1, branch_blocks=2
        )
    h, w = config.augment.crop
    average = config.losses.aux_logits.average
    config.losses.logits.update(
        name="ohem_cross_entropy", threshold=0.9, min_kept=h * w // 48, average="kept_pixels"
    )
    config.losses.near_boundary = config.losses.logits.to_dict() | dict(
        output="logits", where=dict(output="boundary_logits", above=0.8)
    )
    config.losses.boundary_logits = dict(
        name="boundary_cross_entropy", weight=20.0, width=4, average=average
    )
    return config
