"""FCN-8s, FCN-16s and FCN-32s (Long et al. 2015, arXiv:1411.4038) on VGG-16.

    python -m jaxseg.main --config configs/fcn.py:DATASET --workdir runs/NAME

DATASET is one of `jaxseg.recipes`; without one it is voc2012. The large recipes train FCN-8s at
once as the authors' released network is trained: one image a step, whole and unaltered, the loss
summed over its pixels, a rate of 1e-10, momentum 0.99, twice the rate and no decay for biases, 300k
steps. As the loss here is a mean, the rate is that times the pixels. Its targets are theirs, from
ImageNet weights of VGG-16 (the default of --config.init_from), on the 736 images of VOC 2011
that they call seg11valid; the `val` of voc2012 is a longer list, of 1449.

    voc2012     at once 65.4; in stages 32s 63.6, 16s 65.0, 8s 65.5: read off the authors' page
    cityscapes, ade20k, folder  the same with the dataset's crops; no target
    camvid      11 classes, from scratch, sized for two CPU cores: narrow, batch normalisation,
                AdamW, no padding by 100, all of the upsampling learned
    synthetic   the same, smaller; needs no files

In stages, each with a rate a hundredth of the last (and 100k steps), the first with
--config.model.stride=32 --config.model.skip_scales="(1.0, 1.0)", then with these and

    --config.model.stride=16 --config.init_from=runs/32s \
        --config.init_skip="head/(upscore.*|score_pool4)"
    --config.model.stride=8 --config.init_from=runs/16s \
        --config.init_skip="head/(upscore(8|16|_pool4)|score_pool3)"

The paper fixes the last upsampling and learns the others, as does this. The released networks fix
all of it: --config.model.upsample=bilinear, where lr_multipliers must lose its rule for upscore.
"""

from ml_collections import ConfigDict

from jaxseg import recipes
from jaxseg.recipes import RECIPES  # noqa: F401 (all of them)


def get_config(dataset: str = "voc2012") -> ConfigDict:
    config = recipes.get(dataset, losses=dict(logits=1.0))
    config.model = dict(
        name="fcn_vgg", backbone=dict(name="vgg", depth=16, width=64, norm=False, padding=100),
        stride=8, fc_channels=4096, skip_scales=(0.01, 0.0001), dropout=0.5, upsample="transposed",
    )  # fmt: skip
    if recipes.is_small(dataset):
        config.model.backbone.update(width=16, norm=True, padding=1)
        config.model.update(fc_channels=256, skip_scales=(1.0, 1.0), dropout=0.1)
        return config
    if dataset == "voc2012":
        config.augment.update(scale=(1.0, 1.0), base_size=(), flip=False, photometric=False)
        config.augment.cat_max_ratio = 1.0
        config.eval.base_size = ()
    config.batch_size, config.steps = 1, 300_000
    pixels = config.augment.crop[0] * config.augment.crop[1]
    config.optimizer = dict(
        name="sgd", lr=1e-10 * pixels, momentum=0.99, weight_decay=5e-4 / pixels, clip_norm=0.0,
        accumulate=1,
        lr_multipliers=((".*/bias", 2.0), ("head/upscore(8|16|32)/.*", 0.0)),
        decay_multipliers=((".*/bias", 0.0),),
    )  # fmt: skip
    config.schedule = dict(name="constant", warmup=0)
    return config
