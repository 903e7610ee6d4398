"""`eval --compare`: variants of one checkpoint side by side, in one read of the data.

A variant is a name and settings of the config that act at test time: the links of the predict
chain, arguments of the model that leave its parameters as they are, and the dtype. 'base', the
config as it is, is always among them, and the others are compared with it image by image.
"""

import copy
import dataclasses
import pathlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxseg import config as configs
from jaxseg import evaluate, figures, measure, models, pictures, plots, results, trees, visualize
from jaxseg import state as states
from jaxseg.console import say
from jaxseg.data.base import Description
from jaxseg.errors import UserError
from jaxseg.metrics import images

BASE = "base"
SECTIONS = ("predict", "model", "dtype")  # of the config: those in which variants may differ
_SIZE = (64, 64)  # of the image that shapes are found with; parameters do not depend on it
PICTURES = 4  # of each variant: the images that it changes most


@dataclasses.dataclass(frozen=True)
class Variant:
    """A config, and the settings 'KEY=VALUE' by which it differs from base."""

    config: ConfigDict
    settings: tuple[str, ...] = ()


def parse(config: ConfigDict, variants: Sequence[str]) -> dict[str, Variant]:
    """Variants as the command line gives them, 'NAME: KEY=VALUE KEY=VALUE', by name, base first.

    Raises:
      UserError: a text of another form, a name that is taken, no setting, a setting in another
        section than `SECTIONS`, and whatever `config.override` refuses.
    """
    found = {BASE: Variant(config)}
    for text in variants:
        flag = f"--compare {text!r}"
        name, colon, rest = (part.strip() for part in text.partition(":"))
        if not colon or not re.fullmatch(r"\w[\w.+-]*", name):
            raise UserError(
                f"{flag}: expected 'NAME: KEY=VALUE ...', as in 'flip: predict.flip=True', with a "
                "name of letters, digits and . + - _"
            )
        if name in found:
            taken = "is the checkpoint as it is" if name == BASE else "stands for another variant"
            raise UserError(f"{flag}: the name {name!r} {taken}; choose another")
        if not rest:
            raise UserError(f"{flag}: no setting, it would be {BASE!r}; expected KEY=VALUE")
        settings = re.split(r"\s+(?=[\w.]+=)", rest)
        for setting in settings:
            if re.split(r"[.=]", setting)[0] not in SECTIONS:
                raise UserError(
                    f"{flag}: {setting}: variants can differ in keys of {', '.join(SECTIONS)} only"
                )
        try:
            overrides = [f"--config.{setting}" for setting in settings]
            changed = configs.override(copy.deepcopy(config), overrides)
            configs.validate(changed)
        except UserError as error:
            raise UserError(f"{flag}: {error}") from error
        found[name] = Variant(changed, tuple(settings))
    return found


def run(
    config: ConfigDict,
    workdir: str,
    variants: Sequence[str],
    split: str | None = None,
    step: int | None = None,
) -> dict[str, Any]:
    """Evaluates the variants on a split; prints a table and leaves figures and pictures.

    Writes into the workdir `compare-SPLIT.json`, `compare-SPLIT.md` and, for each variant, pictures
    of the images that it changes most in `compare/SPLIT-NAME/`.

    Args:
      config, workdir, split, step: as for `evaluate.evaluate_checkpoint`.
      variants: as for `parse`.

    Returns:
      What is in the JSON file: of each variant what `figures.compute` returns, 'settings',
      'images_per_s' (predicting and counting on the device, without compilation and reading) and,
      of all but base, 'against_base', see `against`.

    Raises:
      UserError: as `parse` and `evaluate.evaluate_checkpoint`, or a variant has other parameters.
    """
    found = parse(config, variants)
    return compare(found, evaluate.prepare(config, workdir, split, step), workdir)


def compare(
    found: Mapping[str, Variant], task: evaluate.Task, workdir: str | None
) -> dict[str, Any]:
    """What `run` does, for any task; without a workdir it leaves nothing."""
    seconds = dict.fromkeys(found, 0.0)
    steps = {name: _timed(_make_step(found, name, task), name, seconds) for name in found}
    others = [name for name in found if name != BASE]

    def also(sample):
        for name in others:
            pair = sample.labels[BASE], sample.labels[name]
            sample.counts[name]["changes"] = changes(*pair, sample.truth, task.description)

    totals = {name: measure.Total() for name in found}
    kept = {name: measure.Shortlist(PICTURES) for name in others}
    for sample in task.samples(steps, also):
        for name, total in totals.items():
            total.add(sample.id, sample.counts[name])
        for name in others:
            share = _share(sample.counts[name]["changes"])
            if share > 0:
                pair = sample.labels[BASE], sample.labels[name]
                kept[name].offer(share, sample.id, (sample.image, sample.truth, *pair))

    totals = {name: total.of_all_hosts() for name, total in totals.items()}
    variants, protocol = {}, results.protocol(task)
    for name, total in totals.items():
        variants[name] = {
            "settings": list(found[name].settings),
            "protocol": {**protocol, **results.chain(found[name].config)},
            "images_per_s": round(task.number / seconds[name], 3),
            **figures.compute(total, task.description, task.split),
        }
        if name != BASE:
            summaries = variants[BASE], variants[name]
            variants[name]["against_base"] = against(totals[BASE], total, summaries)
    result = {**results.header(task), "variants": variants}
    say(f"\n{figures.comparison(result)}")
    if workdir is not None:
        _save(task, pathlib.Path(workdir), result, kept)
    return result


def _save(task: evaluate.Task, folder: pathlib.Path, result: Mapping, kept: Mapping) -> None:
    """Leaves what `run` says."""
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        results.write(folder / f"compare-{task.split}.json", result)
        (folder / f"compare-{task.split}.md").write_text(figures.comparison(result))
    for name in kept:
        place = folder / "compare" / f"{task.split}-{name}"
        pictures.fresh_folder(place)
        than_base = result["variants"][name]["against_base"]
        chosen = {row["id"] for row in than_base["most_changed"]}
        for id, *arrays in kept[name]:
            if id in chosen:
                path = place / f"{id}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                sheet = plots.changes_sheet(*arrays, task.description, (name, id))
                visualize.save_png(path, sheet)


def _make_step(found: Mapping[str, Variant], name: str, task: evaluate.Task) -> Callable:
    """The step of a variant; refuses one whose parameters are others than base's."""
    config = found[name].config
    model = models.get(config.model, num_classes=task.description.num_classes)
    abstract = states.abstract_variables(model, _SIZE)
    shapes = (trees.named_leaves(variables) for variables in (abstract, task.variables))
    differences = trees.mismatches(*shapes)
    if differences:
        raise UserError(
            f"--compare {name!r}: its model has other parameters than the checkpoint, "
            f"{len(differences)} arrays differ:{trees.listed(differences)}\n"
            "variants can change what the model does with its parameters, not these"
        )
    return measure.make_step(model, config, task.description, task.mesh)


def _timed(step: Callable, name: str, seconds: dict[str, float]) -> Callable:
    """`step`, which adds what it takes to `seconds[name]`; compiling does not count."""
    seen = set()

    def call(variables, batch):
        shapes = batch["image"].shape, batch["label"].shape
        if shapes not in seen:
            if not seen:
                say(f"compiling {name}")
            seen.add(shapes)
            jax.block_until_ready(step(variables, batch))  # once for nothing
        began = time.monotonic()
        result = jax.block_until_ready(step(variables, batch))
        seconds[name] += time.monotonic() - began
        return result

    return call


def changes(
    base: np.ndarray, variant: np.ndarray, truth: np.ndarray, description: Description
) -> np.ndarray:
    """Labelled pixels; of these the changed; of these the mended and the spoiled ones: int64 [4].

    All three maps are integers [h, w]. A mended pixel was wrong and is right, a spoiled one was
    right and is wrong; the other changed ones are wrong either way.
    """
    valid = (truth != description.ignore_label) & (truth >= 0) & (truth < description.num_classes)
    changed = (base != variant) & valid
    parts = valid, changed, changed & (variant == truth), changed & (base == truth)
    return np.array([np.count_nonzero(part) for part in parts], np.int64)


def _share(counts: np.ndarray) -> float:
    """Changed pixels by labelled ones; 0 without any."""
    return float(counts[1] / max(counts[0], 1))


def against(
    base: measure.Total, variant: measure.Total, summaries: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """How a variant differs from base.

    Args:
      base, variant: their counts, of the same images; the variant's with `changes`.
      summaries: what `figures.compute` makes of the two.

    Returns:
      'difference', for each of `figures.SCORES` {'value', 'interval', 'significant'}: variant minus
      base, between which 95 % of the paired resamples of the images lie, and whether these leave
      out 0; 'classes', {'name', 'IoU'} by difference, the largest gain first; 'pixels', the shares
      of the labelled pixels that are 'changed', 'wrong_to_right', 'right_to_wrong' and
      'wrong_to_wrong'; and 'most_changed', the images with the largest share of changed pixels.
    """
    ids, rows = variant.rows()
    resampled = [figures.scores(images.resample(total.rows()[1])) for total in (base, variant)]
    difference = {}
    for name in figures.SCORES:
        before, after = (summary["scores"][name] for summary in summaries)
        interval = images.interval(resampled[1][name] - resampled[0][name])
        difference[name] = {
            "value": None if before is None or after is None else after - before,
            "interval": interval,
            "significant": interval is not None and (interval[0] > 0 or interval[1] < 0),
        }
    classes = [
        {"name": a["name"], "IoU": b["IoU"] - a["IoU"]}
        for a, b in zip(*(summary["classes"] for summary in summaries), strict=True)
        if a["IoU"] is not None and b["IoU"] is not None
    ]
    before, after = (images.image_miou(total.rows()[1]["classes"]) for total in (base, variant))
    per_image = [
        {"id": id, **_shares(counts), "mIoU": [float(a), float(b)]}
        for id, counts, a, b in zip(ids, rows["changes"], before, after, strict=True)
        if counts[1]
    ]
    return {
        "difference": difference,
        "classes": sorted(classes, key=lambda c: -c["IoU"]),
        "pixels": _shares(variant.sums["changes"]),
        "most_changed": sorted(per_image, key=lambda row: (-row["changed"], row["id"]))[:PICTURES],
    }


def _shares(counts: np.ndarray) -> dict[str, float]:
    labelled, changed, mended, spoiled = counts.tolist()
    parts = {
        "changed": changed,
        "wrong_to_right": mended,
        "right_to_wrong": spoiled,
        "wrong_to_wrong": changed - mended - spoiled,
    }
    return {name: number / max(labelled, 1) for name, number in parts.items()}
