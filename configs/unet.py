"""U-Net (Ronneberger et al. 2015, arXiv:1505.04597), the original: valid convolutions.

    python -m jaxseg.main --config configs/unet.py:DATASET --workdir runs/NAME

DATASET is folder, camvid or synthetic; without one it is folder, for the paper's protocol on the
ISBI challenge of electron microscopy (30 training slices of 512x512, cells parted by membranes, in
the layout of `jaxseg.data.folder`; their masks are 0 for membrane and 255 for cell, which
--config.data.values='(0,255)' says). It was trained from scratch: one image a step, momentum 0.99,
elastic deformation of 10 pixels, classes balanced, gaps between cells weighted by w0 = 10 and
sigma = 5. The target is the paper's table 1, the mean over seven rotations of the input: warping
error 0.000353, Rand error 0.0382, pixel error 0.0611. Rate and number of steps are ours, the paper
states neither; rotations and shifts of the training images are left out. The challenge's server
scores results; nothing of it is verified here.

    camvid      a quarter of the width, four stages, sized for two CPU cores; no published figure
    synthetic   the same; needs no files

The border weight takes every connected region of a class for a cell where there are more than two
classes.
"""

from ml_collections import ConfigDict

from jaxseg import named, recipes

RECIPES = ("folder", "camvid", "synthetic")


def get_config(dataset: str = "folder") -> ConfigDict:
    named.check("the config's argument", "dataset", dataset, RECIPES)
    config = recipes.get(dataset, losses=dict(logits=1.0))
    config.losses.logits = dict(
        name="boundary_weighted_cross_entropy", weight=1.0, average="valid", w0=10.0, sigma=5.0,
        cells=(), class_weights=config.losses.logits.class_weights,
    )  # fmt: skip
    config.model = dict(name="unet", width=64, stages=5, upsample="transposed", dropout=0.5)
    if recipes.is_small(dataset):
        config.model.update(width=16, stages=4)
        config.augment.elastic = 2.5  # of 128 to 192 pixels as much as 10 of 512
        return config
    config.batch_size, config.steps = 1, 30_000
    config.augment.update(scale=(1.0, 1.0), cat_max_ratio=1.0, elastic=10.0)
    config.losses.logits.class_weights = ("median_frequency",)
    config.optimizer.update(lr=1e-3, momentum=0.99, weight_decay=0.0)
    config.schedule.update(end=0.0)
    return config
