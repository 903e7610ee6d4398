"""The lock, the config and the manifest of a run folder."""

import importlib.metadata
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import jax
import pytest
from ml_collections import ConfigDict

from jaxseg import manifest
from jaxseg.errors import Preempted, UserError
from jaxseg.workdir import (
    TRAINING_KEYS,
    Workdir,
    changed_keys,
    open_workdir,
    read_config,
    read_manifest,
)

ROOT = pathlib.Path(__file__).resolve().parents[1]


def make_config(**changes) -> ConfigDict:
    config = ConfigDict(
        dict(
            seed=1,
            batch_size=8,
            steps=100,
            log_every=10,
            augment=dict(crop=(512, 1024), scale=(0.5, 2.0), base_size=None, flip=True),
            model=dict(name="deeplabv3p", rates=(12, 24, 36), backbone=dict(depth=50)),
            optimizer=dict(name="sgd", lr=0.01),
            losses=dict(logits=dict(name="cross_entropy", weight=1.0)),
            empty=(),
            nested=((1, 2), (3, 4)),
        )
    )
    config.update_from_flattened_dict(changes)
    return config


def run_holder(workdir) -> subprocess.Popen:
    """Another process that holds the folder until it is killed."""
    code = (
        "import sys, time; from jaxseg.workdir import Workdir; w = Workdir(sys.argv[1]); "
        "print('held', flush=True); time.sleep(600)"
    )
    env = dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS="cpu")
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(workdir)], env=env, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    return holder


def test_second_process_is_told_who_is_first_and_a_dead_one_is_no_obstacle(tmp_path):
    holder = run_holder(tmp_path)
    try:
        expected = f"in use by process {holder.pid} on host {re.escape(socket.gethostname())};"
        with pytest.raises(UserError, match=expected):
            open_workdir(tmp_path, make_config(), [])
        assert not (tmp_path / "config.json").exists()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with open_workdir(tmp_path, make_config(), []):
        assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on host ")
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} "):
            Workdir(tmp_path)
    Workdir(tmp_path).close()  # free again after the context


def test_config_comes_back_with_tuples(tmp_path):
    config = make_config()
    open_workdir(tmp_path / "new" / "run", config, []).close()
    read = read_config(tmp_path / "new" / "run")
    assert read == config
    assert read.augment.crop == (512, 1024) and isinstance(read.augment.crop, tuple)
    assert read.nested == ((1, 2), (3, 4)) and read.empty == ()
    assert isinstance(read.optimizer.lr, float) and isinstance(read.steps, int)
    with pytest.raises(UserError, match="has no config.json"):
        read_config(tmp_path)


def test_changed_keys():
    old = make_config()
    assert changed_keys(old, make_config()) == []
    new = make_config(**{"optimizer.lr": 0.02, "augment.crop": (64, 64), "log_every": 5})
    with new.unlocked():
        new.model.backbone.stem = "v1c"
        del new.losses["logits"]
    assert changed_keys(old, new) == [
        "augment.crop: (512, 1024) -> (64, 64)",
        "log_every: 10 -> 5",
        "losses: (absent) -> {}",
        "losses.logits.name: 'cross_entropy' -> (absent)",
        "losses.logits.weight: 1.0 -> (absent)",
        "model.backbone.stem: (absent) -> 'v1c'",
        "optimizer.lr: 0.01 -> 0.02",
    ]
    assert changed_keys(old, make_config(log_every=5), TRAINING_KEYS) == []
    assert changed_keys(old, make_config(seed=2), TRAINING_KEYS) == ["seed: 1 -> 2"]


def test_resume_with_a_changed_config(tmp_path, caplog):
    open_workdir(tmp_path, make_config(), []).close()
    changed = make_config(**{"optimizer.lr": 0.02, "log_every": 5})
    open_workdir(tmp_path, changed, []).close()  # nothing was saved, so nothing is continued
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    with pytest.raises(
        UserError, match=r"another config:\n  optimizer.lr: 0.02 -> 0.01\n.*--force"
    ):
        open_workdir(tmp_path, make_config(), [])
    assert read_config(tmp_path) == changed  # a refused start leaves no trace
    assert "log_every: 5 -> 10" in caplog.text
    open_workdir(tmp_path, make_config(**{"optimizer.lr": 0.02}), []).close()
    open_workdir(tmp_path, make_config(), [], force=True).close()
    assert read_config(tmp_path) == make_config()
    runs = read_manifest(tmp_path)["runs"]
    kinds = [run["events"][0]["event"] for run in runs]
    assert kinds == ["start", "start", "resume", "resume"]
    # config.json is of the last start; the manifest has how each came from the one before.
    assert [run["config_changes"] for run in runs] == [
        [],
        ["log_every: 10 -> 5", "optimizer.lr: 0.01 -> 0.02"],
        ["log_every: 5 -> 10"],
        ["optimizer.lr: 0.02 -> 0.01"],
    ]


def test_manifest_says_what_ran(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_something --xla_gpu_deterministic_ops")
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_something")
    monkeypatch.setenv("JAX_DEFAULT_MATMUL_PRECISION", "float32")
    monkeypatch.setenv("SECRET_OF_OTHERS", "x")
    argv = ["main.py", "--config", "configs/x.py", "--config.batch_size=8"]
    with open_workdir(tmp_path, make_config(), argv) as workdir:
        workdir.note(dataset={"name": "camvid", "train": 367}, mIoU=float("nan"))
        workdir.event("finished", step=100)
    (run,) = read_manifest(tmp_path)["runs"]
    assert run["argv"] == argv
    assert run["overrides"] == ["--config.batch_size=8"]
    assert run["seed"] == 1
    assert run["dataset"] == {"name": "camvid", "train": 367}
    assert run["mIoU"] is None
    assert run["packages"]["jax"] == importlib.metadata.version("jax")
    assert run["packages"]["orbax-checkpoint"] == importlib.metadata.version("orbax-checkpoint")
    variables = run["environment"]
    assert variables["XLA_FLAGS"] == "--xla_something --xla_gpu_deterministic_ops"
    assert variables["LIBTPU_INIT_ARGS"] == "--xla_tpu_something"
    assert variables["JAX_DEFAULT_MATMUL_PRECISION"] == "float32"
    assert "SECRET_OF_OTHERS" not in variables
    assert run["deterministic"] is True
    assert run["device"] == jax.devices()[0].device_kind
    assert run["cores"] == len(os.sched_getaffinity(0)) and run["processor"]
    assert (run["device_count"], run["process_count"]) == (len(jax.devices()), 1)
    assert [(e["event"], e.get("step")) for e in run["events"]] == [
        ("start", None),
        ("finished", 100),
    ]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]+\+00:00", e["time"]) for e in run["events"])


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """(a repository with a copy of the package, a function that runs code with it and git)."""
    root = tmp_path_factory.mktemp("checkout") / "repo"
    (root / "jaxseg").mkdir(parents=True)
    for name in ("__init__.py", "errors.py", "deterministic.py", "manifest.py"):
        (root / "jaxseg" / name).write_bytes((ROOT / "jaxseg" / name).read_bytes())

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        done = subprocess.run(
            ["git", "-C", root, *identity, *arguments], capture_output=True, text=True
        )
        return done.stdout.strip()

    def reported() -> tuple:
        """(`manifest.code()`, `manifest.changes()` as text)."""
        code = (
            "import json; from jaxseg import manifest; "
            "print(json.dumps([manifest.code(), manifest.changes().decode()]))"
        )
        env = dict(os.environ, PYTHONPATH=str(root), PYTHONDONTWRITEBYTECODE="1")
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, cwd=root.parent, capture_output=True, check=True
        )
        return tuple(json.loads(done.stdout))

    git("init", "-q")
    return root, git, reported


def test_manifest_names_the_commit_of_a_checkout_and_what_differs(checkout):
    """A copy of the package in a repository of its own: untracked, then clean, then changed."""
    root, git, reported = checkout
    assert reported() == (None, "")  # an installed copy inside somebody's repository
    git("add", "jaxseg")
    git("commit", "-q", "-m", "x")
    commit = git("rev-parse", "HEAD")
    assert re.fullmatch("[0-9a-f]{40}", commit)
    clean = {"commit": commit, "dirty": False, "untracked": []}
    assert reported() == (clean, "")
    (root / "jaxseg" / "errors.py").write_text("# changed\nclass UserError(Exception): pass\n")
    (root / "mine.py").write_text("")
    code, patch = reported()
    assert code == clean | {"dirty": True, "untracked": ["mine.py"]}
    # The patch on a clean checkout gives what ran.
    changed = (root / "jaxseg" / "errors.py").read_bytes()
    git("checkout", "-q", "jaxseg/errors.py")
    (root.parent / "patch").write_text(patch)
    git("apply", str(root.parent / "patch"))
    assert (root / "jaxseg" / "errors.py").read_bytes() == changed


def test_changes_of_the_code_are_kept_beside_the_manifest(tmp_path, monkeypatch):
    patch = b"diff --git a/x b/x\n"
    monkeypatch.setattr(manifest, "changes", lambda: patch)
    open_workdir(tmp_path, make_config(), []).close()
    open_workdir(tmp_path, make_config(), []).close()  # the same changes are kept once
    monkeypatch.setattr(manifest, "changes", lambda: b"")
    open_workdir(tmp_path, make_config(), []).close()
    first, second, third = read_manifest(tmp_path)["runs"]
    assert first["patch"] == second["patch"] and "patch" not in third
    assert [path.read_bytes() for path in tmp_path.glob("*.patch")] == [patch]
    assert (tmp_path / first["patch"]).is_file()


@pytest.mark.parametrize(
    ("error", "event"),
    [
        (KeyboardInterrupt(), {"event": "interrupted"}),
        (Preempted(), {"event": "preempted"}),
        (UserError("no room\nat all"), {"event": "stopped", "why": "UserError: no room"}),
        (ZeroDivisionError("by 0"), {"event": "stopped", "why": "ZeroDivisionError: by 0"}),
    ],
)
def test_the_manifest_says_what_ended_a_run(tmp_path, error, event):
    for noted in (False, True):  # whoever raises it may have told more than is known here
        with pytest.raises(type(error)), open_workdir(tmp_path, make_config(), []) as workdir:
            if noted:
                workdir.event(event["event"], step=7)
            raise error
    first, second = read_manifest(tmp_path)["runs"]
    assert {k: v for k, v in first["events"][-1].items() if k != "time"} == event
    assert len(first["events"]) == len(second["events"]) == 2 and second["events"][-1]["step"] == 7


def test_goodput_is_a_share_of_the_time_since_the_start(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr("jaxseg.workdir.time.monotonic", lambda: now)
    with open_workdir(tmp_path, make_config(), []) as workdir:
        now = 140.0
        workdir.note_goodput(30.0)
    (run,) = read_manifest(tmp_path)["runs"]
    assert run["goodput"] == {"productive_s": 30.0, "total_s": 40.0, "share": 0.75}


def test_unusable_folders(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made or written"):
        Workdir(tmp_path / "file" / "run")
    with pytest.raises(UserError, match="gs://bucket/run: expected a folder of a file system"):
        Workdir("gs://bucket/run")
    open_workdir(tmp_path / "run", make_config(), []).close()
    (tmp_path / "run" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="manifest.json: is not JSON"):
        open_workdir(tmp_path / "run", make_config(), [])
    Workdir(tmp_path / "run").close()  # and the lock is free


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    with open_workdir(tmp_path, make_config(), []) as workdir:
        workdir.event("finished")
        workdir.note(a=1)
    assert not list(tmp_path.iterdir())
