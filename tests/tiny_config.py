"""A config whose model compiles as fast as any, for tests of what is around a run."""

from ml_collections import ConfigDict

from jaxseg import recipes


def get_config() -> ConfigDict:
    config = recipes.get("synthetic", losses=dict(logits=1.0))
    config.model = dict(
        name="fcn", backbone=dict(name="tests.tiny_backbone"), feature="stage4", channels=8,
        num_convs=1, kernel=1, dilation=1, concat_input=False, aux_channels=0, dropout=0.1,
        align_corners=False,
    )  # fmt: skip
    config.data.update(size=(64, 64), train=12, val=4, test=4)
    config.augment.crop = (48, 48)
    config.batch_size, config.devices, config.data_backend = 4, 1, "threads"
    config.schedule.warmup = 2
    config.steps, config.log_every, config.eval_every, config.checkpoint_every = 12, 2, 6, 4
    return config
