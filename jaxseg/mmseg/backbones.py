"""Backbones: a description -> `config.model.backbone`, and feature names in in_index's order."""

from typing import Any

from jaxseg.mmseg.checks import Section, expect, known, only, unsupported

STEMS = {"ResNet": "plain", "ResNetV1c": "v1c", "ResNetV1d": "v1d"}
STAGES = ("stage1", "stage2", "stage3", "stage4")


def resnet(section: Section) -> tuple[dict[str, Any], tuple[str, ...]]:
    """ResNet with the stem of its type; (strides, dilations) must be those of an output stride."""
    shaping = ("depth", "strides", "dilations", "multi_grid", "norm_eval", "contract_dilation")
    checked = dict(num_stages=4, style="pytorch")
    only("backbone", section, ("out_indices", *shaping, *checked))
    expect("backbone", section, **checked)
    strides = tuple(section.get("strides", (1, 2, 2, 2)))
    dilations = tuple(section.get("dilations", (1, 1, 1, 1)))
    geometries = {_geometry(stride)[0]: stride for stride in (4, 8, 16, 32)}
    if strides not in geometries:
        raise unsupported("backbone.strides", strides, f"one of {list(geometries)}")
    if max(dilations) > 1 and not section.get("contract_dilation", False):
        raise unsupported("backbone.contract_dilation", False, "True where stages are dilated")
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
    return spec, tuple(STAGES[i] for i in section.get("out_indices", range(4)))


def resnest(section: Section) -> tuple[dict[str, Any], tuple[str, ...]]:
    """ResNeSt: a ResNet's geometry; the rest is as its authors have it for each depth."""
    own = dict(
        radix=2, groups=1, base_width=4, reduction_factor=4, avg_down_stride=True,
        stem_channels=64 if section["depth"] == 50 else 128, multi_grid=None,
    )  # fmt: skip
    expect("backbone", dict(stem_channels=64) | dict(section), **own)
    shared = {key: value for key, value in section.items() if key not in own}
    spec, features = resnet(shared | dict(type="ResNetV1d"))
    if "dilations" in spec:
        raise unsupported("backbone.dilations", spec["dilations"], "those of an output stride")
    del spec["stem"]  # it has no other
    return spec | dict(name="resnest"), features


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
    only("backbone", section, ("num_stages", "base_channels", "upsample_cfg", *checked))
    expect("backbone", section, **checked)
    upsample = section.get("upsample_cfg", {"type": "InterpConv"})
    if set(upsample) != {"type"}:
        raise unsupported("backbone.upsample_cfg", upsample, "its 'type' alone")
    spec = dict(
        name="unet",
        width=section.get("base_channels", 64),
        stages=stages,
        upsample=known("backbone.upsample_cfg.type", upsample["type"], growth),
    )
    decoders = (f"decoder{i}" for i in range(stages - 1, 0, -1))
    return spec, (f"encoder{stages}", *decoders)


def hrnet(section: Section) -> tuple[dict[str, Any], tuple[str, ...]]:
    """HRNet: one width, doubled from branch to branch, and one number of blocks everywhere."""
    only("backbone", section, ("extra", "norm_eval"))
    expect("backbone", section, norm_eval=False)
    extra = section["extra"]
    width, blocks = extra["stage4"]["num_channels"][0], extra["stage1"]["num_blocks"][0]
    expect(
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
    only("backbone", section, (*shaping, *checked))
    expect("backbone", section, **checked)
    given = tuple(section["strides"]), tuple(section["dilations"])
    own = (1, 2, 2, 2, 1, 2, 1)
    geometries = {_geometry(stride, 2, own): stride for stride in (8, 16, 32)}
    if given not in geometries:
        raise unsupported("backbone.strides and dilations", given, f"one of {list(geometries)}")
    width = section.get("widen_factor", 1.0)
    return dict(name="mobilenetv2", width=width, output_stride=geometries[given]), STAGES


def mobilenetv3(section: Section) -> tuple[dict[str, Any], tuple[str, ...]]:
    """MobileNetV3, always at output stride 8, with the features that LR-ASPP reads."""
    size = section["arch"]
    checked = dict(out_indices=[1, 3, 16] if size == "large" else [0, 1, 12])
    only("backbone", section, ("arch", *checked), epsilon=1e-3)
    expect("backbone", section, **checked)
    return dict(name="mobilenetv3", size=size, output_stride=8), ("stage0", "stage1", "stage4")


BACKBONES = {
    **dict.fromkeys(STEMS, resnet),
    "ResNeSt": resnest,
    "UNet": unet,
    "HRNet": hrnet,
    "MobileNetV2": mobilenetv2,
    "MobileNetV3": mobilenetv3,
}
