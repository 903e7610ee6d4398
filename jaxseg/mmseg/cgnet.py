"""CGNet: a description -> `config.model`."""

from typing import Any

from jaxseg.mmseg.checks import Section, expect, only
from jaxseg.mmseg.heads import scoring

EPSILON = 1e-3  # of every normalisation


def cgnet(description: Section) -> dict[str, Any]:
    """A network of any number of blocks, whose last map is scored as it is."""
    expect("model", description, type="EncoderDecoder", neck=None, auxiliary_head=None)
    net = description["backbone"]
    checked = dict(
        num_channels=[32, 64, 128], dilations=[2, 4], reductions=[8, 16],
        act_cfg={"type": "PReLU"}, norm_eval=False,
    )  # fmt: skip
    only("backbone", net, ("num_blocks", *checked), EPSILON)
    expect("backbone", net, **checked)
    head = dict(align_corners=False, dropout_ratio=0.1) | dict(description["decode_head"])
    norm = dict(norm_cfg=None)  # which the head, without convolutions, does not use
    scoring("decode_head", head | norm, 2, num_convs=0)
    return dict(
        name="cgnet",
        num_classes=head["num_classes"],
        blocks=tuple(net.get("num_blocks", (3, 21))),
        dropout=max(head["dropout_ratio"], 0.0),
        align_corners=head["align_corners"],
    )
