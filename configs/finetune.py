"""Fine-tuning: a released model of MMSegmentation on other images and other classes.

    python -m jaxseg.main --config configs/finetune.py:NAME,DATASET --workdir runs/NAME

NAME is one of `python -m jaxseg.main zoo`; its weights are downloaded once. DATASET is one of
`jaxseg.recipes`. Without NAME it is `DEFAULT`, without either on CamVid:

    python -m jaxseg.main --config configs/finetune.py:camvid --workdir runs/finetune
    python -m jaxseg.main --config configs/finetune.py:fcn_r50-d8_4xb4-80k_ade20k-512x512,folder \
        --config.data.root=mine --workdir runs/mine

The network is the released one, auxiliary heads and all, but for what depends on the number of
classes: that starts afresh, and the run says what it is. Where the download fails, get the file by
hand and give --config.init_from=FILE.pth.

The rest is the dataset's recipe, with NAME's crop for large ones, half the steps, and for all that
is pretrained a tenth of the rate; the heads learn at the recipe's, since their last layers are new.
Losses are cross-entropy, 0.4 times for what is auxiliary, whatever else NAME was trained with.
A dataset of few images wants fewer steps (--config.steps), one that looks like NAME's own smaller
rates (--config.optimizer.lr).
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxseg import models, recipes, zoo

RECIPES = ("camvid", "cityscapes", "ade20k", "voc2012", "folder")
DEFAULT = "deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024"


def get_config(argument: str = "camvid") -> ConfigDict:
    name, _, dataset = argument.rpartition(",")
    name = name or DEFAULT
    spec = zoo.config(name).model.to_dict()
    del spec["num_classes"]
    config = recipes.get(dataset, losses=scored(spec))
    config.model, config.init_from = spec, name
    config.steps //= 2
    config.optimizer.lr /= 10
    config.optimizer.lr_multipliers = (("(head|aux_head.*)/.*", 10.0),)
    if not recipes.is_small(dataset):
        config.augment.crop = tuple(zoo.entry(name)["crop"])
    return config


def scored(spec: dict) -> dict[str, float]:
    """Outputs that score classes in training -> weights of their losses."""
    classes, model = 7, models.get(spec, 7)

    def train(image):
        streams = dict.fromkeys(("params", "dropout", "points"), jax.random.key(0))
        return model.init_with_output(streams, image, True)[0]

    found = {"logits": 1.0}
    outputs = jax.eval_shape(train, jax.ShapeDtypeStruct((2, 128, 128, 3), jnp.uint8))
    for output, value in outputs.items():
        if output == "points":
            found[output] = 1.0
        elif "logits" in output and value.ndim == 4 and value.shape[-1] == classes:
            found.setdefault(output, 0.4)
    return found
