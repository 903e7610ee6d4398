"""The folders that MMSegmentation's conversion scripts leave: every dataset, and what is wrong.

`CASES` says what the scripts write, from their documentation, not from the table under test.
"""

import numpy as np
import pytest
from PIL import Image

from jaxseg import data
from jaxseg.data import mmseg, reading
from jaxseg.errors import UserError

_DIRS = ("img_dir/val", "ann_dir/val")
_RETINA = ("images/validation", "annotations/validation")
_CONTEXT = ("JPEGImages", "SegmentationClassContext")
_LISTED = "ImageSets/SegmentationContext/val.txt"

# dataset -> ((images, masks), an image's name, its mask's, number of classes, {stored: class or
# 255}, some classes, files that lie there too)
CASES = {
    "coco_stuff10k": (
        ("images/test2014", "annotations/test2014"),
        "COCO_train2014_000000000077.jpg",
        "COCO_train2014_000000000077_labelTrainIds.png",
        171, {0: 255, 1: 0, 171: 170}, {0: "person", 79: "toothbrush", 80: "banner"},
        ("annotations/COCO_train2014_000000000077.mat", "images/COCO_train2014_000000000077.jpg"),
    ),
    "coco_stuff164k": (
        ("images/val2017", "annotations/val2017"),
        "000000000139.jpg",
        "000000000139_labelTrainIds.png",
        171, {0: 0, 170: 170, 255: 255}, {0: "person", 170: "wood"},
        ("annotations/val2017/000000000139.png",),
    ),
    "pascal_context": (
        _CONTEXT, "2008_000002.jpg", "2008_000002.png",
        60, {0: 0, 59: 59}, {0: "background", 1: "aeroplane", 59: "wood"},
        ("JPEGImages/2008_000003.jpg",),
    ),
    "pascal_context59": (
        _CONTEXT, "2008_000002.jpg", "2008_000002.png",
        59, {0: 255, 1: 0, 59: 58}, {0: "aeroplane", 58: "wood"},
        ("SegmentationClassContext/2008_000003.png",),
    ),
    "loveda": (
        _DIRS, "2522.png", "2522.png",
        7, {0: 255, 1: 0, 7: 6}, {0: "background", 6: "agricultural"}, (),
    ),
    "potsdam": (
        _DIRS, "2_13_0_0_512_512.png", "2_13_0_0_512_512.png",
        6, {0: 255, 1: 0, 6: 5}, {0: "impervious_surface", 5: "clutter"}, (),
    ),
    "vaihingen": (
        _DIRS, "area2_0_0_512_512.png", "area2_0_0_512_512.png",
        6, {0: 255, 1: 0, 6: 5}, {4: "car"}, (),
    ),
    "isaid": (
        _DIRS, "P0003_0_896_0_896.png", "P0003_0_896_0_896_instance_color_RGB.png",
        16, {0: 0, 15: 15, 255: 255}, {0: "background", 1: "ship", 15: "Harbor"}, (),
    ),
    "mapillary_v1": (
        ("validation/images", "validation/v1.2/labels"),
        "0035fkbjWljhaftpVM37-g.jpg", "0035fkbjWljhaftpVM37-g.png",
        65, {0: 0, 64: 64, 65: 255}, {0: "Bird", 64: "Ego Vehicle"},
        ("validation/v2.0/labels/0035fkbjWljhaftpVM37-g.png",),
    ),
    "drive": (
        _RETINA, "01.png", "01_manual1.png",
        2, {0: 0, 1: 1}, {1: "vessel"}, ("annotations/validation/01_manual2.png",),
    ),
    "hrf": (_RETINA, "06_dr.png", "06_dr.png", 2, {0: 0, 1: 1}, {1: "vessel"}, ()),
    "stare": (
        _RETINA, "im0082.png", "im0082.ah.png",
        2, {0: 0, 1: 1}, {1: "vessel"}, ("annotations/validation/im0082.vk.png",),
    ),
    "chase_db1": (
        _RETINA, "Image_11L.png", "Image_11L_1stHO.png",
        2, {0: 0, 1: 1}, {1: "vessel"}, ("annotations/validation/Image_11L_2ndHO.png",),
    ),
}  # fmt: skip

SIZE = (6, 8)


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def make(root, dataset):
    """Writes one image and its mask, which has each stored value of the case; returns the mask."""
    (images, masks), image, mask, _, stored, _, also = CASES[dataset]
    write(root / images / image, np.full((*SIZE, 3), 90, np.uint8))
    values = np.resize(np.array(list(stored), np.uint8), SIZE)
    write(root / masks / mask, values)
    for other in also:
        if other.endswith(".mat"):
            (root / other).write_bytes(b"")
        else:
            write(
                root / other, np.full((*SIZE, 3) if other.endswith("jpg") else SIZE, 200, np.uint8)
            )
    if images == "JPEGImages":
        (root / _LISTED).parent.mkdir(parents=True, exist_ok=True)
        (root / _LISTED).write_text("2008_000002\n")
    return values


def test_every_dataset_of_the_table_is_tried():
    assert set(CASES) == set(mmseg.LAYOUTS)


@pytest.mark.parametrize("dataset", CASES)
def test_a_converted_dataset_is_read(dataset, tmp_path):
    _, image, _, count, stored, classes, _ = CASES[dataset]
    values = make(tmp_path, dataset)
    description = data.get(dict(name="mmseg", dataset=dataset, root=str(tmp_path)))
    assert description.name == dataset and description.splits == ("train", "val")
    assert description.num_classes == len(description.palette) == count
    assert {index: description.classes[index] for index in classes} == classes
    [record] = description.records("val")
    assert record.id == image.rpartition(".")[0]
    picture, label = reading.read_pair(description, record)
    assert picture.shape == (*SIZE, 3)
    np.testing.assert_array_equal(label, np.vectorize(stored.get)(values))


@pytest.mark.parametrize("dataset", CASES)
def test_where_nothing_is_the_layout_and_its_source_are_told(dataset, tmp_path):
    (images, masks), image, mask, *_ = CASES[dataset]
    description = mmseg.describe(dataset, str(tmp_path))
    with pytest.raises(UserError) as caught:
        description.records("val")
    said = str(caught.value)
    assert said.startswith(str(tmp_path / images)) and "config.data.root" in said
    stem, _, suffix = image.rpartition(".")
    assert f"{images}/NAME.{suffix}" in said
    assert f"{masks}/{mask.replace(stem, 'NAME')}" in said
    assert "http" in said


@pytest.mark.parametrize("dataset", ["coco_stuff164k", "drive", "chase_db1"])
def test_masks_that_were_not_converted_are_not_taken_for_others(dataset, tmp_path):
    (images, masks), image, mask, *_ = CASES[dataset]
    make(tmp_path, dataset)
    (tmp_path / masks / mask).rename(tmp_path / masks / image.replace(".jpg", ".png"))
    with pytest.raises(UserError, match=r"no file \*_(labelTrainIds|manual1|1stHO)\(.png\)"):
        mmseg.describe(dataset, str(tmp_path)).records("val")


@pytest.mark.parametrize(
    ("dataset", "value"),
    [("drive", 255), ("hrf", 2), ("loveda", 8), ("coco_stuff164k", 171), ("mapillary_v1", 66)],
)
def test_a_value_that_is_no_class_is_refused(dataset, value, tmp_path):
    (_, masks), _, mask, *_ = CASES[dataset]
    make(tmp_path, dataset)
    write(tmp_path / masks / mask, np.full(SIZE, value, np.uint8))
    description = mmseg.describe(dataset, str(tmp_path))
    [record] = description.records("val")
    with pytest.raises(UserError, match=f"value {value} .* not allowed"):
        reading.read_label(description, record)


def test_an_image_without_mask_is_named(tmp_path):
    make(tmp_path, "stare")
    write(tmp_path / "images/validation/im0139.png", np.zeros((*SIZE, 3), np.uint8))
    with pytest.raises(UserError, match="no mask .*im0139"):
        mmseg.describe("stare", str(tmp_path)).records("val")


def test_a_listed_name_without_a_file_is_named(tmp_path):
    make(tmp_path, "pascal_context")
    (tmp_path / _LISTED).write_text("2008_000002\n2009_000001\n")
    with pytest.raises(UserError, match=r"val.txt.*2009_000001"):
        mmseg.describe("pascal_context", str(tmp_path)).records("val")


def test_a_wrong_name_is_corrected():
    with pytest.raises(UserError, match="did you mean 'loveda'"):
        data.get(dict(name="mmseg", dataset="loveDA", root="x"))
    with pytest.raises(UserError, match="no split 'test'; it has train, val"):
        mmseg.describe("potsdam", "x").records("test")
