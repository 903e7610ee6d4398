"""Dataset descriptions: what they list, how stored values become classes, and what they refuse."""

import importlib.util
import io
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from jaxseg import data
from jaxseg.data import ade20k, camvid, cityscapes, folder, tfds_records, voc2012
from jaxseg.data.prepare import sbd
from jaxseg.errors import UserError


def write(path, array, palette=None):
    """Writes a picture (uint8 [h, w] or [h, w, 3]) and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(array)
    if palette is not None:
        picture.putpalette([value for color in palette for value in color])
    picture.save(path, quality=95) if path.suffix == ".jpg" else picture.save(path)


def stored(source):
    """The values of a mask as they are stored, from a path or a function that returns bytes."""
    with Image.open(io.BytesIO(source()) if callable(source) else source) as picture:
        return np.asarray(picture)


def image(seed, height=4, width=6):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def mask(seed, values, height=4, width=6):
    return np.random.default_rng(seed).choice(np.array(values, np.uint8), (height, width))


def fails(call, *texts):
    """Asserts that `call` raises one UserError with all the texts in it."""
    with pytest.raises(UserError) as caught:
        call()
    for text in texts:
        assert str(text) in str(caught.value), str(caught.value)


# --- Cityscapes ---------------------------------------------------------------------------------

# The label table of the dataset's authors (cityscapesScripts, helpers/labels.py): id, train id.
OFFICIAL = """
unlabeled 0 255; ego vehicle 1 255; rectification border 2 255; out of roi 3 255; static 4 255;
dynamic 5 255; ground 6 255; road 7 0; sidewalk 8 1; parking 9 255; rail track 10 255;
building 11 2; wall 12 3; fence 13 4; guard rail 14 255; bridge 15 255; tunnel 16 255; pole 17 5;
polegroup 18 255; traffic light 19 6; traffic sign 20 7; vegetation 21 8; terrain 22 9; sky 23 10;
person 24 11; rider 25 12; car 26 13; truck 27 14; bus 28 15; caravan 29 255; trailer 30 255;
train 31 16; motorcycle 32 17; bicycle 33 18; license plate -1 255
"""
OFFICIAL_ROWS = [row.strip().rsplit(" ", 2) for row in OFFICIAL.replace("\n", " ").split(";")]

CITIES = {
    "train": ("zurich_000001_000019", "aachen_000000_000019", "aachen_000002_000019"),
    "val": ("lindau_000000_000019", "frankfurt_000001_058914"),
    "test": ("berlin_000000_000019",),
}


def cityscapes_tree(root, repeats=1):
    """Tiny frames; with `repeats`, each is repeated that often in both directions."""
    for split, frames in CITIES.items():
        for seed, frame in enumerate(frames):
            city = frame.split("_")[0]
            picture = np.tile(image(seed, 4, 8), (repeats, repeats, 1))
            write(root / "leftImg8bit" / split / city / f"{frame}_leftImg8bit.png", picture)
            gt = root / "gtFine" / split / city
            label = np.tile(mask(seed, range(34), 4, 8), (repeats, repeats))
            write(gt / f"{frame}_gtFine_labelIds.png", label)
            write(gt / f"{frame}_gtFine_color.png", image(9))  # not to be taken
            (gt / f"{frame}_gtFine_polygons.json").write_text("{}")
    return root


def test_cityscapes_label_map_is_the_official_table():
    assert len(OFFICIAL_ROWS) == 35
    train_ids = {int(id): int(train_id) for _, id, train_id in OFFICIAL_ROWS}
    table = cityscapes.describe().label_map
    assert table.shape == (256,)
    for value in range(256):
        expected = train_ids[-1] if value == 255 else train_ids.get(value, -1)
        assert table[value] == expected, value
    names = {int(train_id): name for name, _, train_id in OFFICIAL_ROWS if train_id != "255"}
    assert cityscapes.describe().classes == tuple(names[i] for i in range(19))


def test_cityscapes_folders(tmp_path):
    description = cityscapes.describe(str(cityscapes_tree(tmp_path)))
    train = description.records("train")
    assert [record.id for record in train] == [
        "aachen/aachen_000000_000019",
        "aachen/aachen_000002_000019",
        "zurich/zurich_000001_000019",
    ]
    seeds = (1, 2, 0)
    for record, seed in zip(train, seeds, strict=True):
        np.testing.assert_array_equal(stored(record.image), image(seed, 4, 8))
        np.testing.assert_array_equal(stored(record.label), mask(seed, range(34), 4, 8))
    assert [r.id for r in description.records("val")] == [
        "frankfurt/frankfurt_000001_058914",
        "lindau/lindau_000000_000019",
    ]
    assert [(r.id, r.label) for r in description.records("test")] == [
        ("berlin/berlin_000000_000019", None)
    ]


def test_cityscapes_errors(tmp_path):
    records = cityscapes.describe(str(tmp_path)).records  # describing looks at no file
    layout = "gtFine/{train,val}/CITY/CITY_000000_000019_gtFine_labelIds.png"
    fails(lambda: records("train"), tmp_path / "leftImg8bit" / "train", "no such", layout)
    cityscapes_tree(tmp_path)
    frames = tmp_path / "gtFine/train/aachen"
    (frames / "aachen_000000_000019_gtFine_labelIds.png").unlink()
    (tmp_path / "leftImg8bit/train/zurich/zurich_000001_000019_leftImg8bit.png").unlink()
    fails(
        lambda: records("train"),
        "1 of 2 image(s) have no mask",
        "aachen/aachen_000000_000019",
        "1 of 2 mask(s) have no image",
        "zurich/zurich_000001_000019",
    )
    fails(lambda: records("trainval"), "no split 'trainval'", "train, val, test")
    fails(lambda: cityscapes.describe(source="hub"), "'hub'", "'folders'", "'tfds'")
    shutil.rmtree(tmp_path / "gtFine/val")
    (tmp_path / "gtFine/val/frankfurt").mkdir(parents=True)
    fails(lambda: records("val"), tmp_path / "gtFine" / "val", "no file *_gtFine_labelIds", layout)


def test_cityscapes_real_frame(shared):
    description = cityscapes.describe(str(shared / "data/cityscapes_sample"))
    (record,) = description.records("val")
    assert record.id == "frankfurt/frankfurt_000001_058914"
    label = description.label_map[stored(record.label)]
    assert label.shape == (1024, 2048)
    named = {description.classes[i] for i in np.unique(label) if i != 255}
    assert {"road", "sidewalk", "building", "person", "car"} <= named and label.min() == 0
    assert 0.05 < (label == 255).mean() < 0.3  # the bonnet and the border, among others


# --- ADE20K -------------------------------------------------------------------------------------


def ade20k_tree(root):
    for part, count in (("training", 5), ("validation", 2)):
        for i in range(count):
            name = f"ADE_{part[:5]}_{i + 1:08d}"
            write(root / "images" / part / f"{name}.jpg", image(i, 9, 8 + i))
            write(root / "annotations" / part / f"{name}.png", mask(i, range(151), 9, 8 + i))
    return root


def test_ade20k_folders(tmp_path):
    description = ade20k.describe(str(ade20k_tree(tmp_path)))
    records = description.records("train")
    assert [r.id for r in records] == [f"ADE_train_0000000{i}" for i in range(1, 6)]
    assert [r.id for r in description.records("val")] == [
        "ADE_valid_00000001",
        "ADE_valid_00000002",
    ]
    for i, record in enumerate(records):
        np.testing.assert_array_equal(stored(record.label), mask(i, range(151), 9, 8 + i))


def test_ade20k_label_map():
    table = ade20k.describe().label_map
    assert table[0] == 255
    for value in range(1, 256):
        assert table[value] == (value - 1 if value <= 150 else -1)
    assert ade20k.CLASSES[0] == "wall" and ade20k.CLASSES[7] == "bed"
    assert ade20k.CLASSES[149] == "flag"


def test_ade20k_errors(tmp_path):
    records = ade20k.describe(str(tmp_path)).records
    fails(
        lambda: records("val"), tmp_path / "images/validation", "annotations/{training,validation}"
    )
    ade20k_tree(tmp_path)
    for i in range(1, 3):
        (tmp_path / f"annotations/training/ADE_train_0000000{i}.png").unlink()
    fails(lambda: records("train"), "2 of 5 image(s)", "ADE_train_00000001, ADE_train_00000002")


# --- PASCAL VOC 2012 ----------------------------------------------------------------------------

VOC_VALUES = (0, 1, 15, 20, 255)


def voc_tree(root):
    lists = {"train": ["2007_b", "2007_a"], "val": ["2008_c"], "trainval": "2007_a 2007_b 2008_c"}
    lists["trainval"] = lists["trainval"].split()
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for name, ids in lists.items():
        (root / f"ImageSets/Segmentation/{name}.txt").write_text("\n".join(ids) + "\n")
    for seed, id in enumerate(["2007_a", "2007_b", "2008_c", "2009_d", "2009_e"]):
        write(root / f"JPEGImages/{id}.jpg", image(seed, 9, 8))
        if seed < 3:
            palette = voc2012.bit_palette(256)
            write(root / f"SegmentationClass/{id}.png", mask(seed, VOC_VALUES, 9, 8), palette)
    return root


def sbd_tree(root):
    """2009_d and 2009_e are new, 2007_a and 2008_c are VOC's own."""
    from scipy.io import savemat

    (root / "cls").mkdir(parents=True)
    (root / "train.txt").write_text("2009_e\n2007_a\n")
    (root / "val.txt").write_text("2008_c\n2009_d\n")
    for seed, id in enumerate(["2007_a", "2008_c", "2009_d", "2009_e"]):
        content = {"Segmentation": mask(seed, range(21), 9, 8), "Boundaries": np.zeros(3)}
        savemat(root / f"cls/{id}.mat", {"GTcls": content})
    return root


def test_voc_palette_masks_are_indices(tmp_path):
    description = voc2012.describe(str(voc_tree(tmp_path)))
    records = description.records("train")
    assert [r.id for r in records] == ["2007_b", "2007_a"]  # the list's order
    for record, seed in zip(records, (1, 0), strict=True):
        with Image.open(record.label) as picture:
            assert picture.mode == "P"
        np.testing.assert_array_equal(stored(record.label), mask(seed, VOC_VALUES, 9, 8))
    assert [r.id for r in description.records("val")] == ["2008_c"]
    assert [r.id for r in description.records("trainval")] == ["2007_a", "2007_b", "2008_c"]
    assert description.label_map is None and description.ignore_label == 255
    assert description.num_classes == 21


def test_voc_augmented(tmp_path):
    root = voc_tree(tmp_path / "voc")
    fails(lambda: voc2012.describe(str(root)).records("train_aug"), "no split 'train_aug'")
    description = voc2012.describe(str(root), augmented=True)
    hint = ("SegmentationClassAug", "benchmark.tgz", "python -m jaxseg.data.prepare sbd")
    fails(lambda: description.records("train_aug"), root / "ImageSets/Segmentation/aug.txt", *hint)
    assert len(description.records("train")) == 2  # the rest works without SBD

    assert sbd.convert(str(sbd_tree(tmp_path / "sbd")), str(root)) == 2
    records = description.records("train_aug")
    assert [r.id for r in records] == ["2007_b", "2007_a", "2009_d", "2009_e"]
    for record, seed in zip(records[2:], (2, 3), strict=True):
        assert "SegmentationClassAug" in record.label
        np.testing.assert_array_equal(stored(record.label), mask(seed, range(21), 9, 8))

    (root / "SegmentationClassAug/2009_e.png").unlink()
    fails(lambda: description.records("train_aug"), "1 of 2 listed", "2009_e", "aug.txt")
    shutil.rmtree(root / "SegmentationClassAug")
    fails(lambda: description.records("train_aug"), root / "SegmentationClassAug", *hint)


def test_sbd_errors(tmp_path):
    root, source = voc_tree(tmp_path / "voc"), tmp_path / "sbd"
    fails(lambda: sbd.convert(str(source), str(root)), source / "train.txt", "benchmark_RELEASE")
    sbd_tree(source)
    (source / "cls/2009_d.mat").write_bytes(b"no matrix")
    fails(lambda: sbd.convert(str(source), str(root)), "2009_d.mat", "not a mask of SBD")
    assert not (root / "ImageSets/Segmentation/aug.txt").exists()


def test_voc_errors(tmp_path):
    records = voc2012.describe(str(tmp_path)).records
    path = tmp_path / "ImageSets/Segmentation/val.txt"
    fails(lambda: records("val"), path, "SegmentationClass/2007_000032.png")
    voc_tree(tmp_path)
    path.write_text("2008_c\n2099_x\n2099_y\n")
    fails(lambda: records("val"), path, "2 of 3 listed", "2099_x, 2099_y", "JPEGImages")
    path.write_text("2008_c\n2008_c\n")
    fails(lambda: records("val"), path, "more than once: 2008_c")
    path.write_text("\n")
    fails(lambda: records("val"), path, "empty")


def test_bit_palette():
    assert voc2012.bit_palette(9)[:9] == (
        (0, 0, 0),
        (128, 0, 0),
        (0, 128, 0),
        (128, 128, 0),
        (0, 0, 128),
        (128, 0, 128),
        (0, 128, 128),
        (128, 128, 128),
        (64, 0, 0),
    )
    assert voc2012.bit_palette(256)[255] == (224, 224, 192)  # the border in VOC's files
    assert len(set(voc2012.bit_palette(1000))) == 1000


# --- CamVid -------------------------------------------------------------------------------------


def test_camvid(tmp_path):
    for split in ("train", "val", "test"):
        for seed, name in enumerate(("0016E5_b", "0001TP_a")):
            write(tmp_path / split / f"{name}.png", image(seed))
            write(tmp_path / f"{split}annot" / f"{name}.png", mask(seed, range(12)))
    description = camvid.describe(str(tmp_path))
    for split in description.splits:
        records = description.records(split)
        assert [r.id for r in records] == ["0001TP_a", "0016E5_b"]
        np.testing.assert_array_equal(stored(records[0].image), image(1))
        np.testing.assert_array_equal(stored(records[0].label), mask(1, range(12)))
    np.testing.assert_array_equal(description.label_map[:13], [*range(11), 255, -1])
    assert (description.label_map[12:] == -1).all()
    assert description.classes[0] == "sky" and description.classes[10] == "bicyclist"
    shutil.rmtree(tmp_path / "valannot")
    fails(lambda: description.records("val"), tmp_path / "valannot", "{train,val,test}annot/*.png")


def test_camvid_real(shared):
    description = camvid.describe(str(shared / "data/camvid"))
    counts = {split: len(description.records(split)) for split in description.splits}
    assert counts == {"train": 367, "val": 101, "test": 233}
    record = description.records("test")[0]
    with Image.open(record.image) as picture:
        assert picture.size == (480, 360)
    label = description.label_map[stored(record.label)]
    # A street from a car: sky in the upper half, road in the lower.
    assert (label[:180] == 0).sum() > (label[180:] == 0).sum()
    assert (label[180:] == 3).sum() > (label[:180] == 3).sum()


def test_tables_equal_the_zoo(shared):
    zoo = json.loads((shared / "zoo/datasets.json").read_text())
    for name, description in (
        ("CityscapesDataset", cityscapes.describe()),
        ("ADE20KDataset", ade20k.describe()),
        ("PascalVOCDataset", voc2012.describe()),
    ):
        assert list(description.classes) == [c.strip() for c in zoo[name]["classes"]]
        assert [list(color) for color in description.palette] == zoo[name]["palette"]


# --- anybody's folder ---------------------------------------------------------------------------


def folder_tree(root, classes="background\ntraffic light\nroad\n"):
    for split in ("train", "val"):
        for seed, (name, suffix) in enumerate((("x/b", "png"), ("a", "jpg"), ("c.d", "webp"))):
            write(root / f"images/{split}/{name}.{suffix}", image(seed))
            write(root / f"masks/{split}/{name}.png", mask(seed, (0, 1, 2, 255)))
    (root / "classes.txt").write_text(classes)
    return root


def test_folder_by_sub_folders(tmp_path):
    description = folder.describe(str(folder_tree(tmp_path)))
    assert description.classes == ("background", "traffic light", "road")
    assert description.palette == ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    assert description.splits == ("train", "val")
    records = description.records("val")
    assert [r.id for r in records] == ["a", "c.d", "x/b"]
    assert [os.path.relpath(r.image, tmp_path) for r in records] == [
        "images/val/a.jpg",
        "images/val/c.d.webp",
        "images/val/x/b.png",
    ]
    for record, seed in zip(records, (1, 2, 0), strict=True):
        np.testing.assert_array_equal(stored(record.label), mask(seed, (0, 1, 2, 255)))
    assert description.label_map is None and description.label_colors is None
    fails(lambda: description.records("test"), "no split 'test'", "train, val")


def test_folder_by_lists(tmp_path):
    folder_tree(tmp_path)
    (tmp_path / "train.txt").write_text("val/x/b\n\ntrain/a\n")
    (tmp_path / "mine.txt").write_text("train/c.d\n")
    description = folder.describe(str(tmp_path), splits=("train", "mine"))
    assert [r.id for r in description.records("train")] == ["val/x/b", "train/a"]
    assert [r.id for r in description.records("mine")] == ["train/c.d"]
    (tmp_path / "mine.txt").write_text("train/c.d\nnowhere\na.jpg\n")
    path = tmp_path / "mine.txt"
    fails(lambda: description.records("mine"), path, "2 of 3", "nowhere, a.jpg", "without suffix")
    path.write_text("")
    fails(lambda: description.records("mine"), path, "empty list")
    (tmp_path / "masks/train/a.png").unlink()
    fails(lambda: description.records("train"), "1 of 2 image(s)", "train/a", "unlabelled")


def test_folder_errors(tmp_path):
    fails(lambda: folder.describe(str(tmp_path)), tmp_path / "classes.txt", "ROOT/images/SPLIT")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    fails(lambda: folder.describe(str(tmp_path)), tmp_path, "train.txt", "ROOT/masks/SPLIT/a.png")
    (tmp_path / "images/train").mkdir(parents=True)
    records = folder.describe(str(tmp_path)).records
    fails(lambda: records("train"), tmp_path / "images/train", "no file *(.jpg|", "Expected")
    for i in range(7):
        write(tmp_path / f"images/train/i{i}.png", image(i))
    fails(lambda: records("train"), tmp_path / "masks/train", "no such file or folder")
    write(tmp_path / "masks/train/m.png", mask(0, (0, 1)))
    fails(
        lambda: records("train"),
        "7 of 7 image(s) have no mask",
        "i0, i1, i2, i3, i4 and 2 more",
        "1 of 1 mask(s) have no image",
        ": m.",
    )
    bare = folder.describe(str(tmp_path), unlabelled=("train",)).records("train")
    assert [r.label for r in bare] == [None] * 7
    write(tmp_path / "images/train/i3.jpg", image(3))
    fails(lambda: records("train"), "1 name(s)", "i3.jpg", "i3.png", tmp_path / "images/train")
    fails(lambda: folder.describe(str(tmp_path), splits=("train", "dev")), "dev.txt", "images/dev")


def test_folder_mask_ending_and_hidden_files(tmp_path):
    (tmp_path / "classes.txt").write_text("a\nb\n")
    write(tmp_path / "images/train/p.jpg", image(0))
    write(tmp_path / "masks/train/p_mask.png", mask(0, (0, 1)))
    (tmp_path / "images/train/._p.jpg").write_text("left behind by macOS")
    (tmp_path / "masks/train/p_notes.png").write_text("no mask")
    description = folder.describe(str(tmp_path), mask_ending="_mask")
    (record,) = description.records("train")
    assert record.id == "p" and record.label.endswith("p_mask.png")


@pytest.mark.parametrize(
    "name, text, names, colors",
    [
        ("c.txt", "# mine\n\n sea\nopen  sky \n", ("sea", "open sky"), None),
        ("c.txt", "sea 0 0 255\nopen sky 9 8 7\n", ("sea", "open sky"), ((0, 0, 255), (9, 8, 7))),
        ("c.txt", "route 66\n1 2 3\n", ("route 66", "1 2 3"), None),
        ("c.json", '["sea", "open sky"]', ("sea", "open sky"), None),
        ("c.json", '{"sea": [0, 0, 255], "b": [9, 8, 7]}', ("sea", "b"), ((0, 0, 255), (9, 8, 7))),
    ],
)
def test_class_files(tmp_path, name, text, names, colors):
    (tmp_path / name).write_text(text)
    assert folder.read_classes(str(tmp_path / name)) == (names, colors)


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("c.txt", "# nothing\n", "no class"),
        ("c.txt", "sea\nsky\nsea\n", "more than once: sea"),
        ("c.txt", "sea 0 0 256\n", "beyond 0..255: sea"),
        ("c.txt", "sea 0 0 25\nsky\n", "1 of 2 classes have no colour: sky"),
        ("c.json", "{", "JSON list of names"),
        ("c.json", '"sea"', "JSON list of names"),
        ("c.json", '{"sea": [0, 0]}', "JSON list of names"),
        ("c.json", '{"sea": [0, 0, 1], "sea": [0, 0, 2]}', "more than once: sea"),
        ("c.json", "{}", "no class"),
    ],
)
def test_bad_class_files(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    fails(lambda: folder.read_classes(str(tmp_path / name)), tmp_path / name, message)


def test_folder_stored_values(tmp_path):
    root = str(folder_tree(tmp_path, "background\nlesion\n"))
    table = folder.describe(root, values=(0, 255)).label_map  # black and white; 255 is a class here
    assert table[0] == 0 and table[255] == 1 and (table[1:255] == -1).all()
    table = folder.describe(root, values=(1, 2), ignore=(0, 300)).label_map
    assert table.shape == (301,) and table[:4].tolist() == [255, 0, 1, -1] and table[300] == 255
    table = folder.describe(root, ignore=(7, 255), ignore_label=99).label_map
    assert table[:9].tolist() == [0, 1, -1, -1, -1, -1, -1, 99, -1] and table[255] == 99
    fails(lambda: folder.describe(root, values=(1, 2, 3)), "3 values for 2 classes")
    fails(lambda: folder.describe(root, values=(1, 1)), "different whole numbers")
    fails(lambda: folder.describe(root, ignore=(1,)), "different whole numbers")
    fails(lambda: folder.describe(root, ignore_label=1), "ignore_label=1", "'lesion'")
    fails(lambda: folder.describe(root, ignore_label=-1), "ignore_label=-1", "expected 0 or more")
    fails(lambda: folder.describe(root, mask_kind="colour"), "mask_kind='colour'", "'rgb'")


def test_folder_rgb_masks(tmp_path):
    root = str(folder_tree(tmp_path, "sea 0 0 255\nsky 9 8 7\n"))
    description = folder.describe(root, mask_kind="rgb", ignore=((0, 0, 0), (1, 1, 1)))
    assert description.label_map is None
    sea, sky = (0, 0, 255), (9, 8, 7)
    assert description.label_colors == {sea: 0, sky: 1, (0, 0, 0): 255, (1, 1, 1): 255}
    assert description.palette == (sea, sky)
    fails(lambda: folder.describe(root, mask_kind="rgb", ignore=((9, 8, 7),)), "(9, 8, 7)")
    fails(lambda: folder.describe(root, mask_kind="rgb", ignore=(0,)), "expected colours")
    (tmp_path / "classes.txt").write_text("sea\nsky\n")
    fails(lambda: folder.describe(root, mask_kind="rgb"), tmp_path / "classes.txt", "r g b")


# --- TensorFlow Datasets ------------------------------------------------------------------------

FORMATS = ("tfrecord", "array_record")
needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="preparing a dataset needs TensorFlow"
)


def prepare(*argv):
    from jaxseg.data.prepare.__main__ import run

    return run([str(word) for word in argv])


def same_records(found, expected):
    """Equal ids in equal order, equal image bytes, equal stored mask values."""
    assert [r.id for r in found] == [r.id for r in expected]
    for ours, theirs in zip(found, expected, strict=True):
        with open(theirs.image, "rb") as file:
            assert ours.image() == file.read()
        assert (ours.label is None) == (theirs.label is None)
        if theirs.label is not None:
            np.testing.assert_array_equal(stored(ours.label), stored(theirs.label))


@needs_tensorflow
@pytest.mark.parametrize("file_format", FORMATS)
def test_tfds_cityscapes(tmp_path, file_format):
    tree = cityscapes_tree(tmp_path / "tree", 256)  # the size that TFDS demands
    for name, part in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine")):
        with zipfile.ZipFile(tmp_path / f"{name}_trainvaltest.zip", "w") as archive:
            for path in sorted((tree / part).rglob("*.*")):
                archive.write(path, path.relative_to(tree))
    out = tmp_path / "tfds"
    line = prepare(
        *("cityscapes", "--manual_dir", tmp_path, "--data_dir", out, "--file_format", file_format)
    )
    assert "train 3, validation 2, test 1" in line
    description = cityscapes.describe(str(out), source="tfds")
    for split in description.splits:
        expected = cityscapes.describe(str(tree)).records(split)
        same_records(description.records(split), expected)


@needs_tensorflow
@pytest.mark.parametrize("file_format", FORMATS)
def test_tfds_ade20k(tmp_path, file_format):
    tree = ade20k_tree(tmp_path / "manual/ADEChallengeData2016")
    if file_format == "tfrecord":
        from tensorflow_datasets import download

        from jaxseg.data.prepare.ade20k import Ade20kMasks

        builder = Ade20kMasks(data_dir=tmp_path / "tfds")
        config = download.DownloadConfig(manual_dir=tmp_path / "manual", num_shards=2)
        builder.download_and_prepare(download_config=config)
        assert len(builder.info.splits["train"].filepaths) == 2
    else:
        shutil.make_archive(str(tree), "zip", tmp_path / "manual", tree.name)
        shutil.move(tree, tmp_path / "elsewhere")
        tree = tmp_path / "elsewhere"
        prepare(
            *("ade20k", "--manual_dir", tmp_path / "manual", "--data_dir", tmp_path / "tfds"),
            *("--file_format", "array_record"),
        )
    description = ade20k.describe(str(tmp_path / "tfds"), source="tfds")
    for split in ("train", "val"):
        records = description.records(split)
        same_records(records, ade20k.describe(str(tree)).records(split))
        for record in pickle.loads(pickle.dumps(records)):
            assert record.image() == next(r for r in records if r.id == record.id).image()


@needs_tensorflow
@pytest.mark.parametrize("file_format", FORMATS)
def test_tfds_voc2012(tmp_path, file_format):
    import tensorflow_datasets as tfds

    tree = voc_tree(tmp_path / "VOCdevkit/VOC2012")
    out = tmp_path / "tfds"
    argv = ["voc2012", "--manual_dir", tmp_path, "--data_dir", out, "--file_format", file_format]
    augmented = file_format == "array_record"
    if augmented:
        sbd.convert(str(sbd_tree(tmp_path / "sbd")), str(tree))
        argv.append("--augmented")
    else:
        shutil.make_archive(str(tmp_path / "VOC"), "tar", tmp_path, "VOCdevkit")
        shutil.move(tmp_path / "VOC.tar", tmp_path / "VOCtrainval_11-May-2012.tar")
        shutil.move(tmp_path / "VOCdevkit", tmp_path / "elsewhere")
        tree = tmp_path / "elsewhere/VOC2012"
    prepare(*argv)
    theirs = voc2012.describe(str(tree), augmented=augmented)
    ours = voc2012.describe(str(out), source="tfds", augmented=augmented)
    for split in ours.splits:
        expected = theirs.records(split)
        if split == "train":
            expected = sorted(expected, key=lambda record: record.id)
        if split == "train_aug":
            expected = sorted(expected[:2], key=lambda record: record.id) + expected[2:]
        same_records(ours.records(split), expected)

    # What TFDS itself makes of the files: the masks must be indices for its decoder too.
    config = "augmented" if augmented else "segmentation"
    builder = tfds.builder_from_directory(out / f"voc2012_masks/{config}/1.0.0")
    if augmented:
        samples = list(builder.as_data_source("train"))
    else:
        samples = list(tfds.as_numpy(builder.as_dataset("train")))
    assert len(samples) == 2
    labels = {bytes(s["id"]).decode(): s["label"][..., 0] for s in samples}
    for record in theirs.records("train"):
        np.testing.assert_array_equal(labels[record.id], stored(record.label))


@needs_tensorflow
def test_tfds_errors(tmp_path):
    command = "python -m jaxseg.data.prepare ade20k --manual_dir DIR --data_dir ROOT"
    records = ade20k.describe(str(tmp_path / "tfds"), source="tfds").records
    where = tmp_path / "tfds/ade20k_masks"
    fails(lambda: records("train"), where, command, "ADEChallengeData2016.zip")
    argv = ["ade20k", "--manual_dir", tmp_path / "manual", "--data_dir", tmp_path / "tfds"]
    fails(lambda: prepare(*argv), tmp_path / "manual", "no such folder")
    (tmp_path / "manual/VOCdevkit").mkdir(parents=True)
    fails(lambda: prepare(*argv), tmp_path / "manual/ADEChallengeData2016.zip", "no such file")
    fails(lambda: prepare("cityscapes", *argv[1:]), "leftImg8bit_trainvaltest.zip", "no such file")
    ade20k_tree(tmp_path / "manual/ADEChallengeData2016")
    prepare(*argv)
    (where / "1.0.1").mkdir()  # an interrupted later version has no dataset_info.json
    assert len(records("train")) == 5

    read = dict(id="id", image="image", label="label", prepare=command)
    fails(
        lambda: tfds_records.read(str(tmp_path / "tfds"), "ade20k_masks", "test", **read),
        "split test",
        "train, validation",
        command,
    )
    read["label"] = "depth"
    fails(
        lambda: tfds_records.read(str(tmp_path / "tfds"), "ade20k_masks", "train", **read),
        "no feature depth",
    )
    (path,) = where.glob("1.0.0/*train.tfrecord*")
    whole = path.read_bytes()
    for cut in (len(whole) - 1, 5):
        path.write_bytes(whole[:cut])
        fails(lambda: records("train"), path, "ends within a record")
    first = int.from_bytes(whole[:8], "little") + 16
    path.write_bytes(whole[:first])
    fails(lambda: records("train"), "1 records, 5 expected")
    path.write_bytes(whole[:12] + b"\xff" * (first - 16) + whole[first - 4 :])
    fails(lambda: records("train"), "not a tf.train.Example")
    path.unlink()
    fails(lambda: records("train"), "1 of 1 file(s) are missing", path)

    argv[-1] = tmp_path / "array"
    prepare(*argv, "--file_format", "array_record")
    (path,) = (tmp_path / "array").glob("ade20k_masks/1.0.0/*train.array_record*")
    path.write_bytes(b"")
    records = ade20k.describe(str(tmp_path / "array"), source="tfds").records
    fails(lambda: records("train"), tmp_path / "array", "record 0 cannot be read")


@needs_tensorflow
def test_prepared_data_reads_without_tensorflow(tmp_path):
    ade20k_tree(tmp_path / "ADEChallengeData2016")
    for file_format in FORMATS:
        argv = ("--manual_dir", tmp_path, "--data_dir", tmp_path / file_format)
        prepare("ade20k", *argv, "--file_format", file_format)
    code = f"""
import sys
from jaxseg.data import ade20k, camvid, cityscapes, folder, voc2012
light = [m for m in ("tensorflow_datasets", "PIL") if m in sys.modules]
for name in {FORMATS}:
    records = ade20k.describe({str(tmp_path)!r} + "/" + name, source="tfds").records("train")
    print(len(records), len(records[0].image()) > 99, "tensorflow" in sys.modules, light)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=pathlib.Path(__file__).parents[1],
    )
    assert done.stdout == "5 True False []\n" * 2


# --- all ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cityscapes", "ade20k", "voc2012", "camvid"])
def test_descriptions_are_lazy_complete_and_picklable(name):
    description = data.get({"name": name, "root": "/nowhere"})  # looks at no file
    assert len(description.palette) == description.num_classes == len(set(description.classes))
    assert all(0 <= value <= 255 for color in description.palette for value in color)
    for split in description.splits:
        fails(lambda split=split: description.records(split), "/nowhere", "root/")
    assert pickle.loads(pickle.dumps(description)).classes == description.classes
