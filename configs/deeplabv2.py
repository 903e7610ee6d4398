"""DeepLabv2 (Chen et al. 2016, arXiv:1606.00915) on a dilated ResNet.

    python -m jaxseg.main --config configs/deeplabv2.py:DATASET --workdir runs/NAME

DATASET is one of those below; without one it is voc2012. The paper's protocol: ResNet-101, from
ImageNet and then COCO weights (ImageNet's are the default of init_from), norms frozen, ASPP-L,
three scales with a loss on each and on their maximum, the classifiers' learning rate tenfold.

    voc2012     321x321, batch 10, 20k steps (augmented train list): val 76.35; 77.69 with the CRF,
                and 79.7 on the test set
    cityscapes  the same, but for crops and batch, which are ours (512x1024, 8): val 71.0, one
                scale, no COCO; 71.4 with the CRF, and 70.4 on the test set
    camvid      ResNet-18 and two scales from scratch, sized for two CPU cores
    synthetic   the same, smaller; needs no files       folder  your own images and masks

The plain dilated ResNet-101 reaches 68.72 on VOC 2012 val, with three scales 71.27. On VGG-16 the
paper has scales=(), feature="pool5" and hidden=1024, with backbone=dict(name="vgg", pool=3,
output_stride=8): rates=(12,) is LargeFOV, 65.76 on VOC 2012 val; (2, 4, 8, 12) ASPP-S, 66.98;
(6, 12, 18, 24) ASPP-L, 68.96.

The CRF comes after: eval or predict with --config.predict.crf.iterations=10; its weights are found
on validation images by `python -m jaxseg.main tune_crf --workdir runs/NAME`, as in the paper.

Verified here are the network's properties; there are no reference outputs, and these scores are not
yet reproduced.
"""

from ml_collections import ConfigDict

from jaxseg import recipes

RECIPES = ("voc2012", "cityscapes", "folder", "camvid", "synthetic")


def get_config(dataset: str = "voc2012") -> ConfigDict:
    scales = (0.5, 1.0) if recipes.is_small(dataset) else (0.5, 0.75, 1.0)
    outputs = ("logits", *(f"logits_{round(100 * scale):03d}" for scale in scales))
    config = recipes.get(dataset, losses=dict.fromkeys(outputs, 1.0))
    config.model = dict(
        name="deeplabv2",
        # Frozen norms want pretrained weights; a folder's run may start without.
        backbone=recipes.RESNET
        | dict(depth=101, stem="plain", freeze_norm=dataset != "folder"),
        feature="stage4", rates=(6, 12, 18, 24), hidden=0, scales=scales, dropout=0.5,
        align_corners=True,
    )  # fmt: skip
    if recipes.is_small(dataset):
        config.model.backbone = recipes.SMALL_RESNET
        return config
    config.steps = 20_000
    config.augment.update(scale=(0.5, 1.5), photometric=False)
    if dataset == "voc2012":
        config.batch_size = 10
        config.augment.update(crop=(321, 321), base_size=())
        config.eval.base_size = ()
    config.optimizer.update(lr=2.5e-4, lr_multipliers=(("head/.*", 10.0),))
    config.schedule.end = 0.0
    return config
