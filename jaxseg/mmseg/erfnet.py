"""ERFNet: a description -> `config.model`."""

from typing import Any

from jaxseg.mmseg.checks import Section, expect, only
from jaxseg.mmseg.heads import scoring


def erfnet(description: Section) -> dict[str, Any]:
    """The one network there is, with a head of one convolution."""
    expect("model", description, type="EncoderDecoder", neck=None, auxiliary_head=None)
    net = description["backbone"]
    checked = dict(
        enc_downsample_channels=[16, 64, 128], enc_stage_non_bottlenecks=[5, 8],
        enc_non_bottleneck_dilations=[2, 4, 8, 16], enc_non_bottleneck_channels=[64, 128],
        dec_upsample_channels=[64, 16], dec_stages_non_bottleneck=[2, 2],
        dec_non_bottleneck_channels=[64, 16],
    )  # fmt: skip
    only("backbone", net, ("dropout_ratio", *checked))
    expect("backbone", net, **checked)
    head = dict(align_corners=False, dropout_ratio=0.1) | dict(description["decode_head"])
    return dict(
        name="erfnet",
        num_classes=head["num_classes"],
        channels=scoring("decode_head", head, -1),
        block_dropout=net.get("dropout_ratio", 0.1),
        dropout=max(head["dropout_ratio"], 0.0),
        align_corners=head["align_corners"],
    )
