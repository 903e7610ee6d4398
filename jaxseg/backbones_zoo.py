"""Backbones trained on ImageNet, by the names that OpenMMLab and torchvision give them.

    resnet50_v1c, hrnetv2_w18, mobilenet_v2, ...    what MMSegmentation's recipes start from
    resnet50, resnet50.imagenet1k_v2, vgg16, ...    torchvision's; v2 is its second, longer training

A name may also have in front what MMSegmentation's configs write: open-mmlab://msra/hrnetv2_w18.

Sources: mmengine 0.10.7 (`hub/openmmlab.json`, `mmcls.json`, `torchvision_0.12.json`); for
`imagenet1k_v2` torchvision's `models/resnet.py`; for the real-time networks the `init_cfg` of the
models of MMSegmentation 1.2.2. Every file's name carries the start of its SHA-256.
"""

import dataclasses
import importlib
import inspect
import re
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Published weights of a backbone.

    Attributes:
      url: of the file.
      spec: what `config.model.backbone` says of such a backbone, or `config.model` where that has
        no such part; arguments that are not here do not matter.
      whole: whether the file has all of the backbone: an image classifier does without the
        pyramids of some real-time networks.
    """

    url: str
    spec: Mapping[str, Any]
    whole: bool = True


_THIRD_PARTY = "https://download.openmmlab.com/pretrain/third_party/"
_MMCLS = "https://download.openmmlab.com/mmclassification/v0/"
_MMSEG = "https://download.openmmlab.com/mmsegmentation/v0.5/"
_TORCHVISION = "https://download.pytorch.org/models/"


def _resnet(url: str, depth: int, stem: str = "plain") -> Pretrained:
    return Pretrained(url, dict(name="resnet", depth=depth, stem=stem))


def _resnest(url: str, depth: int) -> Pretrained:
    return Pretrained(url, dict(name="resnest", depth=depth))


def _hrnet(url: str, width: int, modules: tuple = (1, 4, 3), blocks: int = 4) -> Pretrained:
    return Pretrained(url, dict(name="hrnet", width=width, modules=modules, blocks=blocks))


def _mobilenet(url: str, **spec: Any) -> Pretrained:
    return Pretrained(url, spec | dict(width=1.0))


def _vgg(url: str, depth: int, norm: bool = False) -> Pretrained:
    return Pretrained(url, dict(name="vgg", depth=depth, width=64, norm=norm))


def _stdc(url: str, blocks: tuple[int, ...]) -> Pretrained:
    widths = (32, 64, 256, 512, 1024)
    return Pretrained(url, dict(name="stdc", blocks=blocks, widths=widths))


def _dual(url: str, name: str, channels: int, **spec: Any) -> Pretrained:
    return Pretrained(url, dict(name=name, channels=channels, **spec), whole=False)


# Of several for one backbone the first is what `automatic` takes: MMSegmentation's choice.
WEIGHTS = {
    "resnet18_v1c": _resnet(f"{_THIRD_PARTY}resnet18_v1c-b5776b93.pth", 18, "v1c"),
    "resnet50_v1c": _resnet(f"{_THIRD_PARTY}resnet50_v1c-2cccc1ad.pth", 50, "v1c"),
    "resnet101_v1c": _resnet(f"{_THIRD_PARTY}resnet101_v1c-e67eebb6.pth", 101, "v1c"),
    "resnet50_v1d": _resnet(
        f"{_MMCLS}resnet/resnetv1d50_b32x8_imagenet_20210531-db14775a.pth", 50, "v1d"
    ),
    "resnet101_v1d": _resnet(
        f"{_MMCLS}resnet/resnetv1d101_b32x8_imagenet_20210531-6e13bcd3.pth", 101, "v1d"
    ),
    "resnet152_v1d": _resnet(
        f"{_MMCLS}resnet/resnetv1d152_b32x8_imagenet_20210531-278cf22a.pth", 152, "v1d"
    ),
    "resnet18": _resnet(f"{_TORCHVISION}resnet18-f37072fd.pth", 18),
    "resnet34": _resnet(f"{_TORCHVISION}resnet34-b627a593.pth", 34),
    "resnet50": _resnet(f"{_TORCHVISION}resnet50-0676ba61.pth", 50),
    "resnet101": _resnet(f"{_TORCHVISION}resnet101-63fe2227.pth", 101),
    "resnet152": _resnet(f"{_TORCHVISION}resnet152-394f9c45.pth", 152),
    "resnet50.imagenet1k_v2": _resnet(f"{_TORCHVISION}resnet50-11ad3fa6.pth", 50),
    "resnet101.imagenet1k_v2": _resnet(f"{_TORCHVISION}resnet101-cd907fc2.pth", 101),
    "resnet152.imagenet1k_v2": _resnet(f"{_TORCHVISION}resnet152-f82ba261.pth", 152),
    "resnest50": _resnest(f"{_THIRD_PARTY}resnest50_d2-7497a55b.pth", 50),
    "resnest101": _resnest(f"{_THIRD_PARTY}resnest101_d2-f3b931b2.pth", 101),
    "resnest200": _resnest(f"{_THIRD_PARTY}resnest200_d2-ca88e41f.pth", 200),
    "hrnetv2_w18": _hrnet(f"{_THIRD_PARTY}hrnetv2_w18-00eb2006.pth", 18),
    "hrnetv2_w18_small": _hrnet(
        f"{_THIRD_PARTY}hrnetv2_w18_small-b5a04e21.pth", 18, (1, 3, 2), 2
    ),
    "hrnetv2_w32": _hrnet(f"{_THIRD_PARTY}hrnetv2_w32-dc9eeb4f.pth", 32),
    "hrnetv2_w40": _hrnet(f"{_THIRD_PARTY}hrnetv2_w40-ed0b031c.pth", 40),
    "hrnetv2_w48": _hrnet(f"{_THIRD_PARTY}hrnetv2_w48-d2186c55.pth", 48),
    "mobilenet_v2": _mobilenet(
        f"{_MMCLS}mobilenet_v2/mobilenet_v2_batch256_imagenet_20200708-3b2dc3af.pth",
        name="mobilenetv2",
    ),
    "mobilenet_v3_large": _mobilenet(
        f"{_THIRD_PARTY}mobilenet_v3_large-bc2c3fd3.pth", name="mobilenetv3", size="large"
    ),
    "mobilenet_v3_small": _mobilenet(
        f"{_THIRD_PARTY}mobilenet_v3_small-47085aa1.pth", name="mobilenetv3", size="small"
    ),
    "vgg11": _vgg(f"{_TORCHVISION}vgg11-8a719046.pth", 11),
    "vgg13": _vgg(f"{_TORCHVISION}vgg13-19584684.pth", 13),
    "vgg16": _vgg(f"{_TORCHVISION}vgg16-397923af.pth", 16),
    "vgg19": _vgg(f"{_TORCHVISION}vgg19-dcbb9e9d.pth", 19),
    "vgg11_bn": _vgg(f"{_TORCHVISION}vgg11_bn-6002323d.pth", 11, True),
    "vgg13_bn": _vgg(f"{_TORCHVISION}vgg13_bn-abd245e5.pth", 13, True),
    "vgg16_bn": _vgg(f"{_TORCHVISION}vgg16_bn-6c64b313.pth", 16, True),
    "vgg19_bn": _vgg(f"{_TORCHVISION}vgg19_bn-c79401a0.pth", 19, True),
    "stdc1": _stdc(f"{_MMSEG}pretrain/stdc/stdc1_20220308-5368626c.pth", (2, 2, 2)),
    "stdc2": _stdc(f"{_MMSEG}pretrain/stdc/stdc2_20220308-7dbd9127.pth", (4, 5, 3)),
    "ddrnet23s": _dual(
        f"{_MMSEG}ddrnet/pretrain/ddrnet23s-in1kpre_3rdparty-1ccac5b1.pth", "ddrnet", 32
    ),
    "ddrnet23": _dual(
        f"{_MMSEG}ddrnet/pretrain/ddrnet23-in1kpre_3rdparty-9ca29f62.pth", "ddrnet", 64
    ),
    "pidnet-s": _dual(
        f"{_MMSEG}pretrain/pidnet/pidnet-s_imagenet1k_20230306-715e6273.pth", "pidnet", 32
    ),
    "pidnet-m": _dual(
        f"{_MMSEG}pretrain/pidnet/pidnet-m_imagenet1k_20230306-39893c52.pth", "pidnet", 64,
        light=True,
    ),
    "pidnet-l": _dual(
        f"{_MMSEG}pretrain/pidnet/pidnet-l_imagenet1k_20230306-67889109.pth", "pidnet", 64,
        light=False,
    ),
}  # fmt: skip


def get(name: str) -> Pretrained | None:
    """The weights of that name, with or without scheme and folder; None when there are none."""
    scheme = r"(open-mmlab|mmcls|torchvision)://((msra|contrib)/)?"
    return WEIGHTS.get(re.sub(f"^{scheme}", "", name))


def automatic(model: Mapping[str, Any]) -> str | None:
    """The name of the weights for `config.model`; None where none are known."""
    spec = dict(model.get("backbone", model))
    factory = "Backbone" if "backbone" in model else "Model"
    if spec.get("name") == "icnet":  # has a ResNet of its own
        spec, factory = dict(name="resnet", depth=spec.get("depth", 50), stem="v1c"), "Backbone"
    for name, weights in WEIGHTS.items():
        if weights.spec["name"] == spec.get("name"):
            module = importlib.import_module(f"jaxseg.models.{spec['name']}")
            parameters = inspect.signature(getattr(module, factory)).parameters
            given = {key: spec.get(key, parameters[key].default) for key in [*weights.spec][1:]}
            if all(_plain(given[key]) == _plain(weights.spec[key]) for key in given):
                return name
    return None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value
