"""MMSegmentation's model descriptions -> `config.model`."""

from collections.abc import Mapping
from typing import Any

from jaxseg.errors import UserError

STEMS = {"ResNet": "plain", "ResNetV1c": "v1c", "ResNetV1d": "v1d"}


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
