"""launch/local.sh: N processes on this machine, none of which outlives the others or the script."""

import os
import signal
import subprocess
import sys
import time

import pytest
from launching import ROOT

DRIVER = f"""
import sys
sys.path.insert(0, {str(ROOT / "launch")!r})
import local
children = [[sys.executable, "-c", code, str(i)] for i, code in enumerate(sys.argv[1:])]
sys.exit(local.run(children, grace=0.2))
"""
FOR_EVER = "import os, time; print('pid', os.getpid()); time.sleep(300)"
SAVES = """
import signal, sys, time
def save(number, frame):
    print("signal", number)
    time.sleep(0.3 * (1 + int(sys.argv[1])))
    sys.exit(42)
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, save)
print("ready")
time.sleep(300)
"""


def start(*codes: str, **options) -> subprocess.Popen:
    """The runner in launch/local.py over these pieces of Python in place of jaxseg."""
    command = [sys.executable, "-c", DRIVER, *codes]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


def run(*codes: str) -> tuple[int, str]:
    process = start(*codes)
    return finish(process)


def finish(process: subprocess.Popen) -> tuple[int, str]:
    output = process.communicate(timeout=60)[0]
    return process.returncode, output


def read_until(process: subprocess.Popen, text: str, times: int) -> list[str]:
    lines = []
    while sum(text in line for line in lines) < times:
        lines.append(process.stdout.readline())
        assert lines[-1], "ended too early"
    return lines


def assert_gone(pid: int) -> None:
    for _ in range(600):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)  # dead, but perhaps not yet reaped by init
    raise AssertionError(f"process {pid} is still there")


def test_process_0_is_shown_as_it_is_and_the_others_with_their_number():
    status, output = run("print('a\\nb')", "import sys; print('c', file=sys.stderr)")
    assert status == 0
    assert sorted(output.splitlines()) == ["[1] c", "a", "b"]


def test_a_failure_ends_the_others_and_its_status_is_passed_on():
    status, output = run(FOR_EVER, "import time; time.sleep(0.3); print('bad'); exit(3)")
    assert status == 3 and "[1] bad\n" in output
    assert "[local] process 1 ended with exit status 3; ending the others\n" in output
    (pid,) = [int(line.split()[1]) for line in output.splitlines() if line.startswith("pid")]
    assert_gone(pid)


def test_a_kill_is_a_failure_of_its_own_number():
    status, output = run("import os; os.kill(os.getpid(), 9)", "pass")
    assert status == 128 + 9 and "[local] process 0 was ended by SIGKILL\n" in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_each_process_once_and_saving_is_waited_for(number):
    process = start(SAVES, SAVES, start_new_session=True)
    read_until(process, "ready", 2)
    # To the whole group, as a terminal does: the processes must not get it twice for that.
    os.killpg(process.pid, number)
    status, output = finish(process)
    assert status == 42  # the slower one was given more than the grace of 0.2 s
    assert sorted(output.splitlines()) == [f"[1] signal {number:d}", f"signal {number:d}"]


def test_a_second_signal_ends_what_does_not_listen():
    deaf = "import signal, time; signal.signal(15, print); print('ready'); time.sleep(300)"
    process = start(deaf, deaf)
    read_until(process, "ready", 2)
    process.terminate()
    read_until(process, "15", 2)
    process.terminate()
    assert finish(process)[0] == 128 + 9


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of this")
def test_nothing_is_left_when_the_script_itself_is_killed():
    process = start(FOR_EVER, FOR_EVER)
    lines = read_until(process, "pid", 2)
    process.kill()
    process.wait()
    for line in lines:
        assert_gone(int(line.split()[-1]))


def test_an_error_of_all_processes_is_shown_once():
    error = "print('error: no such file\\n  more of it'); exit(2)"
    other = "print('step 1\\nerror: disk full'); exit(2)"
    status, output = run(error, error, other)
    assert status == 2
    assert sorted(output.splitlines()) == sorted(
        ["error: no such file", "  more of it", "[2] step 1", "[2] error: disk full"]
    )


def local(*arguments: str) -> subprocess.CompletedProcess:
    """launch/local.sh in this checkout and in the environment of the tests."""
    return subprocess.run(
        ["bash", str(ROOT / "launch" / "local.sh"), *arguments],
        env={
            **{k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"},
            "VIRTUAL_ENV": sys.prefix,
            "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_dry_run_shows_the_command_of_each_process():
    shown = local("2", "--dry-run", "eval", "--workdir", "my runs/x")
    end = "--coordinator=127.0.0.1:PORT --num_processes=2 --process_id"
    assert shown.stdout == (
        "+ export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=1\n"
        f"+ python -m jaxseg.main eval --workdir 'my runs/x' {end}=0 &\n"
        f"+ python -m jaxseg.main eval --workdir 'my runs/x' {end}=1 &\n"
    )


def test_without_a_number_it_says_so():
    refused = local("--config", "configs/deeplabv3p.py:synthetic")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: local.sh: give the number of processes first")


def test_a_missing_workdir_is_jaxsegs_own_message_once():
    refused = local("2", "--config", "configs/deeplabv3p.py:synthetic")
    assert refused.returncode == 2 and refused.stderr == ""
    assert refused.stdout == "error: train: give --workdir=FOLDER, where the run is kept\n"


@pytest.mark.slow
def test_two_processes_train(tmp_path):
    sizes = "--config.data.train=8 --config.data.val=2 --config.data.test=2 --config.batch_size=2"
    every = "--config.log_every=1 --config.eval_every=2 --config.checkpoint_every=2"
    model = "--config.model.backbone.name=tests.tiny_backbone --config.model.channels=8"
    rest = "--config.model.aux_channels=8 --config.steps=2 --config.schedule.warmup=0"
    flags = ["--config.augment.crop=(32,32)", *f"{sizes} {every} {model} {rest}".split()]
    config = str(ROOT / "configs" / "deeplabv3p.py:synthetic")
    done = local("2", "--config", config, "--workdir", str(tmp_path / "run"), *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 x cpu" in done.stdout and "step 2/2" in done.stdout
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()
