"""Fast-SCNN: a description -> `config.model`."""

from typing import Any

from jaxseg.mmseg.checks import Section, expect, only, unsupported
from jaxseg.mmseg.heads import COMMON, scoring


def fastscnn(description: Section) -> dict[str, Any]:
    """The one network there is, with its two auxiliary heads."""
    expect("model", description, type="EncoderDecoder", neck=None)
    net = description["backbone"]
    checked = dict(
        downsample_dw_channels=[32, 48], global_in_channels=64, global_block_channels=[64, 96, 128],
        global_block_strides=[2, 2, 1], global_out_channels=128, higher_in_channels=64,
        lower_in_channels=128, fusion_out_channels=128, out_indices=[0, 1, 2],
    )  # fmt: skip
    only("backbone", net, ("align_corners", *checked))
    expect("backbone", net, **checked)
    defaults = dict(align_corners=False, dropout_ratio=0.1)
    head = defaults | dict(description["decode_head"])
    only("decode_head", head, ("num_convs", "kernel_size", "concat_input", *COMMON))
    expect(
        "decode_head", dict(concat_input=True, in_index=-1) | head,
        type="DepthwiseSeparableFCNHead", num_convs=2, kernel_size=3, concat_input=False,
        in_index=-1,
    )  # fmt: skip
    expect("backbone", defaults | dict(net), align_corners=head["align_corners"])
    same = {key: head[key] for key in ("num_classes", "align_corners", "dropout_ratio")}
    aux_heads = description.get("auxiliary_head")
    if not isinstance(aux_heads, list) or len(aux_heads) != 2:
        raise unsupported("auxiliary_head", aux_heads, "two FCNHeads")
    widths = [
        scoring(f"auxiliary_head[{i}]", defaults | dict(aux), index, **same)
        for i, (aux, index) in enumerate(zip(aux_heads, (-2, -3), strict=True))
    ]
    if widths[0] != widths[1]:
        raise unsupported(
            "auxiliary_head[1].channels", widths[1], f"those of the other, {widths[0]}"
        )
    return dict(
        name="fastscnn",
        num_classes=head["num_classes"],
        channels=head["channels"],
        aux_channels=widths[0],
        dropout=max(head["dropout_ratio"], 0.0),
        align_corners=head["align_corners"],
    )
