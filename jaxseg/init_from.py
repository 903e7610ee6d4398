"""Weights to start training from: what `config.init_from` may name, and what is taken of it.

    runs/x                     a run, its checkpoints folder, or the folder of one step
    x.pth, x.safetensors       a PyTorch state dict of the same network, or of its backbone alone
    pspnet_r50-d8_4xb2-...     a released model of `jaxseg.zoo`, downloaded once
    resnet50_v1c               a backbone of `jaxseg.backbones_zoo`, downloaded once
    auto                       the one of these that fits `config.model.backbone`, if any does

Everything must fit, with two exceptions that a message names: what depends on the number of classes
starts as initialised where that number is another; and of an image classifier the backbone alone is
taken.
"""

import dataclasses
import difflib
import functools
import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from jaxseg import (
    backbones_zoo,
    checkpoint,
    convert,
    dialects,
    download,
    matching,
    misfit,
    models,
    torch_file,
    trees,
    zoo,
)
from jaxseg.console import say
from jaxseg.errors import UserError

AUTO = "auto"
# Where a model may keep a backbone of which there are weights, in MMSegmentation's names: BiSeNet,
# ICNet and STDC have it within what they call so.
PREFIXES = ("backbone.", "backbone.backbone.", "backbone.context_path.backbone.")
FROM_SCRATCH = """
*** Training starts FROM SCRATCH: {name}, the ImageNet weights of its backbone, cannot be had:
*** {why}
*** Recipes for large data sets do not reach their published figures that way. To use the weights,
*** stop, get them, and begin again in a new --workdir. To do without: --config.init_from=''
"""


@dataclasses.dataclass(frozen=True)
class Target:
    """The model that is to be filled.

    Attributes:
      variables: as initialised.
      spec: `config.model`.
      num_classes: of the dataset.
      skip: `config.init_skip`.
    """

    variables: Any
    spec: Mapping[str, Any]
    num_classes: int
    skip: str = ""

    @functools.cached_property
    def model(self) -> nn.Module:
        return models.get(self.spec, self.num_classes)

    @functools.cached_property
    def leaves(self) -> dict[str, Any]:
        return trees.named_leaves(self.variables)


# Variables to start with, and what they are for the run's manifest.
Start = tuple[Any, dict[str, Any]]


def start(config: ConfigDict, variables: Any, num_classes: int) -> Start:
    """The variables to start training with, by `config.init_from` and `config.init_skip`.

    Args:
      config: `model`, `init_from` and `init_skip` are read.
      variables: as initialised; shapes, dtypes and shardings stay.
      num_classes: of the dataset.

    Raises:
      UserError: there are no such weights, they cannot be had, or they do not fit. Those of 'auto'
        may be out of reach: then training starts from scratch, and says so.
    """
    target = Target(variables, config.model.to_dict(), num_classes, config.init_skip)
    if config.init_from != AUTO:
        return take(target, config.init_from)
    name, why = backbones_zoo.automatic(target.spec), ""
    if name is None:
        why = "no ImageNet weights are known for this backbone"
        say(f"{why}: training starts from scratch")
        return variables, dict(source=AUTO, taken=0, why=why)
    try:
        download.fetch(backbones_zoo.WEIGHTS[name].url)
    except UserError as error:
        why = str(error)
    if not _on_all_processes(not why):
        why = why or "another process of this run has not got them"
        say(FROM_SCRATCH.format(name=name, why=why))
        return variables, dict(source=name, taken=0, why=why)
    return take(target, name)


def _on_all_processes(good: bool) -> bool:
    """Whether it is so everywhere: all must start with the same variables."""
    if jax.process_count() == 1:
        return good
    return bool(multihost_utils.process_allgather(np.asarray(good)).all())


def take(target: Target, source: str) -> Start:
    """Fills the target from a source that is named as in `config.init_from`, but for 'auto'."""
    path = pathlib.Path(source).expanduser()
    if path.is_dir():
        return _from_run(target, source)
    pretrained = None if path.is_file() else backbones_zoo.get(source)
    if pretrained is not None:
        state_dict = torch_file.read(download.fetch(pretrained.url))
        return _from_backbone(target, source, state_dict, pretrained.whole)
    file = path if path.is_file() else download.fetch(_released(source))
    state_dict = dialects.unwrapped(torch_file.read(file))
    if is_backbone(state_dict):
        return _from_backbone(target, source, state_dict)
    return _from_network(target, source, state_dict)


def _released(source: str) -> str:
    """The URL of a released model."""
    if zoo.has(source):
        return zoo.weights(source)
    near = difflib.get_close_matches(source, [*backbones_zoo.WEIGHTS, *zoo.facts()["names"]], 3)
    raise UserError(
        f"config.init_from={source!r}: there is no such file or folder, and no weights are known "
        f"by that name{', but by ' if near else ''}{', '.join(near)}. Expected a run's folder, a "
        ".pth or .safetensors file, a pretrained backbone such as resnet50_v1c, or a released "
        "model: python -m jaxseg.main zoo"
    )


def is_backbone(state_dict: Mapping[str, Any]) -> bool:
    """Whether these are the names of an image classifier or its backbone, not of a whole network.

    torchvision calls a segmentation head 'classifier', beside 'backbone'.
    """
    first = {key.partition(".")[0] for key in state_dict}
    return not {"decode_head", "segmentation_head"} & first and not (
        {"backbone", "classifier"} <= first
    )


def _from_run(target: Target, source: str) -> Start:
    loaded, _ = checkpoint.load_model(source)
    theirs = trees.named_leaves(loaded)
    skipped = trees.matching_names([*target.leaves, *theirs], target.skip)
    shapes = {
        name: (tuple(theirs[name].shape), tuple(leaf.shape))
        for name, leaf in target.leaves.items()
        if name in theirs and theirs[name].shape != leaf.shape and name not in skipped
    }
    left, why = _by_classes(target, source, shapes, theirs.keys() - skipped)
    variables = trees.fill(target.variables, loaded, target.skip, source, left)
    if left:
        say(why)
    count = len(target.leaves.keys() - skipped - left.keys())
    return _taken(target, source, variables, count, left)


def _from_network(target: Target, source: str, state_dict: Mapping[str, Any]) -> Start:
    state_dict, names = dialects.read(target.model, state_dict)
    found = convert.match(state_dict, target.leaves, names)
    aliases = {key: _alias(key) for key in found.unplaced}
    skipped = trees.matching_names([*target.leaves, *aliases.values()], target.skip)
    found = found.without(skipped | {key for key, alias in aliases.items() if alias in skipped})
    shapes = {name: (there, here) for name, (_, there, here) in found.shapes.items()}
    left, why = _by_classes(target, source, shapes, found.values.keys() | shapes)
    found = found.without(left)
    if not found.fits():
        wrong = [*found.shapes, *found.missing, *found.doubles]
        wrong += [aliases[key] for key in found.unplaced]
        raise UserError(
            matching.report(found, functools.partial(convert.key_of, names=names), source)
            + misfit.advice(found, state_dict, target.spec, target.num_classes, source)
            + (f"\n{trees.suggestion(wrong)}" if found.values else "")
        )
    trees.say_skipped([name for name in target.leaves if name in skipped], source)
    if left:
        say(why)
    variables = trees.overlay(target.variables, found.values)
    return _taken(target, source, variables, len(found.values), left)


def _by_classes(
    target: Target,
    source: str,
    shapes: Mapping[str, tuple[misfit.Shape, misfit.Shape]],
    there: Collection[str],
) -> tuple[dict[str, str], str]:
    """Parameters to leave as initialised because the classes are others; and a message of them.

    Args:
      shapes: name -> (shape there, shape here), where they differ.
      there: names that the source has.
    """
    found = misfit.other_classes(shapes, target.spec, target.num_classes)
    if found is None:
        return {}, ""
    count, names = found
    left = {}
    for name in (name for name in target.leaves if name in names and name in there):
        a, b = shapes.get(name, (None, None))
        left[name] = f"{a} there, {b} here" if a else "of the same module"
    lines = "".join(f"\n  {trees.in_module(name)}: {why}" for name, why in left.items())
    return left, (
        f"{source} is for {count} classes, this model for {target.num_classes}. What depends on "
        f"that is not taken and starts as initialised:{lines}"
    )


def _taken(
    target: Target, source: str, variables: Any, count: int, left: Mapping[str, str], more: str = ""
) -> Start:
    say(f"{source}: {count} of the model's {len(target.leaves)} arrays are taken{more}")
    return variables, dict(source=source, taken=count, left=dict(left))


def _alias(key: str) -> str:
    """'auxiliary_head.conv_seg.bias', which has no place -> 'params/aux_head/conv_seg/bias'."""
    for ours, theirs in convert.PARTS.items():
        key = re.sub(f"^{theirs}", f"{ours}.", key)
    return f"params/{key.replace('.', '/')}"


def _from_backbone(
    target: Target, source: str, state_dict: Mapping[str, Any], whole: bool = True
) -> Start:
    """Of a classifier's state dict all that is behind one of PREFIXES in the names of the model.

    Its modules of which the backbone has no part at all, such as 'fc', are dropped.
    """
    names = convert.torch_names(target.model, {"backbone": convert.PARTS["backbone"]})
    beside = any(key.startswith("backbone.") for key in state_dict)  # there is a 'head' then
    outside = {key for key in state_dict if beside and not key.startswith("backbone.")}
    inner = {
        key.removeprefix("backbone."): value
        for key, value in state_dict.items()
        if key not in outside
    }

    def modules(prefix: str) -> set[str]:
        """The first parts of the names that have a place."""
        placed = (key for key in inner if convert.place(prefix + key, 2, names))
        return {key.partition(".")[0] for key in placed}

    prefix = max(PREFIXES, key=lambda prefix: len(modules(prefix)))
    known = modules(prefix)
    kept = {key for key in inner if not known or key.partition(".")[0] in known}
    dropped = {key.partition(".")[0] for key in (inner.keys() - kept) | outside}
    skipped = trees.matching_names([*target.leaves], target.skip)
    key_of = functools.partial(convert.key_of, names=names)
    wanted = {
        name: leaf
        for name, leaf in target.leaves.items()
        if (key_of(name) or "").startswith(prefix)
    }
    found = convert.match({prefix + key: inner[key] for key in kept}, wanted, names)
    found = found.without(skipped)
    absent = [] if whole else [trees.in_module(name) for name in found.missing]
    found = found if whole else found.without(found.missing)
    if not found.fits() or not found.values:
        own = backbones_zoo.automatic(target.spec)
        raise UserError(
            matching.report(found, key_of, source)
            + "\nBy its names it has the weights of a backbone alone, and they must be those of "
            + f"config.model's{f': of {own}' if own else ''}"
        )
    trees.say_skipped([name for name in wanted if name in skipped], source)
    more = ", those of its backbone"
    if absent:
        modules_absent = dict.fromkeys("/".join(name.split("/")[:2]) for name in absent)
        more += f" but for {', '.join(modules_absent)}, which the file has not"
    if dropped:
        more += f". Of the file, what classifies images is dropped: {', '.join(sorted(dropped))}"
    variables = trees.overlay(target.variables, found.values)
    return _taken(
        target, source, variables, len(found.values), dict.fromkeys(absent, "absent"), more
    )
