"""Writes jaxseg/zoo.json from the facts of MMSegmentation's released models.

    PYTHONPATH=. python tools/make_zoo.py ../shared/zoo

Every name is entered, those that jaxseg does not run too, with what it lacks for them. What the
facts get wrong is corrected: here where a rule finds it, in `zoo_corrections.py` otherwise. What
looks wrong and cannot be decided gets a note. Parameters are counted anew only for models that the
present zoo.json does not have, which takes some seconds each.
"""

import collections
import copy
import functools
import hashlib
import json
import pathlib
import re
import sys
from typing import Any

from jaxseg import mmseg, models, state, zoo
from jaxseg.errors import UserError
from tools.zoo_corrections import ALSO, LIKE, NOTES, OWN, RENAMED, UNLISTED

SIZE = (64, 64)  # of the image that parameters are counted with; they do not depend on it


def corrected(listed: dict[str, dict]) -> dict[str, dict]:
    """The facts of every name under its right name, without those of `NOTES` and of the recipe."""
    names = {RENAMED.get(name, name): fact for name, fact in listed.items()}
    # What a name has beside another's facts is its own; these are the other's, seen first.
    names |= {own: names[other] for own, other in UNLISTED.items()}
    result = {}
    for name, fact in sorted(names.items()):
        like, changes = LIKE.get(name, (name, {}))
        parts = {part: names[like][part] for part in ("model", "recipe")}
        fact = fact | parts | OWN.get(name, {})
        # One published address has letters too many in its host.
        if fact["weights"]:
            broken, host = "download.oz1z1penmmlab.com", "download.openmmlab.com"
            fact["weights"] = fact["weights"].replace(broken, host)
        result[name] = fact | {"changes": changes}
    return result


def described(description: dict, key: str, changes: dict[str, Any]) -> tuple[dict, str]:
    """A description with other values under dotted keys, and its key in the way of the facts."""
    if not changes:
        return description, key
    description = copy.deepcopy(description)
    for path, value in changes.items():
        *parents, leaf = path.split(".")
        functools.reduce(dict.__getitem__, parents, description)[leaf] = value
    return description, hashlib.sha1(json.dumps(description).encode()).hexdigest()[:10]


def test_recipe(description: dict, recipe: dict) -> dict:
    """`base_size` and `slide` of the published test protocol."""
    [resize] = [step for step in recipe["test_pipeline"] if step["type"] == "Resize"]
    if not resize["keep_ratio"]:
        raise UserError("a test resize that does not keep the ratio")
    entry = {"base_size": resize["scale"]}
    test = description["test_cfg"]
    if test["mode"] == "slide":
        entry["slide"] = {"crop": test["crop_size"], "stride": test["stride"]}
    return entry


def iterations(name: str, fact: dict, recipe: dict) -> tuple[int, list[str]]:
    """Of the training, and a note where the recipe has another number than name and table.

    Ten recipes have lost theirs on the way from release 0.x to 1.x.
    """
    stated = recipe["train_cfg"]["max_iters"]
    named = re.search(r"[-_](\d+)k_", name)
    if "iterations" in fact or not named:
        return fact.get("iterations", stated), []
    number = 1000 * int(named[1])
    if number == stated or name in LIKE or name in UNLISTED:  # the recipe is another's
        return number, []
    return number, [f"trained for {named[1]}k iterations, {stated // 1000}k by its recipe"]


def lacking(error: UserError) -> str:
    """What a description has that jaxseg has not, in a few words."""
    found = re.search(r"with (\S+?)=(.*): jaxseg supports", str(error))
    if not found:
        return str(error)
    key, value = found[1], found[2].strip("'")
    parts = {"decode_head.type": "head", "backbone.type": "backbone", "type": "type"}
    return f"{parts[key]} {value}" if key in parts else f"{key}={value}"[:60]


def doubts(names: dict[str, dict]) -> dict[str, list[str]]:
    """Notes on figures: what they measure if not mIoU, and those that hardly can be right."""
    notes, seen = collections.defaultdict(list), collections.defaultdict(list)
    for name, fact in names.items():
        metrics = fact["metrics"]
        [other] = set(metrics) & {"mDice", "RMSE"} or [None]
        if other:
            notes[name].append(f"{other}, not mIoU")
        if any(not 0 <= value <= 100 for value in metrics.values()):
            notes[name].append("outside of 0 to 100")
        single, with_flips = metrics.get("mIoU"), metrics.get("mIoU(ms+flip)")
        if with_flips is not None and with_flips < single:
            notes[name].append("ms+flip below single scale")
        for metric in metrics.keys() & {"mIoU", "mIoU(ms+flip)"}:
            seen[fact["family"], fact["trained_on"], metric, metrics[metric]].append(name)
    for (*_, metric, _), same in seen.items():
        for name in same:
            if len(same) > 1:
                notes[name].append(f"the same {metric} for {' and '.join(same)}")
    return notes


def hidden(name: str) -> list[str]:
    """Notes on what the lists have under another's name."""
    if name in UNLISTED:
        return [f"{name} is listed as {UNLISTED[name]}"]
    [own] = [own for own, other in UNLISTED.items() if other == name] or [None]
    if own is None or name not in OWN:  # what is listed under the name is of that name
        return []
    if OWN[name]["weights"] is None:
        return [f"no weights are published: those listed are of {own}"]
    return [f"{own} is listed as {name}"]


def parameters(spec: dict) -> float:
    """Millions of trained parameters, auxiliary heads included."""
    count = state.count(state.abstract_variables(models.get(spec), SIZE)["params"])
    return round(count / 1e6, 3)


def make(facts: pathlib.Path, known: dict[str, Any]) -> dict[str, Any]:
    """The content of zoo.json; `known` is the present one, for the parameters of its models."""
    listed, descriptions, recipes, datasets = (
        json.loads((facts / f"{part}.json").read_text())
        for part in ("zoo", "models", "recipes", "datasets")
    )
    names = corrected(listed)
    # Some datasets are told as '# HRNet backbone', a line of a table: others of the class name it.
    titles = {
        recipes[fact["recipe"]]["dataset_type"]: fact["dataset"]
        for fact in names.values()
        if not fact["dataset"].startswith("#")
    }
    entries, specs, protocols = {}, {}, {}
    for name, fact in names.items():
        recipe = recipes[fact["recipe"]]
        kind, title = recipe["dataset_type"], fact["dataset"]
        fact["trained_on"] = titles[kind] if title.startswith("#") else title
        steps, notes = iterations(name, fact, recipe)
        protocol = {
            "dataset": kind,
            "trained_on": fact["trained_on"],
            "crop": recipe["crop_size"],
            "iterations": steps,
            "batch": fact["batch_size"],
        }
        entry = {"family": fact["family"], "metrics": fact["metrics"]}
        description, key = described(descriptions[fact["model"]], fact["model"], fact["changes"])
        try:
            spec = json.loads(json.dumps(mmseg.model_spec(description)))
            protocol |= test_recipe(description, recipe)
            entry["model"], specs[key] = key, spec
        except UserError as error:
            entry["lacks"] = lacking(error)
        text = json.dumps(protocol, sort_keys=True)
        entry["recipe"] = hashlib.sha1(text.encode()).hexdigest()[:8]
        protocols[entry["recipe"]] = protocol
        also = [wrong for wrong, right in RENAMED.items() if right == name]
        also += [ALSO[name]] if name in ALSO else []
        notes += [*hidden(name), *([NOTES[name]] if name in NOTES else [])]
        given = dict(weights=fact["weights"], also=also, notes=notes, unlisted=name in UNLISTED)
        entries[name] = entry | {key: value for key, value in given.items() if value}
    for name, notes in doubts(names).items():
        entries[name].setdefault("notes", []).extend(notes)
    counts = {
        key: known["parameters"][key] if known["models"].get(key) == spec else parameters(spec)
        for key, spec in specs.items()
    }
    used = {protocols[entry["recipe"]]["dataset"] for entry in entries.values()}
    return {
        "names": entries,
        "recipes": protocols,
        "models": specs,
        "parameters": counts,
        "datasets": {name: datasets[name] for name in sorted(used)},
    }


def main(facts: pathlib.Path) -> None:
    target = pathlib.Path(zoo.__file__).with_name("zoo.json")
    known = json.loads(target.read_text()) if target.exists() else {"models": {}, "parameters": {}}
    result = make(facts, known)
    text = json.dumps(result, separators=(",", ":"), sort_keys=True)
    target.write_text(text.replace('},"', '},\n"') + "\n")
    run = sum("model" in entry for entry in result["names"].values())
    print(f"{run} of {len(result['names'])} names, {len(result['models'])} models: {target}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]))
