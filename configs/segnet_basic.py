"""SegNet-Basic (Badrinarayanan et al. 2015, arXiv:1511.00561) and its Bayesian form.

    python -m jaxseg.main --config configs/segnet_basic.py:DATASET --workdir runs/NAME

DATASET is one of those below; without one it is camvid_full, the paper's protocol: 367 whole
CamVid images of 360x480 without augmentation, from scratch, SGD at a constant rate of 0.1 with
momentum 0.9, batch 12, classes balanced by median frequency, which is counted in the training
labels first. Length and weight decay are those of the authors' released solver. The paper takes the
checkpoint of the best pixel accuracy on val; here it is that of the best mIoU.

    camvid_full  test mIoU 47.7, pixel accuracy 82.7, class average 62.0 (table 1); without
                 balancing, --config.losses.logits.class_weights='()', 46.3, 84.0 and 54.6
    camvid       a quarter of the width, crops and AdamW, sized for two CPU cores
    synthetic    the same, smaller; needs no files       folder  your own images and masks

Bayesian SegNet-Basic (arXiv:1511.02680): --config.model.dropout=0.5 for training, then
--config.predict.samples=20 for evaluation and prediction. The decoder's upsampling is
--config.model.upsample, of `jaxseg.models.upsample.METHODS`.

Verified here: the number of parameters (1.4 M), and that unpooling undoes pooling. The scores are
not yet reproduced.
"""

from ml_collections import ConfigDict

from jaxseg import named, recipes

RECIPES = ("camvid_full", "camvid", "synthetic", "folder")


def get_config(dataset: str = "camvid_full") -> ConfigDict:
    named.check("the config's argument", "dataset", dataset, RECIPES)
    config = recipes.get(dataset.removesuffix("_full"), losses=dict(logits=1.0))
    config.model = dict(
        name="segnet_basic", width=64, dropout=0.0, upsample="unpool", align_corners=False
    )
    if recipes.is_small(dataset):
        config.model.width = 16
    if dataset != "synthetic":  # whose recipe has numbers of its own
        config.losses.logits.class_weights = ("median_frequency",)
    if dataset == "camvid_full":
        config.batch_size, config.steps = 12, 10_000
        config.losses.logits.average = "all"  # as in Caffe, the weights have no part in the count
        config.augment.update(crop=(360, 480), scale=(1.0, 1.0), flip=False, photometric=False)
        config.optimizer = dict(
            name="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4, clip_norm=0.0, accumulate=1,
            lr_multipliers=(), decay_multipliers=((".*/bias", 0.0),),
        )  # fmt: skip
        config.schedule = dict(name="constant", warmup=0)
        config.eval_every, config.checkpoint_every = 500, 500
    return config
