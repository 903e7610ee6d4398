"""MMSegmentation's released models by name, and its model descriptions as `config.model`.

`zoo.json` beside this file holds what `tools/make_zoo.py` made of the released models' facts: for
each name the model, the dataset's classes and palette, and the published test protocol.
"""

import difflib
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxseg.data.base import Description
from jaxseg.errors import UserError
from jaxseg.workdir import as_config

STEMS = {"ResNet": "plain", "ResNetV1c": "v1c", "ResNetV1d": "v1d"}


@functools.cache
def facts() -> dict[str, Any]:
    """{'names': {name: entry}, 'models': {key: spec}, 'datasets': {name: classes and palette}}."""
    return json.loads(pathlib.Path(__file__).with_name("zoo.json").read_text())


def config(name: str) -> ConfigDict:
    """What `jaxseg.load` needs of a released model: model, data, predict, eval.base_size, dtype.

    Raises:
      UserError: no model of that name runs; names the nearest ones that do.
    """
    known = facts()
    if name not in known["names"]:
        near = difflib.get_close_matches(name, known["names"], 3, cutoff=0.4)
        raise UserError(
            f"{name!r}: no such model. Give the workdir of a run (a folder with config.json and "
            "checkpoints), a config file such as 'configs/deeplabv3p.py:camvid', or the name of "
            f"one of {len(known['names'])} models of MMSegmentation"
            + (f", such as {', '.join(near)}" if near else "")
        )
    entry = known["names"][name]
    spec = known["models"][entry["model"]]
    return as_config(
        dict(
            dtype="auto",
            model=spec,
            data=dict(name="jaxseg.zoo", dataset=entry["dataset"], classes=spec["num_classes"]),
            eval=dict(base_size=entry["base_size"]),
            predict=dict(slide=entry.get("slide", {})),
        )
    )


def describe(dataset: str, classes: int) -> Description:
    """Classes and colours of a dataset of MMSegmentation's; its files are not known here."""
    entry = facts()["datasets"][dataset]

    def records(split: str):
        raise UserError(
            f"{dataset}: only its classes are known here; name a dataset by config.data"
        )

    return Description(
        name=dataset,
        # Mapillary's last class is 'unlabeled' and has no output in the released models.
        classes=tuple(name.strip() for name in entry["classes"][:classes]),
        palette=tuple(tuple(color) for color in entry["palette"][:classes]),
        splits=(),
        records=records,
    )


def model_spec(description: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.model` (with 'num_classes') of a resolved MMSegmentation model description.

    Keys that say what follows from others (channels of inputs), or that do not shape the model
    (losses, samplers, test mode, pretrained weights), are not read.

    Raises:
      UserError: for a part or an option that jaxseg does not have.
    """
    head = description.get("decode_head")
    if description["type"] != "EncoderDecoder" or not isinstance(head, Mapping):
        raise _unsupported("type", description["type"], "EncoderDecoder with one decode head")
    if head["type"] != "DepthwiseSeparableASPPHead":
        raise _unsupported("decode_head.type", head["type"], "DepthwiseSeparableASPPHead")
    return _deeplabv3p(description)


def _deeplabv3p(description: Mapping[str, Any]) -> dict[str, Any]:
    head = description["decode_head"]
    _expect("decode_head", head, in_index=3)
    if head["dilations"][0] != 1:
        raise _unsupported("decode_head.dilations", head["dilations"], "the first to be 1")
    spec = dict(
        name="deeplabv3p",
        num_classes=head["num_classes"],
        backbone=resnet_spec(description["backbone"]),
        rates=tuple(head["dilations"][1:]),
        channels=head["channels"],
        low_channels=head["c1_channels"],
        dropout=head["dropout_ratio"],
        align_corners=head["align_corners"],
        **_normalisation(description["data_preprocessor"]),
    )
    aux = description.get("auxiliary_head")
    if aux is None:
        return spec | dict(aux_channels=0)
    same = {key: head[key] for key in ("num_classes", "align_corners", "dropout_ratio")}
    _expect("auxiliary_head", aux, type="FCNHead", num_convs=1, concat_input=False, **same)
    return spec | dict(aux_feature=f"stage{aux['in_index'] + 1}", aux_channels=aux["channels"])


def resnet_spec(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """`config.model.backbone` of a ResNet's description."""
    if backbone["type"] not in STEMS:
        raise _unsupported("backbone.type", backbone["type"], f"one of {', '.join(STEMS)}")
    _expect("backbone", backbone, num_stages=4, style="pytorch")
    if tuple(backbone.get("out_indices", (0, 1, 2, 3))) != (0, 1, 2, 3):
        raise _unsupported("backbone.out_indices", backbone["out_indices"], "(0, 1, 2, 3)")
    strides = tuple(backbone.get("strides", (1, 2, 2, 2)))
    dilations = tuple(backbone.get("dilations", (1, 1, 1, 1)))
    geometries = {_geometry(stride): stride for stride in (4, 8, 16, 32)}
    if (strides, dilations) not in geometries:
        raise _unsupported(
            "backbone.strides and dilations", (strides, dilations), f"one of {list(geometries)}"
        )
    multi_grid = backbone.get("multi_grid")
    if max(dilations) > 1 and not backbone.get("contract_dilation", False):
        raise _unsupported("backbone.contract_dilation", False, "True where stages are dilated")
    spec = dict(
        name="resnet",
        depth=backbone["depth"],
        stem=STEMS[backbone["type"]],
        output_stride=geometries[strides, dilations],
    )
    if multi_grid is not None:
        spec["multi_grid"] = tuple(multi_grid)
    if backbone.get("norm_eval", False):
        spec["freeze_norm"] = True
    return spec


def _geometry(output_stride: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(strides, dilations) of the four stages in MMSegmentation's way of writing them."""
    strides, dilations, stride, dilation = [], [], 4, 1
    for step in (1, 2, 2, 2):
        if stride * step > output_stride:
            dilation, step = dilation * step, 1
        stride *= step
        strides.append(step)
        dilations.append(dilation)
    return tuple(strides), tuple(dilations)


def _normalisation(preprocessor: Mapping[str, Any]) -> dict[str, Any]:
    """mean and std; MMSegmentation reads images as BGR and states these in RGB."""
    _expect("data_preprocessor", preprocessor, bgr_to_rgb=True)
    return dict(mean=tuple(preprocessor["mean"]), std=tuple(preprocessor["std"]))


def _expect(where: str, section: Mapping[str, Any], **expected: Any) -> None:
    for key, value in expected.items():
        if section.get(key, value) != value:
            raise _unsupported(f"{where}.{key}", section[key], repr(value))


def _unsupported(key: str, value: Any, expected: str) -> UserError:
    return UserError(f"MMSegmentation model with {key}={value!r}: jaxseg supports {expected}")
