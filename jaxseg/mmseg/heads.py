"""Heads: (descriptions, feature names, the whole) -> `config.model` without its backbone."""

from collections.abc import Mapping
from typing import Any

from jaxseg.mmseg.checks import NOT_SHAPING, Section, expect, only, unsupported

COMMON = (*NOT_SHAPING, "in_index", "channels", "num_classes", "align_corners", "dropout_ratio")


def fcn(heads: list[Section], features: tuple[str, ...], _: Section) -> dict[str, Any]:
    [head] = heads
    shaping = ("num_convs", "kernel_size", "dilation", "concat_input", "input_transform")
    only("decode_head", head, (*shaping, *COMMON))
    expect("decode_head", head, input_transform="resize_concat")
    return dict(
        name="fcn",
        feature=_inputs(head, features),
        channels=head["channels"],
        num_convs=head.get("num_convs", 2),
        kernel=head.get("kernel_size", 3),
        dilation=head.get("dilation", 1),
        concat_input=head.get("concat_input", True),
        dropout=_dropout(head),
    )


def pspnet(heads: list[Section], features: tuple[str, ...], _: Section) -> dict[str, Any]:
    [head] = heads
    only("decode_head", head, ("pool_scales", *COMMON))
    return dict(
        name="pspnet",
        feature=_inputs(head, features),
        channels=head["channels"],
        bins=tuple(head.get("pool_scales", (1, 2, 3, 6))),
        dropout=_dropout(head),
    )


def deeplabv3(heads: list[Section], features: tuple[str, ...], _: Section) -> dict[str, Any]:
    [head] = heads
    only("decode_head", head, ("dilations", *COMMON))
    return dict(
        name="deeplabv3",
        feature=_inputs(head, features),
        channels=head["channels"],
        rates=_rates(head),
        dropout=_dropout(head),
    )


def deeplabv3p(heads: list[Section], features: tuple[str, ...], _: Section) -> dict[str, Any]:
    [head] = heads
    only("decode_head", head, ("dilations", "c1_in_channels", "c1_channels", *COMMON))
    expect("decode_head", head, in_index=3)
    return dict(
        name="deeplabv3p",
        channels=head["channels"],
        rates=_rates(head),
        low_channels=head["c1_channels"],
        dropout=_dropout(head),
    )


def encnet(heads: list[Section], features: tuple[str, ...], _: Section) -> dict[str, Any]:
    [head] = heads
    checked = dict(use_se_loss=True, add_lateral=False)
    only("decode_head", head, ("num_codes", "loss_se_decode", *checked, *COMMON))
    expect("decode_head", head, **checked)
    return dict(
        name="encnet",
        feature=_inputs(head, features)[-1],  # the others are for lateral connections
        channels=head["channels"],
        codes=head.get("num_codes", 32),
        dropout=_dropout(head),
    )


def upernet(heads: list[Section], features: tuple[str, ...], _: Section) -> dict[str, Any]:
    [head] = heads
    only("decode_head", head, ("pool_scales", *COMMON))
    return dict(
        name="upernet",
        features=tuple(features[i] for i in head["in_index"]),
        channels=head["channels"],
        bins=tuple(head.get("pool_scales", (1, 2, 3, 6))),
        dropout=_dropout(head),
    )


def lraspp(heads: list[Section], features: tuple[str, ...], _: Section) -> dict[str, Any]:
    [head] = heads
    only("decode_head", head, ("branch_channels", "act_cfg", "input_transform", *COMMON), 1e-3)
    expect(
        "decode_head", head, act_cfg={"type": "ReLU"}, input_transform="multiple_select",
        in_index=[0, 1, 2],
    )  # fmt: skip
    return dict(
        name="lraspp",
        feature=features[2],
        low_features=features[:2],
        low_channels=tuple(head.get("branch_channels", (32, 64))),
        channels=head["channels"],
        dropout=_dropout(head),
    )


def sem_fpn(heads: list[Section], _: tuple[str, ...], description: Section) -> dict[str, Any]:
    [head], neck = heads, description["neck"]
    only("decode_head", head, ("feature_strides", *COMMON))
    expect("decode_head", head, feature_strides=[4, 8, 16, 32], in_index=[0, 1, 2, 3])
    only("neck", neck, ("out_channels", "num_outs"))
    expect("neck", neck, type="FPN", num_outs=4)
    return dict(
        name="sem_fpn",
        neck_channels=neck["out_channels"],
        channels=head["channels"],
        dropout=_dropout(head),
    )


def pointrend(
    heads: list[Section], features: tuple[str, ...], description: Section
) -> dict[str, Any]:
    expect("", description, num_stages=2)
    coarse, fine = heads
    expect("decode_head[0]", coarse, type="FPNHead")
    shared = {key: coarse[key] for key in ("num_classes", "align_corners")}
    only("decode_head[1]", fine, ("num_fcs", "coarse_pred_each_layer", *COMMON))
    expect("decode_head[1]", fine, dropout_ratio=-1, **shared)
    train, test = description["train_cfg"], description["test_cfg"]
    expect("test_cfg", test, scale_factor=2)
    return dict(
        name="pointrend",
        coarse=sem_fpn([coarse], features, description),
        fine_features=tuple(f"p{i + 1}" for i in fine["in_index"]),  # of the pyramid
        channels=fine["channels"],
        num_fcs=fine["num_fcs"],
        coarse_each_layer=fine.get("coarse_pred_each_layer", True),
        points=train["num_points"],
        oversample=float(train["oversample_ratio"]),
        importance=train["importance_sample_ratio"],
        subdivision_steps=test["subdivision_steps"],
        subdivision_points=test["subdivision_num_points"],
    )


def ocrnet(heads: list[Section], features: tuple[str, ...], description: Section) -> dict[str, Any]:
    expect("", description, num_stages=2)
    coarse, head = heads
    only("decode_head[1]", head, ("ocr_channels", "scale", "input_transform", *COMMON))
    expect("decode_head[1]", head, scale=1, input_transform="resize_concat")
    shared = {key: head[key] for key in ("num_classes", "align_corners", "dropout_ratio")}
    defaults = dict(num_convs=2, concat_input=True)
    expect(
        "decode_head[0]", defaults | dict(coarse), type="FCNHead", num_convs=1, concat_input=False,
        dilation=1, **shared,
    )  # fmt: skip
    regions = fcn([coarse], features, description)
    return dict(
        name="ocrnet",
        feature=_inputs(head, features),
        channels=head["channels"],
        ocr_channels=head["ocr_channels"],
        coarse_feature=regions["feature"],
        coarse_channels=regions["channels"],
        coarse_kernel=regions["kernel"],
        dropout=_dropout(head),
    )


HEADS = {
    "FCNHead": fcn,
    "PSPHead": pspnet,
    "ASPPHead": deeplabv3,
    "DepthwiseSeparableASPPHead": deeplabv3p,
    "EncHead": encnet,
    "LRASPPHead": lraspp,
    "OCRHead": ocrnet,
    "FPNHead": sem_fpn,
    "PointHead": pointrend,
    "UPerHead": upernet,
}
ON_NECK = ("FPNHead", "PointHead")
HAVE_AUX = (
    "FCNHead", "PSPHead", "ASPPHead", "DepthwiseSeparableASPPHead", "EncHead", "UPerHead",
)  # fmt: skip


def auxiliary(aux: Section | None, head: Section, features: tuple[str, ...]) -> dict[str, Any]:
    """The customary auxiliary head: one convolution on one feature."""
    if aux is None:
        return dict(aux_channels=0) if head["type"] in HAVE_AUX else {}
    if not isinstance(aux, Mapping) or head["type"] not in HAVE_AUX:
        raise unsupported("auxiliary_head", aux, "one FCNHead")
    same = {key: head[key] for key in ("num_classes", "align_corners", "dropout_ratio")}
    expect("auxiliary_head", aux, type="FCNHead", num_convs=1, concat_input=False, **same)
    expect("auxiliary_head", aux, dilation=head.get("dilation", 1))
    only("auxiliary_head", aux, ("num_convs", "concat_input", "dilation", *COMMON))
    return dict(aux_feature=features[aux["in_index"]], aux_channels=aux["channels"])


def scoring(where: str, section: Section, index: int, num_convs: int = 1, **expected: Any) -> int:
    """Width of an FCNHead that convolves feature `index` by 3x3 `num_convs` times, and scores it.

    `expected` are other options and the values that they must have where they are given.
    """
    only(where, section, ("num_convs", "concat_input", "kernel_size", *COMMON))
    defaults = dict(num_convs=2, concat_input=True, in_index=-1)
    expect(
        where, defaults | dict(section), type="FCNHead", num_convs=num_convs, concat_input=False,
        in_index=index, kernel_size=3, **expected,
    )  # fmt: skip
    return section["channels"]


def _inputs(head: Section, features: tuple[str, ...]) -> str | tuple[str, ...]:
    index = head["in_index"]
    return features[index] if isinstance(index, int) else tuple(features[i] for i in index)


def _rates(head: Section) -> tuple[int, ...]:
    if head["dilations"][0] != 1:
        raise unsupported("decode_head.dilations", head["dilations"], "the first to be 1")
    return tuple(head["dilations"][1:])


def _dropout(head: Section) -> float:
    return max(head.get("dropout_ratio", 0.1), 0.0)  # -1 says none
