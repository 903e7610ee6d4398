"""`plan`: its arithmetic against closed forms, and what it says of a program compiled here."""

import contextlib
import dataclasses
import io
import json
import pathlib

import jax
import pytest
from test_deviceless import needs_compilers
from test_main import command

from jaxseg import (
    chips,
    data,
    hlo,
    main,
    models,
    planning,
    planning_table,
    planning_time,
    sharding,
)
from jaxseg import state as states
from jaxseg.config import from_file, override
from jaxseg.data import balance
from jaxseg.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = str(ROOT / "configs" / "fcn_resnet.py:synthetic")
TINY = (
    "--config.model.backbone.name=tests.tiny_backbone",
    "--config.model.channels=8",
    "--config.model.aux_channels=8",
    "--config.augment.crop=(32, 48)",
    "--config.dtype=float32",
)
GPU = chips.Chip("a GPU", 1000, 900, 100.0, 50.0, bandwidth=10.0, link=2.0)
TPU = dataclasses.replace(GPU, name="a TPU", clock=5.0)


def instruction(category: str, opcode: str, flops: int, size: int, cycles: int = 0, times: int = 1):
    return hlo.Instruction("x", opcode, category, flops, size, "", cycles, times, "")


def test_an_instruction_takes_its_arithmetic_or_its_bytes_whichever_is_longer():
    program = [
        instruction(hlo.CONVOLUTION, "convolution", flops=500, size=10),  # 5 s, 1 s
        instruction(hlo.CONVOLUTION, "convolution", flops=100, size=30),  # 1 s, 3 s
        instruction(hlo.ELEMENTWISE, "fusion", flops=0, size=20, times=4),
        instruction(hlo.COLLECTIVE, "all-reduce", flops=0, size=16),  # of 8 bytes
    ]
    found = planning_time.times(program, GPU, number=4, peak=GPU.flops)
    seconds = {name: row["roofline_s"] for name, row in found["categories"].items()}
    # A ring of four: each sends 3/4 of the array to be summed, 3/4 of the sums: 12 bytes.
    assert seconds == {hlo.CONVOLUTION: 8.0, hlo.ELEMENTWISE: 2.0, hlo.COLLECTIVE: 6.0}
    assert found["collectives"] == {"all-reduce": {"run": 1, "bytes": 8, "sent": 12}}
    assert found["roofline_s"] == found["step_s"] == 16.0 and found["cycles_s"] is None
    assert planning_time.times(program, GPU, 4, GPU.flops_float32)["step_s"] == 5 + 16.0


def test_a_tpu_takes_its_compilers_cycles_where_there_are_any():
    program = [
        instruction(hlo.CONVOLUTION, "convolution", flops=100, size=10, cycles=50),  # 10 s
        instruction(hlo.POOLING, "reduce-window", flops=0, size=20),  # 2 s by its bytes
    ]
    found = planning_time.times(program, TPU, number=1, peak=TPU.flops)
    assert (found["roofline_s"], found["cycles_s"], found["step_s"]) == (3.0, 12.0, 12.0)


@pytest.mark.parametrize(
    ("opcode", "moved", "size", "sent"),
    [
        ("all-reduce", 80 + 80, 80, 2 * 80 * 3 // 4),
        ("all-gather-start", 20 + 80, 80, 60),
        ("reduce-scatter", 80 + 20, 80, 60),
        ("collective-permute", 80 + 80, 80, 80),
    ],
)
def test_what_a_chip_of_four_sends(opcode, moved, size, sent):
    each = instruction(hlo.COLLECTIVE, opcode, 0, moved)
    assert planning_time.exchanged(each, 4) == (opcode.removesuffix("-start"), size, sent)


def test_the_hours_of_a_schedule():
    found = planning_time.schedule(0.36, steps=40_000, batch=8, number=4)
    assert found == pytest.approx({"images_per_s": 8 / 0.36, "hours": 4.0, "chip_hours": 16.0})


def test_a_tpus_refusal_says_what_would_be_needed():
    text = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (129.50G) exceeds available HBM (15.75G)."
    )
    assert planning.refused(text) == 129.5 * 2**30
    assert planning.refused("RESOURCE_EXHAUSTED: ... Used 512.0M of 128.00M hbm. ...") == 2**29
    assert planning.refused("INTERNAL: something else") == 0


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """(status, output, row, file) of a plan for "h200:3" and "h200:2", which stand for two and
    three devices of this machine; the batch of four does not divide over three."""
    file = tmp_path_factory.mktemp("plan") / "new" / "plan.json"
    argv = (f"--config={CONFIG}", *TINY, "--config.batch_size=4", "--target=h200:3,h200:2")
    said = io.StringIO()

    def mesh(target, chips, height):
        return sharding.arrange(jax.devices()[: int(target.removeprefix("h200:"))], height)

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(planning.deviceless, "mesh", mesh)
        with contextlib.redirect_stderr(said):
            status = main.main(["jaxseg", "plan", *argv, "--nolargest", f"--json={file}"])
    (row,) = json.loads(file.read_text())["targets"]
    return status, said.getvalue(), row


def test_a_batch_that_does_not_divide_leaves_the_other_targets_their_plan(planned):
    status, output, row = planned
    assert status == 2
    assert "h200:3: config.batch_size=4 does not divide over 3 devices" in output
    assert "--config.batch_size=6 --rescale" in output and "FITS" in output
    assert row["target"] == "h200:2" and "largest" not in row


def test_memory_is_that_of_the_arrays(planned):
    config = override(from_file(CONFIG), TINY)
    variables = states.abstract_variables(models.get(config.model, num_classes=9))
    parts = planned[-1]["parts"]
    assert parts["parameters"] == 4 * states.count(variables["params"])
    # AdamW: two moments, and the numbers of its updates.
    assert 0 <= parts["optimizer"] - 2 * parts["parameters"] <= 16
    statistics = 4 * states.count(variables["batch_stats"])
    assert 0 <= parts["averages, statistics"] - statistics <= 16
    each = 2 * (32 * 48 * (3 + 1) + 1)  # two of four images, uint8 pixels and labels, a mask
    assert parts["batch"] == each and parts["batches that wait"] == 2 * each
    assert parts["temporaries"] > 0
    assert planned[-1]["needed"] == sum(parts.values())


def test_the_gradients_are_summed_over_the_chips(planned):
    row = planned[-1]
    exchanged = row["collectives"]["all-reduce"]
    assert exchanged["bytes"] >= row["parts"]["parameters"]
    assert exchanged["sent"] == exchanged["bytes"]  # of two chips, each sends half twice
    assert row["images_per_s"] * row["step_s"] == pytest.approx(4)
    assert row["hours"] * 3600 == pytest.approx(400 * row["step_s"])


def test_classes_are_not_counted_where_only_the_program_is_wanted(tmp_path):
    config = from_file(str(ROOT / "configs" / "segnet.py:camvid_full"))  # median frequencies
    description = data.get({**config.data, "root": str(tmp_path / "nothing")})
    planned = balance.without_labels(config, description)
    assert planned.losses.logits.class_weights == (1.0,) * 11
    assert config.losses.logits.class_weights == ("median_frequency",)


ROW = {
    "target": "v5e:2x2", "chip": "TPU v5e", "chips": 4, "batch": 8, "needed": 3 * 2**30,
    "usable": 15 * 2**30, "memory": 16 * 2**30, "fits": True,
    "parts": {"parameters": 2**30, "temporaries": 2 * 2**30},
    "categories": {
        "matmul": dict(run=1, flops=2 * 10**9, bytes=10**9, roofline_s=0.001, cycles_s=0.002),
        "convolution": dict(run=9, flops=6 * 10**9, bytes=10**9, roofline_s=0.003, cycles_s=0.006),
    },
    "collectives": {"all-reduce": dict(run=2, bytes=3 * 10**6, sent=4_500_000)},
    "roofline_s": 0.004, "cycles_s": 0.008, "step_s": 0.008,
    "images_per_s": 1000.0, "hours": 0.5, "chip_hours": 2.0,
    "largest": {"batch": 40, "sure": True, "compiled": {8: 3 * 2**30, 40: 14 * 2**30}},
}  # fmt: skip

TABLE = """\
v5e:2x2: 4 x TPU v5e, 2 images each
-----------------------------------

memory of a chip   GiB
parameters        1.00
temporaries       2.00
together          3.00

FITS: 3.00 of 15.00 GiB, 20%

a step, estimated  run  GFLOP    GB  roofline, ms  compiler, ms  share
convolution          9    6.0  1.00          3.00          6.00  75.0%
matmul               1    2.0  1.00          1.00          2.00  25.0%
together            10    8.0  2.00          4.00          8.00

exchanges of a step  run  MB of arrays  MB sent by a chip
all-reduce             2          3.00               4.50

The run: 0.50 hours of training steps (2.0 chip hours), if the input delivers 1000 images/s.

The largest batch that fits: 40, 10 on each chip.
GiB of a chip, as compiled, by batch: 8: 3.00, 40: 14.00"""


def test_the_table_of_a_target():
    assert planning_table.target(ROW) == TABLE


def test_targets_side_by_side():
    gpu = ROW | {"target": "h200", "cycles_s": None, "step_s": 0.004, "fits": False}
    lines = planning_table.comparison([ROW, gpu]).splitlines()
    assert lines[1].split() == "v5e:2x2 4 8 3.00 of 15.00 yes 8.0 1000 0.50 2.0 40".split()
    assert lines[2].split() == (
        "h200 4 8 3.00 of 15.00 NO 4.0 to 8.0 500 to 1000 0.50 to 1.00 2.0 to 4.0 40".split()
    )
    assert "GPU times" in planning_table.notes([gpu]) and "TPU" not in planning_table.notes([gpu])


def test_what_does_not_fit_says_what_helps():
    row = ROW | {"fits": False, "needed": 15 * 2**30 + 1}
    assert planning_table.verdict(row).startswith("DOES NOT FIT: 15.00 of 15.00 GiB, 100%\nWhat")
    gpu = row | {"cycles_s": None}
    assert "\nIt would with XLA_CLIENT_MEM_FRACTION=0.95" in planning_table.verdict(gpu)
    assert "It would" not in planning_table.verdict(gpu | {"needed": 15.9 * 2**30})
    assert "--config.remat=wide" in planning_table.verdict(row)


def test_the_memory_of_a_gpu_is_what_jax_takes_of_it(monkeypatch):
    monkeypatch.delenv(chips.FRACTION, raising=False)
    assert chips.of("h200:8").usable == 0.75 * chips.of("h200").memory
    monkeypatch.setenv(chips.FRACTION, "0.5")
    assert chips.of("h100").usable == chips.of("h100").memory // 2
    monkeypatch.setenv(chips.FRACTION, "95%")
    with pytest.raises(UserError, match="XLA_CLIENT_MEM_FRACTION=95%"):
        chips.of("h100")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((f"--config={CONFIG}",), ["plan: give --target=h200"]),
        ((f"--config={CONFIG}", "--target=a100"), ["'a100'", "h100, h200", "v5e"]),
        ((f"--config={CONFIG}", "--target=h200", "--workdir=x"), ["takes no --workdir"]),
        ((f"--config={ROOT}/configs/pspnet.py:folder", "--target=h200"), ["classes.txt", "mine"]),
    ],
)
def test_a_wrong_command_is_explained(capsys, argv, words):
    status, output = command(capsys, "plan", *argv)
    assert status == 2 and all(word in output for word in words)


@needs_compilers
@pytest.mark.slow
@pytest.mark.parametrize(("target", "number"), [("h200:2", 2), ("v5e:2x2", 4)])
def test_a_plan_for_chips_that_are_not_here(capsys, tmp_path, target, number):
    row = made(capsys, tmp_path, target, batch=4)
    assert row["chips"] == number and row["fits"]
    assert (row["cycles_s"] is None) == target.startswith("h")
    # In bfloat16, as they come out of the backward pass.
    assert row["collectives"]["all-reduce"]["bytes"] >= row["parts"]["parameters"] / 2


@needs_compilers
@pytest.mark.slow
def test_what_a_tpus_compiler_refuses_does_not_fit(capsys, tmp_path):
    row = made(capsys, tmp_path, "v5e:2x2", batch=4_000_000)
    assert not row["fits"] and row["needed"] > row["usable"] == 15.75 * 2**30


def made(capsys, folder, target: str, batch: int) -> dict:
    settings = ("--config.dtype=bfloat16", f"--config.batch_size={batch}", f"--target={target}")
    file = folder / "plan.json"
    argv = (f"--config={CONFIG}", *TINY, *settings, "--nolargest", f"--json={file}")
    status, output = command(capsys, "plan", *argv)
    assert status == 0, output
    (row,) = json.loads(file.read_text())["targets"]
    return row
