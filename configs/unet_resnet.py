"""U-Net's decoder (Ronneberger et al. 2015, arXiv:1505.04597) on a ResNet-34.

    python -m jaxseg.main --config configs/unet_resnet.py:DATASET --workdir runs/NAME

DATASET is one of `jaxseg.recipes`; without one it is folder. The network is the `Unet` of
segmentation_models.pytorch, whose trained weights it takes too:

    python -m jaxseg.main --config configs/unet_resnet.py:folder --workdir runs/NAME \
        --config.init_from=best_model.pth

    camvid      ResNet-18 and half the decoder, from scratch, sized for two CPU cores
    synthetic   the same, smaller; needs no files       folder  your own images and masks

The sides of the training crop must be multiples of 32 for the sizes to be exactly that network's;
others work, with maps resized to fit. No figures are published for it on these datasets; verified
here is the network (reference outputs of it).
"""

from ml_collections import ConfigDict

from jaxseg import recipes
from jaxseg.recipes import RECIPES  # noqa: F401 (all of them)


def get_config(dataset: str = "folder") -> ConfigDict:
    config = recipes.get(dataset, losses=dict(logits=1.0))
    config.model = dict(
        name="unet_resnet",
        backbone=recipes.RESNET | dict(depth=34, stem="plain", output_stride=32),
        features=("stem", "stage1", "stage2", "stage3", "stage4"),
        channels=(256, 128, 64, 32, 16),
    )
    if recipes.is_small(dataset):
        config.model.backbone.depth = 18
        config.model.channels = (128, 64, 32, 16, 16)
    return config
