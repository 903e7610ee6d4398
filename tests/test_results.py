"""Results of evaluations: what a file must hold, and comparing several."""

import pathlib

import numpy as np
import pytest

from jaxseg import compare_results, main, results
from jaxseg.errors import UserError

# IoU of 'a' and 'b': 3 / 5 and 3 / 5; 6 of 8 pixels are right.
SOME = [[3, 1], [1, 3]]
ALL = [[4, 0], [0, 4]]


def make(confusion=SOME, seed=0, **changes) -> dict:
    """A result as `eval` would write it, as far as others read it; keys 'a.b' change its parts."""
    agree, (true, predicted) = np.diag(confusion), (np.sum(confusion, axis) for axis in (1, 0))
    iou, dice = agree / (true + predicted - agree), 2 * agree / (true + predicted)
    classes = [
        {"name": name, "IoU": iou[i], "accuracy": agree[i] / true[i], "Dice": dice[i]}
        for i, name in enumerate("ab")
    ]
    result = {
        "format": 1,
        "time": "2026-11-21T10:00:00+00:00",
        "dataset": "toy",
        "split": "val",
        "images": 2,
        "step": 40,
        "weights_sha256": "0123456789abcdef",
        "config": {
            "seed": seed,
            "steps": 50,
            "batch_size": 4,
            "init_from": "",
            "augment": {"crop": [8, 16]},
            "model": {"name": "fcn", "backbone": {"name": "resnet", "depth": 18}},
            "optimizer": {"lr": 0.1},
        },
        "machine": {
            "device": "cpu", "device_count": 1, "cores": 2, "packages": {"jax": "0.10.2"},
        },
        "protocol": {
            "dataset": "toy", "split": "val", "images": 2, "fingerprint": "f00d",
            "classes": ["a", "b"], "ignore_label": 255, "resize": {"images": "none"},
            "eval": {"base_size": []},
            "predict": {"slide": {}, "samples": 0, "flip": False, "scales": [], "crf": {}},
            "dtype": "float32",
        },
        "mIoU": iou.mean(),
        "pixel_accuracy": agree.sum() / true.sum(),
        "mean_accuracy": (agree / true).mean(),
        "frequency_weighted_IoU": (true * iou).sum() / true.sum(),
        "mean_Dice": dice.mean(),
        "pixels": int(true.sum()),
        "classes": classes,
        "confusion": confusion,
    }  # fmt: skip
    for key, value in changes.items():
        *path, last = key.split(".")
        section = result
        for name in path:
            section = section[name]
        section[last] = value
    return result


@pytest.fixture
def write(tmp_path):
    """Writes a result under a name, and returns the file."""

    def run(name: str, result: dict) -> str:
        path = tmp_path / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        results.write(path, result)
        return str(path)

    return run


def command(capsys, *files: str) -> tuple[int, str]:
    status = main.main(["jaxseg", "compare", *files])
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    return status, output.out + output.err


# ---- The file ----


def test_a_result_comes_back_as_it_was_and_its_matrix_is_readable(write):
    result = make(per_image={"mIoU": [0.5, float("nan")]}, note="[ not\n a row ]")
    file = write("a", result)
    lines = pathlib.Path(file).read_text().splitlines()
    assert "  [3, 1]," in lines and "  [1, 3]" in lines
    read = results.read(file)
    assert read.pop("confusion").tolist() == SOME and read["note"] == result["note"]
    assert read["per_image"]["mIoU"] == [0.5, None]
    assert read["config"] == result["config"] and read["protocol"] == result["protocol"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 7}, "of format 1, this one's is 7"),
        ({"protocol": None}, "has no protocol.dataset"),
        ({"config": []}, "has no config.model"),
        ({"weights_sha256": 7}, "has no weights_sha256"),
        ({"machine.packages": None}, "has no machine.packages"),
        ({"confusion": [[1, 2]]}, "confusion matrix"),
        ({"confusion": [[1, 2], [3, -1]]}, "confusion matrix"),
        ({"confusion": [[1, 2], [3, 0.5]]}, "confusion matrix"),
        ({"confusion": [[1, 2], [3, True]]}, "confusion matrix"),
        ({"confusion": [[1, 2], [3, 2**60]]}, "confusion matrix"),
        ({"confusion": [[0, 0], [0, 0]]}, "confusion matrix"),
        ({"confusion": None}, "confusion matrix"),
        ({"protocol.classes": None}, "has no protocol.classes"),
    ],
)
def test_a_file_that_is_no_result_is_named(write, change, words):
    with pytest.raises(UserError, match=words) as caught:
        results.read(
            write("broken", make() | change if "." not in [*change][0] else make(**change))
        )
    assert "broken.json" in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"[1, 2]", b"{", b"\xff\xfe", b"null", b"[" * 100_000])
def test_any_other_file_is_refused(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_bytes(text)
    with pytest.raises(UserError, match="x.json"):
        results.read(path)
    with pytest.raises(UserError, match="nowhere.json: No such file"):
        results.read(tmp_path / "nowhere.json")


def test_weights_are_told_by_name_shape_and_value():
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros(2, np.float32)
    known = results.digest({"params": {"a": a, "b": b}})
    assert results.digest({"params": {"b": b.copy(), "a": np.asfortranarray(a)}}) == known
    flipped = a.copy()
    flipped.view(np.uint32)[1, 2] ^= 1
    others = [
        {"params": {"a": flipped, "b": b}},
        {"params": {"a": a.reshape(3, 2), "b": b}},
        {"params": {"a": a, "c": b}},
        {"params": {"a": a, "b": b.view(np.int32)}},
    ]
    assert len({known, *map(results.digest, others)}) == 5


# ---- Comparing ----


TWO = """\
toy/val, 2 images, float32; in brackets the difference to low

in percent                low             high
mIoU                    60.00  100.00 (+40.00)
pixel accuracy          75.00  100.00 (+25.00)
mean accuracy           75.00  100.00 (+25.00)
frequency-weighted IoU  60.00  100.00 (+40.00)
mean Dice               75.00  100.00 (+25.00)
IoU
  a                     60.00  100.00 (+40.00)
  b                     60.00  100.00 (+40.00)

low: fcn, step 40, seed 0; evaluated on 1 x cpu, jax 0.10.2; weights 01234567
high: fcn, step 40, seed 0; evaluated on 1 x cpu, jax 0.10.2; weights 01234567
(one result, n = 1, does not show how far another seed would move it: give several)
config, low -> high:
  optimizer.lr: 0.1 -> 0.2
"""


def test_two_results_side_by_side(write, capsys):
    other = make(ALL, **{"config.optimizer.lr": 0.2})
    files = write("results/low", make()), write("results/high", other)
    assert command(capsys, *files) == (0, TWO)
    assert command(capsys, f"--results={files[0]}", files[1]) == (0, TWO)


def test_seeds_of_a_recipe_are_one_column(write, capsys):
    """mIoU of 50, 60 and 70 percent: mean 60, standard deviation 10, of n - 1 = 2."""
    matrices = ([[4, 2], [2, 4]], [[6, 2], [2, 6]], [[14, 3], [3, 14]])
    files = [write(f"r/seed-{i}", make(m, seed=i)) for i, m in enumerate(matrices)]
    files.insert(1, write("r/other", make(ALL, **{"config.steps": 60})))
    status, output = command(capsys, *files)
    assert status == 0
    rows = [line.split() for line in output.splitlines()]
    assert ["in", "percent", "seed", "(n=3)", "other"] in rows
    assert ["mIoU", "60.00", "±", "10.00", "100.00", "(+40.00)"] in rows
    assert ["a", "60.00", "±", "10.00", "100.00", "(+40.00)"] in rows
    # 2/3, 3/4 and 14/17 of the pixels are right.
    assert ["pixel", "accuracy", "74.67", "±", "7.85", "100.00", "(+25.33)"] in rows
    assert "seed (n=3): fcn, step 40, seeds 0, 1, 2;" in output
    assert "steps: 50 -> 60" in output and "seed: " not in output


def test_a_class_that_is_nowhere_has_no_figure(write, capsys):
    with np.errstate(invalid="ignore"):
        some = make([[6, 0], [0, 0]])
    some.update(mIoU=1.0, mean_accuracy=1.0, mean_Dice=1.0, frequency_weighted_IoU=1.0)
    status, output = command(capsys, write("a", some), write("b", make()))
    assert status == 0, output
    rows = [line.split() for line in output.splitlines()]
    assert ["mIoU", "100.00", "60.00", "(-40.00)"] in rows
    assert ["b", "-", "60.00"] in rows


def test_two_results_of_one_seed_are_not_two_samples(write):
    again = make(seed=1, step=50)
    found = compare_results.read([write("a", make()), write("b", make(seed=1)), write("c", again)])
    assert [len(group.results) for group in compare_results.groups(found)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("key", "value", "shown", "why"),
    [
        ("protocol.split", "test", "split: val | test", "other images"),
        ("protocol.fingerprint", "beef", "fingerprint: f00d | beef", "not the same files"),
        ("protocol.ignore_label", 0, "ignore_label: 255 | 0", "other pixels"),
        ("protocol.eval.base_size", [64, 32], "eval.base_size: [] | [64, 32]", "other sizes"),
        ("protocol.predict.flip", True, "predict.flip: false | true", "mirror image"),
        ("protocol.predict.scales", [0.5, 1.0], "[0.5, 1.0]", "averaging over sizes"),
        ("protocol.predict.slide", {"crop": [8, 8], "stride": [4, 4]}, "[8, 8]", "windows"),
        ("protocol.predict.crf", {"iterations": 10}, "predict.crf.iterations", "redraws"),
        ("protocol.dtype", "bfloat16", "dtype: float32 | bfloat16", "rounding"),
        ("protocol.classes", ["a", "c"], '["a", "b"] | ["a", "c"]', "mean over the classes"),
        ("protocol.new", 1, "new: none | 1", ""),
    ],
)
def test_unlike_protocols_are_refused_and_why_is_said(write, capsys, key, value, shown, why):
    status, output = command(capsys, write("a", make()), write("b", make(**{key: value})))
    assert status == 2 and output.startswith("error: ")
    for word in ("a.json", "b.json", shown, why):
        assert word in output


def test_a_file_that_contradicts_its_matrix_is_caught(write, capsys):
    lie = make(mIoU=0.75)
    status, output = command(capsys, write("honest", make(ALL)), write("lie", lie))
    assert status == 1
    assert "lie.json: mIoU: 0.75 is stored, 0.6 follows" in output
    assert output.count("is stored") == 1
    assert "60.00 (-40.00)" in output and "75.00 (-25.00)" in output  # mIoU; pixel accuracy


def test_too_few_files(write, capsys):
    file = write("a", make())
    assert command(capsys, file)[0] == 2
    status, output = command(capsys, file, str(pathlib.Path(file).parent / "." / "a.json"))
    assert status == 2 and "twice" in output
    status, output = command(capsys, file, "nowhere.json")
    assert status == 2 and "nowhere.json" in output


def test_columns_are_named_by_what_their_files_do_not_share():
    files = ["runs/a/results-val.json", "runs/b/results-val.json"]
    assert compare_results.labels(files) == ["a", "b"]
    assert compare_results.labels(["results/x.json", "results/y.json"]) == ["x", "y"]
    assert compare_results.labels(["x.json", "runs/x.json"]) == ["x", "runs/x"]
    assert compare_results.labels(["results/x.json"]) == ["x"]
