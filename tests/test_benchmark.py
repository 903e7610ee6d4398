"""`benchmark`: that its figures are of what it says; how large they are decides no test."""

import json
import pathlib

import jax
import numpy as np
import pytest

from jaxseg import benchmark_table, main, timing

CONFIG = str(pathlib.Path(__file__).resolve().parents[1] / "configs" / "fcn_resnet.py:synthetic")
TINY = (
    f"--config={CONFIG}",
    "--config.model.backbone.name=tests.tiny_backbone",
    "--config.model.channels=8",
    "--config.model.aux_channels=8",
    "--config.devices=1",
    "--steps=2",
)
PEAKS = {"flops": 1e9, "bandwidth": 1e6}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(timing, "peaks", lambda dtype, so_far: PEAKS)


def command(capsys, *argv: str) -> tuple[int, str]:
    status = main.main(["jaxseg", "benchmark", *argv])
    output = capsys.readouterr()
    return status, output.out + output.err


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """(file, rows): inference of one image and of two, and a training step of two."""
    folder, rows = tmp_path_factory.mktemp("benchmark"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "peaks", lambda dtype, so_far: PEAKS)
        for kind, batches in (("train", "2"), ("inference", "1,2")):
            file = folder / "new" / f"{kind}.json"
            argv = (f"--what={kind}", "--sizes=32x48", f"--batches={batches}", f"--json={file}")
            assert main.main(["jaxseg", "benchmark", *TINY, *argv]) == 0
            written = json.loads(file.read_text())["rows"]
            rows |= {(row["what"], row["batch"]): row for row in written}
    return file, rows


def test_each_program_is_measured_at_each_size_and_batch(measured):
    _, rows = measured
    assert list(rows) == [("train", 2), ("inference", 1), ("inference", 2)]
    for (_, batch), row in rows.items():
        assert row["size"] == [32, 48]
        assert 0 < row["ms_least"] <= row["ms_median"]
        assert row["images_per_s"] == pytest.approx(1e3 * batch / row["ms_median"])
        share = row["flops"] / (1e-3 * row["ms_median"]) / PEAKS["flops"]
        assert row["share_of_peak"] == pytest.approx(share)


def test_flops_are_proportional_to_the_batch_and_training_has_three_times_as_many(measured):
    _, rows = measured
    one, two = rows["inference", 1], rows["inference", 2]
    assert two["flops"] == pytest.approx(2 * one["flops"], rel=0.02)
    # Both gradients of a convolution cost what it does; the first has one, and the auxiliary head
    # is there in training alone.
    assert 2.3 < rows["train", 2]["flops"] / two["flops"] < 4
    assert rows["train", 2]["memory"] > two["memory"] > one["memory"]


def test_results_are_compared_row_by_row(measured, capsys, tmp_path):
    file, rows = measured
    other = json.loads(file.read_text())
    for row in other["rows"]:
        row["images_per_s"] *= 2
    assert "0.50" in benchmark_table.compare(json.loads(file.read_text()), other)
    status, output = command(
        capsys, *TINY, "--sizes=32x48", "--batches=1", "--what=inference", f"--against={file}"
    )
    assert status == 0
    assert f"{rows['inference', 1]['images_per_s']:.2f}" in output.partition("against")[2]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--what=trian",), ["--what", "'trian'", "did you mean 'train'"]),
        (("--sizes=512",), ["--sizes=512", "HEIGHTxWIDTH"]),
        (("--batches=0",), ["--batches", "'0'"]),
        (("--steps=-1",), ["--steps=-1"]),
        (("--against=nowhere.json",), ["nowhere.json", "No such file"]),
        (("--workdir=w",), ["takes no --workdir"]),
    ],
)
def test_a_wrong_setting_is_explained(capsys, argv, words):
    status, output = command(capsys, f"--config={CONFIG}", *argv)
    assert status == 2
    for word in words:
        assert word in output


def test_another_protocol_or_file_is_refused(measured, capsys, tmp_path):
    status, output = command(
        capsys, *TINY, "--config.model.channels=16", f"--against={measured[0]}"
    )
    assert status == 2 and "channels" in output and "measured something else" in output
    (tmp_path / "other.json").write_text('{"rows": []}')
    status, output = command(capsys, *TINY, f"--against={tmp_path / 'other.json'}")
    assert status == 2 and "not a result" in output


def test_every_call_is_counted():
    made = []

    def run():
        made.append(1)
        return np.zeros(1)

    times = timing.per_call(run, calls=10)
    assert len(made) == timing.WARM_UP + times.calls and times.calls >= 10
    assert 0 <= times.least <= times.median


def test_the_roofline_is_the_longer_of_arithmetic_and_memory():
    a = jax.ShapeDtypeStruct((32, 64), np.float32)
    b = jax.ShapeDtypeStruct((64, 16), np.float32)
    text = jax.jit(lambda a, b: a @ b).lower(a, b).compile().as_text()
    flops, size = 2 * 32 * 64 * 16, 4 * (32 * 64 + 64 * 16 + 32 * 16)
    for peaks, expected, bound in (
        ({"flops": 1e6, "bandwidth": 1e9}, 1e3 * flops / 1e6, "arithmetic"),
        ({"flops": 1e12, "bandwidth": 1e6}, 1e3 * size / 1e6, "memory"),
    ):
        row = {"what": "train", "size": (1, 1), "batch": 1, "ms_median": 2 * expected}
        report = benchmark_table.roofline(text, peaks, row)
        assert f"could take {expected:.2f} ms" in report and bound in report
        assert "50% of that bound" in report
