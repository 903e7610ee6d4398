"""DeepLab-LargeFOV, or DeepLab v1 (Chen et al. 2014, arXiv:1412.7062), on VGG-16.

    python -m jaxseg.main --config configs/deeplabv1.py:DATASET --workdir runs/NAME

DATASET is one of `jaxseg.recipes`; without one it is voc2012. That recipe is the paper's (crops of
321x321, mirrored, no scales; rates of 0.001 and ten times that for fc8, twice each for biases;
momentum 0.9, weight decay 5e-4; from ImageNet weights of VGG-16, the default of --config.init_from)
but for the schedule: the polynomial one that DeepLab v2 (arXiv:1606.00915, table 2) finds better,
with batches of 10 over 20k steps, where the paper divides the rate by ten every 2k of 6k steps of
20 to 30 images. And the loss is taken at the labels' size, where theirs is at an eighth of it. The
figures are the papers' as remembered: none was reproduced here.

    voc2012     target 65.88 (this schedule), 62.25 (the paper's); 67.64 with the paper's CRF
    cityscapes, ade20k, folder  the same rates with the dataset's crops and scales; no target
    camvid      11 classes, from scratch, sized for two CPU cores: narrow, with batch normalisation
                and a field of view of half the size
    synthetic   the same, smaller; needs no files

The CRF comes after: eval or predict with --config.predict.crf.iterations=10; its weights are found
on validation images by `python -m jaxseg.main tune_crf --workdir runs/NAME`, as in the papers.

The other fields of view of the paper: --config.model.kernel, dilation and channels, as in the table
of jaxseg/models/deeplabv1.py.
"""

from ml_collections import ConfigDict

from jaxseg import recipes
from jaxseg.recipes import RECIPES  # noqa: F401 (all of them)


def get_config(dataset: str = "voc2012") -> ConfigDict:
    config = recipes.get(dataset, losses=dict(logits=1.0))
    vgg = dict(name="vgg", depth=16, width=64, norm=False, pool=3, output_stride=8)
    config.model = dict(
        name="deeplabv1", backbone=vgg, kernel=3, dilation=12, channels=1024, dropout=0.5
    )
    if recipes.is_small(dataset):
        config.model.backbone.update(width=16, norm=True)
        config.model.update(dilation=6, channels=256, dropout=0.1)
        return config
    if dataset == "voc2012":
        config.batch_size, config.steps = 10, 20_000
        config.augment.update(crop=(321, 321), scale=(1.0, 1.0), base_size=(), photometric=False)
        config.augment.cat_max_ratio = 1.0
        config.eval.base_size = ()
    config.optimizer.update(
        lr=1e-3,
        lr_multipliers=((".*/bias", 2.0), ("head/fc8/kernel", 10.0), ("head/fc8/bias", 20.0)),
        decay_multipliers=((".*/bias", 0.0),),
    )
    config.schedule.end = 0.0
    return config
