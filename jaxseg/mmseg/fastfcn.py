"""FastFCN: a model of the zoo and the neck before it -> `config.model`."""

from typing import Any

from jaxseg.mmseg.checks import Section, expect, only


def fastfcn(neck: Section, features: tuple[str, ...], model: dict[str, Any]) -> dict[str, Any]:
    """`model` on joint pyramid upsampling, which passes `features` on, the last of them made anew.

    Args:
      neck: the description of a JPU.
      features: what the backbone puts out, finest first; all of them are joined.
      model: the `config.model` without the neck.
    """
    only("neck", neck, ("mid_channels", "start_level", "end_level", "dilations", "align_corners"))
    defaults = dict(align_corners=False)
    expect(
        "neck", defaults | dict(neck), start_level=0, end_level=-1,
        align_corners=model["align_corners"],
    )  # fmt: skip
    shared = ("backbone", "num_classes", "align_corners")
    return {key: model[key] for key in shared} | dict(
        name="fastfcn",
        head={key: value for key, value in model.items() if key not in shared},
        features=features,
        neck_channels=neck.get("mid_channels", 512),
        rates=tuple(neck.get("dilations", (1, 2, 4, 8))),
    )
