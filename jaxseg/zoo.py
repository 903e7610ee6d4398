"""MMSegmentation's released models by name.

`zoo.json` beside this file holds what `tools/make_zoo.py` made of the released models' facts: for
each name the model, the dataset, the published test protocol and where the weights are.
"""

import difflib
import functools
import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from jaxseg.data.base import Description
from jaxseg.errors import UserError
from jaxseg.workdir import as_config


@functools.cache
def facts() -> dict[str, Any]:
    """{'names': {name: entry}, 'models': {key: spec}, 'datasets': {name: classes and palette}}."""
    return json.loads(pathlib.Path(__file__).with_name("zoo.json").read_text())


def entry(name: str) -> dict[str, Any]:
    """What is known of a released model: 'model', 'dataset', 'weights' (a URL), the test protocol.

    Raises:
      UserError: no model of that name runs; names the nearest ones that do.
    """
    known = facts()["names"]
    if name not in known:
        near = difflib.get_close_matches(name, known, 3, cutoff=0.4)
        raise UserError(
            f"{name!r}: no such model. Give the workdir of a run (a folder with config.json and "
            "checkpoints), a config file such as 'configs/deeplabv3p.py:camvid', or the name of "
            f"one of {len(known)} models of MMSegmentation"
            + (f", such as {', '.join(near)}" if near else "")
        )
    return known[name]


def config(name: str) -> ConfigDict:
    """What `jaxseg.load` needs of a released model: model, data, predict, eval.base_size, dtype.

    Raises:
      UserError: see `entry`.
    """
    found = entry(name)
    spec = facts()["models"][found["model"]]
    return as_config(
        dict(
            dtype="auto",
            model=spec,
            data=dict(name="jaxseg.zoo", dataset=found["dataset"], classes=spec["num_classes"]),
            eval=dict(base_size=found["base_size"]),
            predict=dict(slide=found.get("slide", {})),
        )
    )


def describe(dataset: str, classes: int) -> Description:
    """Classes and colours of a dataset of MMSegmentation's; its files are not known here."""
    stored = facts()["datasets"][dataset]

    def records(split: str):
        raise UserError(
            f"{dataset}: only its classes are known here; name a dataset by config.data"
        )

    return Description(
        name=dataset,
        # Mapillary's last class is 'unlabeled' and has no output in the released models.
        classes=tuple(name.strip() for name in stored["classes"][:classes]),
        palette=tuple(tuple(color) for color in stored["palette"][:classes]),
        splits=(),
        records=records,
    )
