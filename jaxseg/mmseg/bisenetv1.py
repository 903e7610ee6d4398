"""BiSeNet V1: a whole description -> `config.model`; and what its kin share, their heads."""

from typing import Any

from jaxseg.mmseg.backbones import BACKBONES
from jaxseg.mmseg.checks import Section, expect, known, only, unsupported
from jaxseg.mmseg.heads import scoring

# Defaults of MMSegmentation's heads; an option that is left out has to be compared as these.
DEFAULTS = dict(dropout_ratio=0.1, align_corners=False)


def bisenetv1(description: Section) -> dict[str, Any]:
    backbone = description["backbone"]
    shaping = ("backbone_cfg", "spatial_channels", "context_channels", "out_channels")
    checked = dict(
        in_channels=3, out_indices=[0, 1, 2], align_corners=False, conv_cfg=None,
        act_cfg={"type": "ReLU"},
    )  # fmt: skip
    only("backbone", backbone, (*shaping, *checked))
    expect("backbone", backbone, **checked)
    trunk = backbone["backbone_cfg"]
    spec, _ = known("backbone.backbone_cfg.type", trunk["type"], BACKBONES)(trunk)
    channels = backbone.get("out_channels", 256)
    shared = main_head(description, 0, channels=channels)
    widths = auxiliary_heads(description.get("auxiliary_head"), (1, 2), shared)
    if len(set(widths)) > 1:
        raise unsupported(
            "auxiliary_head[1].channels", widths[1], f"that of the first, {widths[0]}"
        )
    return shared | dict(
        name="bisenetv1",
        backbone=spec,
        spatial_channels=tuple(backbone.get("spatial_channels", (64, 64, 64, 128))),
        context_channels=backbone.get("context_channels", (128, 256, 512))[0],
        aux_channels=widths[0],
    )


def main_head(description: Section, index: int, **expected: Any) -> dict[str, Any]:
    """What the model takes of an FCNHead with one convolution on feature `index`."""
    head = DEFAULTS | dict(description["decode_head"])
    return dict(
        channels=scoring("decode_head", head, index, **expected),
        num_classes=head["num_classes"],
        dropout=head["dropout_ratio"],
        align_corners=head["align_corners"],
    )


def auxiliary_heads(
    heads: list[Section] | None,
    indices: tuple[int, ...],
    shared: dict[str, Any],
    num_convs: int = 1,
) -> tuple[int, ...]:
    """Widths of auxiliary FCNHeads on the features `indices`, alike but for these."""
    if not isinstance(heads, list) or len(heads) != len(indices):
        raise unsupported("auxiliary_head", heads, f"a list of {len(indices)}")
    expected = dict(
        num_classes=shared["num_classes"],
        dropout_ratio=shared["dropout"],
        align_corners=shared["align_corners"],
    )
    return tuple(
        scoring(f"auxiliary_head[{i}]", DEFAULTS | dict(head), index, num_convs, **expected)
        for i, (head, index) in enumerate(zip(heads, indices, strict=True))
    )
