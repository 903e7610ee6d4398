"""OCRNet (Yuan et al. 2019, arXiv:1909.11065) on HRNet.

    python -m jaxseg.main --config configs/ocrnet.py:DATASET --workdir runs/NAME

DATASET is one of `jaxseg.recipes`; without one it is cityscapes. The large recipes are
MMSegmentation's `ocrnet_hr18`, whose published single-scale mIoU is the target. They start there
from ImageNet weights of HRNetV2-W18: the default of --config.init_from.

    cityscapes  512x1024, batch 8, 40k steps: 77.72     ade20k  512x512, batch 16, 80k: 37.79
    voc2012     512x512, batch 16, 20k (augmented train list): 74.75
    camvid      a small one from scratch, sized for two CPU cores
    synthetic   the same, smaller; needs no files       folder  your own images and masks

After more steps, and in other sizes, which are settings of `config.model` (W18 small:
backbone.modules=(1,3,2), backbone.blocks=2; W48: backbone.width=48, coarse_channels=720):

               cityscapes 40k    80k   160k    ade20k 80k   160k    voc2012 20k    40k
    W18 small         76.61  77.16  78.45         35.06  37.19          71.70  72.76
    W18               77.72  78.57  79.47         37.79  39.32          74.75  74.98
    W48               80.58  80.70  81.35         43.00  43.25          77.72  77.14

On a dilated ResNet-101 (backbone as in `configs/pspnet.py` with depth=101, feature="stage4",
coarse_feature="stage3", coarse_channels=256, coarse_kernel=3, dropout=0.1), Cityscapes: 80.09 at
40k steps of batch 8; at batch 16, 80.30 after 40k and 80.81 after 80k.

The paper: ImageNet weights, loss 0.4 on the coarse scores, SGD with the polynomial rate; on ADE20K,
with scales and flips, ResNet-101 at stride 8 reaches 45.28 and HRNetV2-W48 45.66.
Verified here are the networks (forward and training step), not yet these scores.
"""

from ml_collections import ConfigDict

from jaxseg import recipes
from jaxseg.recipes import RECIPES  # noqa: F401 (all of them)

BRANCHES = ("stage1", "stage2", "stage3", "stage4")


def get_config(dataset: str = "cityscapes") -> ConfigDict:
    config = recipes.get(dataset, losses=dict(logits=1.0, coarse_logits=0.4))
    config.model = dict(
        name="ocrnet", backbone=dict(name="hrnet", width=18, modules=(1, 4, 3), blocks=4),
        feature=BRANCHES, channels=512, ocr_channels=256, coarse_feature=BRANCHES,
        coarse_channels=270, coarse_kernel=1, dropout=0.0, align_corners=False,
    )  # fmt: skip
    if recipes.is_small(dataset):
        config.model.update(channels=64, ocr_channels=32, coarse_channels=120)
        config.model.backbone.update(width=8, modules=(1, 1, 1), blocks=2)
    return config
