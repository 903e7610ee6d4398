"""MMSegmentation's released models by name.

`zoo.json` beside this file holds what `tools/make_zoo.py` made of the released models' facts: for
each name the model, the dataset, the recipe, the published figures and where the weights are.
"""

import difflib
import functools
import json
import pathlib
import re
from typing import Any

from ml_collections import ConfigDict

from jaxseg.data.base import Description
from jaxseg.errors import UserError
from jaxseg.workdir import as_config


@functools.cache
def facts() -> dict[str, Any]:
    """All of zoo.json, and what follows from it.

    names: name -> what is its own: 'family', 'recipe', 'metrics', 'weights' (a URL; none where none
      were published), 'model' (what jaxseg lacks for it under 'lacks' instead), 'also' (other names
      that it goes by), 'notes' (doubts about the published facts), 'unlisted' (MMSegmentation's
      lists have it under the name of another).
    recipes: key -> 'dataset' (MMSegmentation's class), 'trained_on' (its title), 'crop' (h, w),
      'iterations' and 'batch' of the training; 'base_size' and maybe 'slide' of the test.
    models: key -> `config.model`.
    parameters: key -> millions of parameters of that model, auxiliary heads included.
    datasets: MMSegmentation's class -> classes and palette.
    old: name of an older release, or another spelling -> the names that it may stand for.
    """
    stored = json.loads(pathlib.Path(__file__).with_name("zoo.json").read_text())
    return stored | {"old": old_names(stored["names"])}


def old_names(names: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """The other names of each released model -> its names.

    Releases before 1.0 called a model as its weights are called to this day: URLs end with
    FAMILY/OLD_NAME/OLD_NAME_DATE_TIME-HASH.pth. A folder whose name differs from the file's counts
    only where no file has that name.
    """
    files, folders = {}, {}
    for name, own in names.items():
        *_, folder, file = own.get("weights", "/").split("/")
        file = re.sub(r"([-_]20\d{6}([-_]\d{6})?)?-[0-9a-f]{8}\.pth$", "", file)
        for old in (file, *own.get("also", ())):
            files.setdefault(old, []).append(name)
        if folder != own["family"]:
            folders.setdefault(folder, []).append(name)
    return {old: found for old, found in (folders | files).items() if old and old not in names}


def has(name: str) -> bool:
    """Whether `resolve` finds something for a name."""
    wanted = without_path(name)
    return wanted in facts()["names"] or wanted in facts()["old"]


def resolve(name: str) -> str:
    """The name of a released model that `name` stands for.

    Args:
      name: as it is in MMSegmentation 1.x; as it was in an older release; or the path of either's
        config, 'configs/pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py'.

    Raises:
      UserError: there is none, or there are several.
    """
    wanted = without_path(name)
    if wanted in facts()["names"]:
        return wanted
    found = facts()["old"].get(wanted, ())
    if len(found) > 1:
        raise UserError(f"{name!r}: several models were called so; give {' or '.join(found)}")
    if not found:
        raise UserError(
            f"{name!r}: no such model. Give the workdir of a run (a folder with config.json and "
            "checkpoints), a config file such as 'configs/deeplabv3p.py:camvid', or the name of "
            f"a model of MMSegmentation{_such_as(wanted)}; `python -m jaxseg.main zoo` lists them"
        )
    return found[0]


def without_path(name: str) -> str:
    """A model's name alone, of a config's path too."""
    return re.split(r"[/\\]", name)[-1].removesuffix(".py")


def near(name: str, running: bool = True) -> list[str]:
    """The names that are most like another, best first.

    Args:
      name: what the user wrote.
      running: whether to look only among the models that jaxseg runs.
    """
    names, old = facts()["names"], facts()["old"]
    candidates = {name: name for name in names} | {o: found[0] for o, found in old.items()}
    if running:
        candidates = {key: new for key, new in candidates.items() if "model" in names[new]}
    found = difflib.get_close_matches(name, candidates, 3, cutoff=0.4)
    return list(dict.fromkeys(candidates[key] for key in found))


def _such_as(name: str) -> str:
    found = near(name)
    return f", such as {', '.join(found)}" if found else ""


def entry(name: str) -> dict[str, Any]:
    """What is known of a released model that jaxseg runs.

    Returns:
      'name', 'parameters', and what `facts` has of the name and of its recipe: 'model', 'dataset',
      'weights', 'base_size', 'metrics' and so on.

    Raises:
      UserError: there is no such model, or jaxseg does not run it; names the nearest that it runs.
    """
    name = resolve(name)
    own = facts()["names"][name]
    if "model" not in own:
        raise UserError(
            f"{name}: jaxseg does not run this model of MMSegmentation yet, for want of: "
            f"{own['lacks']}. Give another{_such_as(name)}; `python -m jaxseg.main zoo` lists them"
        )
    millions = facts()["parameters"][own["model"]]
    return facts()["recipes"][own["recipe"]] | own | dict(name=name, parameters=millions)


def weights(name: str) -> str:
    """The URL of a released model's weights.

    Raises:
      UserError: see `entry`; or MMSegmentation publishes none of that model.
    """
    known = entry(name)
    if "weights" not in known:
        raise UserError(
            f"{known['name']}: {'; '.join(known['notes'])}. Give that name, or a file of your own "
            "weights (--checkpoint=FILE.pth, checkpoint= of jaxseg.load)"
        )
    return known["weights"]


# What a recipe is trained on -> `config.data`: the dataset of its published figures.
DATA = {
    "ADE20K": dict(name="ade20k", root="data/ADEChallengeData2016", source="folders"),
    "CHASE_DB1": dict(name="mmseg", dataset="chase_db1", root="data/CHASE_DB1"),
    "COCO-Stuff 10k": dict(name="mmseg", dataset="coco_stuff10k", root="data/coco_stuff10k"),
    "COCO-Stuff 164k": dict(name="mmseg", dataset="coco_stuff164k", root="data/coco_stuff164k"),
    "Cityscapes": dict(name="cityscapes", root="data/cityscapes", source="folders"),
    "DRIVE": dict(name="mmseg", dataset="drive", root="data/DRIVE"),
    "HRF": dict(name="mmseg", dataset="hrf", root="data/HRF"),
    "LoveDA": dict(name="mmseg", dataset="loveda", root="data/loveDA"),
    "Mapillary Vistas v1.2": dict(name="mmseg", dataset="mapillary_v1", root="data/mapillary"),
    "Pascal Context": dict(name="mmseg", dataset="pascal_context", root="data/VOCdevkit/VOC2010"),
    "Pascal Context 59": dict(
        name="mmseg", dataset="pascal_context59", root="data/VOCdevkit/VOC2010"
    ),
    "Pascal VOC 2012 + Aug": dict(
        name="voc2012", root="data/VOCdevkit/VOC2012", source="folders", augmented=False
    ),
    "Potsdam": dict(name="mmseg", dataset="potsdam", root="data/potsdam"),
    "STARE": dict(name="mmseg", dataset="stare", root="data/STARE"),
    "Vaihingen": dict(name="mmseg", dataset="vaihingen", root="data/vaihingen"),
    "iSAID": dict(name="mmseg", dataset="isaid", root="data/iSAID"),
}


def config(name: str) -> ConfigDict:
    """What `jaxseg.load` and `eval` need of a released model; `eval` and `predict` as published.

    Has model, data (where the dataset would lie by default), predict, eval, devices and dtype.

    Raises:
      UserError: see `entry`.
    """
    found = entry(name)
    return as_config(
        dict(
            dtype="auto",
            devices=0,
            model=facts()["models"][found["model"]],
            data=DATA[found["trained_on"]],
            eval=dict(split="val", batch_size=1, base_size=found["base_size"]),
            predict=dict(slide=found.get("slide", {})),
        )
    )


def describe(dataset: str, classes: int | None = None) -> Description:
    """Classes and colours of a dataset of MMSegmentation's; `jaxseg.data.mmseg` has the files.

    Args:
      dataset: MMSegmentation's dataset class.
      classes: so many of them, where a model predicts less than all.
    """
    stored = facts()["datasets"][dataset]

    def records(split: str):
        raise UserError(
            f"{dataset}: only its classes are known here; name a dataset by config.data"
        )

    return Description(
        name=dataset,
        classes=tuple(name.strip() for name in stored["classes"][:classes]),
        palette=tuple(tuple(color) for color in stored["palette"][:classes]),
        splits=(),
        records=records,
    )
