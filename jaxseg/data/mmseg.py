"""Further datasets of MMSegmentation's released models, as its conversion scripts leave them.

One table, `LAYOUTS`: where images and masks are, how their names end, and what the masks store.
Cityscapes, ADE20K and PASCAL VOC have files of their own and are read as downloaded.

The scripts are `tools/dataset_converters` of https://github.com/open-mmlab/mmsegmentation (1.x);
its `docs/en/user_guides/2_dataset_prepare.md` says for each dataset what to download, and under
which terms. 'val' is the part that the published figures are of, whatever the dataset calls it.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping

import numpy as np

from jaxseg import named, zoo
from jaxseg.data import files
from jaxseg.data.base import Description, Record


@dataclasses.dataclass(frozen=True)
class Layout:
    """The folders of a dataset, and what its masks store.

    Attributes:
      facts: MMSegmentation's dataset class, by which `jaxseg.zoo` knows classes and colours.
      folders: split -> (folder of images, folder of masks), relative to the root.
      source: where it comes from and what makes the folders, for messages.
      suffix: of the images; masks are PNG.
      ending: what the mask's name has behind the image's.
      listed: the folder of lists SPLIT.txt of names, where not the folders make the splits.
      first: the stored value of class 0. Where it is 1, 0 is ignored (`reduce_zero_label`).
      ignored: further stored values that are ignored.
      count: so many of the classes are predicted; None: all.
    """

    facts: str
    folders: Mapping[str, tuple[str, str]]
    source: str
    suffix: str = ".png"
    ending: str = ""
    listed: str = ""
    first: int = 0
    ignored: tuple[int, ...] = (255,)
    count: int | None = None


def _beside(images: str, masks: str, train: str, val: str) -> dict[str, tuple[str, str]]:
    """The folders of two splits that have the same names below `images` and `masks`."""
    return {
        split: (f"{images}/{name}", f"{masks}/{name}")
        for split, name in (("train", train), ("val", val))
    }


_DIRS = _beside("img_dir", "ann_dir", "train", "val")
_VESSELS = dict(
    folders=_beside("images", "annotations", "training", "validation"),
    ignored=(),  # a 255 is a mask that was not converted: vessels are 1
)
_CONTEXT = dict(
    folders=dict.fromkeys(("train", "val"), ("JPEGImages", "SegmentationClassContext")),
    listed="ImageSets/SegmentationContext",
    suffix=".jpg",
    source="pascal_context.py makes masks and lists in VOC2010, from VOCtrainval_03-May-2010.tar "
    "of http://host.robots.ox.ac.uk/pascal/VOC/voc2010/ and trainval_merged.json",
)

LAYOUTS = {
    # Caesar et al. 2018, arXiv:1612.03716; tested on its 1,000 test images
    "coco_stuff10k": Layout(
        facts="COCOStuffDataset",
        folders=_beside("images", "annotations", "train2014", "test2014"),
        suffix=".jpg",
        ending="_labelTrainIds",
        first=1,
        source="coco_stuff10k.py makes them of cocostuff-10k-v1.1.zip, see "
        "https://github.com/nightrome/cocostuff10k",
    ),
    "coco_stuff164k": Layout(
        facts="COCOStuffDataset",
        folders=_beside("images", "annotations", "train2017", "val2017"),
        suffix=".jpg",
        ending="_labelTrainIds",
        source="coco_stuff164k.py makes the masks, of stuffthingmaps_trainval2017.zip; see "
        "https://github.com/nightrome/cocostuff",
    ),
    # Mottaghi et al., CVPR 2014: 59 classes, or 60 with the background
    "pascal_context": Layout(facts="PascalContextDataset", **_CONTEXT),
    "pascal_context59": Layout(facts="PascalContextDataset59", first=1, **_CONTEXT),
    # Wang et al. 2021, arXiv:2110.08733
    "loveda": Layout(
        facts="LoveDADataset",
        folders=_DIRS,
        first=1,
        source="loveda.py makes them of Train.zip, Val.zip and Test.zip of "
        "https://zenodo.org/record/5706578",
    ),
    # ISPRS 2D Semantic Labeling Contest, cut into tiles of 512x512
    "potsdam": Layout(
        facts="PotsdamDataset",
        folders=_DIRS,
        first=1,
        source="potsdam.py makes them of 2_Ortho_RGB.zip and 5_Labels_all_noBoundary.zip, on "
        "request from https://www.isprs.org/education/benchmarks/UrbanSemLab/",
    ),
    "vaihingen": Layout(
        facts="ISPRSDataset",
        folders=_DIRS,
        first=1,
        source="vaihingen.py makes them of ISPRS_semantic_labeling_Vaihingen.zip and "
        "..._Vaihingen_ground_truth_eroded_COMPLETE.zip, on request from "
        "https://www.isprs.org/education/benchmarks/UrbanSemLab/",
    ),
    # Waqas Zamir et al. 2019, arXiv:1905.12886, cut into tiles of 896x896
    "isaid": Layout(
        facts="iSAIDDataset",
        folders=_DIRS,
        ending="_instance_color_RGB",
        source="isaid.py makes them of the images of https://captain-whu.github.io/DOTA/ and the "
        "Semantic_masks of https://captain-whu.github.io/iSAID/",
    ),
    # Neuhold et al., ICCV 2017, version 1.2; 65 is 'Unlabeled', which no released model predicts
    "mapillary_v1": Layout(
        facts="MapillaryDataset_v1",
        folders={
            "train": ("training/images", "training/v1.2/labels"),
            "val": ("validation/images", "validation/v1.2/labels"),
        },
        suffix=".jpg",
        ignored=(65, 255),
        count=65,
        source="the archive of https://www.mapillary.com/dataset/vistas, unpacked",
    ),
    # Vessels of the retina: Staal et al. 2004; Budai et al. 2013; Hoover et al. 2000; Fraz et al.
    # 2012. The first observer's masks are the truth.
    "drive": Layout(
        facts="DRIVEDataset",
        ending="_manual1",
        source="drive.py makes them of training.zip and test.zip (one that has 1st_manual) of "
        "https://drive.grand-challenge.org/",
        **_VESSELS,
    ),
    "hrf": Layout(
        facts="HRFDataset",
        source="hrf.py makes them of the six archives of "
        "https://www5.cs.fau.de/research/data/fundus-images/",
        **_VESSELS,
    ),
    "stare": Layout(
        facts="STAREDataset",
        ending=".ah",
        source="stare.py makes them of stare-images.tar, labels-ah.tar and labels-vk.tar of "
        "http://cecas.clemson.edu/~ahoover/stare/probing/",
        **_VESSELS,
    ),
    "chase_db1": Layout(
        facts="ChaseDB1Dataset",
        ending="_1stHO",
        source="chase_db1.py makes them of CHASEDB1.zip of "
        "https://blogs.kingston.ac.uk/retinal/chasedb1/",
        **_VESSELS,
    ),
}


def describe(dataset: str, root: str) -> Description:
    """Describes one of the datasets of `LAYOUTS`.

    Args:
      dataset: which one, a key of `LAYOUTS`.
      root: the folder that its conversion script wrote.

    Returns:
      Its classes in the order of the released models, splits train and val, both with labels; ids
      are the paths of images without suffix.

    Raises:
      UserError: another dataset; from `records`, when files are missing, with the layout and where
        to get them.
    """
    named.check("config.data", "dataset", dataset, LAYOUTS)
    layout = LAYOUTS[dataset]
    found = zoo.describe(layout.facts, layout.count)
    label_map = np.full(256, -1, np.int32)
    label_map[layout.first : layout.first + found.num_classes] = np.arange(found.num_classes)
    label_map[[*range(layout.first), *layout.ignored]] = 255
    return dataclasses.replace(
        found,
        name=dataset,
        splits=tuple(layout.folders),
        records=functools.partial(_records, dataset, os.path.expanduser(root)),
        label_map=label_map,
    )


def _records(dataset: str, root: str, split: str) -> list[Record]:
    layout = LAYOUTS[dataset]
    files.check_split(dataset, split, tuple(layout.folders))
    expected = _shown(layout)
    image_folder, mask_folder = (
        os.path.join(root, *path.split("/")) for path in layout.folders[split]
    )
    images = files.find(image_folder, layout=expected, suffixes=(layout.suffix,))
    find = functools.partial(files.find, layout=expected, suffixes=(".png",), ending=layout.ending)
    masks = find(mask_folder)
    if layout.listed:
        list_file = os.path.join(root, *layout.listed.split("/"), f"{split}.txt")
        ids = files.read_list(list_file, expected)
        images = files.select(ids, images, list_file=list_file, folder=image_folder)
        masks = files.select(ids, masks, list_file=list_file, folder=mask_folder)
    return files.pair(images, masks, image_folder=image_folder, mask_folder=mask_folder)


def _shown(layout: Layout) -> str:
    """The folder tree as messages show it."""
    lines = {
        line: None  # a set in order: both splits of Pascal Context are in the same folders
        for images, masks in layout.folders.values()
        for line in (f"{images}/NAME{layout.suffix}", f"{masks}/NAME{layout.ending}.png")
    }
    if layout.listed:
        lines |= {f"{layout.listed}/{split}.txt": None for split in layout.folders}
    tree = "\n".join(f"    {line}" for line in lines)
    scripts = "\n(the scripts are tools/dataset_converters of MMSegmentation)"
    note = scripts if ".py " in layout.source else ""
    return f"  root/ (config.data.root)\n{tree}\n{layout.source}{note}"
