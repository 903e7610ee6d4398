"""The command line: every mistake of a user's is one clear line, and nothing is lost by it."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxseg import command_line, main, workdir
from jaxseg.config import from_file, override

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = str(ROOT / "configs" / "deeplabv3p.py")
TINY = (
    "--config.data_backend=threads",
    "--config.augment.crop=(32, 32)",
    "--config.batch_size=2",
    "--config.devices=1",
    "--config.model.backbone.name=tests.tiny_backbone",
    "--config.dtype=float32",
    "--config.log_every=1",
    "--config.eval_every=2",
    "--config.checkpoint_every=1",
    "--config.eval.batch_size=1",
)


def command(capsys, *argv: str) -> tuple[int, str]:
    """(exit status, everything printed) of a command line."""
    status = main.main(["jaxseg", *argv])
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    return status, output.out + output.err


def write_folder(root: pathlib.Path, classes: int = 3, images: int = 4) -> pathlib.Path:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for i in range(images):
            label = np.kron(rng.integers(0, classes, (4, 4)), np.ones((10, 10))).astype(np.uint8)
            image = (label[..., None] * 60 + rng.integers(0, 40, (40, 40, 3))).astype(np.uint8)
            Image.fromarray(image).save(root / "images" / split / f"{i}.png")
            Image.fromarray(label).save(root / "masks" / split / f"{i}.png")
    (root / "classes.txt").write_text("\n".join(f"class{i}" for i in range(classes)))
    return root


def train(capsys, root, run, *overrides) -> tuple[int, str]:
    return command(
        capsys,
        f"--config={CONFIG}:folder",
        f"--workdir={run}",
        f"--config.data.root={root}",
        "--config.model.channels=8",
        "--config.model.aux_channels=8",
        "--config.steps=2",
        *TINY,
        *overrides,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(dataset, workdir) of a finished run of two steps."""
    root = write_folder(tmp_path_factory.mktemp("data") / "mine")
    run = tmp_path_factory.mktemp("runs") / "run"

    class Quiet:
        readouterr = staticmethod(lambda: type("", (), {"out": "", "err": ""}))

    status, _ = train(Quiet, root, run)
    assert status == 0
    return root, run


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), ["--workdir"]),
        (("trian",), ["'trian'", "did you mean 'train'"]),
        (("--config=nowhere.py", "--workdir=w"), ["nowhere.py", "no such file"]),
        ((f"--config={CONFIG}:mars", "--workdir=w"), ["mars", "cityscapes", "folder"]),
        (
            (f"--config={CONFIG}", "--workdir=w", "--config.bacth_size=4"),
            ["config.bacth_size", "did you mean 'batch_size'"],
        ),
        (
            (f"--config={CONFIG}", "--workdir=w", "--config.optimizer.lrr=4"),
            ["config.optimizer.lrr", "did you mean 'lr'"],
        ),
        ((f"--config={CONFIG}", "--workdir=w", "--config.steps=many"), ["config.steps=many"]),
        (
            (f"--config={CONFIG}", "--workdir=w", "--config.steps=0"),
            ["config.steps=0", "1 or more"],
        ),
        ((f"--config={CONFIG}", "--workdir=w", "--config.augment.crop=5"), ["augment.crop", "two"]),
        ((f"--config={CONFIG}", "--workdir=w", "--config.steps"), ["--config.steps=VALUE"]),
        ((f"--config={CONFIG}", "--workdir=w", "--config.dtype=int8"), ["dtype", "bfloat16"]),
        ((f"--config={CONFIG}", "--workdir=w", "--confg=x"), ["confg"]),
        ((f"--config={CONFIG}", "--workdir=w", "stray"), ["'stray'"]),
        (("eval", "--workdir=nowhere"), ["nowhere", "config.json"]),
        (("predict", "--workdir=nowhere", "--output=o"), ["--input"]),
    ],
)
def test_a_wrong_command_line_is_explained(capsys, tmp_path, monkeypatch, argv, words):
    monkeypatch.chdir(tmp_path)
    status, output = command(capsys, *argv)
    assert status == 2
    assert output.startswith("error: ") and output.count("error:") == 1
    for word in words:
        assert word in output
    assert list(tmp_path.iterdir()) == [], "a refused command leaves nothing behind"


def test_a_config_file_that_fails_is_named_with_its_line(tmp_path, capsys):
    path = tmp_path / "broken.py"
    path.write_text("def get_config():\n    return undefined_name\n")
    status, output = command(capsys, f"--config={path}", "--workdir=w")
    assert status == 2
    assert "broken.py, line 2: NameError" in output


def test_overrides_keep_types():
    config = override(
        from_file(f"{CONFIG}:camvid"),
        [
            "--config.optimizer.lr=1",
            "--config.augment.crop=(64, 96)",
            "--config.augment.flip=False",
        ],
    )
    assert config.optimizer.lr == 1.0 and isinstance(config.optimizer.lr, float)
    assert config.augment.crop == (64, 96)
    assert config.augment.flip is False


def test_missing_data_stops_before_anything_is_built(capsys, tmp_path):
    status, output = command(
        capsys,
        f"--config={CONFIG}:cityscapes",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.root={tmp_path / 'nothing'}",
    )
    assert status == 2
    assert str(tmp_path / "nothing") in output and "leftImg8bit" in output


def test_a_label_outside_the_classes_names_file_and_value(capsys, tmp_path):
    root = write_folder(tmp_path / "mine")
    for i in range(4):
        Image.fromarray(np.full((40, 40), 7, np.uint8)).save(root / "masks" / "train" / f"{i}.png")
    status, output = train(capsys, root, tmp_path / "run")
    assert status == 2
    assert "masks/train/" in output and "7" in output and "error:" in output


def test_an_image_and_a_mask_of_different_sizes_are_named(capsys, tmp_path):
    root = write_folder(tmp_path / "mine")
    for i in range(4):
        Image.fromarray(np.zeros((40, 30), np.uint8)).save(root / "masks" / "train" / f"{i}.png")
    status, output = train(capsys, root, tmp_path / "run")
    assert status == 2
    assert "40x40" in output.replace(" ", "") or "(40,40)" in output.replace(" ", "")
    assert "30" in output


def test_an_empty_split_is_named(capsys, tmp_path):
    root = write_folder(tmp_path / "mine")
    for kind in ("images", "masks"):
        shutil.rmtree(root / kind / "val")
        (root / kind / "val").mkdir()
    status, output = train(capsys, root, tmp_path / "run")
    assert status == 2
    assert "val" in output


def test_a_batch_that_does_not_divide_is_explained(capsys, trained, tmp_path):
    status, output = train(capsys, trained[0], tmp_path / "run", "--config.devices=8")
    assert status == 2
    assert "batch_size=2" in output and "multiple of 8" in output


def test_a_finished_run_leaves_figures_pictures_and_a_manifest(trained):
    run = trained[1]
    assert len(list((run / "predictions").glob("*_overlay.png"))) == 4
    assert workdir.read_config(run).steps == 2
    [entry] = workdir.read_manifest(run)["runs"]
    assert entry["dataset"]["images"] == {"train": 4, "val": 4}
    assert entry["init_from"]["taken"] == 0 and "no ImageNet weights" in entry["init_from"]["why"]
    final, result = entry["final"], json.loads((run / "results-val.json").read_text())
    assert "mIoU" in final and final == {key: result[key] for key in final}
    assert entry["fingerprints"]["val"] == result["protocol"]["fingerprint"]
    assert entry["mesh"]["data"] == 1 and entry["data_backend"] == "threads"
    meta = json.loads((run / "checkpoints" / "2" / "meta" / "metadata").read_text())
    assert final["step"] == 2 and entry["checkpoints"]["2"] == meta["crc32"]
    assert 0 < entry["goodput"]["productive_s"] < entry["goodput"]["total_s"]
    assert [e["event"] for e in entry["events"]] == ["start", "finished"]


def test_the_same_command_after_the_end_evaluates_again(capsys, trained, monkeypatch):
    monkeypatch.setenv("JAXSEG_OFFLINE", "1")  # what was begun needs no weights to begin with
    status, output = train(capsys, *trained, "--config.init_from=resnet18_v1c")
    assert status == 0
    assert "continuing from step 2" in output and "mIoU" in output


def test_eval_and_predict_need_only_the_workdir(capsys, trained, tmp_path):
    root, run = trained
    status, output = command(capsys, "eval", f"--workdir={run}", "--split=train")
    assert status == 0 and "class2" in output
    photos = tmp_path / "photos"
    shutil.copytree(root / "images" / "val", photos)
    (photos / "broken.png").write_bytes(b"not an image")
    status, output = command(
        capsys, "predict", f"--workdir={run}", f"--input={photos}", f"--output={tmp_path / 'out'}"
    )
    assert status == 2, "one image could not be read"
    assert "broken.png" in output
    for i in range(4):
        with Image.open(tmp_path / "out" / f"{i}.png") as label:
            assert label.mode == "P" and label.size == (40, 40)
            assert np.asarray(label).max() < 3
        assert (tmp_path / "out" / f"{i}_overlay.png").is_file()


def test_another_class_count_starts_the_classifiers_afresh(capsys, trained, tmp_path):
    root = write_folder(tmp_path / "five", classes=5)
    source = f"--config.init_from={trained[1]}"
    status, output = train(capsys, root, tmp_path / "run", source)
    assert status == 0, output
    assert "is for 3 classes, this model for 5" in output
    assert "aux_head/classifier/conv/kernel: (1, 1, 8, 3) there, (1, 1, 8, 5) here" in output
    [entry] = workdir.read_manifest(tmp_path / "run")["runs"]
    assert entry["init_from"]["source"] == str(trained[1]) and len(entry["init_from"]["left"]) == 4


def test_another_architecture_is_refused(capsys, trained, tmp_path):
    root, source = trained[0], f"--config.init_from={trained[1]}"
    status, output = train(capsys, root, tmp_path / "run", source, "--config.model.channels=16")
    assert status == 2
    assert "head/classifier/conv/kernel" in output and "init_skip" in output
    assert "arrays that fit: aux_head 7 of 7, backbone 25 of 25, head" in output
    status, output = train(capsys, *trained, "--config.model.channels=16")
    assert status == 2
    assert "model.channels" in output and "--force" in output
    status, output = train(capsys, *trained, "--config.model.channels=16", "--force")
    assert status == 2
    assert "head/" in output and "16" in output and "8" in output


@pytest.mark.slow
def test_bfloat16_ema_clipping_and_accumulation_train(capsys, trained, tmp_path):
    status, output = train(
        capsys,
        trained[0],
        tmp_path / "run",
        "--config.dtype=bfloat16",
        "--config.ema=0.9",
        "--config.optimizer.clip_norm=1.0",
        "--config.optimizer.accumulate=2",
    )
    assert status == 0, output
    status, output = command(capsys, "eval", f"--workdir={tmp_path / 'run'}")
    assert status == 0, output


def test_check_reports_faults_and_exits_with_one(capsys, trained, tmp_path):
    status, output = command(
        capsys, "check", f"--config={CONFIG}:folder", f"--config.data.root={trained[0]}"
    )
    assert status == 0, output
    root = write_folder(tmp_path / "mine")
    (root / "images" / "val" / "2.png").write_bytes(b"\x89PNG broken")
    status, output = command(
        capsys, "check", f"--config={CONFIG}:folder", f"--config.data.root={root}"
    )
    assert status == 1
    assert "2.png" in output


def test_a_run_that_is_older_than_a_link_of_prediction_may_use_it(capsys, tmp_path):
    root = write_folder(tmp_path / "data")
    assert train(capsys, root, tmp_path / "run")[0] == 0
    path = tmp_path / "run" / "config.json"
    old = json.loads(path.read_text())
    old["predict"] = {"flip": True}
    path.write_text(json.dumps(old))
    argv = ["jaxseg", "eval", f"--workdir={tmp_path}/run", "--config.predict.scales=(0.5, 1.0)"]
    chain = command_line.parse(argv)[2].predict
    assert chain.flip and chain.scales == (0.5, 1.0) and chain.crf.iterations == 0
    status, said = command(capsys, *argv[1:], "--config.predict.crf.iteration=2")
    assert status == 2 and "iterations" in said


def test_a_flag_of_another_command_is_refused(capsys):
    status, said = command(capsys, "predict", "--workdir=run", "--input=x", "--split=val")
    assert status == 2 and "predict: takes no --split. It takes --config --workdir" in said
