"""Two processes of one device each equal one process of two devices, bit for bit."""

import collections
import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxseg import checkpoint, writer
from jaxseg import workdir as workdir_lib
from tests import processes

pytestmark = pytest.mark.slow  # each process compiles everything

# A command of `jaxseg.main`; which files of the data it opened is left in a file.
MAIN = """
import json, sys

root, out = sys.argv[1:3]
opened = []

def hook(event, arguments):
    if event == "open" and str(arguments[0]).startswith(root):
        opened.append(str(arguments[0]))

from jaxseg import main, results, train
train.fingerprint = results.fingerprint = lambda *_: ""  # of which process 0 reads some files
sys.addaudithook(hook)
status = main.main(["jaxseg", *sys.argv[3:]])
with open(out, "w") as file:
    json.dump(opened, file)
sys.exit(status)
"""
TINY = (
    "--config=configs/fcn_resnet.py:folder",
    "--config.init_from=",
    "--config.model.backbone.name=tests.tiny_backbone",
    "--config.model.channels=8",
    "--config.model.aux_channels=8",
    "--config.augment.photometric=False",
    "--config.data_backend=threads",
    "--config.augment.crop=(32, 32)",
    "--config.losses.logits.class_weights=median_frequency",
    "--config.batch_size=4",
    "--config.steps=4",
    "--config.ema=0.9",
    "--config.log_every=2",
    "--config.eval_every=2",
    "--config.checkpoint_every=2",
    "--config.eval.batch_size=2",
)
SIZES = (40, 40), (32, 48), (40, 40), (32, 48), (40, 40)  # of 3 and of 2: the last batch is short


def write_data(root: pathlib.Path) -> pathlib.Path:
    """A folder of ten images to train on and five to evaluate on, of two sizes."""
    rng = np.random.default_rng(0)
    for split, sizes in (("train", 2 * SIZES), ("val", SIZES)):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for i, (height, width) in enumerate(sizes):
            label = np.kron(rng.integers(0, 3, (4, 4)), np.ones((12, 12), np.uint8))
            label = label[:height, :width].astype(np.uint8)
            image = label[..., None] * 60 + rng.integers(0, 40, (height, width, 3), np.uint8)
            Image.fromarray(image.astype(np.uint8)).save(root / "images" / split / f"{i}.png")
            Image.fromarray(label).save(root / "masks" / split / f"{i}.png")
    (root / "classes.txt").write_text("sky\nroad\ncar")
    return root


def run(root: pathlib.Path, *runs: tuple[pathlib.Path, int, tuple[str, ...]]) -> list[list[str]]:
    """Runs commands side by side; returns what their processes printed.

    Args:
      root: the data.
      runs: for each command its workdir, in how many processes, and further arguments. Files that
        process i opened are in <workdir>-i.json.
    """
    commands, variables = [], []
    for workdir, count, arguments in runs:
        flags = processes.joined(count) if count > 1 else [[]]
        for index in range(count):
            out = workdir.with_name(f"{workdir.name}-{index}.json")
            common = [f"--workdir={workdir}", f"--config.data.root={root}"]
            commands.append(["-c", MAIN, str(root), str(out), *arguments, *common, *flags[index]])
            variables.append({"JAX_NUM_CPU_DEVICES": str(2 // count)})
    found = iter(processes.together(commands, variables))
    printed = []
    for _, count, _ in runs:
        printed.append([])
        for status, output in (next(found) for _ in range(count)):
            assert status == 0, output
            printed[-1].append(output)
    return printed


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(data, workdir of one process, workdir of two, what each process printed)."""
    folder = tmp_path_factory.mktemp("two")
    root = write_data(folder / "data")
    one, two = folder / "one", folder / "two"
    return root, one, two, run(root, (one, 1, TINY), (two, 2, TINY))


def scalars(workdir: pathlib.Path) -> list[dict]:
    """The log without what a clock has a part in."""
    timed = {"time", "images_per_s", "data_wait"}
    rows = [{k: row[k] for k in row.keys() - timed} for row in writer.read_metrics(workdir)]
    return [row for row in rows if len(row) > 1]


def opened(workdir: pathlib.Path, kind: str, *numbers: int) -> collections.Counter:
    """How often processes of a run opened each file of a folder of the data."""
    files = []
    for number in numbers:
        files += json.loads(workdir.with_name(f"{workdir.name}-{number}.json").read_text())
    return collections.Counter(file for file in files if f"/{kind}/" in file)


def test_the_logs_are_equal(trained):
    _, one, two, _ = trained
    rows = scalars(one)
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if "val/mIoU" in row] == [2, 4]
    assert scalars(two) == rows


def leaves(workdir: pathlib.Path, step: int) -> dict:
    """Shape, dtype and checksum of every array of a checkpoint."""
    text = (workdir / "checkpoints" / str(step) / "meta" / "metadata").read_text()
    return json.loads(text)["leaves"]


def test_the_states_are_equal(trained):
    _, one, two, _ = trained
    for step in (2, 4):
        found = leaves(one, step)
        assert any("/opt_state/" in name for name in found)
        assert any("/ema/" in name for name in found)
        assert leaves(two, step) == found
    variables = [checkpoint.load_model(workdir, step=4)[0] for workdir in (one, two)]
    kernels = [v["params"]["backbone"]["conv1"]["conv"]["kernel"] for v in variables]
    np.testing.assert_array_equal(*kernels)


def results(workdir: pathlib.Path) -> dict:
    found = json.loads((workdir / "results-val.json").read_text())
    for about_the_run in ("images_per_s", "time", "machine"):
        del found[about_the_run]
    return found


def test_the_results_are_equal(trained):
    _, one, two, _ = trained
    found = results(one)
    assert found["images"] == 5
    assert np.sum(found["confusion"]) == sum(height * width for height, width in SIZES)
    assert results(two) == found


def test_each_process_reads_its_own_files(trained):
    root, one, two, _ = trained
    for kind in ("images/train", "masks/train", "masks/val"):
        whole = opened(one, kind, 0)
        shares = [opened(two, kind, i) for i in range(2)]
        assert sum(shares, collections.Counter()) == whole
        if kind.endswith("train"):  # masks are read to weigh the classes, too
            assert [share.total() for share in shares] == [whole.total() / 2] * 2
    # Of 5 images, 3 of one size and 2 of the other, process 0 has the first of each batch.
    first, second = (opened(two, "masks/val", i) for i in range(2))
    names = {i: str(root / "masks" / "val" / f"{i}.png") for i in range(5)}
    assert first.keys() == {names[0], names[4], names[1]}
    assert second.keys() == {names[2], names[3]}


def test_one_process_alone_talks(trained):
    _, one, two, (alone, (first, second)) = trained
    assert "step 4/4" in first and "mIoU" in first
    assert "step" not in second and "mIoU" not in second
    assert "waiting for 2 processes" in first and "waiting for" not in alone[0].split("step 2/4")[0]


def test_two_processes_go_on_where_one_stopped(trained, tmp_path):
    root, one, _, _ = trained
    two = tmp_path / "two"
    shutil.copytree(one, two)
    shutil.rmtree(two / "checkpoints" / "4")
    ((first, _),) = run(root, (two, 2, TINY))
    assert "continuing from step 2" in first
    assert leaves(two, 4) == leaves(one, 4)
    assert scalars(two) == scalars(one)
    assert results(two) == results(one)


def test_variants_are_evaluated_alike(trained, tmp_path):
    root, one, _, _ = trained
    runs = []
    for count in (1, 2):
        workdir = tmp_path / f"{count}"
        shutil.copytree(one, workdir)
        runs.append(
            (workdir, count, ("eval", "--compare=flip: predict.flip=True", "--split=train"))
        )
    run(root, *runs)
    alone, both = (json.loads((place / "compare-train.json").read_text()) for place, _, _ in runs)
    for found in (alone, both):
        del found["time"], found["machine"]
        for variant in found["variants"].values():
            del variant["images_per_s"]
    assert alone["variants"]["flip"]["confusion"] != alone["variants"]["base"]["confusion"]
    assert both == alone


def test_a_sample_that_one_process_cannot_read_ends_both(trained, tmp_path):
    root, _, two, _ = trained
    read = [opened(two, "images/train", i) for i in range(2)]
    bad = sorted(read[1].keys() - read[0].keys())[0]
    data = tmp_path / "data"
    shutil.copytree(root, data)
    broken = data / pathlib.Path(bad).relative_to(root)
    broken.write_bytes(broken.read_bytes()[:100])
    common = [f"--workdir={tmp_path / 'run'}", f"--config.data.root={data}"]
    commands = [["-m", "jaxseg.main", *TINY, *common, *flags] for flags in processes.joined(2)]
    found = processes.together(commands)
    for status, output in found:
        assert status == 2, output
        assert output.count("error: ") == 1 and str(broken) in output
        assert "Traceback" not in output and "stack trace" not in output
    assert "process 1 on host" in found[0][1]


def test_bad_samples_are_passed_over_alike(trained, tmp_path):
    root, one, _, _ = trained
    data = tmp_path / "data"
    shutil.copytree(root, data)
    for number in (2, 5, 6):
        bad = data / "images" / "train" / f"{number}.png"
        bad.write_bytes(bad.read_bytes()[:100])
    skip = ("--config.on_bad_sample=skip", "--config.bad_sample_cap=0.4")
    runs = [(tmp_path / f"of{count}", count, (*TINY, *skip)) for count in (1, 2)]
    run(data, *runs)
    alone, both = (workdir for workdir, _, _ in runs)
    assert scalars(both) == scalars(alone) != scalars(one)
    assert leaves(both, 4) == leaves(alone, 4)
    listed = [workdir_lib.read_manifest(w)["runs"][-1]["bad_samples"] for w in (alone, both)]
    assert listed[0] == listed[1] and {entry["id"] for entry in listed[0]} <= {"2", "5", "6"}


GOES_BACK = """
import sys
from jaxseg import data, main
from tests import tiny_runs

bad, batches = {6, 7, 8}, data.train_batches  # counted from 0
def poisoned(*arguments, start_step, **settings):
    found = batches(*arguments, start_step=start_step, **settings)
    for step, batch in enumerate(found, start_step):
        if step in bad:
            batch["image"][:] = tiny_runs.BAD
        yield batch
data.train_batches = poisoned
with tiny_runs.compiled_once():
    sys.exit(tiny_runs.command(*sys.argv[1:]))
"""


def test_all_go_back_to_the_same_step(tmp_path):
    settings = ("--config.nonfinite.stop_after=3", "--config.nonfinite.rollbacks=1")
    settings += ("--config.eval_every=12", "--config.devices=2")
    workdirs, commands, variables = [tmp_path / "one", tmp_path / "two"], [], []
    for count, workdir in enumerate(workdirs, 1):
        for flags in processes.joined(count) if count > 1 else [[]]:
            commands.append(["-c", GOES_BACK, str(workdir), *settings, *flags])
            variables.append({"JAX_NUM_CPU_DEVICES": str(2 // count)})
    outputs = processes.together(commands, variables)
    for status, output in outputs:
        assert status == 0, output
    assert "from step 7 to 9: back to step 4, and on" in outputs[0][1]
    assert "from step 7 to 9: back to step 4, and on" in outputs[1][1]
    one, two = workdirs
    assert scalars(two) == scalars(one)
    assert leaves(two, 12) == leaves(one, 12)
    for workdir in workdirs:
        found = {path.name for path in (workdir / "checkpoints").iterdir()}
        assert found == {"8.abandoned", "8", "12"}


def test_hosts_that_share_no_folder_are_told_so(trained, tmp_path):
    root, _, _, _ = trained
    soon = "from jaxseg import main, workdir; workdir.VISIBLE_WITHIN = 0.0; import sys; "
    code = soon + "sys.exit(main.main(['jaxseg', *sys.argv[1:]]))"
    commands = [
        ["-c", code, *TINY, f"--workdir={tmp_path / str(i)}", f"--config.data.root={root}", *flags]
        for i, flags in enumerate(processes.joined(2))
    ]
    for status, output in processes.together(commands):
        assert status == 2, output
        assert "process 1 does not see there what process 0 writes" in output
