"""ICNet: a whole description -> `config.model`."""

from typing import Any

from jaxseg.mmseg.backbones import resnet
from jaxseg.mmseg.bisenetv1 import DEFAULTS, auxiliary_heads, main_head
from jaxseg.mmseg.checks import Section, expect, only, unsupported


def icnet(description: Section) -> dict[str, Any]:
    backbone, neck = description["backbone"], description.get("neck") or {"type": None}
    shaping = ("psp_out_channels", "light_branch_middle_channels", "out_channels", "pool_scales")
    plain = dict(conv_cfg=None, act_cfg={"type": "ReLU"}, align_corners=False)
    follow = ("backbone_cfg", "layer_channels")  # widths of the ResNet's stages
    only("backbone", backbone, (*shaping, *plain, *follow))
    expect("backbone", backbone, in_channels=3, **plain)
    trunk, _ = resnet(backbone["backbone_cfg"])
    depth = trunk.pop("depth")
    if trunk != dict(name="resnet", stem="v1c", output_stride=8):
        raise unsupported("backbone.backbone_cfg", trunk, "a ResNetV1c of output stride 8")
    shared = main_head(description, 2, align_corners=False)
    del shared["align_corners"]  # the model has no other
    only("neck", neck, ("out_channels", *plain))
    widths = dict(out_channels=128) | dict(neck)
    expect("neck", widths, type="ICNeck", out_channels=shared["channels"], **plain)
    aux = description.get("auxiliary_head")
    dropout = (DEFAULTS | dict(aux[0] if isinstance(aux, list) else {}))["dropout_ratio"]
    options = dict(dropout=dropout, align_corners=False)
    aux_channels = set(auxiliary_heads(aux, (0, 1), shared | options))
    if len(aux_channels) > 1:
        raise unsupported("auxiliary_head.channels", aux_channels, "one width for both")
    return shared | dict(
        name="icnet",
        depth=depth,
        bins=tuple(backbone.get("pool_scales", (1, 2, 3, 6))),
        pyramid_channels=backbone.get("psp_out_channels", 512),
        light_channels=backbone.get("light_branch_middle_channels", 32),
        branch_channels=tuple(backbone.get("out_channels", (64, 256, 256))),
        aux_channels=aux_channels.pop(),
        aux_dropout=dropout,
    )
