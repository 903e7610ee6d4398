"""Fast-SCNN (Poudel et al. 2019, arXiv:1902.04502).

    python -m jaxseg.main --config configs/fastscnn.py:DATASET --workdir runs/NAME

Without a DATASET it is cityscapes: MMSegmentation's `fast_scnn`, whose published mIoU (val; one
scale, and scales with flips) is the target. It starts from scratch, and every class is scored by a
sigmoid of its own.

    cityscapes  512x1024, batch 32, 160k steps: 70.96, 72.65
    camvid      the same network, sized for two CPU cores
    synthetic   the same; needs no files                folder  your own images and masks

There the running statistics change by a hundredth in each step, here by a tenth.

The paper trains 1,000 epochs of batch 12 on whole images, auxiliary losses 0.4, and reports 68.0 on
Cityscapes' test set (68.6 on val) at 123.5 frames per second; its network has 1.11 M parameters,
this one 1.46 M with its auxiliary heads.
Verified here is the network (forward and training step), not yet these scores.
"""

from ml_collections import ConfigDict

from jaxseg import recipes

RECIPES = ("cityscapes", "camvid", "synthetic", "folder")


def get_config(dataset: str = "cityscapes") -> ConfigDict:
    config = recipes.get(dataset, losses=dict(logits=1.0, aux_logits_0=0.4, aux_logits_1=0.4))
    for loss in config.losses.values():
        loss.name = "sigmoid_cross_entropy"
    config.model = dict(
        name="fastscnn", channels=128, aux_channels=32, dropout=0.1, align_corners=False
    )
    if dataset == "cityscapes":
        config.batch_size, config.steps = 32, 160_000
        config.optimizer.update(lr=0.12, weight_decay=4e-5)
    return config
