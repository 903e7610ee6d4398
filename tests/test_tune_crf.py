"""The search for CRF settings: which points it tries, and that its best is the best."""

import json

import numpy as np
import pytest

from jaxseg import main, metrics, tune_crf
from jaxseg.errors import UserError

GRID = {"bilateral_weight": (2.0, 6.0), "bilateral_srgb": (5.0, 20.0, 40.0)}


def test_the_second_round_lies_half_a_step_away():
    best = {"bilateral_weight": 6.0, "bilateral_srgb": 20.0}
    points = tune_crf.around(best, GRID)
    expected = [(4.0, 20.0), (8.0, 20.0), (6.0, 12.5), (6.0, 30.0)]  # 8: half a step beyond
    assert [tuple(point.values()) for point in points] == expected
    low = tune_crf.around({"bilateral_srgb": 5.0}, {"bilateral_srgb": (5.0, 20.0)})
    assert low == [{"bilateral_srgb": 12.5}]  # half a step below 5 is no width
    assert tune_crf.around({"bilateral_sxy": 50.0}, {"bilateral_sxy": (50.0,)}) == []


@pytest.mark.parametrize(
    "given, words",
    [(["bilateral_sxy"], "as in bilateral_sxy=30"), (["bilateral_sxy=30,x"], "numbers")],
)
def test_a_grid_that_is_none_is_told(given, words):
    with pytest.raises(UserError, match=words):
        tune_crf.parse_grid(given)
    assert tune_crf.parse_grid([]) is None
    assert tune_crf.parse_grid(["bilateral_sxy=30,60"]) == {"bilateral_sxy": (30.0, 60.0)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one step: what the CRF makes of it differs between settings all the same."""
    workdir = tmp_path_factory.mktemp("run")
    arguments = [
        "--config=configs/deeplabv3p.py:synthetic", f"--workdir={workdir}",
        "--config.model.backbone.name=tests.tiny_backbone", "--config.steps=40",
        "--config.schedule.warmup=2",
        "--config.batch_size=4", "--config.data.size=(64,80)", "--config.data.train=8",
        "--config.data.val=6", "--config.data.test=2", "--config.augment.crop=(64,64)",
        "--config.data_backend=threads", "--config.devices=1",
    ]  # fmt: skip
    assert main.main(["jaxseg", "train", *arguments]) == 0
    return workdir


def test_the_best_setting_is_that_of_the_highest_miou(trained, capsys):
    arguments = [f"--workdir={trained}", "--images=3", "--config.predict.crf.iterations=2"]
    for name, values in GRID.items():
        arguments.append(f"--grid={name}={','.join(map(str, values))}")
    assert main.main(["jaxseg", "tune_crf", *arguments]) == 0
    result = json.loads((trained / "crf-val.json").read_text())
    assert result["images"] == 3 and 6 < len(result["tried"]) <= 6 + 4
    figures = [row["mIoU"] for row in result["tried"]]
    assert figures == sorted(figures, reverse=True) and len(set(figures)) > 1
    first = result["tried"][0]
    assert result["best"] == {name: first[name] for name in GRID}
    said = capsys.readouterr().out
    assert "--config.predict.crf.iterations=2" in said and "without a CRF" in said

    # The figures again, image by image, by the chain's own way to set the CRF.
    from jaxseg import api, data, workdir
    from jaxseg.data import reading

    config = workdir.read_config(trained)
    description = data.get(config.data)
    records = [description.records("val")[i] for i in (0, 2, 5)]
    for row in (result["tried"][0], result["tried"][-1]):
        with config.unlocked():
            settings = result["fixed"] | {name: row[name] for name in GRID}
            config.predict = dict(crf=settings)
        seg = api.from_run(trained, config=config)
        total = 0
        for record in records:
            image, label = reading.read_pair(description, record)
            found = np.asarray(seg.segment(image[None]))
            total = total + np.asarray(
                metrics.confusion_matrix(found, label[None], description.num_classes, 255)
            )
        miou = metrics.summarize(total, description.classes)["mIoU"]
        assert row["mIoU"] == pytest.approx(miou, abs=1e-3)


@pytest.mark.parametrize(
    "flag, words",
    [
        ("--grid=bilateral_srbg=3", "did you mean 'bilateral_srgb'"),
        ("--grid=bilateral_srgb=0,3", "above 0"),
        ("--images=0", "expected 1 or more"),
    ],
)
def test_mistakes_are_told(trained, capsys, flag, words):
    assert main.main(["jaxseg", "tune_crf", f"--workdir={trained}", flag]) == 2
    assert words in capsys.readouterr().err
