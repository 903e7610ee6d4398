"""PASCAL VOC 2012 segmentation, 20 classes and background (Everingham et al. 2015).

1,464 training and 1,449 validation photographs; with the 9,118 further masks of the Semantic
Boundaries Dataset (SBD, Hariharan et al. 2011) the customary augmented training set of 10,582.

How to obtain it (the photographs are from Flickr, under its terms of use):

    wget http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar
    tar xf VOCtrainval_11-May-2012.tar -C data            # root = data/VOCdevkit/VOC2012

which gives `LAYOUT`. For `augmented=True`:

    wget http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz
    tar xf benchmark.tgz
    python -m jaxseg.data.prepare sbd --sbd benchmark_RELEASE/dataset --voc data/VOCdevkit/VOC2012

The masks are palette PNGs whose indices are the classes; 255, the border of the objects, is
ignored. TensorFlow Datasets' own `voc` has no masks: `PREPARE` runs our builder, and
`source='tfds'` with TFDS's data folder as `root` reads what it wrote.
"""

import functools
import os

import numpy as np

from jaxseg.data import files, tfds_records
from jaxseg.data.base import Description, Record
from jaxseg.data.submission import Submission

LAYOUT = """\
  root/ (VOCdevkit/VOC2012)
    ImageSets/Segmentation/{train,val,trainval}.txt
    JPEGImages/2007_000032.jpg
    SegmentationClass/2007_000032.png
from http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"""

TEST_LAYOUT = """\
  root/ (VOCdevkit/VOC2012)
    ImageSets/Segmentation/test.txt
    JPEGImages/2008_000006.jpg
from VOC2012test.tar of http://host.robots.ox.ac.uk:8080/, unpacked where VOCdevkit is"""

AUGMENTED_LAYOUT = """\
  root/ (VOCdevkit/VOC2012)
    ImageSets/Segmentation/aug.txt     the 9,118 names that SBD adds to train.txt
    SegmentationClassAug/2008_000002.png
To make them, unpack SBD from
http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz
and run
  python -m jaxseg.data.prepare sbd --sbd benchmark_RELEASE/dataset --voc ROOT"""

PREPARE = """\
  python -m jaxseg.data.prepare voc2012 --manual_dir DIR --data_dir ROOT
where DIR holds VOCtrainval_11-May-2012.tar or the folder VOCdevkit unpacked from it"""

PREPARE_AUGMENTED = """\
  python -m jaxseg.data.prepare voc2012 --augmented --manual_dir DIR --data_dir ROOT
where DIR holds the folder VOCdevkit with the masks of SBD added (see jaxseg/data/voc2012.py)"""

CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


def bit_palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """VOC's colours: the index's bits, dealt in turn to R, G and B from their highest bit down."""

    def channel(index: int, first: int) -> int:
        bits = [index >> place & 1 for place in range(first, 24, 3)]
        return sum(bit << 7 - rank for rank, bit in enumerate(bits))

    return tuple((channel(i, 0), channel(i, 1), channel(i, 2)) for i in range(count))


# The development kit's folder of results (devkit_doc, section 5.3), of the competition that allows
# data from elsewhere, such as weights trained on ImageNet.
SUBMISSION = Submission(
    server="http://host.robots.ox.ac.uk:8080/",
    values=np.arange(len(CLASSES), dtype=np.uint8),
    path=lambda id: f"results/VOC2012/Segmentation/comp6_test_cls/{id}.png",
    archive="tar.gz",
    images=1456,
    palette=bit_palette(256),
)


def describe(
    root: str = "data/VOCdevkit/VOC2012", source: str = "folders", augmented: bool = False
) -> Description:
    """Describes PASCAL VOC 2012.

    Args:
      root: the folder of `LAYOUT`, or the data folder of TFDS.
      source: 'folders' (as downloaded) or 'tfds' (prepared by our TFDS builder).
      augmented: offer the split train_aug, the training set and the masks of SBD.

    Returns:
      21 classes, splits train, val, trainval (and train_aug); ids are file names without suffix.
      From folders, `records` has 'test' too, the photographs without labels.

    Raises:
      UserError: from `records`, when files are missing; names them and the layout.
    """
    files.check_source("voc2012", source)
    splits = ("train", "val", "trainval") + ("train_aug",) * augmented
    records = {"folders": _folder_records, "tfds": _tfds_records}[source]
    return Description(
        name="voc2012",
        classes=CLASSES,
        palette=bit_palette(len(CLASSES)),
        splits=splits,
        records=functools.partial(records, os.path.expanduser(root), splits),
    )


def _folder_records(root: str, splits: tuple[str, ...], split: str) -> list[Record]:
    if split == "test":
        return _listed(root, "test", None, TEST_LAYOUT)
    files.check_split("voc2012", split, (*splits, "test"))
    if split == "train_aug":
        return _listed(root, "train", "SegmentationClass", LAYOUT) + added_by_sbd(root)
    return _listed(root, split, "SegmentationClass", LAYOUT)


def added_by_sbd(root: str) -> list[Record]:
    """The records that SBD adds to the training set; raises `UserError` if they are missing."""
    return _listed(root, "aug", "SegmentationClassAug", AUGMENTED_LAYOUT)


def _listed(root: str, name: str, masks: str | None, layout: str) -> list[Record]:
    """The records of one list file, `ImageSets/Segmentation/NAME.txt`, in its order.

    `masks` is the folder of the labels, None where there are none.
    """
    list_file = os.path.join(root, "ImageSets", "Segmentation", f"{name}.txt")
    ids = files.read_list(list_file, layout)
    image_folder = os.path.join(root, "JPEGImages")
    all_images = files.find(image_folder, layout=LAYOUT, suffixes=(".jpg",))
    images = files.select(ids, all_images, list_file=list_file, folder=image_folder)
    if masks is None:
        return [Record(id, images[id]) for id in ids]
    mask_folder = os.path.join(root, masks)
    all_masks = files.find(mask_folder, layout=layout, suffixes=(".png",))
    labels = files.select(ids, all_masks, list_file=list_file, folder=mask_folder)
    return [Record(id, images[id], labels[id]) for id in ids]


def _tfds_records(root: str, splits: tuple[str, ...], split: str) -> list[Record]:
    files.check_split("voc2012", split, splits)
    augmented = "train_aug" in splits
    read = functools.partial(
        tfds_records.read,
        root,
        f"voc2012_masks/{'augmented' if augmented else 'segmentation'}",
        id="id",
        image="image",
        label="label",
        prepare=PREPARE_AUGMENTED if augmented else PREPARE,
    )
    if split == "train_aug":
        return read("train") + read("aug")
    if split == "trainval":
        return sorted(read("train") + read("validation"), key=lambda record: record.id)
    return read("validation" if split == "val" else split)
