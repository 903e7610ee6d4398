"""STDC-Seg (Fan et al. 2021, arXiv:2104.13188).

    python -m jaxseg.main --config configs/stdc.py:DATASET --workdir runs/NAME

DATASET is one of `RECIPES`; without one it is cityscapes. The large recipe is MMSegmentation's
`stdc1`, crops of 512x1024, batch 48 and 80k steps, whose published mIoU on Cityscapes (val; one
scale, and scales with flips) is the target:

    STDC1                             from scratch 71.82, 73.89     from ImageNet 74.94, 76.97
    STDC2, model.blocks='(4,5,3)'     from scratch 73.15, 76.13     from ImageNet 76.67, 78.67

ImageNet weights of the STDC network are the default of --config.init_from.

    camvid      STDC1 of half the widths, from scratch, sized for two CPU cores
    synthetic   the same; needs no files                folder  your own images and masks

Three losses of hard pixels, and the detail loss of the head on stage 3, 'aux_logits_2'. The
auxiliary logits are enlarged without aligning corners, the others with, as there.

The paper: 71.9 on Cityscapes' test set at 250.4 frames per second (STDC1, half the resolution), and
76.8 at 97.0 (STDC2, three quarters).

Verified here are the networks (forward and training step), not yet these scores.
"""

from ml_collections import ConfigDict

from jaxseg import recipes

RECIPES = ("cityscapes", "camvid", "synthetic", "folder")


def get_config(dataset: str = "cityscapes") -> ConfigDict:
    config = recipes.get(dataset, losses=dict(logits=1.0, aux_logits_0=1.0, aux_logits_1=1.0))
    config.model = dict(
        name="stdc", blocks=(2, 2, 2), widths=(32, 64, 256, 512, 1024), context_channels=128,
        channels=256, aux_channels=64, dropout=0.1, align_corners=True,
    )  # fmt: skip
    if dataset == "cityscapes":
        config.batch_size, config.steps = 48, 80_000
        config.schedule.update(warmup=1000, warmup_factor=0.1)
    if recipes.is_small(dataset):
        config.model.update(
            widths=(16, 32, 128, 256, 512), context_channels=64, channels=128, aux_channels=32
        )
    h, w = config.augment.crop
    for name, loss in config.losses.items():
        loss.update(name="ohem_cross_entropy", threshold=0.7, min_kept=min(10_000, h * w // 50))
        loss.align_corners = name == "logits"
    config.losses.aux_logits_2 = dict(name="detail", weight=1.0)
    return config
