"""The released models' names and published facts."""

import json
import math
import re

import numpy as np
import pytest

import jaxseg
from jaxseg import zoo, zoo_table
from jaxseg.errors import UserError

PSPNET = "pspnet_r50-d8_4xb2-40k_cityscapes-512x1024"

# Name, dataset, crop, iterations, mIoU, ms+flip: from the tables of MMSegmentation's READMEs.
TABLES = [
    (PSPNET, "Cityscapes", "512x1024", 40000, 77.85, 79.18),
    ("pspnet_r18-d8_4xb4-80k_isaid-896x896", "iSAID", "896x896", 80000, 60.22, 61.25),
    ("fcn_hr48_4xb4-80k_isaid-896x896", "iSAID", "896x896", 80000, 67.80, 68.53),
    ("fpn_r101_4xb4-160k_ade20k-512x512", "ADE20K", "512x512", 160000, 39.35, 40.72),
    # Neither name nor recipe is right, but the table.
    (
        "beit-large_upernet_8xb1-amp-160k_ade20k-640x640",
        *("ADE20K", "640x640", 320000, 56.33, 56.84),
    ),
    # Recipes with another number of iterations.
    (
        "mobilenet-v3-d8_lraspp_4xb4-320k_cityscapes-512x1024",
        *("Cityscapes", "512x1024", 320000, 69.54, 70.89),
    ),
    ("vit_deit-s16_upernet_8xb2-160k_ade20k-512x512", "ADE20K", "512x512", 160000, 42.87, 43.79),
    # Two rows of one name, or one name for another.
    ("ocrnet_hr18s_4xb4-80k_ade20k-512x512", "ADE20K", "512x512", 80000, 35.06, 35.80),
    ("ocrnet_hr18s_4xb4-160k_ade20k-512x512", "ADE20K", "512x512", 160000, 37.19, 38.40),
    ("twins_pcpvt-l_uperhead_8xb2-160k_ade20k-512x512", "ADE20K", "512x512", 160000, 49.35, 50.08),
    ("twins_svt-l_uperhead_8xb2-160k_ade20k-512x512", "ADE20K", "512x512", 160000, 49.65, 50.63),
    (
        "bisenetv1_r50-d32-in1k-pre_4xb4-160k_coco-stuff164k-512x512",
        *("COCO-Stuff 164k", "512x512", 160000, 34.88, 35.37),
    ),
    (
        "bisenetv1_r101-d32_4xb4-160k_coco-stuff164k-512x512",
        *("COCO-Stuff 164k", "512x512", 160000, 31.14, 31.76),
    ),
    (
        "pspnet_r50-d32_4xb2-80k_cityscapes-512x1024",
        *("Cityscapes", "512x1024", 80000, 73.88, 76.85),
    ),
    (
        "deeplabv3plus_r101-d8_4xb4-40k_pascal-context-480x480",
        *("Pascal Context", "480x480", 40000, 47.30, 48.47),
    ),
]


def known(name: str) -> dict:
    """What is stored of a name and its recipe, whether jaxseg runs it or not."""
    own = zoo.facts()["names"][name]
    return zoo.facts()["recipes"][own["recipe"]] | own


@pytest.mark.parametrize("row", TABLES, ids=lambda row: row[0])
def test_published_facts(row):
    name, trained_on, crop, iterations, single, with_flips = row
    facts = known(name)
    assert facts["trained_on"] == trained_on
    assert "x".join(map(str, facts["crop"])) == crop
    assert facts["iterations"] == iterations
    assert facts["metrics"] == {"mIoU": single, "mIoU(ms+flip)": with_flips}


def test_every_listed_name_is_there_with_the_facts_of_the_list(shared):
    listed = json.loads((shared / "zoo" / "zoo.json").read_text())
    titles, other, renamed = set(), set(), {}
    for name, fact in listed.items():
        right = zoo.resolve(name)
        facts = known(right)
        titles.add(facts["trained_on"])
        if right != name:
            renamed[name] = right
        if (facts["metrics"], facts.get("weights")) != (fact["metrics"], fact["weights"]):
            other.add(name)
        if "#" not in fact["dataset"]:
            assert facts["trained_on"] == fact["dataset"]
        assert (facts["family"], facts["batch"]) == (fact["family"], fact["batch_size"])
    assert renamed == {f"{n[0]}{n}": n for n in renamed.values()} and len(renamed) == 2
    assert titles == {
        "Cityscapes", "ADE20K", "Pascal VOC 2012 + Aug", "COCO-Stuff 164k", "COCO-Stuff 10k",
        "Pascal Context", "Pascal Context 59", "LoveDA", "Potsdam", "Vaihingen", "iSAID", "DRIVE",
        "HRF", "STARE", "CHASE_DB1", "NYU", "Mapillary Vistas v1.2",
    }  # fmt: skip
    assert {
        known(name)["trained_on"] for name in listed if "ocrnet" in name and "city" in name
    } == {"Cityscapes"}
    assert other == {
        "bisenetv1_r50-d32-in1k-pre_4xb4-160k_coco-stuff164k-512x512",
        "deeplabv3plus_r50-d8_4xb4-40k_pascal-context-480x480",
        "deeplabv3plus_r50-d8_4xb4-80k_pascal-context-480x480",
        "fastfcn_r50-d32_jpu_aspp_4xb2-80k_cityscapes-512x1024",
        "fastfcn_r50-d32_jpu_enc_4xb2-80k_cityscapes-512x1024",
        "fastfcn_r50-d32_jpu_psp_4xb2-80k_cityscapes-512x1024",
        "ocrnet_hr18_4xb4-80k_ade20k-512x512",
        "ocrnet_hr18s_4xb4-80k_ade20k-512x512",
        "pspnet_r101-d8_4xb2-80k_cityscapes-769x769",  # the host of its address
        "twins_pcpvt-l_uperhead_8xb2-160k_ade20k-512x512",
    }
    unlisted = {name for name, own in zoo.facts()["names"].items() if "unlisted" in own}
    assert len(zoo.facts()["names"]) == len(listed) + len(unlisted)
    assert not unlisted & set(listed)


def test_a_name_its_weights_and_its_model_agree():
    """Depth, iterations and GPUs by the name, by the file's name, by the model and the recipe."""
    exception = "beit-large_upernet_8xb1-amp-160k_ade20k-640x640"
    checked = 0
    for name, own in zoo.facts()["names"].items():
        facts = known(name)
        depth, steps, batch = (
            re.search(pattern, name)
            for pattern in (r"[_-]r(\d+)b?[-_]", r"[-_](\d+)k_", r"_(\d+)xb(\d+)")
        )
        if steps and name != exception:
            assert facts["iterations"] == 1000 * int(steps[1]), name
        if batch:
            assert facts["batch"] == int(batch[1]) * int(batch[2]), name
        file = facts.get("weights", "").rsplit("/", 1)[-1]
        if steps and "_20" in file:
            assert f"_{steps[1]}k_" in file or f"-{steps[1]}k_" in file, name
        if depth and file:
            assert re.search(rf"[_-]r{depth[1]}b?[-_]", file), name
            checked += 1
        backbone = zoo.facts()["models"].get(own.get("model"), {}).get("backbone", {})
        if depth and "depth" in backbone:
            assert backbone["depth"] == int(depth[1]), name
    assert checked > 300


def test_parameters_are_those_of_the_state_dict(shared):
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    compared = 0
    for path in (shared / "zoo" / "outputs").glob("*.npz"):
        facts = known(zoo.resolve(path.stem))
        if "model" not in facts:
            continue
        keys = (str(line).split("|") for line in np.load(path)["keys"])
        shapes = [shape for key, shape in keys if not key.endswith(statistics)]
        count = sum(math.prod(int(n) for n in shape.split(",") if n) for shape in shapes)
        stored = zoo.facts()["parameters"][facts["model"]]
        assert stored == pytest.approx(count / 1e6, abs=6e-4), path.stem
        compared += 1
    assert compared > 60


def test_doubts_are_noted():
    notes = {name: " ".join(own.get("notes", ())) for name, own in zoo.facts()["names"].items()}
    twice = "the same mIoU(ms+flip) for gcnet_r101-d8_4xb2-40k_cityscapes-769x769 and "
    assert notes["gcnet_r101-d8_4xb2-80k_cityscapes-769x769"].startswith(twice)
    assert "below single scale" in notes["pspnet_r18-d8_4xb4-80k_loveda-512x512"]
    assert "mDice, not mIoU" in notes["unet-s5-d16_fcn_4xb4-40k_drive-64x64"]
    assert "20k by its recipe" in notes["ann_r101-d8_4xb4-40k_voc12aug-512x512"]
    assert notes[PSPNET] == ""
    assert sum("RMSE, not mIoU" in note for note in notes.values()) == 2
    doubtful = {name for name, own in zoo.facts()["names"].items() if "mIoU" not in own["metrics"]}
    assert all("not mIoU" in notes[name] or "no weights" in notes[name] for name in doubtful)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("pspnet_r50-d8_512x1024_40k_cityscapes", PSPNET),
        (
            "deeplabv3_unet_s5-d16_64x64_40k_drive",
            "unet-s5-d16_deeplabv3_4xb4-40k_drive-64x64",
        ),
        (
            "fcn_unet_s5-d16_4x4_512x1024_160k_cityscapes",
            "unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024",
        ),
        ("ocrnet_hr18s_512x1024_40k_cityscapes", "ocrnet_hr18s_4xb2-40k_cityscapes-512x1024"),
        ("ocrnet_hr18s_512x512_160k_ade20k", "ocrnet_hr18s_4xb4-160k_ade20k-512x512"),
        ("pointrend_r50_512x1024_80k_cityscapes", "pointrend_r50_4xb2-80k_cityscapes-512x1024"),
        (
            "deeplabv3_m-v2-d8_512x1024_80k_cityscapes",
            "mobilenet-v2-d8_deeplabv3_4xb2-80k_cityscapes-512x1024",
        ),
        (
            "fcn_m-v2-d8_512x1024_80k_cityscapes",
            "mobilenet-v2-d8_fcn_4xb2-80k_cityscapes-512x1024",
        ),
        (
            "upernet_swin_tiny_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K",
            "swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512",
        ),
        (
            "setr_vit-large_pup_8x1_768x768_80k_cityscapes",
            "setr_vit-l_pup_8xb1-80k_cityscapes-768x768",
        ),
        (
            "ddeeplabv3plus_r101-d16-mg124_4xb2-40k_cityscapes-512x1024",
            "deeplabv3plus_r101-d16-mg124_4xb2-40k_cityscapes-512x1024",
        ),
        # The config of this one is still called as in the older releases.
        (
            "configs/poolformer/fpn_poolformer_s36_8x4_512x512_40k_ade20k.py",
            "fpn_poolformer_s36_8xb4-40k_ade20k-512x512",
        ),
        # Its weights lie in the folder of another's, which keeps the name.
        (
            "pspnet_r50-d8_512x1024_80k_cityscapes",
            "pspnet_r50-d8_4xb2-80k_cityscapes-512x1024",
        ),
        (f"configs/pspnet/{PSPNET}.py", PSPNET),
        (f"{PSPNET}.py", PSPNET),
        (f"C:\\mmsegmentation\\configs\\pspnet\\{PSPNET}.py", PSPNET),
        ("../configs/pspnet/pspnet_r50-d8_512x1024_40k_cityscapes.py", PSPNET),
    ],
)
def test_old_names_paths_and_misspelt_names_resolve(given, name):
    assert zoo.resolve(given) == name
    assert zoo.resolve(name) == name and zoo.has(given)


def test_the_corrected_misspelt_name_runs():
    misspelt = "ddeeplabv3plus_r101-d16-mg124_4xb2-40k_cityscapes-512x1024"
    config = zoo.config(misspelt)
    assert config == zoo.config(misspelt[1:])
    assert config.model.backbone.depth == 101 and config.model.backbone.multi_grid == (1, 2, 4)
    assert zoo.weights(misspelt).endswith("_20200908_005644-cf9ce186.pth")


def test_what_is_known_of_a_model_that_runs():
    entry = zoo.entry("pspnet_r50-d8_769x769_40k_cityscapes")
    assert entry["name"] == "pspnet_r50-d8_4xb2-40k_cityscapes-769x769"
    assert entry["dataset"] == "CityscapesDataset" and entry["family"] == "pspnet"
    assert entry["base_size"] == [2049, 1025]
    assert entry["slide"] == {"crop": [769, 769], "stride": [513, 513]}
    assert entry["weights"].endswith(
        "/pspnet_r50-d8_769x769_40k_cityscapes_20200606_112725-86638686.pth"
    )
    assert entry["parameters"] == pytest.approx(48.975, abs=1e-3)
    assert zoo.facts()["models"][entry["model"]]["name"] == "pspnet"


def test_a_path_of_a_config_is_loaded_as_a_released_model(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSEG_OFFLINE", "1")
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="downloads are off.*_20200605_003338-2966598c.pth"):
        jaxseg.load(f"configs/pspnet/{PSPNET}.py")
    with pytest.raises(UserError, match="'runs/lost': no such model. Give the workdir"):
        jaxseg.load("runs/lost")


def test_a_name_of_several_models_is_refused(monkeypatch):
    url = (
        "https://download.openmmlab.com/mmsegmentation/v0.5/fcn/{}/{}_20200605_003338-2966598c.pth"
    )
    own = {
        "new1": dict(family="fcn", weights=url.format("shared", "old1")),
        "new2": dict(family="fcn", weights=url.format("old1", "old2")),
        "new3": dict(family="fcn", weights=url.format("old3", "old2"), also=["new1"]),
        "san": dict(family="san", weights=f"{url.split('fcn')[0]}san/san-l_20230906-fd0a7684.pth"),
        "lost": dict(family="fcn"),
    }
    # A file's name is worth more than a folder's, and a present name more than an old one.
    expected = {
        "old1": ["new1"], "old2": ["new2", "new3"], "old3": ["new3"], "shared": ["new1"],
        "san-l": ["san"],
    }  # fmt: skip
    assert zoo.old_names(own) == expected
    monkeypatch.setitem(zoo.facts()["old"], "old2", ["new2", "new3"])
    with pytest.raises(UserError, match="'configs/old2.py': several .* give new2 or new3"):
        zoo.resolve("configs/old2.py")


def test_a_model_that_does_not_run_says_why(monkeypatch):
    name = "pspnet_r50-d8_512x1024_40k_cityscapes"
    names = zoo.facts()["names"]
    own = {key: value for key, value in names[PSPNET].items() if key != "model"}
    monkeypatch.setitem(names, PSPNET, own | dict(lacks="head ANNHead"))
    for ask in (zoo.entry, zoo.config, zoo.weights):
        with pytest.raises(UserError, match=f"^{PSPNET}: .*for want of: head ANNHead") as told:
            ask(name)
    *offered, _ = re.findall(r"[a-z]\w+-[\w-]+", str(told.value).partition("such as")[2])
    assert offered and all("model" in names[other] for other in offered)
    table = zoo_table.table(PSPNET)
    assert table.splitlines()[-2:] == ["Not yet, for want of: 1 head ANNHead", "0 of 1 run"]


def test_a_model_without_published_weights_says_whose_are_listed():
    name = "deeplabv3plus_r50-d8_4xb4-40k_pascal-context-480x480"
    assert zoo.config(name).model.backbone.depth == 50
    other = name.replace("r50", "r101")
    with pytest.raises(UserError, match=f"{name}: no weights are published.*of {other}.*--check"):
        zoo.weights(name)
    assert "deeplabv3plus_r101-d8_480x480_40k_pascal_context_2020" in zoo.weights(other)


def test_an_old_name_with_a_slip_is_near_its_new_one():
    near = zoo.near("deeplabv3plus_r50-d8_512x1024_41k_cityscapes")
    assert near[0] == "deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024"
