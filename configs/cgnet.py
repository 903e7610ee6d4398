"""CGNet (Wu et al. 2018, arXiv:1811.08201), M3N21.

    python -m jaxseg.main --config configs/cgnet.py:DATASET --workdir runs/NAME

Without a DATASET it is cityscapes: MMSegmentation's `cgnet_fcn`, whose published mIoU (val; one
scale, and scales with flips) is the target. It starts from scratch, from images less the mean of
Cityscapes but not divided by their deviation, and weighs the classes by the inverse logarithm of
their frequency.

    cityscapes  512x1024, batch 32, 60k steps: 68.27, 70.33
    camvid      fewer blocks, sized for two CPU cores
    synthetic   the same; needs no files                folder  your own images and masks

Its other recipe, which reaches 65.63, 68.04: config.augment.crop=(680,680), batch_size=16,
augment.photometric=False, augment.cat_max_ratio=1.0. There Adam adds the weight decay to the
gradient, here it acts on the parameter itself.

The paper trains on 680x680, batch 14, and reports 64.8 on Cityscapes' test set with less than half
a million parameters.
Verified here is the network (forward and training step), not yet these scores.
"""

from ml_collections import ConfigDict

from jaxseg import recipes
from jaxseg.models.segmenter import MEAN, STD

RECIPES = ("cityscapes", "camvid", "synthetic", "folder")
CLASS_WEIGHTS = (
    2.5959933, 6.7415504, 3.5354059, 9.8663225, 9.690899, 9.369352, 10.289121, 9.953208,
    4.3097677, 9.490387, 7.674431, 9.396905, 10.347791, 6.3927646, 10.226669, 10.241062,
    10.280587, 10.396974, 10.055647,
)  # fmt: skip


def get_config(dataset: str = "cityscapes") -> ConfigDict:
    config = recipes.get(dataset, losses=dict(logits=1.0))
    config.model = dict(
        name="cgnet", blocks=(3, 21), dropout=0.0, align_corners=False, mean=MEAN, std=STD
    )
    if dataset == "cityscapes":
        config.batch_size, config.steps = 32, 60_000
        config.losses.logits.class_weights = CLASS_WEIGHTS
        config.model.update(mean=(72.39239876, 82.90891754, 73.15835921), std=(1.0, 1.0, 1.0))
        config.optimizer = dict(
            name="adamw", lr=1e-3, weight_decay=5e-4, clip_norm=0.0, accumulate=1,
            lr_multipliers=(), decay_multipliers=(),
        )  # fmt: skip
    if recipes.is_small(dataset):
        config.model.blocks = (2, 4)
    return config
