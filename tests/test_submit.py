"""Files for evaluation servers: values, names and archives, read back as a server would."""

import dataclasses
import io
import tarfile
import zipfile

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from jaxseg import data, main, submit
from jaxseg.data import ade20k, cityscapes, voc2012
from jaxseg.errors import UserError


@dataclasses.dataclass
class ByRed:
    """The class is the red channel, as far as there are classes."""

    classes: tuple

    def segment(self, images):
        return images[..., 0].astype(np.int32) % len(self.classes)


def write(path, size, seed):
    """A photograph in which each class is the red of some pixel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(picture).save(path)


def cityscapes_tree(root):
    for seed, frame in enumerate(("berlin_000000_000019", "bonn_000010_000019")):
        picture = np.zeros((1024, 2048, 3), np.uint8)
        picture[..., 0] = np.arange(2048) // 50 + seed
        path = root / f"leftImg8bit/test/{frame.split('_')[0]}/{frame}_leftImg8bit.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(picture).save(path, compress_level=1)
    return cityscapes.describe(str(root))


def ade20k_tree(root):
    for seed, name in enumerate(("ADE_test_00000001", "ADE_test_00003489")):
        write(root / f"release_test/testing/{name}.jpg", (20 + seed, 30), seed)
    return ade20k.describe(str(root))


def voc2012_tree(root):
    names = ("2008_000006", "2008_000011")
    for seed, name in enumerate((*names, "2008_000008")):
        write(root / f"JPEGImages/{name}.jpg", (20, 30 + seed), seed)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/test.txt").write_text("\n".join(names))
    return voc2012.describe(str(root))


def run(description, output, split="test", classes=None):
    segmentation = ByRed(classes or description.classes)
    records = description.records(split)
    submission = submit.of_dataset(description.name)
    archive = submit.write(segmentation, description, submission, split, records, str(output))
    expected = {}
    for record in records:
        with Image.open(record.image) as picture:
            expected[record.id] = segmentation.segment(np.asarray(picture.convert("RGB")))
    return archive, expected


def unpacked(archive):
    """Name -> bytes of what is in an archive."""
    if archive.name.endswith(".zip"):
        with zipfile.ZipFile(archive) as packed:
            assert packed.testzip() is None
            return {name: packed.read(name) for name in packed.namelist()}
    with tarfile.open(archive, "r:gz") as packed:
        return {member.name: packed.extractfile(member).read() for member in packed}


SERVERS = {
    "cityscapes": (
        cityscapes_tree,
        "L",
        {
            "berlin/berlin_000000_000019": "berlin_000000_000019_leftImg8bit.png",
            "bonn/bonn_000010_000019": "bonn_000010_000019_leftImg8bit.png",
        },
    ),
    "ade20k": (
        ade20k_tree,
        "L",
        {name: f"{name}.png" for name in ("ADE_test_00000001", "ADE_test_00003489")},
    ),
    "voc2012": (
        voc2012_tree,
        "P",
        {
            name: f"results/VOC2012/Segmentation/comp6_test_cls/{name}.png"
            for name in ("2008_000006", "2008_000011")
        },
    ),
}


@pytest.mark.parametrize("name", SERVERS)
def test_the_archive_holds_each_image_in_the_servers_values(tmp_path, capsys, name):
    make, mode, names = SERVERS[name]
    description = make(tmp_path / "data")
    archive, expected = run(description, tmp_path / "out")
    assert archive.name == f"{name}_test.{'tar.gz' if name == 'voc2012' else 'zip'}"
    stored = unpacked(archive)
    assert set(stored) == set(names.values())
    for id, labels in expected.items():
        with Image.open(io.BytesIO(stored[names[id]])) as picture:
            assert picture.mode == mode and picture.format == "PNG"
            values = np.asarray(picture)
            if mode == "P":
                colors = np.reshape(picture.getpalette(), (-1, 3))
                np.testing.assert_array_equal(colors[:21], description.palette)
                assert colors[255].tolist() == [224, 224, 192]
        assert values.dtype == np.uint8 and values.shape == labels.shape
        # As the masks of the training set are read: the server's are stored alike.
        table = description.label_map if description.label_map is not None else np.arange(256)
        np.testing.assert_array_equal(table[values], labels)
        assert len(np.unique(labels)) == description.num_classes or name == "ade20k"
    said = capsys.readouterr().out
    assert f"packed 2 files into {archive}" in said and "upload it at http" in said
    assert "2 images, but the server's test set has" in said
    assert not list((tmp_path / "out").rglob("*.part"))


def test_cityscapes_values_are_the_official_label_ids():
    ids = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
    assert cityscapes.SUBMISSION.values.tolist() == list(ids)
    assert ade20k.SUBMISSION.values.tolist() == list(range(1, 151))
    assert voc2012.SUBMISSION.values.tolist() == list(range(21))


def test_files_of_an_earlier_call_are_replaced_and_not_packed(tmp_path):
    description = ade20k_tree(tmp_path / "data")
    for name in ("ADE_test_00000001", "ADE_test_00000002"):
        write(tmp_path / "out" / "test" / f"{name}.png", (3, 3), 0)
    archive, expected = run(description, tmp_path / "out")
    assert set(unpacked(archive)) == {f"{id}.png" for id in expected}
    with Image.open(tmp_path / "out" / "test" / "ADE_test_00000001.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture) - 1, expected["ADE_test_00000001"])


def test_an_image_that_cannot_be_read_leaves_no_archive_and_the_others_done(tmp_path):
    description = ade20k_tree(tmp_path / "data")
    broken = tmp_path / "data/release_test/testing/ADE_test_00003489.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(
        UserError, match="nothing was packed: 1 of 2 images could not be segmented:\n"
    ):
        run(description, tmp_path / "out")
    files = [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert files == ["ADE_test_00000001.png"]


def test_an_image_of_another_size_than_the_servers_is_refused(tmp_path):
    write(tmp_path / "leftImg8bit/test/bonn/bonn_000000_000019_leftImg8bit.png", (512, 1024), 0)
    description = cityscapes.describe(str(tmp_path))
    with pytest.raises(
        UserError, match="is 1024 x 512, but the server wants labels of 2048 x 1024"
    ):
        run(description, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.zip"))


def test_a_model_of_other_classes_is_refused(tmp_path):
    description = voc2012_tree(tmp_path / "data")
    with pytest.raises(UserError, match="2 classes, a, b .* the 21 of voc2012"):
        run(description, tmp_path / "out", classes=("a", "b"))
    assert not (tmp_path / "out").exists()


def test_a_labelled_split_can_be_packed_to_try_the_servers_program(tmp_path, capsys):
    write(tmp_path / "images/validation/ADE_val_00000001.jpg", (20, 30), 0)
    mask = tmp_path / "annotations/validation/ADE_val_00000001.png"
    mask.parent.mkdir(parents=True)
    Image.fromarray(np.ones((20, 30), np.uint8)).save(mask)
    archive, _ = run(ade20k.describe(str(tmp_path)), tmp_path / "out", "val")
    assert archive.name == "ade20k_val.zip" and len(unpacked(archive)) == 1
    assert "evaluates the test split, not val" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "words"),
    [("ade20k", "release_test.zip, unpacked in root"), ("voc2012", "VOC2012test.tar")],
)
def test_missing_test_images_are_told_with_where_they_come_from(tmp_path, name, words):
    description = data.get({"name": name, "root": str(tmp_path)})
    with pytest.raises(UserError, match=words):
        description.records("test")
    assert "test" not in description.splits, "which has labels to check and to evaluate on"


def test_other_datasets_have_no_server(tmp_path):
    config = ConfigDict({"data": {"name": "camvid"}})
    with pytest.raises(UserError, match="'camvid'.*cityscapes, ade20k, voc2012.*predict"):
        submit.from_run(config, str(tmp_path), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_test_images_are_not_looked_for_in_tfds(tmp_path):
    config = ConfigDict({"data": {"name": "voc2012", "root": str(tmp_path), "source": "tfds"}})
    with pytest.raises(UserError, match="no split 'test'.*--config.data.source=folders"):
        submit.from_run(config, str(tmp_path), str(tmp_path / "out"))


def test_the_command_wants_an_output(capsys):
    assert main.main(["jaxseg", "submit", "--workdir=nowhere"]) == 2
    assert "submit: give --output=FOLDER" in capsys.readouterr().err
