"""A recipe for another batch size: what counts steps keeps its images, the rate follows the batch.

    python -m jaxseg.main --config configs/deeplabv3p.py --config.devices=1 --rescale --workdir ...
    python -m jaxseg.main --config configs/deeplabv3p.py --config.batch_size=32 --rescale ...

A run sees as many images as the recipe's, and as many epochs. With r the ratio of the images in an
update of the parameters, there and here, the learning rate becomes

    r times the recipe's for SGD, the linear rule (Goyal et al. 2017, arXiv:1706.02677, section 2.1)
    sqrt(r) times for AdamW, the square-root rule (Krizhevsky 2014, arXiv:1404.5997, section 5; for
    Adam Malladi et al. 2022, arXiv:2205.10287, who scale 1 - b1, 1 - b2 and eps too; these stay)

so that SGD's rate times weight decay times steps is the recipe's; AdamW's decay is made to keep it.

To keep the updates themselves instead, say --config.optimizer.accumulate=4 with a quarter of the
batch: r is 1 then, and only what counts steps changes. BatchNorm's statistics are of the smaller
batch either way.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxseg import config as configs
from jaxseg import named, recipes
from jaxseg.console import say
from jaxseg.errors import UserError

STEPS = ("steps", "schedule.warmup", "log_every", "eval_every", "checkpoint_every")
LINEAR = "linear in the images of an update, as for SGD: Goyal et al. 2017"
ROOT = "with their square root, as for Adam: Krizhevsky 2014, Malladi et al. 2022"
RULES = {"sgd": (lambda r: r, LINEAR), "adamw": (math.sqrt, ROOT)}
WARM_UP = 4  # times the recipe's batch, from which Goyal et al.'s warm-up is brought to mind


def from_command(
    file: str, config: ConfigDict, argv: Sequence[str]
) -> tuple[ConfigDict, list[str]]:
    """`rescaled` for the command line that made `config` from `file`; says what it changed.

    A pure function of the command line, so that the same command continues the run.
    """
    given = {
        argument.lstrip("-").partition("=")[0].removeprefix("config.")
        for argument in configs.split_overrides(argv)[0]
    }
    config, lines = rescaled(configs.from_file(file), config, given)
    configs.validate(config)
    say("\n  ".join(["rescaled from the recipe:", *(lines or ["nothing to change"])]))
    return config, lines


def rescaled(
    recipe: ConfigDict, config: ConfigDict, given: Collection[str]
) -> tuple[ConfigDict, list[str]]:
    """The config, adapted from the recipe's batch to its own.

    Args:
      recipe: the config as its file has it.
      config: the same with what the user set.
      given: the keys that the user set, 'optimizer.lr': these stay as they are. Without
        'batch_size' among them, each of `config.devices` gets as many images as in the recipe.

    Returns:
      A changed copy, and a line for every value that differs from the recipe's on this account:
      'optimizer.lr: 0.01 -> 0.0025 (why)'. After these, lines on what is to be known beside.

    Raises:
      UserError: there is no telling the batch size, or the optimizer is not one with a rule.
    """
    batch = config.batch_size if "batch_size" in given else _per_device(recipe, config)
    named.check("config.optimizer.name", "optimizer", config.optimizer.name, RULES)
    rule, why = RULES[config.optimizer.name]
    accumulate = config.optimizer.get("accumulate", 1)
    longer = recipe.batch_size / batch
    ratio = batch * accumulate / (recipe.batch_size * recipe.optimizer.get("accumulate", 1))
    factor = rule(ratio)

    wanted: dict[str, tuple[Any, str]] = {"batch_size": (batch, "images of a step")}
    for key in STEPS:
        if _get(recipe, key):
            of = accumulate if key == "steps" else 1  # steps that end no update change nothing
            wanted[key] = (_steps(_get(recipe, key) * longer, of), "the same number of images")
    wanted["optimizer.lr"] = (recipe.optimizer.lr * factor, why)
    if _get(recipe, "schedule.end"):
        wanted["schedule.end"] = (_get(recipe, "schedule.end") * factor, "as the rate")
    decay = recipe.optimizer.get("weight_decay", 0.0)
    if decay and factor != ratio:
        wanted["optimizer.weight_decay"] = (decay * ratio / factor, "rate x decay x steps stays")
    if recipe.get("ema"):
        wanted["ema"] = (recipe.ema ** (1 / longer), "averages over the same number of images")

    config, lines = config.copy_and_resolve_references(), []
    for key, (value, reason) in wanted.items():
        before = _get(recipe, key)
        if key in given and key != "batch_size":
            value, reason = _get(config, key), "as given"
        elif value != before:
            config.update_from_flattened_dict({key: value})
        if value != before:
            lines.append(f"{key}: {_show(before)} -> {_show(value)} ({reason})")
    return config, lines + _beside(recipe, config, batch, ratio)


def _per_device(recipe: ConfigDict, config: ConfigDict) -> int:
    """The recipe's images on each device, times the devices of the config."""
    # MMSegmentation's recipes, and those made like them, are for four; the small ones for one.
    devices = 1 if recipes.is_small(recipe.data.name) else 4
    if not config.devices or recipe.batch_size % devices:
        why = (
            f"the recipe's {recipe.batch_size} images do not divide over {devices} devices"
            if config.devices
            else "nothing says what this machine holds"
        )
        raise UserError(
            f"--rescale: {why}; give the batch size, as --config.batch_size=2 (`plan` says which "
            "fit), or the number of devices, as --config.devices=1, for as many images on each as "
            "in the recipe"
        )
    return recipe.batch_size // devices * config.devices


def _beside(recipe: ConfigDict, config: ConfigDict, batch: int, ratio: float) -> list[str]:
    lines = []
    if batch < recipe.batch_size:
        lines.append(
            f"unlike the recipe's, BatchNorm's statistics are of {batch} images, "
            f"not {recipe.batch_size}"
        )
    if config.optimizer.name == "sgd" and ratio >= WARM_UP and not _get(config, "schedule.warmup"):
        lines.append(
            f"a rate {ratio:g} times as high wants a warm-up (five epochs in Goyal et al.): "
            "--config.schedule.warmup=STEPS"
        )
    return lines


def _steps(number: float, of: int) -> int:
    """A number of steps, at least one, rounded; to the next multiple of `of` above."""
    return max(1, round(number)) if of == 1 else max(1, math.ceil(number / of - 1e-9)) * of


def _get(config: ConfigDict, key: str) -> Any:
    for name in key.split("."):
        config = config.get(name) if isinstance(config, ConfigDict) else None
    return config


def _show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
