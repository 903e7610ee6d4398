"""Writes jaxseg/zoo.json from the facts of MMSegmentation's released models.

    PYTHONPATH=. python tools/make_zoo.py ../shared/zoo

Only models that jaxseg runs are entered; the command names how many there were.
"""

import json
import pathlib
import sys

from jaxseg import mmseg, zoo
from jaxseg.errors import UserError


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


def main(facts: pathlib.Path) -> None:
    names, descriptions, recipes, datasets = (
        json.loads((facts / f"{part}.json").read_text())
        for part in ("zoo", "models", "recipes", "datasets")
    )
    entries, models = {}, {}
    for name, fact in sorted(names.items()):
        if "model" not in fact:
            continue
        description, recipe = descriptions[fact["model"]], recipes[fact["recipe"]]
        try:
            spec = mmseg.model_spec(description)
            protocol = test_recipe(description, recipe)
        except UserError:
            continue
        models[fact["model"]] = spec
        # One published address has letters too many in its host.
        url = fact["weights"].replace("download.oz1z1penmmlab.com", "download.openmmlab.com")
        entries[name] = {
            "model": fact["model"],
            "dataset": recipe["dataset_type"],
            "weights": url,
            **protocol,
        }
    used = {entry["dataset"] for entry in entries.values()}
    result = {
        "names": entries,
        "models": models,
        "datasets": {name: datasets[name] for name in sorted(used)},
    }
    text = json.dumps(result, separators=(",", ":"), sort_keys=True)
    target = pathlib.Path(zoo.__file__).with_name("zoo.json")
    target.write_text(text.replace('},"', '},\n"') + "\n")
    print(f"{len(entries)} of {len(names)} names, {len(models)} models: {target}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]))
