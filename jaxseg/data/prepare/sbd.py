"""Turns the masks of the Semantic Boundaries Dataset into VOC's form: the augmented training set.

SBD (Hariharan et al. 2011) annotates 11,355 photographs of VOC 2012, of which 9,118 are in neither
of VOC's own lists; DeepLab and its successors train on these and VOC's 1,464.
"""

import os

from jaxseg.data import files, voc2012
from jaxseg.errors import UserError

LAYOUT = """\
  sbd/ (benchmark_RELEASE/dataset)
    train.txt, val.txt
    cls/2008_000002.mat
from http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz"""


def convert(sbd: str, voc: str) -> int:
    """Writes SegmentationClassAug/*.png and ImageSets/Segmentation/aug.txt.

    Args:
      sbd: the folder of `LAYOUT`.
      voc: VOCdevkit/VOC2012.

    Returns:
      The number of masks written.

    Raises:
      UserError: a file is missing, or is not SBD's.
    """
    import numpy as np
    from PIL import Image
    from scipy.io import loadmat  # JAX brings SciPy

    lists = os.path.join(voc, "ImageSets", "Segmentation")
    own = set(files.read_list(os.path.join(lists, "trainval.txt"), voc2012.LAYOUT))
    listed = [
        files.read_list(os.path.join(sbd, f"{name}.txt"), LAYOUT) for name in ("train", "val")
    ]
    ids = sorted(set(listed[0] + listed[1]) - own)
    source = os.path.join(sbd, "cls")
    found = files.find(source, layout=LAYOUT, suffixes=(".mat",))
    mats = files.select(ids, found, list_file=f"{sbd}/{{train,val}}.txt", folder=source)
    target = os.path.join(voc, "SegmentationClassAug")
    os.makedirs(target, exist_ok=True)
    palette = [value for color in voc2012.bit_palette(256) for value in color]
    for id, path in mats.items():
        try:
            classes = loadmat(path, squeeze_me=True, struct_as_record=False)["GTcls"].Segmentation
        except Exception as error:  # a broken file makes SciPy raise many kinds
            raise UserError(f"{path}: not a mask of SBD (GTcls.Segmentation): {error}") from error
        mask = Image.fromarray(np.asarray(classes, np.uint8))
        mask.putpalette(palette)
        mask.save(os.path.join(target, f"{id}.png"))
    # Last, so that a list means that its masks are complete.
    with open(os.path.join(lists, "aug.txt"), "w", encoding="utf-8") as file:
        file.writelines(f"{id}\n" for id in ids)
    return len(ids)
