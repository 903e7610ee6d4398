"""`eval --zoo`: a released model on its dataset, by the published test protocol.

`golden/protocol/mmseg.npz` has what MMSegmentation 1.2.2 itself answers: its own pipeline (OpenCV's
resize into a box), inference in windows and IoUMetric, for an image and a label; and those of its
SegTTAModel for three sizes of the box with mirror images. `opencv.npz` has OpenCV's resizes.
"""

import json

import jax
import numpy as np
import pytest
import references
import torch_writer
from PIL import Image

from jaxseg import api, main, recipes, released, submit, zoo
from jaxseg.errors import UserError
from jaxseg.ops import opencv

MODEL = "mobilenet-v2-d8_fcn_4xb2-80k_cityscapes-512x1024"
# The protocol of mmseg.npz, where the recipe has the box (2048, 1024) and no windows.
PROTOCOL = [
    "--config.eval.base_size=(160,120)",
    "--config.predict.slide.crop=(96,96)",
    "--config.predict.slide.stride=(64,64)",
]
# gtFine's ids of train ids 0..18
IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
FRAME = "frankfurt/frankfurt_000000_000294"


@pytest.fixture(scope="module")
def golden():
    return np.load(references.GOLDEN / "protocol" / "mmseg.npz")


@pytest.fixture(scope="module")
def weights():
    return references.state_dict(np.load(references.GOLDEN / f"{MODEL}.npz"))


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    """The weights as a PyTorch file."""
    state = {k: torch_writer.whole(array, str(i)) for i, (k, array) in enumerate(weights.items())}
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    path.write_bytes(torch_writer.zipped({"state_dict": state}))
    return path


@pytest.fixture(scope="module")
def root(golden, tmp_path_factory):
    """Cityscapes' folders with the golden image and label, twice."""
    folder = tmp_path_factory.mktemp("cityscapes")
    ids = np.zeros(256, np.uint8)
    ids[: len(IDS)] = IDS
    for frame in (FRAME, FRAME.replace("294", "295")):
        for kind, array in (
            ("leftImg8bit/val/{}_leftImg8bit.png", golden["image"]),
            ("gtFine/val/{}_gtFine_labelIds.png", ids[golden["label"]]),
        ):
            path = folder / kind.format(frame)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    return folder


@pytest.fixture
def published(monkeypatch):
    figures = {"mIoU": 21.5, "mIoU(ms+flip)": 23.25}
    monkeypatch.setitem(zoo.facts()["names"][MODEL], "metrics", figures)


def command(file, root, *flags):
    return [
        "jaxseg", "eval", f"--zoo={MODEL}", f"--checkpoint={file}", f"--config.data.root={root}",
        *flags,
    ]  # fmt: skip


# ---- Resizing ----


def test_images_are_resized_as_opencv_does_to_the_last_bit():
    cases = dict(np.load(references.GOLDEN / "protocol" / "opencv.npz"))
    image = cases.pop("image")
    assert len(cases) > 4
    for name, expected in cases.items():
        size = tuple(map(int, name.split("x")))
        np.testing.assert_array_equal(opencv.resize(image[None], size)[0], expected, name)
    compiled = jax.jit(lambda x: opencv.resize(x, (13, 30)))(image[None])
    np.testing.assert_array_equal(compiled[0], cases["13x30"])


# ---- The whole protocol, against MMSegmentation's answers ----


def test_the_figures_are_mmsegmentations(golden, file, root, published, tmp_path, capsys):
    workdir = tmp_path / "results"
    assert main.main(command(file, root, *PROTOCOL, f"--workdir={workdir}")) == 0
    result = json.loads((workdir / "results-val.json").read_text())
    confusion = np.array(result["confusion"])
    agree, true, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    # The image is there twice. A few pixels lie between two classes to the last digit.
    assert np.abs(agree - 2 * golden["intersect"]).max() <= 8
    assert np.abs(true + predicted - agree - 2 * golden["union"]).max() <= 8
    assert result["mIoU"] == pytest.approx(float(golden["mIoU"]), abs=5e-4)
    assert result["mean_Dice"] == pytest.approx(float(golden["mDice"]), abs=5e-4)
    assert result["pixel_accuracy"] == pytest.approx(float(golden["aAcc"]), abs=5e-4)
    assert result["model"] == MODEL and result["published"]["mIoU"] == 21.5
    assert result["protocol"]["eval"]["base_size"] == [160, 120]
    assert list((workdir / "predictions").rglob("*_overlay.png"))
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if "published" in line]
    assert lines[0].split() == ["mIoU", "published", "21.50", "here", "24.00", "(+2.50)"]
    assert lines[1].split() == ["mIoU(ms+flip)", "published", "23.25"]


@pytest.mark.slow
def test_the_labels_are_mmsegmentations_with_scales_and_flip_too(golden, weights):
    config = recipes.completed(zoo.config(MODEL))
    config.eval.base_size = (160, 120)
    config.predict.slide.update(crop=(96, 96), stride=(64, 64))
    config.predict.update(flip=True, scales=(0.5, 1.0, 1.5))
    labels = api.from_zoo(MODEL, config, weights, dtype="float32").segment(golden["image"][None])
    different = np.asarray(labels)[0] != golden["tta"]
    assert different.mean() < 0.001


def test_without_a_workdir_nothing_is_written(file, root, published, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = [*PROTOCOL, "--compare=same: predict.flip=False"]
    assert main.main(command(file, root, *flags)) == 0
    said = capsys.readouterr().out
    assert f"2 images, {MODEL};" in said and "| same" in said
    assert "published  21.50  here  24.00  (+2.50)" in said
    assert not list(tmp_path.iterdir())


# ---- What is said of published figures ----

FIGURES = {"mIoU": 0.7, "mean_Dice": 0.8, "classes": [{"Dice": 0.9}, {"Dice": 0.6}]}
PLAIN = {"flip": False, "scales": ()}
TTA = {"flip": True, "scales": (0.5, 1.0)}


@pytest.mark.parametrize(
    ("published", "chain", "split", "expected"),
    [
        ({"mIoU": 70.5, "mIoU(ms+flip)": 72}, PLAIN, "val", ["mIoU 70.50 70.00 (-0.50)", "72.00"]),
        ({"mIoU": 70.5, "mIoU(ms+flip)": 72}, TTA, "val", ["mIoU 70.50", "72.00 70.00 (-2.00)"]),
        ({"mIoU": 70.5}, PLAIN, "train", ["mIoU 70.50", "of val, not of train"]),
        ({"Dice": 60, "mDice": 79}, PLAIN, "val", ["60.00 60.00 (+0.00)", "79.00 80.00 (+1.00)"]),
        ({}, PLAIN, "val", ["no figure was published"]),
    ],
)
def test_figures_stand_beside_those_of_their_kind(published, chain, split, expected):
    lines = released.beside(published, FIGURES, chain, split).splitlines()
    assert len(lines) == len(expected)
    for line, part in zip(lines, expected, strict=True):
        short = " ".join(w for w in line.split() if published or w)
        short = short.replace("published ", "", 1) if published and "(the" not in line else short
        assert short.replace("here ", "").endswith(part) or part in short


# ---- Every released model ----


def test_every_name_has_data_with_the_classes_it_predicts():
    from jaxseg import data

    for name, own in zoo.facts()["names"].items():
        if "model" not in own:
            continue
        config = zoo.config(name)
        description = data.get(config.data)
        assert description.num_classes == config.model.num_classes, name
        assert "val" in description.splits
        assert len(config.eval.base_size) == 2


@pytest.mark.parametrize(
    ("name", "data", "box", "windows"),
    [
        ("pspnet_r50-d8_4xb4-80k_ade20k-512x512", "ade20k", (2048, 512), ()),
        ("fcn_r50-d8_4xb4-40k_voc12aug-512x512", "voc2012", (2048, 512), ()),
        ("fcn_r101-d8_4xb4-40k_pascal-context-480x480", "pascal_context", (520, 520), (480, 320)),
        ("deeplabv3_r50-d8_4xb4-20k_coco-stuff10k-512x512", "coco_stuff10k", (2048, 512), ()),
        ("deeplabv3_r50-d8_4xb4-80k_coco-stuff164k-512x512", "coco_stuff164k", (2048, 512), ()),
        ("pspnet_r50-d8_4xb4-80k_loveda-512x512", "loveda", (1024, 1024), ()),
        ("unet-s5-d16_fcn_4xb4-40k_stare-128x128", "stare", (605, 700), (128, 85)),
        ("pspnet_r50-d8_4xb2-80k_cityscapes-769x769", "cityscapes", (2049, 1025), (769, 513)),
    ],
)  # fmt: skip
def test_a_name_gives_the_protocol_of_its_recipe(name, data, box, windows):
    config = zoo.config(name)
    assert config.data.get("dataset", config.data.name) == data
    assert config.eval.base_size == box and config.eval.split == "val"
    slide = config.predict.slide.to_dict()
    crop, stride = windows or (0, 0)
    assert slide == (dict(crop=(crop, crop), stride=(stride, stride)) if windows else {})


# ---- Mistakes ----


def test_missing_data_is_told_before_weights_are_fetched(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(api, "from_zoo", lambda *a, **k: pytest.fail("weights were asked for"))
    assert main.main(["jaxseg", "eval", f"--zoo={MODEL}", f"--config.data.root={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path}/leftImg8bit/val" in said and "cityscapes-dataset.com" in said


def test_a_split_without_labels_is_refused(root, capsys):
    (root / "leftImg8bit/test/b").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(root / "leftImg8bit/test/b/b_leftImg8bit.png")
    assert main.main(command("x.pth", root, "--split=test")) == 2
    assert "no label" in capsys.readouterr().err


def test_a_runs_results_are_not_replaced(file, root, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert main.main(command(file, root, f"--workdir={tmp_path}")) == 2
    assert "is a run" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("command", "flags", "words"),
    [
        ("eval", [f"--zoo={MODEL}", "--step=3"], "without --config and --step"),
        ("submit", [f"--zoo={MODEL}", "--workdir=x", "--output=y"], "without --workdir"),
        ("export", [f"--zoo={MODEL}", "--config=x.py", "--output=y"], "without --workdir"),
        ("eval", ["--workdir=x", "--checkpoint=x.pth"], "eval: --checkpoint is"),
        ("eval", [], "or --zoo=NAME"),
        ("tune_crf", [f"--zoo={MODEL}"], "takes no --zoo"),
        ("eval", [f"--zoo={MODEL}", "--config.eval.base_size=(9,)"], "expected two numbers"),
        ("eval", [f"--zoo={MODEL}", "--config.data.rot=x"], "did you mean 'root'"),
        ("eval", [f"--zoo={MODEL}", "--compare=x: data.root=y"], "--compare"),
    ],
)
def test_mistakes_are_told(command, flags, words, capsys):
    assert main.main(["jaxseg", command, *flags]) == 2
    assert words in capsys.readouterr().err


# ---- The other commands that take released models ----


def test_submit_and_export_take_the_model_by_name(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(api, "from_zoo", lambda *a: seen.append(a) or "segmentation")
    monkeypatch.setattr(submit, "write", lambda segmentation, *rest: seen.append(rest))
    root = tmp_path / "leftImg8bit" / "test" / "berlin"
    root.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(root / "berlin_000000_000019_leftImg8bit.png")
    argv = ["jaxseg", "submit", f"--zoo={MODEL}", "--checkpoint=x.pth", "--output=out"]
    assert main.main([*argv, f"--config.data.root={tmp_path}"]) == 0
    (name, config, checkpoint), (description, _, split, records, output) = seen
    assert (name, checkpoint, output, split) == (MODEL, "x.pth", "out", "test")
    assert description.name == "cityscapes" and len(records) == 1

    from jaxseg import export

    monkeypatch.setattr(export, "export", lambda *a, **options: seen.append((a, options)))
    assert main.main(["jaxseg", "export", f"--zoo={MODEL}", "--output=out", "--size=8x16"]) == 0
    (segmentation, output), options = seen[-1]
    assert (segmentation, output, options["size"]) == ("segmentation", "out", (8, 16))
    assert options["source"]["model"] == MODEL and seen[-2][2] is None


def test_a_dataset_without_a_server_is_told(capsys):
    name = "pspnet_r50-d8_4xb4-80k_loveda-512x512"
    assert main.main(["jaxseg", "submit", f"--zoo={name}", "--output=out"]) == 2
    assert "no evaluation server is known" in capsys.readouterr().err


def test_a_model_by_another_name_is_evaluated_under_its_own(weights, root, monkeypatch):
    monkeypatch.setattr(zoo, "resolve", lambda name: MODEL)
    config = recipes.completed(zoo.config("other"))
    config.data.root = str(root)
    task = released.prepare(config, "other", weights)
    assert task.of == MODEL and task.number == 2
    assert jax.tree.leaves(task.variables)
    with pytest.raises(UserError, match="no split 'night'"):
        released.prepare(config, "other", weights, "night")
