"""`eval --compare`: parsing, counting of changes, paired differences, and what it leaves."""

import json
import re

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from jaxseg import compare, evaluate, figures, main, measure, models, plots, predict
from jaxseg.data.base import Description
from jaxseg.errors import UserError
from jaxseg.metrics import images
from tests import test_evaluate as one

WHAT = Description(
    "three", one.CLASSES, ((9, 0, 0), (0, 99, 0), (0, 0, 199)), ("val",), lambda s: []
)


def describe() -> Description:
    """`config.data.name` may be any module with this function."""
    return one.one_size()


def config() -> ConfigDict:
    setting = one.run_config()
    setting.data.name = "tests.test_compare"
    setting.predict = dict(flip=False, scales=())
    setting.update(batch_size=1, steps=1, log_every=1, eval_every=1, checkpoint_every=1)
    return setting


def test_variants_are_read_as_overrides():
    found = compare.parse(
        config(), ["flip: predict.flip=True", "tta:predict.flip=True  predict.scales=(0.5, 1.0)"]
    )
    assert list(found) == ["base", "flip", "tta"]
    assert not found["base"].config.predict.flip and found["flip"].config.predict.flip
    assert found["tta"].config.predict.scales == (0.5, 1.0)
    assert found["tta"].settings == ("predict.flip=True", "predict.scales=(0.5, 1.0)")
    assert found["flip"].config.model.to_dict() == found["base"].config.model.to_dict()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("predict.flip=True", ["'predict.flip=True'", "expected 'NAME: KEY=VALUE ...'"]),
        ("a b: predict.flip=True", ["letters, digits"]),
        ("../a: predict.flip=True", ["letters, digits"]),
        (": predict.flip=True", ["letters, digits"]),
        ("flip:", ["no setting"]),
        ("base: predict.flip=True", ["'base'", "as it is"]),
        ("x: predict.flop=True", ["config.predict.flop", "did you mean 'flip'"]),
        ("x: predict.flip=maybe", ["predict.flip", "maybe"]),
        ("x: predict.flip", ["--config.predict.flip=VALUE"]),
        ("x: eval.batch_size=2", ["eval.batch_size=2", "predict, model, dtype only"]),
        ("x: dtype=int8", ["int8", "bfloat16"]),
    ],
)
def test_a_wrong_variant_is_explained(text, words):
    with pytest.raises(UserError) as caught:
        compare.parse(config(), [text])
    for word in ("--compare", *words):
        assert word in str(caught.value)


def test_two_variants_of_one_name_are_refused():
    with pytest.raises(UserError, match="another variant"):
        compare.parse(config(), ["a: predict.flip=True", "a: dtype=float32"])


def test_changes_are_counted_pixel_by_pixel():
    rng = np.random.default_rng(0)
    base, variant = rng.integers(0, 3, (2, 20, 30))
    truth = rng.choice([0, 1, 2, 255, -1, 3], (20, 30))
    expected = [0, 0, 0, 0]
    for b, v, t in zip(base.flat, variant.flat, truth.flat, strict=True):
        if t in (0, 1, 2):
            expected[0] += 1
            expected[1] += b != v
            expected[2] += b != t and v == t
            expected[3] += b == t and v != t
    assert compare.changes(base, variant, truth, WHAT).tolist() == expected
    assert min(expected) > 0


def test_the_sheet_colours_each_kind_of_change():
    truth = np.array([[0, 0, 0, 0, 255]]).repeat(40, 0).repeat(30, 1)
    base = np.array([[0, 1, 0, 1, 0]]).repeat(40, 0).repeat(30, 1)
    variant = np.array([[0, 0, 1, 2, 1]]).repeat(40, 0).repeat(30, 1)
    image = np.full((20, 75, 3), 80, np.uint8)
    sheet = plots.changes_sheet(image, truth, base, variant, WHAT, ("crf", "city/0001"))
    fields = sheet[:60]  # with the first row's titles; the legend is below
    for color in (plots.MENDED, plots.SPOILED, plots.WRONG):
        rows, columns = np.nonzero((fields == color).all(-1))
        assert len(rows) == 40 * 30
    left = {c: np.nonzero((fields == c).all(-1))[1].min() for c in (plots.MENDED, plots.SPOILED)}
    assert left[plots.SPOILED] - left[plots.MENDED] == 30
    tiny = np.zeros((8, 8), np.int64)  # the legend does not fit below it
    narrow = plots.changes_sheet(np.zeros((8, 8, 3), np.uint8), tiny, tiny, tiny, WHAT, ("a", "b"))
    assert (narrow[:, -1] == 255).all() and (narrow[-1] == 255).all()


def total_of(maps) -> measure.Total:
    """A total from (id, truth, labels, base) by the plain definitions, boundaries left empty."""
    total = measure.Total()
    for id, truth, labels, base in maps:
        confusion = np.zeros((3, 3), np.int64)
        np.add.at(confusion, (truth, labels), 1)
        near = {"boundary_iou": (3, 3), "trimap": (6, 3, 3), "contour": (4, 3)}
        total.add(
            id,
            {
                "confusion": confusion,
                "calibration": np.zeros((2, 1800), np.int64),
                "boundaries": {k: np.zeros(shape, np.int64) for k, shape in near.items()},
                "sizes": np.zeros((3, 3, 3), np.int64),
                "changes": compare.changes(base, labels, truth, WHAT),
            },
        )
    return total


def test_differences_are_paired_and_small_ones_are_told_from_none():
    """One system mends a pixel in 200 everywhere, one mends and spoils as many by chance."""
    rng = np.random.default_rng(0)
    base, better, other = [], [], []
    for i in range(40):
        truth = rng.integers(0, 3, (20, 50))
        right = rng.random(truth.shape) < rng.uniform(0.3, 0.9)
        labels = np.where(right, truth, (truth + 1) % 3)
        mended, shuffled = labels.copy(), labels.copy()
        wrong = np.flatnonzero(labels.ravel() != truth.ravel())
        mended.flat[wrong[:5]] = truth.flat[wrong[:5]]
        pixels = rng.choice(np.flatnonzero(right.ravel()), len(wrong) // 4, replace=False)
        shuffled.flat[pixels] = (truth.flat[pixels] + 1) % 3
        shuffled.flat[wrong[: len(pixels)]] = truth.flat[wrong[: len(pixels)]]
        for maps, x in ((base, labels), (better, mended), (other, shuffled)):
            maps.append((f"{i:02}", truth, x, labels))
    totals = [total_of(maps) for maps in (base, better, other)]
    summaries = [figures.compute(total, WHAT, "val") for total in totals]
    first = compare.against(totals[0], totals[1], (summaries[0], summaries[1]))
    accuracy = first["difference"]["pixel_accuracy"]
    assert accuracy["value"] == pytest.approx(0.005) and accuracy["significant"]
    assert accuracy["interval"] == pytest.approx([0.005, 0.005])
    low, high = summaries[0]["intervals"]["pixel_accuracy"]
    assert high - low > 0.05, "unpaired, the difference would drown"
    assert first["difference"]["mIoU"]["significant"]
    assert first["pixels"] == pytest.approx(
        {"changed": 0.005, "wrong_to_right": 0.005, "right_to_wrong": 0, "wrong_to_wrong": 0}
    )
    second = compare.against(totals[0], totals[2], (summaries[0], summaries[2]))
    assert second["difference"]["pixel_accuracy"] == {
        "value": 0.0,
        "interval": [0.0, 0.0],
        "significant": False,
    }
    assert second["pixels"]["wrong_to_right"] == second["pixels"]["right_to_wrong"] > 0.05
    assert second["difference"]["ECE"]["value"] is None
    shares = {id: np.mean(x != b) for id, _, x, b in other}
    most = second["most_changed"]
    assert [row["id"] for row in most] == sorted(shares, key=lambda id: (-shares[id], id))[:4]
    assert most[0]["changed"] == pytest.approx(max(shares.values()))
    before = images.image_miou(totals[0].images[most[0]["id"]]["classes"][None])[0]
    assert most[0]["mIoU"][0] == before


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """(workdir, variables, result) of a comparison of three variants of the tiny network."""
    variables = one.random_variables()
    folder = one.write_run(tmp_path_factory.mktemp("run"), variables)
    variants = ["same: dtype=float32", "flip: predict.flip=True"]
    return folder, variables, compare.run(config(), str(folder), variants)


def test_the_same_is_the_same_and_base_is_the_checkpoint_as_it_is(compared):
    folder, _, result = compared
    base, same = result["variants"]["base"], result["variants"]["same"]
    than = same.pop("against_base")
    ignore = ("settings", "images_per_s")
    assert {k: v for k, v in same.items() if k not in ignore} == {
        k: v for k, v in base.items() if k not in ignore
    }
    assert than["pixels"]["changed"] == 0 and than["most_changed"] == []
    for difference in than["difference"].values():
        assert difference == {"value": 0.0, "interval": [0.0, 0.0], "significant": False}
    assert not (folder / "compare" / "val-same").exists()
    same["against_base"] = than
    alone = evaluate.evaluate_checkpoint(config(), str(folder))
    assert {k: alone[k] for k in base if k not in ignore} == {
        k: v for k, v in base.items() if k not in ignore
    }


def test_what_a_variant_changes_is_what_its_labels_say(compared):
    folder, variables, result = compared
    model = models.get(config().model, num_classes=3)
    chains = [
        predict.make_predict(model, dict(flip=flip), dtype="float32") for flip in (False, True)
    ]
    counts, shares = np.zeros(4, np.int64), {}
    for record in describe().records("val"):
        image, truth = record.image(), record.label().astype(np.int32)
        base, flipped = (
            np.asarray(chain(variables, image[None], truth.shape))[0] for chain in chains
        )
        counted = compare.changes(base, flipped, truth, describe())
        counts, shares[record.id] = counts + counted, counted[1] / counted[0]
    than = result["variants"]["flip"]["against_base"]
    labelled, changed, mended, spoiled = counts
    assert 0 < changed < labelled
    assert than["pixels"] == pytest.approx(
        {
            "changed": changed / labelled,
            "wrong_to_right": mended / labelled,
            "right_to_wrong": spoiled / labelled,
            "wrong_to_wrong": (changed - mended - spoiled) / labelled,
        }
    )
    changed = [id for id in shares if shares[id] > 0]
    most = sorted(changed, key=lambda id: (-shares[id], id))[: compare.PICTURES]
    assert [row["id"] for row in than["most_changed"]] == most
    pictures = {path.stem: path for path in (folder / "compare" / "val-flip").iterdir()}
    assert set(pictures) == set(most)
    with Image.open(pictures[most[0]]) as picture:
        sheet = np.asarray(picture)
    assert (sheet == plots.MENDED).all(-1).any() and (sheet == plots.SPOILED).all(-1).any()
    gained = [c["IoU"] for c in than["classes"]]
    assert gained == sorted(gained, reverse=True) and len(gained) == 3


def test_the_table_says_what_the_json_says(compared):
    folder, _, result = compared
    assert json.loads((folder / "compare-val.json").read_text()) == json.loads(json.dumps(result))
    text = (folder / "compare-val.md").read_text()
    rows = [line.strip("| ").split("|") for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert [row[0] for row in cells[2:]] == ["base", "same", "flip"]
    assert cells[0][1:-1] == list(figures.SCORES.values()) and cells[0][-1] == "images/s"
    for row in cells[2:]:
        summary = result["variants"][row[0]]
        for name, cell in zip(figures.SCORES, row[1:-1], strict=True):
            value, _, difference = cell.partition(" ")
            assert float(value) == pytest.approx(100 * summary["scores"][name], abs=0.006)
            if row[0] == "base":
                assert not difference
                continue
            than = summary["against_base"]["difference"][name]
            assert re.fullmatch(r"\([+-]\d+\.\d\d\*?\)", difference)
            assert float(difference.strip("(*)")) == pytest.approx(100 * than["value"], abs=0.006)
            assert ("*" in difference) == than["significant"]
        assert summary["images_per_s"] > 0
    assert "**flip** (`predict.flip=True`) changes" in text


def test_other_parameters_are_refused(compared):
    folder = compared[0]
    with pytest.raises(UserError, match=r"(?s)'wide'.*other parameters.*head/"):
        compare.run(config(), str(folder), ["wide: model.channels=16"])


def test_the_command_line_takes_variants(compared, capsys, monkeypatch):
    folder = compared[0]
    (folder / "config.json").write_text(json.dumps(config().to_dict()))
    argv = ["jaxseg", "eval", f"--workdir={folder}", "--compare=x: predict.flop=1"]
    assert main.main(argv) == 2
    assert "did you mean 'flip'" in capsys.readouterr().err
    called = []
    monkeypatch.setattr(compare, "run", lambda *arguments: called.append(arguments))
    argv[-1:] = ["--compare", "a: dtype=float32", "--compare=b: predict.flip=True", "--split=val"]
    assert main.main(argv) == 0
    [(_, workdir, variants, split, step)] = called
    assert workdir == str(folder) and (split, step) == ("val", None)
    assert variants == ["a: dtype=float32", "b: predict.flip=True"]
    assert jax.process_count() == 1
