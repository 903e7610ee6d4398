"""DeepLabv3+ (Chen et al. 2018, arXiv:1802.02611) on a dilated ResNet.

    python -m jaxseg.main --config configs/deeplabv3p.py:DATASET --workdir runs/NAME

DATASET is one of the functions below; without one it is cityscapes. The large recipes are
MMSegmentation's `deeplabv3plus_r50-d8`, whose published single-scale mIoU is the target. They start
there from ImageNet weights of ResNet-50-v1c: give such weights by --config.init_from.

    cityscapes  512x1024, batch 8, 40k steps: 79.61     ade20k  512x512, batch 16, 80k: 42.72
    voc2012     512x512, batch 16, 20k (augmented train list): 75.93
    camvid      ResNet-18 from scratch, sized for two CPU cores; the README has the figure reached
    synthetic   the same, smaller; needs no files       folder  your own images and masks
"""

from ml_collections import ConfigDict


def get_config(dataset: str = "cityscapes") -> ConfigDict:
    if dataset not in RECIPES:
        raise ValueError(f"deeplabv3p.py:{dataset}: choose one of {', '.join(RECIPES)}")
    config = ConfigDict(
        dict(
            seed=0,
            # Of the computation; parameters and statistics are float32. auto: bfloat16, but on CPU
            dtype="auto",
            devices=0,  # 0: all there are
            data_backend="auto",  # "tfdata", or "threads" (no TensorFlow); auto takes what is there
            train_split="train",
            model=dict(
                name="deeplabv3p",
                backbone=dict(
                    name="resnet", depth=50, stem="v1c", output_stride=8, multi_grid=(),
                    freeze_norm=False, remat=False,
                ),
                rates=(12, 24, 36), channels=512, low_channels=48, aux_channels=256, dropout=0.1,
                align_corners=False,
            ),
            augment=dict(
                crop=(512, 1024), scale=(0.5, 2.0), base_size=(), cat_max_ratio=0.75, flip=True,
                photometric=True,
            ),
            losses=dict(
                # average: over "all" pixels, as in MMSegmentation, or over the "valid" ones
                logits=dict(
                    name="cross_entropy", weight=1.0, average="all", class_weights=()
                ),
                aux_logits=dict(
                    name="cross_entropy", weight=0.4, average="all", class_weights=()
                ),
            ),
            optimizer=dict(
                name="sgd", lr=0.01, momentum=0.9, weight_decay=5e-4, clip_norm=0.0, accumulate=1,
                # ((regex over parameter paths, factor), ...)
                lr_multipliers=(), decay_multipliers=(),
            ),
            schedule=dict(name="poly", power=0.9, end=1e-4, warmup=0),
            ema=0.0,
            init_from="", init_skip="",
            log_every=50, eval_every=4000, checkpoint_every=1000,
            # batch_size is rounded up to a multiple of the devices; 1 is safe for large images.
            eval=dict(split="val", final_split="val", batch_size=1, base_size=()),
            predict=dict(slide=dict(crop=(), stride=(), batch=4), flip=False),
        )
    )  # fmt: skip
    RECIPES[dataset](config)
    return config


def cityscapes(config: ConfigDict) -> None:
    config.batch_size, config.steps = 8, 40_000
    config.data = dict(name="cityscapes", root="data/cityscapes", source="folders")


def ade20k(config: ConfigDict) -> None:
    config.batch_size, config.steps = 16, 80_000
    config.data = dict(name="ade20k", root="data/ADEChallengeData2016", source="folders")
    config.augment.update(crop=(512, 512), base_size=(2048, 512))
    config.eval.base_size = (2048, 512)


def voc2012(config: ConfigDict) -> None:
    config.batch_size, config.steps = 16, 20_000
    config.data = dict(
        name="voc2012", root="data/VOCdevkit/VOC2012", source="folders", augmented=True
    )
    config.train_split = "train_aug"
    config.augment.update(crop=(512, 512), base_size=(2048, 512))
    config.eval.base_size = (2048, 512)


def small(config: ConfigDict) -> None:
    """ResNet-18 from scratch at output stride 16 with narrow heads: for a CPU."""
    config.model.backbone.update(depth=18, output_stride=16)
    config.model.update(rates=(6, 12, 18), channels=128, aux_channels=64)
    config.losses.logits.average = config.losses.aux_logits.average = "valid"
    config.optimizer = dict(
        name="adamw", lr=2e-3, weight_decay=1e-2, clip_norm=1.0, accumulate=1,
        lr_multipliers=(), decay_multipliers=((".*/(bias|scale)", 0.0),),
    )  # fmt: skip
    config.schedule.update(end=0.0, warmup=50)
    config.eval.batch_size = 8


def camvid(config: ConfigDict) -> None:
    small(config)
    config.batch_size, config.steps = 8, 1000
    config.data = dict(name="camvid", root="data/camvid")
    config.augment.update(crop=(192, 256), scale=(0.5, 1.25))
    config.eval.final_split = "test"
    config.eval_every, config.checkpoint_every = 250, 100


def synthetic(config: ConfigDict) -> None:
    small(config)
    config.batch_size, config.steps = 8, 400
    config.data = dict(name="synthetic", size=(128, 256), train=512, val=64, test=32, seed=0)
    config.augment.update(crop=(128, 160), scale=(1.0, 2.0), photometric=False)
    # About the root of how much rarer a class is than the median one: in 400 steps markings, poles
    # and people would else not be found at all.
    weights = (0.5, 1.0, 2.0, 0.5, 2.0, 1.0, 0.7, 2.0, 1.0)
    config.losses.logits.class_weights = config.losses.aux_logits.class_weights = weights
    config.eval.final_split = "test"
    config.log_every, config.eval_every, config.checkpoint_every = 20, 200, 100


def folder(config: ConfigDict) -> None:
    """Your own images and masks; `python -m jaxseg.main check` tells whether they are in order."""
    config.batch_size, config.steps = 8, 20_000
    config.data = dict(
        name="folder", root="data/mine", images="images", masks="masks", classes="classes.txt",
        mask_kind="index", mask_ending="", values=(), ignore=(), ignore_label=255, splits=(),
    )  # fmt: skip
    config.augment.update(crop=(512, 512))


RECIPES = {f.__name__: f for f in (cityscapes, ade20k, voc2012, camvid, synthetic, folder)}
