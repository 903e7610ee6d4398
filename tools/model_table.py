"""Prints the table of docs/models.md: parameters and cost of every config's model.

    PYTHONPATH=. python tools/model_table.py

Parameters are those of training, auxiliary heads included, with the classes of the config's data
set; the cost is one test-time forward of one image at the published size, counted from the traced
program: multiply-adds of its convolutions and matrix products. Nothing is computed.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg import config as configs
from jaxseg import models, state
from jaxseg.models import segmenter

CITY = (512, 1024)
REFERENCE = "outputs of MMSegmentation"
REFERENCE_AND_STEP = "outputs and a training step of MMSegmentation"
TIMM = "features of timm's port of the release; published counts"
PARTS = "that of its parts"
SMP = "outputs of segmentation_models.pytorch (ResNet-18)"
CROPS = "the released networks' crops and a NumPy network; a centred block stays centred"
UNPOOLING = "unpooling undoes pooling through the whole network; published counts"
SIZES = "572 to 388; tiles agree with the whole; closed-form count"
FIELD_OF_VIEW = "published fields of view and counts; VGG against torchvision's counts"
CLOSED_FORMS = "closed forms of the sum and the maximum over scales"

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROWS = (  # system, paper, config, its argument, (height, width), classes, evidence
    ("FCN-8s", "1411.4038", "fcn", "voc2012", (500, 500), 21, CROPS),
    ("FCN on ResNet-50", "1411.4038", "fcn_resnet", "cityscapes", CITY, 19, REFERENCE_AND_STEP),
    ("SegNet", "1511.00561", "segnet", "camvid_full", (360, 480), 11, UNPOOLING),
    ("SegNet-Basic", "1511.00561", "segnet_basic", "camvid_full", (360, 480), 11, UNPOOLING),
    ("U-Net", "1505.04597", "unet", "folder", (388, 388), 2, SIZES),
    ("U-Net, padded", "1505.04597", "unet_fcn", "cityscapes", CITY, 19, REFERENCE),
    ("PSPNet", "1612.01105", "pspnet", "cityscapes", CITY, 19, REFERENCE_AND_STEP),
    ("DeepLab v1", "1412.7062", "deeplabv1", "voc2012", (513, 513), 21, FIELD_OF_VIEW),
    ("DeepLab v2", "1606.00915", "deeplabv2", "voc2012", (513, 513), 21, CLOSED_FORMS),
    ("DeepLab v3", "1706.05587", "deeplabv3", "cityscapes", CITY, 19, REFERENCE),
    ("DeepLab v3+", "1802.02611", "deeplabv3p", "cityscapes", CITY, 19, REFERENCE_AND_STEP),
    ("  on Xception-65", "1802.02611", "deeplabv3p_xception", "voc2012", (513, 513), 21, TIMM),
    ("  on MobileNetV2", "1801.04381", "deeplabv3p_mobilenetv2", "cityscapes", CITY, 19, PARTS),
    ("Semantic FPN", "1901.02446", "sem_fpn", "cityscapes", CITY, 19, REFERENCE_AND_STEP),
    ("PointRend", "1912.08193", "pointrend", "cityscapes", CITY, 19, REFERENCE),
    ("  on DeepLab v3", "1912.08193", "pointrend_deeplabv3", "cityscapes", CITY, 19, PARTS),
    ("HRNetV2-W18", "1904.04514", "fcn_hrnet", "cityscapes", CITY, 19, REFERENCE_AND_STEP),
    ("MobileNetV3, LR-ASPP", "1905.02244", "lraspp", "cityscapes", CITY, 19, REFERENCE),
    ("UPerNet", "1807.10221", "upernet", "cityscapes", CITY, 19, REFERENCE),
    ("EncNet", "1803.08904", "encnet", "cityscapes", CITY, 19, REFERENCE),
    ("FastFCN with PSPNet's head", "1903.11816", "fastfcn", "cityscapes", CITY, 19, REFERENCE),
    ("OCRNet on HRNetV2-W18", "1909.11065", "ocrnet", "cityscapes", CITY, 19, REFERENCE),
    ("U-Net on ResNet-34", "1505.04597", "unet_resnet", "folder", CITY, 19, SMP),
    ("ERFNet", "IEEE T-ITS 2018", "erfnet", "cityscapes", CITY, 19, REFERENCE),
    ("CGNet", "1811.08201", "cgnet", "cityscapes", CITY, 19, REFERENCE),
    ("Fast-SCNN", "1902.04502", "fastscnn", "cityscapes", CITY, 19, REFERENCE),
    ("BiSeNetV1", "1808.00897", "bisenetv1", "cityscapes", CITY, 19, REFERENCE),
    ("BiSeNetV2", "2004.02147", "bisenetv2", "cityscapes", CITY, 19, REFERENCE),
    ("STDC1", "2104.13188", "stdc", "cityscapes", CITY, 19, REFERENCE),
    ("ICNet", "1704.08545", "icnet", "cityscapes", CITY, 19, REFERENCE),
    ("DDRNet-23-slim", "2101.06085", "ddrnet", "cityscapes", CITY, 19, REFERENCE),
    ("PIDNet-S", "2206.02066", "pidnet", "cityscapes", CITY, 19, REFERENCE),
)


def multiply_adds(jaxpr) -> int:
    """Multiply-adds of the convolutions and matrix products of a traced program."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "conv_general_dilated":
            kernel, out = eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
            spec = eqn.params["dimension_numbers"].rhs_spec  # (features, inputs, *space)
            total += int(np.prod(out)) * int(np.prod(kernel)) // kernel[spec[0]]
        elif eqn.primitive.name == "dot_general":
            ((contracted, _), _) = eqn.params["dimension_numbers"]
            lhs, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
            total += int(np.prod(out)) * int(np.prod([lhs[i] for i in contracted]))
        elif eqn.primitive.name == "cond":  # forms per platform: the last is the plain one
            total += multiply_adds(eqn.params["branches"][-1].jaxpr)
        elif eqn.primitive.name == "scan":
            total += eqn.params["length"] * multiply_adds(eqn.params["jaxpr"].jaxpr)
        else:
            for value in eqn.params.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    total += multiply_adds(inner)
    return total


def row(system, paper, name, argument, size, classes, evidence) -> str:
    config = configs.from_file(f"{ROOT}/configs/{name}.py:{argument}")
    model = models.get(config.model, num_classes=classes)
    variables = state.abstract_variables(model, (64, 64))
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)

    def logits(variables, image):
        return segmenter.forward(model, variables, image, train=False)[0]["logits"]

    # What the logits do not need, the auxiliary head say, is not counted.
    traced = jax.make_jaxpr(logits)(variables, image)
    jaxpr, _ = jax.interpreters.partial_eval.dce_jaxpr(traced.jaxpr, [True])
    cells = (
        system.replace("  ", "&emsp;"),
        f"[{paper}](https://arxiv.org/abs/{paper})" if paper[0].isdigit() else paper,
        f"`{config.model.name}`",
        f"`{name}.py:{argument}`",
        f"{state.count(variables['params']) / 1e6:.2f}",
        f"{size[0]}x{size[1]}",
        f"{multiply_adds(jaxpr) / 1e9:.1f}",
        evidence,
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    print(
        "| system | arXiv | model | config | M parameters | size | G multiply-adds | checked by |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for entry in ROWS:
        print(row(*entry), flush=True)


if __name__ == "__main__":
    main()
