"""Cityscapes, 19 classes of urban road scenes (Cordts et al. 2016, arXiv:1604.01685).

2,975 training, 500 validation and 1,525 test frames of 2048x1024 with fine annotation.

How to obtain it: register at https://www.cityscapes-dataset.com (free for research and teaching,
not for commercial use), then

    pip install cityscapesscripts
    csDownload leftImg8bit_trainvaltest.zip gtFine_trainvaltest.zip

and unpack both into one folder, `root`, which then looks like `LAYOUT`. No conversion is needed:
the masks are read as `labelIds`, and `LABEL_MAP` makes train ids of them.

Or let TensorFlow Datasets prepare both zips (`PREPARE`) and give `source='tfds'` with TFDS's
data folder as `root`: same ids, same order, same pixels.

The test masks of the download are blank, so the test split counts as unlabelled.
"""

import functools
import os

import numpy as np

from jaxseg.data import files, tfds_records
from jaxseg.data.base import Description, Record
from jaxseg.data.submission import Submission

LAYOUT = """\
  root/
    leftImg8bit/{train,val,test}/CITY/CITY_000000_000019_leftImg8bit.png
    gtFine/{train,val}/CITY/CITY_000000_000019_gtFine_labelIds.png
from leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip of www.cityscapes-dataset.com"""

PREPARE = """\
  python -m jaxseg.data.prepare cityscapes --manual_dir DIR --data_dir ROOT
where DIR holds leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, as downloaded from
www.cityscapes-dataset.com"""

SPLITS = ("train", "val", "test")

# (label id, name, colour) in the order of the train ids; the label table of cityscapesscripts.
LABELS = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)


def _label_map() -> np.ndarray:
    table = np.full(256, -1, np.int32)
    table[:34] = 255  # the table's ids 0..33: ignored unless they are one of the 19
    table[255] = 255  # the licence plate, id -1, in eight bits
    for train_id, (label_id, _, _) in enumerate(LABELS):
        table[label_id] = train_id
    return table


LABEL_MAP = _label_map()

# evaluation/evalPixelLevelSemanticLabeling.py of cityscapesScripts: label ids, not train ids, in a
# PNG whose name begins with that of the frame, anywhere in the archive.
SUBMISSION = Submission(
    server="https://www.cityscapes-dataset.com/submit/",
    values=np.array([label_id for label_id, _, _ in LABELS], np.uint8),
    path=lambda id: f"{id.rpartition('/')[2]}_leftImg8bit.png",
    archive="zip",
    images=1525,
    size=(1024, 2048),
)


def describe(root: str = "data/cityscapes", source: str = "folders") -> Description:
    """Describes Cityscapes.

    Args:
      root: the folder of `LAYOUT`, or the data folder of TFDS.
      source: 'folders' (as downloaded) or 'tfds' (prepared by TensorFlow Datasets).

    Returns:
      19 classes, splits train, val and test (without labels); ids are 'CITY/CITY_SEQ_FRAME'.

    Raises:
      UserError: from `records`, when files are missing; names them and the layout.
    """
    files.check_source("cityscapes", source)
    records = {"folders": _folder_records, "tfds": _tfds_records}[source]
    return Description(
        name="cityscapes",
        classes=tuple(name for _, name, _ in LABELS),
        palette=tuple(color for _, _, color in LABELS),
        splits=SPLITS,
        records=functools.partial(records, os.path.expanduser(root)),
        label_map=LABEL_MAP,
    )


def _folder_records(root: str, split: str) -> list[Record]:
    files.check_split("cityscapes", split, SPLITS)
    find = functools.partial(files.find, layout=LAYOUT, suffixes=(".png",))
    image_folder = os.path.join(root, "leftImg8bit", split)
    images = find(image_folder, ending="_leftImg8bit")
    if split == "test":
        return [Record(id, path) for id, path in images.items()]
    mask_folder = os.path.join(root, "gtFine", split)
    masks = find(mask_folder, ending="_gtFine_labelIds")
    return files.pair(images, masks, image_folder=image_folder, mask_folder=mask_folder)


def _tfds_records(root: str, split: str) -> list[Record]:
    files.check_split("cityscapes", split, SPLITS)
    records = tfds_records.read(
        root,
        "cityscapes/semantic_segmentation",
        "validation" if split == "val" else split,
        id="image_id",
        image="image_left",
        label=None if split == "test" else "segmentation_label",
        prepare=PREPARE,
    )
    # TFDS keeps 'CITY_SEQ_FRAME' and drops the folder.
    return [Record(f"{r.id.split('_')[0]}/{r.id}", r.image, r.label) for r in records]
