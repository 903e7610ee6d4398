"""MMSegmentation's model descriptions as `config.model`.

A resolved description names a backbone, perhaps a neck, a decode head (two where one refines the
other) and perhaps an auxiliary head, each a mapping with 'type'. Every option that shapes a model
is either read or checked against the one value that jaxseg has; what follows from others (channels
of inputs) or does not shape the model (losses, samplers, pretrained weights) is listed as such. An
option that is none of these is an error, so that no model is silently another one.
"""

from typing import Any

from jaxseg.mmseg.backbones import BACKBONES
from jaxseg.mmseg.bisenetv1 import bisenetv1
from jaxseg.mmseg.bisenetv2 import bisenetv2
from jaxseg.mmseg.cgnet import cgnet
from jaxseg.mmseg.checks import Section, expect, known, unsupported
from jaxseg.mmseg.ddrnet import ddrnet, pidnet
from jaxseg.mmseg.erfnet import erfnet
from jaxseg.mmseg.fastfcn import fastfcn
from jaxseg.mmseg.fastscnn import fastscnn
from jaxseg.mmseg.heads import HEADS, ON_NECK, auxiliary
from jaxseg.mmseg.icnet import icnet
from jaxseg.mmseg.stdc import stdc

# Models described by their backbone's type, whose heads are parts of the one architecture.
WHOLE = {
    "BiSeNetV1": bisenetv1,
    "BiSeNetV2": bisenetv2,
    "CGNet": cgnet,
    "DDRNet": ddrnet,
    "ERFNet": erfnet,
    "FastSCNN": fastscnn,
    "ICNet": icnet,
    "PIDNet": pidnet,
    "STDCContextPathNet": stdc,
}
# Necks before any head, by type: what makes of the model without its neck the one with it.
NECKS = {"JPU": fastfcn}


def model_spec(description: Section) -> dict[str, Any]:
    """The `config.model` (with 'num_classes') of a resolved MMSegmentation model description.

    Raises:
      UserError: for a part or an option that jaxseg does not have.
    """
    if description["type"] not in ("EncoderDecoder", "CascadeEncoderDecoder"):
        raise unsupported("type", description["type"], "EncoderDecoder, CascadeEncoderDecoder")
    normalisation = _normalisation(description["data_preprocessor"])
    whole = WHOLE.get(description["backbone"]["type"])
    if whole is not None:
        return whole(description) | normalisation
    heads = description["decode_head"]
    heads = heads if isinstance(heads, list) else [heads]
    head = heads[-1]
    convert_head = known("decode_head.type", head["type"], HEADS)
    backbone = description["backbone"]
    spec, features = known("backbone.type", backbone["type"], BACKBONES)(backbone)
    neck = description.get("neck")
    around = None if neck is None else NECKS.get(neck["type"])
    if around is None and (neck is not None) != (head["type"] in ON_NECK):
        raise unsupported("neck", neck, f"one for {', '.join(ON_NECK)} and none for others")
    model = (
        dict(backbone=spec, num_classes=head["num_classes"], align_corners=head["align_corners"])
        | convert_head(heads, features, description)
        | auxiliary(description.get("auxiliary_head"), head, features)
    )
    return (model if around is None else around(neck, features, model)) | normalisation


def _normalisation(preprocessor: Section) -> dict[str, Any]:
    """mean and std; MMSegmentation reads images as BGR and states these in RGB."""
    expect("data_preprocessor", preprocessor, bgr_to_rgb=True)
    return dict(mean=tuple(preprocessor["mean"]), std=tuple(preprocessor["std"]))
