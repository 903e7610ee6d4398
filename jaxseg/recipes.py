"""What configs have in common: how to train on each dataset, whatever the model.

A config file calls `get(DATASET, losses)` and sets `config.model`; what its paper or its model does
differently it sets after that. The large recipes are MMSegmentation's, and start as there from
ImageNet weights of the backbone, see `jaxseg.init_from`; `camvid` and `synthetic` train from
scratch and are sized for a CPU.
"""

from collections.abc import Mapping

from ml_collections import ConfigDict

from jaxseg import named

# A ResNet of `config.model.backbone`, for a head that wants output stride 8.
RESNET = dict(
    name="resnet", depth=50, stem="v1c", output_stride=8, multi_grid=(), freeze_norm=False
)  # fmt: skip
# The same where `is_small`.
SMALL_RESNET = RESNET | dict(depth=18, output_stride=16)

# Of Cityscapes' 19 classes: the rarer, the heavier, as HRNet's authors and others after them train.
CITYSCAPES_WEIGHTS = (
    0.8373, 0.9180, 0.8660, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023,
    0.9539, 0.9843, 1.1116, 0.9037, 1.0865, 1.0955, 1.0865, 1.1529, 1.0507,
)  # fmt: skip

# The links of `jaxseg.predict`, all left out.
PREDICT = dict(
    slide=dict(crop=(), stride=(), batch=4),  # batch: windows that go through the model at once
    samples=0,  # forward passes with dropout that are averaged; 0: one without
    flip=False,
    scales=(),
    # Dense CRF: 0 iterations leave it out, DeepLab takes 10; see jaxseg.ops.dense_crf
    crf=dict(
        iterations=0, smooth_weight=3.0, smooth_sxy=3.0, bilateral_weight=4.0, bilateral_sxy=67.0,
        bilateral_srgb=3.0, method="lattice",
    ),
)  # fmt: skip

SHARD = dict(state=False, height=1)
NONFINITE = dict(stop_after=10, rollbacks=0)


def is_small(dataset: str) -> bool:
    """Whether the recipe is for a CPU, and wants a small model."""
    return dataset in ("camvid", "synthetic")


def get(dataset: str, losses: Mapping[str, float]) -> ConfigDict:
    """A config without a model.

    Args:
      dataset: a name in `RECIPES`.
      losses: output name -> weight, each of cross-entropy.

    Raises:
      UserError: another dataset.
    """
    named.check("the config's argument", "dataset", dataset, RECIPES)
    config = ConfigDict(
        dict(
            seed=0,
            # Of the computation; parameters and statistics are float32. auto: bfloat16, but on CPU
            dtype="auto",
            remat="none",  # what the backward pass computes again to save memory: jaxseg.remat
            devices=0,  # 0: all there are
            # For what one device cannot hold, see jaxseg.sharding: state splits parameters and the
            # optimizer's moments over the devices, height the rows of every image over so many
            shard=SHARD,
            data_backend="auto",  # "tfdata", or "threads" (no TensorFlow); auto takes what is there
            data_cache="none",  # "decoded" keeps what was read in memory, "device" on the devices
            # So many steps in a row without a finite loss end the run; first it goes back so many
            # times to the newest good checkpoint, and on with other batches: jaxseg.loop
            nonfinite=NONFINITE,
            # "skip" puts others in the place of samples that cannot be read, while these are no
            # more than the share `bad_sample_cap` of the split (one is always allowed)
            on_bad_sample="error", bad_sample_cap=0.001,
            train_split="train",
            augment=dict(
                crop=(512, 1024), scale=(0.5, 2.0), base_size=(), cat_max_ratio=0.75, flip=True,
                photometric=True,
                elastic=0.0,  # spread of random displacements, pixels
            ),
            # average: over "all" pixels, as in MMSegmentation, or over the "valid" ones
            losses={
                output: dict(name="cross_entropy", weight=weight, average="all", class_weights=())
                for output, weight in losses.items()
            },
            optimizer=dict(
                name="sgd", lr=0.01, momentum=0.9, weight_decay=5e-4, clip_norm=0.0, accumulate=1,
                # ((regex over parameter paths, factor), ...)
                lr_multipliers=(), decay_multipliers=(),
            ),
            schedule=dict(name="poly", power=0.9, end=1e-4, warmup=0),
            ema=0.0,
            # auto: ImageNet weights of the backbone where any are known; see jaxseg.init_from
            init_from="auto", init_skip="",
            log_every=50, eval_every=4000, checkpoint_every=1000,
            # batch_size is rounded up to a multiple of the devices; 1 is safe for large images.
            eval=dict(split="val", final_split="val", batch_size=1, base_size=()),
            predict=PREDICT,
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


def folder(config: ConfigDict) -> None:
    """Your own images and masks; `python -m jaxseg.main check` tells whether they are in order."""
    config.batch_size, config.steps = 8, 20_000
    config.data = dict(
        name="folder", root="data/mine", images="images", masks="masks", classes="classes.txt",
        mask_kind="index", mask_ending="", values=(), ignore=(), ignore_label=255, splits=(),
    )  # fmt: skip
    config.augment.update(crop=(512, 512))


def camvid(config: ConfigDict) -> None:
    _from_scratch(config)
    config.batch_size, config.steps = 8, 1000
    config.data = dict(name="camvid", root="data/camvid")
    config.augment.update(crop=(192, 256), scale=(0.5, 1.25))
    config.eval_every, config.checkpoint_every = 250, 100


def synthetic(config: ConfigDict) -> None:
    _from_scratch(config)
    config.batch_size, config.steps = 8, 400
    config.data = dict(name="synthetic", size=(128, 256), train=512, val=64, test=32, seed=0)
    config.augment.update(crop=(128, 160), scale=(1.0, 2.0), photometric=False)
    # About the root of how much rarer a class is than the median one: in 400 steps markings, poles
    # and people would else not be found at all.
    for loss in config.losses.values():
        loss.class_weights = (0.5, 1.0, 2.0, 0.5, 2.0, 1.0, 0.7, 2.0, 1.0)
    config.log_every, config.eval_every, config.checkpoint_every = 20, 200, 100


def _from_scratch(config: ConfigDict) -> None:
    config.init_from = ""
    for loss in config.losses.values():
        loss.average = "valid"
    config.optimizer = dict(
        name="adamw", lr=2e-3, weight_decay=1e-2, clip_norm=1.0, accumulate=1,
        lr_multipliers=(), decay_multipliers=((".*/(bias|scale)", 0.0),),
    )  # fmt: skip
    config.schedule.update(end=0.0, warmup=50)
    config.eval.update(batch_size=8, final_split="test")


RECIPES = {f.__name__: f for f in (cityscapes, ade20k, voc2012, camvid, synthetic, folder)}


def completed(config: ConfigDict) -> ConfigDict:
    """`config` with all of `PREDICT` and `SHARD`, so that each can be set: an older run's may lack
    some, and a released model's has none."""
    complete = ConfigDict(dict(predict=PREDICT, shard=SHARD))
    for section in complete:
        complete[section].update(config.get(section, {}))
    return ConfigDict({**config, **complete})
