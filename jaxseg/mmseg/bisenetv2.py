"""BiSeNet V2: a whole description -> `config.model`."""

from typing import Any

from jaxseg.mmseg.bisenetv1 import auxiliary_heads, main_head
from jaxseg.mmseg.checks import Section, expect, only


def bisenetv2(description: Section) -> dict[str, Any]:
    backbone = description["backbone"]
    detail = tuple(backbone.get("detail_channels", (64, 64, 128)))
    shared = main_head(description, 0)
    shaping = ("detail_channels", "semantic_channels", "semantic_expansion_ratio")
    checked = dict(
        in_channels=3, out_indices=[0, 1, 2, 3, 4], bga_channels=detail[-1], conv_cfg=None,
        act_cfg={"type": "ReLU"}, align_corners=shared["align_corners"],
    )  # fmt: skip
    only("backbone", backbone, (*shaping, *checked))
    expect("backbone", dict(bga_channels=128, align_corners=False) | backbone, **checked)
    return shared | dict(
        name="bisenetv2",
        detail_channels=detail,
        semantic_channels=tuple(backbone.get("semantic_channels", (16, 32, 64, 128))),
        expansion=backbone.get("semantic_expansion_ratio", 6),
        aux_channels=auxiliary_heads(description.get("auxiliary_head"), (1, 2, 3, 4), shared, 2),
    )
