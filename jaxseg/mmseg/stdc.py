"""STDC: a whole description -> `config.model`."""

from typing import Any

from jaxseg.mmseg.bisenetv1 import DEFAULTS, auxiliary_heads, main_head
from jaxseg.mmseg.checks import Section, expect, known, only, unsupported
from jaxseg.mmseg.heads import scoring

BLOCKS = {"STDCNet1": (2, 2, 2), "STDCNet2": (4, 5, 3)}


def stdc(description: Section) -> dict[str, Any]:
    """Its auxiliary heads enlarge their logits in another way than its head; see the config."""
    path = description["backbone"]
    shared = main_head(description, 3)
    fusion = dict(out_channels=256, scale_factor=4) | path.get("ffm_cfg", {})
    only("backbone.ffm_cfg", fusion, ("out_channels", "scale_factor"))
    expect("backbone.ffm_cfg", fusion, scale_factor=4, out_channels=shared["channels"])
    checked = dict(upsample_mode="nearest", align_corners=None)
    only(
        "backbone", path, ("backbone_cfg", "last_in_channels", "out_channels", "ffm_cfg", *checked)
    )
    expect("backbone", path, **checked)

    network = path["backbone_cfg"]
    checked = dict(
        type="STDCNet", in_channels=3, bottleneck_type="cat", act_cfg={"type": "ReLU"},
        num_convs=4, with_final_conv=False,
    )  # fmt: skip
    only("backbone.backbone_cfg", network, ("stdc_type", "channels", *checked))
    expect("backbone.backbone_cfg", network, **checked)

    heads = description.get("auxiliary_head")
    if not isinstance(heads, list) or len(heads) != 3:
        raise unsupported("auxiliary_head", heads, "a list of 3")
    *others, detail = heads
    first, second = auxiliary_heads(others, (2, 1), shared | dict(align_corners=False))
    # Besides its loss, the detail head is an FCNHead of two classes.
    expect("auxiliary_head[2]", detail, type="STDCHead", boundary_threshold=0.1)
    detail = DEFAULTS | dict(detail) | dict(type="FCNHead")
    detail.pop("boundary_threshold", None)
    third = scoring(
        "auxiliary_head[2]", detail, 0, num_classes=2, dropout_ratio=shared["dropout"],
        align_corners=shared["align_corners"],
    )  # fmt: skip
    if not first == second == third:
        raise unsupported("auxiliary_head's channels", (first, second, third), "equal ones")
    return shared | dict(
        name="stdc",
        blocks=known("backbone.backbone_cfg.stdc_type", network["stdc_type"], BLOCKS),
        widths=tuple(network["channels"]),
        context_channels=path.get("out_channels", 128),
        aux_channels=first,
    )
