"""MobileNetV3 with LR-ASPP (Howard et al. 2019, arXiv:1905.02244, section 6.4).

    python -m jaxseg.main --config configs/lraspp.py:DATASET --workdir runs/NAME

Without a DATASET it is cityscapes: MMSegmentation's `mobilenet-v3-d8_lraspp`, whose published
single-scale mIoU is the target: 69.54 from ImageNet weights (the default of
--config.init_from), 67.87 from scratch, and 64.11 and 62.74 for backbone.size=small.

    cityscapes  512x1024, batch 16, 320k steps
    camvid      small from scratch, sized for two CPU cores
    synthetic   the same; needs no files                folder  your own images and masks

The paper trains from scratch at output stride 16 (backbone.output_stride=16), on Cityscapes' fine
annotations alone, and reports for the test set 72.6 (large) and 69.4 (small).
Verified here is the network (forward), not yet these scores.
"""

from ml_collections import ConfigDict

from jaxseg import recipes

RECIPES = ("cityscapes", "camvid", "synthetic", "folder")


def get_config(dataset: str = "cityscapes") -> ConfigDict:
    config = recipes.get(dataset, losses=dict(logits=1.0))
    config.model = dict(
        name="lraspp", backbone=dict(name="mobilenetv3", size="large", width=1.0, output_stride=8),
        feature="stage4", low_features=("stage0", "stage1"), low_channels=(32, 64), channels=128,
        dropout=0.1, align_corners=False,
    )  # fmt: skip
    if dataset == "cityscapes":
        config.batch_size, config.steps = 16, 320_000
    if recipes.is_small(dataset):
        config.model.backbone.update(size="small", output_stride=16)
        config.model.update(low_channels=(16, 32), channels=64)
    return config
