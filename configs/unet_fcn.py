"""U-Net (Ronneberger et al. 2015, arXiv:1505.04597), padded and normalised, with an FCN head.

    python -m jaxseg.main --config configs/unet_fcn.py:DATASET --workdir runs/NAME

DATASET is cityscapes, camvid, synthetic or folder; without one it is cityscapes. No paper has this
form, which toolboxes train: the target is MMSegmentation's `unet-s5-d16_fcn_4xb4-160k_cityscapes-
512x1024`, trained there from scratch, whose published single-scale mIoU is 69.10.

    cityscapes  512x1024, batch 16, 160k steps: 69.10
    camvid      a quarter of the width, sized for two CPU cores
    synthetic   the same, smaller; needs no files       folder  your own images and masks

Their models of blood vessels (DRIVE, STARE, CHASE_DB1, HRF) are this on `folder`, with crops of 64
to 256 pixels, batch 16 and 40k steps at equal rates; name="pspnet" or name="deeplabv3" with
feature="decoder1" and channels=16 are those with other heads. Verified here are the networks (all
outputs there are references of), not yet the score.
"""

from ml_collections import ConfigDict

from jaxseg import named, recipes

RECIPES = ("cityscapes", "camvid", "synthetic", "folder")


def get_config(dataset: str = "cityscapes") -> ConfigDict:
    named.check("the config's argument", "dataset", dataset, RECIPES)
    config = recipes.get(dataset, losses=dict(logits=1.0, aux_logits=0.4))
    config.model = dict(
        name="fcn", backbone=dict(name="unet", width=64, stages=5, upsample="bilinear"),
        feature="decoder1", channels=64, num_convs=1, kernel=3, dilation=1, concat_input=False,
        aux_feature="decoder2", aux_channels=64, dropout=0.1, align_corners=False,
    )  # fmt: skip
    if dataset == "cityscapes":
        config.batch_size, config.steps = 16, 160_000
        config.eval_every = 16_000
    if recipes.is_small(dataset):
        config.model.backbone.width = 16
        config.model.update(channels=16, aux_channels=16)
        config.optimizer.lr = 1e-2  # few channels to score from take large weights
    return config
