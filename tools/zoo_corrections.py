"""What MMSegmentation's lists of released models get wrong, and what is true.

The lists are the metafiles of release 1.2.2, which the facts repeat. The truth is in the weights'
file names, in the tables of that release's READMEs, and in the configs and metafiles of release
0.30, with which most of the models were trained. Where these agree, a fact is corrected here;
where they do not tell, it stays as listed and gets a note.

What a rule finds for every name, `make_zoo.py` does. Here is the rest.
"""

from typing import Any

# Names whose config path does not exist -> how the config is spelt.
RENAMED = {
    "ddeeplabv3plus_r101-d16-mg124_4xb2-40k_cityscapes-512x1024": (
        "deeplabv3plus_r101-d16-mg124_4xb2-40k_cityscapes-512x1024"
    ),
    "eemanet_r50-d8_4xb2-80k_cityscapes-512x1024": "emanet_r50-d8_4xb2-80k_cityscapes-512x1024",
}

# Released models that the lists enter under the name of another, or a second time under it, which
# hides one of the two: their own name, that of their config -> the name they stand under. What
# stands there is theirs unless `OWN` says otherwise.
UNLISTED = {
    "bisenetv1_r101-d32_4xb4-160k_coco-stuff164k-512x512": (
        "bisenetv1_r50-d32-in1k-pre_4xb4-160k_coco-stuff164k-512x512"
    ),
    "deeplabv3plus_r101-d8_4xb4-40k_pascal-context-480x480": (
        "deeplabv3plus_r50-d8_4xb4-40k_pascal-context-480x480"
    ),
    "deeplabv3plus_r101-d8_4xb4-80k_ade20k-512x512": (
        "deeplabv3plus_r101-d8_4xb4-160k_ade20k-512x512"
    ),
    "deeplabv3plus_r101-d8_4xb4-80k_pascal-context-480x480": (
        "deeplabv3plus_r50-d8_4xb4-80k_pascal-context-480x480"
    ),
    "fastfcn_r50-d32_jpu_aspp_4xb4-80k_cityscapes-512x1024": (
        "fastfcn_r50-d32_jpu_aspp_4xb2-80k_cityscapes-512x1024"
    ),
    "fastfcn_r50-d32_jpu_enc_4xb4-80k_cityscapes-512x1024": (
        "fastfcn_r50-d32_jpu_enc_4xb2-80k_cityscapes-512x1024"
    ),
    "fastfcn_r50-d32_jpu_psp_4xb4-80k_cityscapes-512x1024": (
        "fastfcn_r50-d32_jpu_psp_4xb2-80k_cityscapes-512x1024"
    ),
    "ocrnet_hr18_4xb4-160k_ade20k-512x512": "ocrnet_hr18_4xb4-80k_ade20k-512x512",
    "ocrnet_hr18s_4xb4-160k_ade20k-512x512": "ocrnet_hr18s_4xb4-80k_ade20k-512x512",
    "pspnet_r50-d32_4xb2-80k_cityscapes-512x1024": "pspnet_r50b-d32_4xb2-80k_cityscapes-512x1024",
    "twins_svt-l_uperhead_8xb2-160k_ade20k-512x512": (
        "twins_pcpvt-l_uperhead_8xb2-160k_ade20k-512x512"
    ),
}

# Models that the facts do not describe, or wrongly: the sibling whose description and recipe are
# theirs, and how the description differs (dotted keys).
LIKE: dict[str, tuple[str, dict[str, Any]]] = {
    "bisenetv1_r101-d32_4xb4-160k_coco-stuff164k-512x512": (
        "bisenetv1_r50-d32-in1k-pre_4xb4-160k_coco-stuff164k-512x512",
        {"backbone.backbone_cfg.depth": 101},
    ),
    "deeplabv3plus_r101-d16-mg124_4xb2-40k_cityscapes-512x1024": (
        "deeplabv3plus_r101-d16-mg124_4xb2-80k_cityscapes-512x1024",
        {},
    ),
    "deeplabv3plus_r101-d8_4xb4-40k_pascal-context-480x480": (
        "deeplabv3plus_r50-d8_4xb4-40k_pascal-context-480x480",
        {"backbone.depth": 101},
    ),
    "deeplabv3plus_r101-d8_4xb4-80k_pascal-context-480x480": (
        "deeplabv3plus_r50-d8_4xb4-80k_pascal-context-480x480",
        {"backbone.depth": 101},
    ),
    "emanet_r50-d8_4xb2-80k_cityscapes-512x1024": (
        "emanet_r101-d8_4xb2-80k_cityscapes-512x1024",
        {"backbone.depth": 50},
    ),
    "fpn_poolformer_s36_8xb4-40k_ade20k-512x512": (
        "fpn_poolformer_s24_8xb4-40k_ade20k-512x512",
        {"backbone.arch": "s36"},
    ),
    # The config sets `model` twice; the second hides the depth that the first sets.
    "fpn_r101_4xb4-160k_ade20k-512x512": (
        "fpn_r50_4xb4-160k_ade20k-512x512",
        {"backbone.depth": 101},
    ),
    "pspnet_r50-d32_4xb2-80k_cityscapes-512x1024": (
        "pspnet_r50b-d32_4xb2-80k_cityscapes-512x1024",
        {"backbone.type": "ResNetV1c"},
    ),
    "twins_svt-l_uperhead_8xb2-160k_ade20k-512x512": (
        "twins_svt-b_uperhead_8xb2-160k_ade20k-512x512",
        {
            "backbone.embed_dims": [128, 256, 512, 1024],
            "backbone.num_heads": [4, 8, 16, 32],
            "decode_head.in_channels": [128, 256, 512, 1024],
            "auxiliary_head.in_channels": 512,
        },
    ),
}


def _published(family: str, old: str, ending: str, miou: float, with_flips: float) -> dict:
    """Weights in the folder that has the model's name of older releases, and their figures."""
    return dict(
        weights=f"https://download.openmmlab.com/mmsegmentation/v0.5/{family}/{old}/{old}_{ending}.pth",
        metrics={"mIoU": miou, "mIoU(ms+flip)": with_flips},
    )


# Facts in place of those listed: weights, metrics, batch_size, iterations.
OWN: dict[str, dict[str, Any]] = {
    # The table and the recipe say so, against the name.
    "beit-large_upernet_8xb1-amp-160k_ade20k-640x640": dict(iterations=320_000),
    "bisenetv1_r50-d32-in1k-pre_4xb4-160k_coco-stuff164k-512x512": _published(
        "bisenetv1", "bisenetv1_r50-d32_in1k-pre_lr5e-3_4x4_512x512_160k_coco-stuff164k",
        "20211101_181932-66747911", 34.88, 35.37,
    ),
    "deeplabv3plus_r101-d8_4xb4-80k_ade20k-512x512": _published(
        "deeplabv3plus", "deeplabv3plus_r101-d8_512x512_80k_ade20k",
        "20200615_014139-d5730af7", 44.6, 46.06,
    ),
    # The table says R-101-D8 of these two, and nothing of ResNet-50.
    "deeplabv3plus_r50-d8_4xb4-40k_pascal-context-480x480": dict(weights=None, metrics={}),
    "deeplabv3plus_r50-d8_4xb4-80k_pascal-context-480x480": dict(weights=None, metrics={}),
    "fastfcn_r50-d32_jpu_aspp_4xb2-80k_cityscapes-512x1024": _published(
        "fastfcn", "fastfcn_r50-d32_jpu_aspp_512x1024_80k_cityscapes",
        "20210928_053722-5d1a2648", 79.12, 80.58,
    ),
    "fastfcn_r50-d32_jpu_aspp_4xb4-80k_cityscapes-512x1024": dict(batch_size=16),
    "fastfcn_r50-d32_jpu_enc_4xb2-80k_cityscapes-512x1024": _published(
        "fastfcn", "fastfcn_r50-d32_jpu_enc_512x1024_80k_cityscapes",
        "20210928_030036-78da5046", 77.97, 79.92,
    ),
    "fastfcn_r50-d32_jpu_enc_4xb4-80k_cityscapes-512x1024": dict(batch_size=16),
    "fastfcn_r50-d32_jpu_psp_4xb2-80k_cityscapes-512x1024": _published(
        "fastfcn", "fastfcn_r50-d32_jpu_psp_512x1024_80k_cityscapes",
        "20210928_053722-57749bed", 79.26, 80.86,
    ),
    "fastfcn_r50-d32_jpu_psp_4xb4-80k_cityscapes-512x1024": dict(batch_size=16),
    "ocrnet_hr18_4xb4-80k_ade20k-512x512": _published(
        "ocrnet", "ocrnet_hr18_512x512_80k_ade20k", "20200615_053157-d173d83b", 37.79, 39.16
    ),
    "ocrnet_hr18s_4xb4-80k_ade20k-512x512": _published(
        "ocrnet", "ocrnet_hr18s_512x512_80k_ade20k", "20200615_055600-e80b62af", 35.06, 35.8
    ),
    "pspnet_r50-d32_4xb2-80k_cityscapes-512x1024": _published(
        "pspnet", "pspnet_r50-d32_512x1024_80k_cityscapes", "20220316_224840-9092b254", 73.88, 76.85
    ),
    "twins_pcpvt-l_uperhead_8xb2-160k_ade20k-512x512": _published(
        "twins", "twins_pcpvt-l_uperhead_8x2_512x512_160k_ade20k",
        "20211201_075053-c6095c07", 49.35, 50.08,
    ),
}  # fmt: skip

NOTES = {
    "beit-large_upernet_8xb1-amp-160k_ade20k-640x640": (
        "trained for 320k iterations by its table and recipe, 160k by its name"
    ),
    "cgnet_fcn_4xb4-60k_cityscapes-680x680": "batch of 16 by its name, 32 by its recipe",
    "segmenter_vit-l_mask_8xb1-160k_ade20k-512x512": (
        "crops of 640x640 by its table and recipe, 512x512 by its name"
    ),
}

# Names of older releases that are not in the address of the weights, and spellings that the names
# of their kin lead one to.
ALSO = {
    "deeplabv3plus_r50-d8_4xb2-300k_mapillay_v1_65-1280x1280": (
        "deeplabv3plus_r50-d8_4xb2-300k_mapillary_v1_65-1280x1280"
    ),
    # The weights are of a later training than those once published under the old name.
    "mobilenet-v2-d8_fcn_4xb2-80k_cityscapes-512x1024": "fcn_m-v2-d8_512x1024_80k_cityscapes",
    "ocrnet_hr18s_4xb2-40k_cityscapes-512x1024": "ocrnet_hr18s_512x1024_40k_cityscapes",
    "resnest_s101-d8_pspnet_4xb2-80k_cityscapes512x1024": (
        "resnest_s101-d8_pspnet_4xb2-80k_cityscapes-512x1024"
    ),
    # Release 0.30 has the same config under this name, with weights of a later training.
    "segmenter_vit-l_mask_8xb1-160k_ade20k-512x512": "segmenter_vit-l_mask_8x1_640x640_160k_ade20k",
    "setr_vit-l_mla_8xb1-80k_cityscapes-768x768": "setr_vit-large_mla_8x1_768x768_80k_cityscapes",
    "setr_vit-l_naive_8xb1-80k_cityscapes-768x768": (
        "setr_vit-large_naive_8x1_768x768_80k_cityscapes"
    ),
    "setr_vit-l_pup_8xb1-80k_cityscapes-768x768": "setr_vit-large_pup_8x1_768x768_80k_cityscapes",
    "unet_s5-d16_deeplabv3_4xb4-40k_chase-db1-128x128": (
        "unet-s5-d16_deeplabv3_4xb4-40k_chase-db1-128x128"
    ),
}
