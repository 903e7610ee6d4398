"""What is written of an image against NumPy, and tables against what they are counted from."""

import csv
import json
import sys

import numpy as np
import pytest
from PIL import Image

from jaxseg import outputs, predict_files
from jaxseg.errors import UserError
from tests.stubs import ByBrightness, Channels, pictures

ALL = ("labels", "overlay", "probabilities", "confidence", "entropy", "shares")


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return array


def test_each_output_holds_what_its_name_says(tmp_path):
    array = save(tmp_path / "in" / "x.png", pictures(20, 30))
    folder = tmp_path / "out"
    predict_files.predict_files([str(tmp_path / "in")], str(folder), Channels(), write=ALL)
    endings = (".png", "_overlay.png", "_probabilities.npz", "_confidence.png", "_entropy.png")
    names = {f"x{ending}" for ending in endings} | {"shares.csv", "shares.json"}
    assert {p.name for p in folder.iterdir()} == names

    p = Channels().probabilities(array[None])[0].astype(np.float64)
    with np.load(folder / "x_probabilities.npz") as stored:
        assert set(stored) == {"probabilities", "classes"}
        assert stored["probabilities"].dtype == np.float16
        np.testing.assert_allclose(stored["probabilities"], p, rtol=2**-11, atol=1e-7)
        assert stored["classes"].tolist() == ["red", "green", "blue"]
    pixels = {name: Image.open(folder / f"x_{name}.png") for name in ("confidence", "entropy")}
    assert all(picture.mode == "L" for picture in pixels.values())
    np.testing.assert_allclose(pixels["confidence"], 255 * p.max(-1), atol=0.501)
    entropy = -(p * np.log(p)).sum(-1) / np.log(3)
    np.testing.assert_allclose(pixels["entropy"], 255 * entropy, atol=0.501)
    np.testing.assert_array_equal(Image.open(folder / "x.png"), array.argmax(-1))


def test_certainty_and_doubt_are_the_ends_of_the_greys():
    sure, torn = np.eye(5, dtype=np.float32)[:1], np.full((1, 5), 0.2, np.float32)
    for function, of_sure, of_torn in ((outputs.confidence, 255, 51), (outputs.entropy, 0, 255)):
        assert function(sure).tolist() == [of_sure]
        assert function(torn).tolist() == [of_torn]
    assert outputs.entropy(np.ones((4, 1), np.float32)).tolist() == [0] * 4


def test_probabilities_are_not_asked_for_without_need(tmp_path):
    save(tmp_path / "x.bmp", pictures(8, 8))
    write = ("labels", "overlay", "shares")
    number = predict_files.predict_files(
        [str(tmp_path / "x.bmp")], str(tmp_path / "out"), ByBrightness(), write=write
    )  # which has none
    assert number == 1


@pytest.mark.parametrize("iterations", [0, 3])
def test_samples_give_the_probabilities_unless_a_crf_follows(iterations):
    class Sampled(Channels):
        def uncertainty(self, images):
            p = self.probabilities(images)[..., ::-1]
            return p, p * (1 - p)

    segmentation = Sampled(chain={"samples": 4, "crf": {"iterations": iterations}})
    images = pictures(2, 6, 8)
    maps = outputs.make_maps(segmentation, ("labels", "uncertainty", "confidence"))(images)
    mirrored = images if iterations else images[..., ::-1]
    np.testing.assert_array_equal(maps["labels"], mirrored.argmax(-1))
    p = Channels().probabilities(images).astype(np.float64)
    np.testing.assert_allclose(maps["uncertainty"], (p * (1 - p)).mean(-1), rtol=1e-5)
    assert set(maps) == {"labels", "uncertainty", "confidence"}


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (("labels", "overlays"), "--write: unknown output 'overlays', did you mean 'overlay'?"),
        (("uncertainty",), "Known: labels, overlay, probabilities, confidence, entropy, shares"),
        ((), "--write: names nothing"),
        (("",), "unknown output ''"),
    ],
)
def test_what_is_unknown_is_refused_before_anything_is_written(tmp_path, write, words):
    save(tmp_path / "x.bmp", pictures(8, 8))
    output = tmp_path / "out"
    with pytest.raises(UserError) as error:
        predict_files.predict_files([str(tmp_path)], str(output), Channels(), write=write)
    assert words in str(error.value) and not output.exists()


def test_without_pycocotools_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(UserError, match="--write=coco: .*pip install pycocotools"):
        outputs.known(("coco",))


# ---- tables ----


def three_images(folder):
    return {
        "a": save(folder / "a.bmp", pictures(7, 11)),
        "b/c, d": save(folder / "b" / "c, d.png", pictures(13, 5)),
        "z": save(folder / "z.png", np.array([[[0, 9, 0]]], np.uint8)),
    }


def test_shares_are_counts_over_pixels(tmp_path):
    images = three_images(tmp_path / "in")
    output = tmp_path / "out"
    predict_files.predict_files([str(tmp_path / "in")], str(output), Channels(), write=("shares",))
    assert sorted(p.name for p in output.rglob("*")) == ["shares.csv", "shares.json"]
    with open(output / "shares.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["image", "width", "height", "red", "green", "blue"]
    entries = json.loads((output / "shares.json").read_text())["images"]
    assert [row[0] for row in rows] == [entry["image"] for entry in entries] == list(images)
    for row, entry, array in zip(rows, entries, images.values(), strict=True):
        labels = array.argmax(-1)
        shares = [(labels == c).sum() / labels.size for c in range(3)]
        assert [int(row[1]), int(row[2])] == [labels.shape[1], labels.shape[0]]
        np.testing.assert_allclose([float(x) for x in row[3:]], shares, rtol=1e-8)
        assert list(entry["shares"]) == ["red", "green", "blue"]
        np.testing.assert_allclose(list(entry["shares"].values()), shares, rtol=1e-8)
        assert (entry["width"], entry["height"]) == labels.shape[::-1]


@pytest.mark.filterwarnings("ignore:.*copy keyword:DeprecationWarning")  # pycocotools 2.0.11
def test_coco_reads_back_the_labels(tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    images = three_images(tmp_path / "in")
    output = tmp_path / "out"
    predict_files.predict_files(
        [str(tmp_path / "in")], str(output), Channels(), write=("coco", "labels")
    )
    read = coco.COCO(str(output / "coco.json"))
    names = {category["id"]: category["name"] for category in read.loadCats(read.getCatIds())}
    assert names == {1: "red", 2: "green", 3: "blue"}
    files = {entry["file_name"]: entry for entry in read.loadImgs(read.getImgIds())}
    assert set(files) == {"a.bmp", "b/c, d.png", "z.png"}
    for (name, array), entry in zip(images.items(), files.values(), strict=True):
        assert entry["file_name"].startswith(name)
        assert (entry["width"], entry["height"]) == array.shape[1::-1]
        labels = np.full(array.shape[:2], -1)
        for annotation in read.loadAnns(read.getAnnIds(imgIds=entry["id"])):
            mask = read.annToMask(annotation).astype(bool)
            assert (labels[mask] == -1).all(), "the masks of an image do not overlap"
            labels[mask] = annotation["category_id"] - 1
            rows, columns = np.nonzero(mask)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert annotation["bbox"] == box and annotation["area"] == len(rows)
        np.testing.assert_array_equal(labels, array.argmax(-1))
        np.testing.assert_array_equal(labels, Image.open(output / f"{name}.png"))
    # The annotations are results too, as evaluation with pycocotools wants them.
    results = [
        {key: annotation[key] for key in ("image_id", "category_id", "segmentation")} | {"score": 1}
        for annotation in read.dataset["annotations"]
    ]
    assert len(read.loadRes(results).anns) == len(read.anns)
