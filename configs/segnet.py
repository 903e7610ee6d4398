"""SegNet (Badrinarayanan et al. 2015, arXiv:1511.00561) and its Bayesian form.

    python -m jaxseg.main --config configs/segnet.py:DATASET --workdir runs/NAME

DATASET is one of those below; without one it is camvid_full: the authors' released solver (SGD at a
constant rate of 0.001 with momentum 0.9, 40k steps, classes balanced by median frequency, counted
in the training labels first) on the 367 whole CamVid images of 360x480, batch 5. The encoder starts
from ImageNet weights of VGG-16 there: --config.init_from=vgg16_bn are such, with norms. From
scratch, take a larger rate.

    camvid_full  no figure of the paper is for this: its 60.1 test mIoU (table 2) is from 3,433
                 images of four data sets, without balancing; with these 367 images, Jegou et al.
                 (arXiv:1611.09326, table 1) list 46.4, pretrained
    cityscapes   MMSegmentation's protocol, from scratch; the test server's 57.0 started from
                 ImageNet weights
    camvid       a quarter of the width, crops and AdamW from scratch, sized for two CPU cores
    synthetic    the same, smaller; needs no files       folder  your own images and masks

Bayesian SegNet (arXiv:1511.02680): --config.model.dropout=0.5 for training, then
--config.predict.samples=20 for evaluation and prediction; 63.1 test mIoU on CamVid, pretrained. The
decoder's upsampling is --config.model.upsample, of `jaxseg.models.upsample.METHODS`.

Verified here: the number of parameters (29.45 M), and that unpooling undoes pooling. The scores are
not yet reproduced.
"""

from ml_collections import ConfigDict

from jaxseg import named, recipes

RECIPES = ("camvid_full", "cityscapes", "camvid", "synthetic", "folder")


def get_config(dataset: str = "camvid_full") -> ConfigDict:
    named.check("the config's argument", "dataset", dataset, RECIPES)
    config = recipes.get(dataset.removesuffix("_full"), losses=dict(logits=1.0))
    config.model = dict(
        name="segnet", width=64, dropout=0.0, upsample="unpool", align_corners=False
    )  # fmt: skip
    if recipes.is_small(dataset):
        config.model.width = 16
    if dataset != "synthetic":  # whose recipe has numbers of its own
        config.losses.logits.class_weights = ("median_frequency",)
    if dataset == "camvid_full":
        config.batch_size, config.steps = 5, 40_000
        config.losses.logits.average = "all"  # as in Caffe, the weights have no part in the count
        config.augment.update(crop=(360, 480), scale=(1.0, 1.0), flip=False, photometric=False)
        config.optimizer = dict(
            name="sgd", lr=1e-3, momentum=0.9, weight_decay=5e-4, clip_norm=0.0, accumulate=1,
            lr_multipliers=(), decay_multipliers=((".*/bias", 0.0),),
        )  # fmt: skip
        config.schedule = dict(name="constant", warmup=0)
        config.eval_every, config.checkpoint_every = 2000, 1000
    return config
