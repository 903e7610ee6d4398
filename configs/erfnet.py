"""ERFNet (Romera et al. 2018, IEEE Transactions on Intelligent Transportation Systems 19(1)).

    python -m jaxseg.main --config configs/erfnet.py:DATASET --workdir runs/NAME

Without a DATASET it is cityscapes: MMSegmentation's `erfnet_fcn`, whose published mIoU (val; one
scale, and scales with flips) is the target. It starts from scratch.

    cityscapes  512x1024, batch 16, 160k steps: 72.50, 74.75
    camvid      the same network, sized for two CPU cores
    synthetic   the same; needs no files                folder  your own images and masks

The paper trains by Adam from 5e-4 on half-size images of Cityscapes, encoder first, then both, with
weights for the classes, and reports 68.0 on the test set from scratch and 69.7 from ImageNet.
Verified here is the network (forward and training step), not yet these scores.
"""

from ml_collections import ConfigDict

from jaxseg import recipes

RECIPES = ("cityscapes", "camvid", "synthetic", "folder")


def get_config(dataset: str = "cityscapes") -> ConfigDict:
    config = recipes.get(dataset, losses=dict(logits=1.0))
    config.model = dict(
        name="erfnet", channels=128, block_dropout=0.1, dropout=0.1, align_corners=False
    )
    if dataset == "cityscapes":
        config.batch_size, config.steps = 16, 160_000
    if recipes.is_small(dataset):
        config.model.update(channels=32, block_dropout=0.03)
    return config
