"""MMSegmentation's model descriptions as `config.model`.

A resolved description names a backbone, perhaps a neck, a decode head (two where one refines the
other) and perhaps an auxiliary head, each a mapping with 'type'. Every option that shapes a model
is either read or checked against the one value that jaxseg has; what follows from others (channels
of inputs) or does not shape the model (losses, samplers, pretrained weights) is listed as such. An
option that is none of these is an error, so that no model is silently another one.
"""

from collections.abc import Mapping
from typing import Any

from jaxseg.errors import UserError

Section = Mapping[str, Any]

STEMS = {"ResNet": "plain", "ResNetV1c": "v1c", "ResNetV1d": "v1d"}
STAGES = ("stage1", "stage2", "stage3", "stage4")
NORM = {"type": "SyncBN", "requires_grad": True}
# Of any head: what does not shape it, or follows from its input.
NOT_SHAPING = ("type", "in_channels", "norm_cfg", "loss_decode", "sampler", "init_cfg")


def model_spec(description: Section) -> dict[str, Any]:
    """The `config.model` (with 'num_classes') of a resolved MMSegmentation model description.

    Raises:
      UserError: for a part or an option that jaxseg does not have.
    """
    if description["type"] not in ("EncoderDecoder", "CascadeEncoderDecoder"):
        raise _unsupported("type", description["type"], "EncoderDecoder, CascadeEncoderDecoder")
    heads = description["decode_head"]
    heads = heads if isinstance(heads, list) else [heads]
    head = heads[-1]
    convert_head = _known("decode_head.type", head["type"], HEADS)
    backbone = description["backbone"]
    spec, features = _known("backbone.type", backbone["type"], BACKBONES)(backbone)
    neck = description.get("neck")
    if (neck is not None) != (head["type"] in ON_NECK):
        raise _unsupported("neck", neck, f"one for {', '.join(ON_NECK)} and none for others")
    return (
        dict(backbone=spec, num_classes=head["num_classes"], align_corners=head["align_corners"])
        | convert_head(heads, features, description)
        | _auxiliary(description.get("auxiliary_head"), head, features)
        | _normalisation(description["data_preprocessor"])
    )


# ---- backbones: description -> (config.model.backbone, feature names by in_index) ----


def resnet(section: Section) -> tuple[dict[str, Any], tuple[str, ...]]:
    """ResNet with the stem of its type; (strides, dilations) must be those of an output stride."""
    shaping = ("depth", "strides", "dilations", "multi_grid", "norm_eval", "contract_dilation")
    checked = dict(num_stages=4, style="pytorch", out_indices=[0, 1, 2, 3])
    _only("backbone", section, (*shaping, *checked))
    _expect("backbone", section, **checked)
    strides = tuple(section.get("strides", (1, 2, 2, 2)))
    dilations = tuple(section.get("dilations", (1, 1, 1, 1)))
    geometries = {_geometry(stride)[0]: stride for stride in (4, 8, 16, 32)}
    if strides not in geometries:
        raise _unsupported("backbone.strides", strides, f"one of {list(geometries)}")
    if max(dilations) > 1 and not section.get("contract_dilation", False):
        raise _unsupported("backbone.contract_dilation", False, "True where stages are dilated")
    spec = dict(
        name="resnet",
        depth=section["depth"],
        stem=STEMS[section["type"]],
        output_stride=geometries[strides],
    )
    if dilations != _geometry(spec["output_stride"])[1]:
        spec["dilations"] = dilations
    if section.get("multi_grid") is not None:
        spec["multi_grid"] = tuple(section["multi_grid"])
    if section.get("norm_eval", False):
        spec["freeze_norm"] = True
    return spec, STAGES


def _geometry(
    output_stride: int, stem: int = 4, own: tuple[int, ...] = (1, 2, 2, 2)
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(strides, dilations) of the stages in MMSegmentation's way of writing them.

    `stem` is the stride before the stages, `own` are their strides where nothing is dilated.
    """
    strides, dilations, stride, dilation = [], [], stem, 1
    for step in own:
        if stride * step > output_stride:
            dilation, step = dilation * step, 1
        stride *= step
        strides.append(step)
        dilations.append(dilation)
    return tuple(strides), tuple(dilations)


def unet(section: Section) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The padded U-Net; its outputs are the lowest map, then the decoder's, up to full size."""
    stages = section.get("num_stages", 5)
    growth = {"InterpConv": "bilinear", "DeconvModule": "transposed"}
    checked = dict(
        in_channels=3, strides=[1] * stages, downsamples=[True] * (stages - 1),
        enc_num_convs=[2] * stages, dec_num_convs=[2] * (stages - 1),
        enc_dilations=[1] * stages, dec_dilations=[1] * (stages - 1),
        conv_cfg=None, act_cfg={"type": "ReLU"}, norm_eval=False,
    )  # fmt: skip
    _only("backbone", section, ("num_stages", "base_channels", "upsample_cfg", *checked))
    _expect("backbone", section, **checked)
    upsample = section.get("upsample_cfg", {"type": "InterpConv"})
    if set(upsample) != {"type"}:
        raise _unsupported("backbone.upsample_cfg", upsample, "its 'type' alone")
    spec = dict(
        name="unet",
        width=section.get("base_channels", 64),
        stages=stages,
        upsample=_known("backbone.upsample_cfg.type", upsample["type"], growth),
    )
    decoders = (f"decoder{i}" for i in range(stages - 1, 0, -1))
    return spec, (f"encoder{stages}", *decoders)


def hrnet(section: Section) -> tuple[dict[str, Any], tuple[str, ...]]:
    """HRNet: one width, doubled from branch to branch, and one number of blocks everywhere."""
    _only("backbone", section, ("extra", "norm_eval"))
    _expect("backbone", section, norm_eval=False)
    extra = section["extra"]
    width, blocks = extra["stage4"]["num_channels"][0], extra["stage1"]["num_blocks"][0]
    _expect(
        "backbone.extra", extra,
        stage1=dict(
            block="BOTTLENECK", num_blocks=[blocks], num_branches=1, num_channels=[64],
            num_modules=1,
        ),
        **{
            f"stage{n}": dict(
                block="BASIC", num_blocks=[blocks] * n, num_branches=n,
                num_channels=[width * 2**i for i in range(n)],
                num_modules=extra[f"stage{n}"]["num_modules"],
            )
            for n in (2, 3, 4)
        },
    )  # fmt: skip
    modules = tuple(extra[f"stage{n}"]["num_modules"] for n in (2, 3, 4))
    return dict(name="hrnet", width=width, modules=modules, blocks=blocks), STAGES


def mobilenetv2(section: Section) -> tuple[dict[str, Any], tuple[str, ...]]:
    """MobileNetV2; (strides, dilations) of its seven stages must be those of an output stride."""
    shaping = ("widen_factor", "strides", "dilations")
    checked = dict(out_indices=[1, 2, 4, 6])
    _only("backbone", section, (*shaping, *checked))
    _expect("backbone", section, **checked)
    given = tuple(section["strides"]), tuple(section["dilations"])
    own = (1, 2, 2, 2, 1, 2, 1)
    geometries = {_geometry(stride, 2, own): stride for stride in (8, 16, 32)}
    if given not in geometries:
        raise _unsupported("backbone.strides and dilations", given, f"one of {list(geometries)}")
    width = section.get("widen_factor", 1.0)
    return dict(name="mobilenetv2", width=width, output_stride=geometries[given]), STAGES


def mobilenetv3(section: Section) -> tuple[dict[str, Any], tuple[str, ...]]:
    """MobileNetV3, always at output stride 8, with the features that LR-ASPP reads."""
    size = section["arch"]
    checked = dict(out_indices=[1, 3, 16] if size == "large" else [0, 1, 12])
    _only("backbone", section, ("arch", *checked))
    _expect("backbone", section, norm_cfg=NORM | {"eps": 1e-3}, **checked)
    return dict(name="mobilenetv3", size=size, output_stride=8), ("stage0", "stage1", "stage4")


# ---- heads: (heads, feature names, description) -> config.model without the backbone ----


def _fcn(heads: list[Section], features: tuple[str, ...], _: Section) -> dict[str, Any]:
    [head] = heads
    shaping = ("num_convs", "kernel_size", "dilation", "concat_input", "input_transform")
    _only("decode_head", head, (*shaping, *_COMMON))
    _expect("decode_head", head, input_transform="resize_concat")
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


def _pspnet(heads: list[Section], features: tuple[str, ...], _: Section) -> dict[str, Any]:
    [head] = heads
    _only("decode_head", head, ("pool_scales", *_COMMON))
    return dict(
        name="pspnet",
        feature=_inputs(head, features),
        channels=head["channels"],
        bins=tuple(head.get("pool_scales", (1, 2, 3, 6))),
        dropout=_dropout(head),
    )


def _deeplabv3(heads: list[Section], features: tuple[str, ...], _: Section) -> dict[str, Any]:
    [head] = heads
    _only("decode_head", head, ("dilations", *_COMMON))
    return dict(
        name="deeplabv3",
        feature=_inputs(head, features),
        channels=head["channels"],
        rates=_rates(head),
        dropout=_dropout(head),
    )


def _deeplabv3p(heads: list[Section], features: tuple[str, ...], _: Section) -> dict[str, Any]:
    [head] = heads
    _only("decode_head", head, ("dilations", "c1_in_channels", "c1_channels", *_COMMON))
    _expect("decode_head", head, in_index=3)
    return dict(
        name="deeplabv3p",
        channels=head["channels"],
        rates=_rates(head),
        low_channels=head["c1_channels"],
        dropout=_dropout(head),
    )


def _lraspp(heads: list[Section], features: tuple[str, ...], _: Section) -> dict[str, Any]:
    [head] = heads
    _only("decode_head", head, ("branch_channels", "act_cfg", "input_transform", *_COMMON))
    _expect(
        "decode_head", head, act_cfg={"type": "ReLU"}, input_transform="multiple_select",
        in_index=[0, 1, 2], norm_cfg=NORM | {"eps": 1e-3},
    )  # fmt: skip
    return dict(
        name="lraspp",
        feature=features[2],
        low_features=features[:2],
        low_channels=tuple(head.get("branch_channels", (32, 64))),
        channels=head["channels"],
        dropout=_dropout(head),
    )


def _sem_fpn(heads: list[Section], _: tuple[str, ...], description: Section) -> dict[str, Any]:
    [head], neck = heads, description["neck"]
    _only("decode_head", head, ("feature_strides", *_COMMON))
    _expect("decode_head", head, feature_strides=[4, 8, 16, 32], in_index=[0, 1, 2, 3])
    _only("neck", neck, ("out_channels", "num_outs"))
    _expect("neck", neck, type="FPN", num_outs=4)
    return dict(
        name="sem_fpn",
        neck_channels=neck["out_channels"],
        channels=head["channels"],
        dropout=_dropout(head),
    )


def _pointrend(
    heads: list[Section], features: tuple[str, ...], description: Section
) -> dict[str, Any]:
    _expect("", description, num_stages=2)
    coarse, fine = heads
    _expect("decode_head[0]", coarse, type="FPNHead")
    shared = {key: coarse[key] for key in ("num_classes", "align_corners")}
    _only("decode_head[1]", fine, ("num_fcs", "coarse_pred_each_layer", *_COMMON))
    _expect("decode_head[1]", fine, dropout_ratio=-1, **shared)
    train, test = description["train_cfg"], description["test_cfg"]
    _expect("test_cfg", test, scale_factor=2)
    return dict(
        name="pointrend",
        coarse=_sem_fpn([coarse], features, description),
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


_COMMON = (*NOT_SHAPING, "in_index", "channels", "num_classes", "align_corners", "dropout_ratio")

BACKBONES = {
    **dict.fromkeys(STEMS, resnet),
    "UNet": unet,
    "HRNet": hrnet,
    "MobileNetV2": mobilenetv2,
    "MobileNetV3": mobilenetv3,
}
HEADS = {
    "FCNHead": _fcn,
    "PSPHead": _pspnet,
    "ASPPHead": _deeplabv3,
    "DepthwiseSeparableASPPHead": _deeplabv3p,
    "LRASPPHead": _lraspp,
    "FPNHead": _sem_fpn,
    "PointHead": _pointrend,
}


def _auxiliary(aux: Section | None, head: Section, features: tuple[str, ...]) -> dict[str, Any]:
    """The customary auxiliary head: one convolution on one feature."""
    if aux is None:
        return dict(aux_channels=0) if head["type"] in HAVE_AUX else {}
    if not isinstance(aux, Mapping) or head["type"] not in HAVE_AUX:
        raise _unsupported("auxiliary_head", aux, "one FCNHead")
    same = {key: head[key] for key in ("num_classes", "align_corners", "dropout_ratio")}
    _expect("auxiliary_head", aux, type="FCNHead", num_convs=1, concat_input=False, **same)
    _expect("auxiliary_head", aux, dilation=head.get("dilation", 1))
    _only("auxiliary_head", aux, ("num_convs", "concat_input", "dilation", *_COMMON))
    return dict(aux_feature=features[aux["in_index"]], aux_channels=aux["channels"])


ON_NECK = ("FPNHead", "PointHead")
HAVE_AUX = ("FCNHead", "PSPHead", "ASPPHead", "DepthwiseSeparableASPPHead")


def _inputs(head: Section, features: tuple[str, ...]) -> str | tuple[str, ...]:
    index = head["in_index"]
    return features[index] if isinstance(index, int) else tuple(features[i] for i in index)


def _rates(head: Section) -> tuple[int, ...]:
    if head["dilations"][0] != 1:
        raise _unsupported("decode_head.dilations", head["dilations"], "the first to be 1")
    return tuple(head["dilations"][1:])


def _dropout(head: Section) -> float:
    return max(head.get("dropout_ratio", 0.1), 0.0)  # -1 says none


def _normalisation(preprocessor: Section) -> dict[str, Any]:
    """mean and std; MMSegmentation reads images as BGR and states these in RGB."""
    _expect("data_preprocessor", preprocessor, bgr_to_rgb=True)
    return dict(mean=tuple(preprocessor["mean"]), std=tuple(preprocessor["std"]))


# ---- what is refused ----


def _known(key: str, value: str, table: Mapping[str, Any]) -> Any:
    if value not in table:
        raise _unsupported(key, value, ", ".join(table))
    return table[value]


def _only(where: str, section: Section, known: tuple[str, ...]) -> None:
    """Refuses options that are not understood."""
    for key in section:
        if key not in (*known, *NOT_SHAPING, *_TRAINING):
            raise _unsupported(f"{where}.{key}", section[key], f"only {', '.join(sorted(known))}")


_TRAINING = ("pretrained", "init_cfg", "norm_cfg", "with_cp")


def _expect(where: str, section: Section, **expected: Any) -> None:
    for key, value in expected.items():
        if section.get(key, value) != value:
            raise _unsupported(f"{where}.{key}", section[key], repr(value))


def _unsupported(key: str, value: Any, expected: str) -> UserError:
    return UserError(f"MMSegmentation model with {key}={value!r}: jaxseg supports {expected}")
