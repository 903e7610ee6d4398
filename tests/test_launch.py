"""launch/tpu_vm.sh against a pretended cloud, in which its commands for the workers really run."""

import os
import signal
import subprocess
import sys
import time

import pytest
from launching import ROOT, Launcher

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the workers are Linux machines")

TPU = {
    "PROJECT": "my-project",
    "ZONE": "us-west4-a",
    "TPU_NAME": "segment",
    "TPU_TYPE": "v5litepod-16",
    "SHARED": "gs://my-bucket",
}
TRAINING = (
    "--config=configs/deeplabv3p.py:cityscapes",
    "--config.augment.crop=(64,64)",
    "--workdir=/mnt/jaxseg/runs/x",
)
DELETED = "segment does not exist: nothing of it is billed"
BILLED = "STILL BILLED: segment (v5litepod-16, us-west4-a)"


@pytest.fixture
def launch(tmp_path):
    return Launcher(tmp_path)


@pytest.fixture(scope="module")
def idle(tmp_path_factory):
    """For what changes nothing in the cloud."""
    launch = Launcher(tmp_path_factory.mktemp("idle"))
    yield launch
    assert all("describe" in call for call in launch.calls())


def script(launch, *endings: str) -> None:
    """How the first, second ... training ends; see fakes/worker/python3."""
    (launch.cloud / "script").write_text("\n".join(endings) + "\n")


def verbs(launch) -> list[str]:
    """What gcloud was asked for, without the questions about the state."""
    words = [[w for w in call if not w.startswith("-")] for call in launch.calls()]
    return [w[3] if w[0] == "compute" else w[1] for w in words if "describe" not in w]


def trainings(launch, worker: int) -> list[str]:
    lines = (launch.cloud / f"worker{worker}.python").read_text().splitlines()
    return [line for line in lines if "jaxseg.main" in line]


@pytest.mark.parametrize(
    "name, variables",
    [
        ("tpu_vm_all", TPU),
        ("tpu_vm_spot", {**TPU, "TPU_TYPE": "v6e-8", "SPOT": "1", "SHARED": "10.0.0.2:/share"}),
    ],
)
def test_a_dry_run_shows_every_command_and_calls_nothing(idle, name, variables):
    status, output = idle("tpu_vm.sh", "all", "--dry-run", *TRAINING, POLL="30", **variables)
    assert status == 0
    assert output == (ROOT / "tests" / "golden" / "launch" / f"{name}.txt").read_text()


@pytest.mark.parametrize("missing", ["PROJECT", "ZONE", "TPU_NAME", "TPU_TYPE"])
def test_a_missing_variable_is_named_with_an_example(idle, missing):
    variables = {name: value for name, value in TPU.items() if name != missing}
    status, output = idle("tpu_vm.sh", "create", **variables)
    assert (
        status == 2 and f"error: set {missing}, " in output and f"for example {missing}=" in output
    )


@pytest.mark.parametrize(
    "change, arguments, message",
    [
        ({"TPU_TYPE": "v9-8"}, (), "TPU_TYPE=v9-8: expected v2-N"),
        ({"TPU_TYPE": "v4-2x2x2"}, (), "TPU_TYPE=v4-2x2x2: expected v2-N"),
        ({"TPU_TYPE": "tpu7x-16"}, (), "launch/gke_xpk.sh runs on it"),
        ({"SHARED": "my-bucket"}, (), "SHARED=my-bucket: expected gs://BUCKET or HOST:/SHARE"),
        ({"SHARED": ""}, (), "set SHARED to what is mounted there"),
        ({}, ("--workdir=gs://my-bucket/x",), "expected a folder; with SHARED=gs://BUCKET"),
        ({}, ("--workdir", "runs/x"), "where the 4 workers do not share it"),
        ({"TPU_TYPE": "v6e-1", "SPOT": "1"}, ("--workdir=runs/x",), "goes with the TPU"),
        ({}, ("--workdir=",), "give --workdir=FOLDER"),
    ],
)
def test_mistakes_are_refused_before_anything_is_paid_for(idle, change, arguments, message):
    status, output = idle("tpu_vm.sh", "all", *TRAINING, *arguments, **{**TPU, **change})
    assert status == 2 and "error: " in output and message in output


@pytest.mark.parametrize(
    "tpu_type, runtime",
    [
        ("v2-8", "tpu-ubuntu2204-base"),
        ("v3-32", "tpu-ubuntu2204-base"),
        ("v4-8", "tpu-ubuntu2204-base"),
        ("v5litepod-4", "v2-alpha-tpuv5-lite"),
        ("v5p-16", "v2-alpha-tpuv5"),
        ("v6e-256", "v2-alpha-tpuv6e"),
    ],
)
def test_the_system_image_follows_from_the_type(idle, tpu_type, runtime):
    status, output = idle("tpu_vm.sh", "create", "--dry-run", **{**TPU, "TPU_TYPE": tpu_type})
    assert status == 0
    assert f"--accelerator-type={tpu_type} --runtime-version={runtime}\n" in output


def test_from_nothing_to_results_and_nothing_left_to_pay(launch):
    script(launch, "42", "0")
    states = "WAITING_FOR_RESOURCES PROVISIONING ACTIVE"
    status, output = launch("tpu_vm.sh", "all", "--yes", *TRAINING, FAKE_STATES=states, **TPU)
    assert status == 0, output
    for state in states.split():
        assert f"segment: {state}\n" in output
    assert "training number 1 of worker0 on tpu,cpu" in output
    assert "training number 1 of worker1" not in output  # the log of worker 0 alone
    assert "training: saved; it goes on from the newest checkpoint" in output
    # Twice on both workers, with the same arguments: the status 42 started it again.
    command = " ".join(["-m jaxseg.main", *TRAINING, "--distributed"])
    assert trainings(launch, 0) == trainings(launch, 1) == [command] * 2
    assert verbs(launch)[-2:] == ["rsync", "delete"]
    assert ["gs://my-bucket/runs/x", "runs/x"] in [call[-2:] for call in launch.calls()]
    assert output.endswith(
        f"{DELETED}\ngs://my-bucket is stored, and billed, until you delete it yourself\n"
    )


def test_a_spot_tpu_that_is_taken_away_is_created_again(launch):
    script(launch, "taken", "0")
    (launch.cloud / "taken_at").write_text("2")  # the next one too, while it is set up
    status, output = launch("tpu_vm.sh", "all", *TRAINING, SPOT="1", **TPU)
    assert status == 0, output
    assert "segment was taken away, with its disks; it is created anew" in output
    created = [call for call in launch.calls() if "create" in call]
    assert len(created) == 3 and all("--spot" in call for call in created)
    deleted = [call for call in launch.calls() if "delete" in call]
    assert len(deleted) == 2 and all("--force" in call for call in deleted)
    assert len(trainings(launch, 0)) == len(trainings(launch, 1)) == 2
    assert "training: finished" in output
    assert "not deleted" in output and BILLED in output  # nobody said that it may be


def test_a_failure_is_not_tried_again_and_says_what_is_billed(launch):
    script(launch, "1", "0")
    status, output = launch("tpu_vm.sh", "all", "--yes", *TRAINING, **TPU)
    assert status == 1
    assert "worker1 exit 1" in output and "training: failed" in output
    assert len(trainings(launch, 0)) == 1
    assert "delete" not in verbs(launch) and BILLED in output


def test_setup_brings_what_git_does_not_ignore_and_restarts_end_at_the_limit(launch):
    script(launch, "42", "42", "42")
    (launch.checkout / "runs").mkdir()
    (launch.checkout / "runs" / "large").write_text("ignored")
    (launch.checkout / "new file.py").write_text("not committed")
    launch("tpu_vm.sh", "create", **TPU)
    status, output = launch("tpu_vm.sh", "setup", **TPU)
    assert status == 0 and BILLED in output
    status, output = launch("tpu_vm.sh", "run", *TRAINING, RESTARTS="1", **TPU)
    assert status == 1 and len(trainings(launch, 0)) == 2
    assert "not started again: that was done 1 times (RESTARTS)" in output
    for worker in ("worker0", "worker1"):
        copy = launch.cloud / worker / "jaxseg"
        assert (copy / "new file.py").read_text() == "not committed"
        assert not (copy / "runs").exists()
        asked = (launch.cloud / f"{worker}.python").read_text()
        assert "-m uv python install --quiet 3.12\n" in asked
        assert "-m pip install --quiet -r requirements-tpu.txt\n" in asked
        mounts = (launch.cloud / worker / "mounts").read_text()
        assert mounts.count("gcsfuse") == 1 and mounts.endswith(" my-bucket /mnt/jaxseg\n")


def test_training_outlives_the_script_and_stops_when_it_is_told_to(launch):
    script(launch, "hang")
    launch("tpu_vm.sh", "create", **TPU)
    launch("tpu_vm.sh", "setup", **TPU)
    run = ["bash", "launch/tpu_vm.sh", "run", *TRAINING]
    where = dict(cwd=launch.checkout, env=launch.environment(**TPU), text=True)
    out = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    process = subprocess.Popen(run, **out, **where)
    for line in process.stdout:
        if "training number 1" in line:
            break
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal does
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert BILLED in output and "Training goes on there" in output
    assert launch("tpu_vm.sh", "status", **TPU)[1].count(" running\n") == 2
    launch("tpu_vm.sh", "stop", **TPU)
    deadline = time.monotonic() + 60
    while "running" in launch("tpu_vm.sh", "status", **TPU)[1]:
        assert time.monotonic() < deadline
    assert launch("tpu_vm.sh", "status", **TPU)[1].count(" stopped, exit 42\n") == 2


@pytest.mark.parametrize("answer, gone", [("y\n", True), ("n\n", False), ("", False)])
def test_deleting_asks(launch, answer, gone):
    launch("tpu_vm.sh", "create", **TPU)
    status, output = launch("tpu_vm.sh", "delete", stdin=answer, **TPU)
    assert status == 0
    assert (
        "delete segment (v5litepod-16, us-west4-a) and everything on its own disks? [y/N]" in output
    )
    assert (DELETED in output) == gone and (BILLED in output) != gone
    assert ("delete" in verbs(launch)) == gone


def test_a_refused_creation_says_what_to_look_at(launch):
    (launch.cloud / "refuse").write_text("ERROR: RESOURCE_EXHAUSTED: quota TPUV5sLitepod exceeded")
    status, output = launch("tpu_vm.sh", "create", **TPU)
    assert status == 2
    assert "quota TPUV5sLitepod exceeded" in output
    assert "accelerator-types list --project=my-project --zone=us-west4-a" in output
    assert "gcloud services enable tpu.googleapis.com --project=my-project" in output
    assert DELETED in output


def test_a_request_that_fails_or_waits_is_not_silently_left(launch):
    states = "WAITING_FOR_RESOURCES FAILED"
    status, output = launch("tpu_vm.sh", "create", FAKE_STATES=states, **TPU)
    assert status == 2 and "segment: FAILED before it was there" in output
    assert "segment has no machines, and is not billed" in output
    status, output = launch("tpu_vm.sh", "create", **TPU)
    assert status == 2 and "segment exists and is FAILED, which is final" in output
    (launch.cloud / "resource").write_text("WAITING_FOR_RESOURCES")
    status, output = launch("tpu_vm.sh", "status", **TPU)
    assert "STILL QUEUED" in output
