"""DDRNet and PIDNet: whole descriptions -> `config.model`."""

from typing import Any

from jaxseg.mmseg.checks import Section, expect, only

RELU = {"type": "ReLU", "inplace": True}
# Options of their backbones, and the values that jaxseg has.
CHECKED = dict(in_channels=3, align_corners=False, act_cfg=RELU)


def ddrnet(description: Section) -> dict[str, Any]:
    backbone = description["backbone"]
    only("backbone", backbone, ("channels", "ppm_channels", *CHECKED))
    expect("backbone", backbone, **CHECKED)
    model = _head(description, type="DDRHead", align_corners=False)
    del model["align_corners"]  # the model has no other
    return model | dict(
        name="ddrnet",
        channels=backbone.get("channels", 32),
        ppm_channels=backbone.get("ppm_channels", 128),
    )


def pidnet(description: Section) -> dict[str, Any]:
    backbone = description["backbone"]
    blocks = ("num_stem_blocks", "num_branch_blocks")
    only("backbone", backbone, ("channels", "ppm_channels", *blocks, *CHECKED))
    expect("backbone", backbone, **CHECKED)
    stem_blocks = backbone.get("num_stem_blocks", 2)
    return _head(description, type="PIDHead") | dict(
        name="pidnet",
        channels=backbone.get("channels", 64),
        ppm_channels=backbone.get("ppm_channels", 96),
        stem_blocks=stem_blocks,
        branch_blocks=backbone.get("num_branch_blocks", 3),
        light=stem_blocks == 2,
    )


def _head(description: Section, **expected: Any) -> dict[str, Any]:
    """What the model takes of the one head, whose outputs are all that training scores."""
    expect("", description, neck=None, auxiliary_head=None)
    head = dict(dropout_ratio=0.1, align_corners=False) | dict(description["decode_head"])
    shaping = ("channels", "num_classes", "dropout_ratio", "align_corners", "act_cfg")
    only("decode_head", head, shaping)
    expect("decode_head", head, act_cfg=RELU, **expected)
    return dict(
        num_classes=head["num_classes"],
        head_channels=head["channels"],
        dropout=head["dropout_ratio"],
        align_corners=head["align_corners"],
    )
