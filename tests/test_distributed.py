"""Processes that find each other and end together."""

import contextlib
import http.server
import threading

import pytest

from jaxseg import distributed, main
from jaxseg.errors import UserError
from tests import processes


def test_a_plain_machine_is_alone_and_says_nothing(capsys, monkeypatch):
    for name in ("SLURM_JOB_ID", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    distributed.init_distributed()
    distributed.init_distributed("localhost:1", 1, 0)
    assert not distributed.joined() and capsys.readouterr().out == ""
    distributed.leave()
    distributed.end_all(3, "not printed")  # there are no others: the caller goes on
    assert capsys.readouterr() == ("", "")
    with pytest.raises(UserError, match="nothing here tells of other processes"):
        distributed.init_distributed(wanted=True)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    distributed.init_distributed(wanted=False)


def test_flags_that_do_not_go_together_are_refused(capsys, tmp_path):
    run = ["jaxseg", "--config=configs/deeplabv3p.py:synthetic", f"--workdir={tmp_path / 'run'}"]
    assert main.main([*run, "--coordinator=localhost:1"]) == 2
    assert "error: --coordinator=localhost:1: without --num_processes" in capsys.readouterr().err
    assert main.main([*run, "--num_processes=2", "--process_id=2", "--coordinator=a:1"]) == 2
    assert "--process_id=2: expected 0 to 1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# ---- Real processes, all of them at once ----

# `jaxseg.main` with another training than its own.
MAIN = """
import sys, time, types
import jaxseg.main
from jax.experimental import multihost_utils

def run(*_):
    import jax
    {before}
    if jax.process_index() == {failing}:
        {failure}
    multihost_utils.sync_global_devices("where the others wait")

jaxseg.train = sys.modules["jaxseg.train"] = types.SimpleNamespace(run=run)
sys.exit(jaxseg.main.main(["jaxseg", "--config=configs/deeplabv3p.py:synthetic", "--workdir=none",
                           *sys.argv[1:]]))
"""

JOIN = """
import os, sys
import jax
from jaxseg import distributed
os.environ.update(eval(sys.argv[1]))
for name in eval(sys.argv[2]):
    os.environ.pop(name)  # set by jax where it sees no TPU
distributed.init_distributed()
print("process", jax.process_index(), "of", jax.process_count(), jax.device_count(), "devices")
distributed.leave()
"""


@contextlib.contextmanager
def metadata_server(worker: int):
    """What a Cloud TPU VM asks for its place; yields the address."""
    values = {
        "agent-worker-number": f"{worker}",
        "worker-network-endpoints": "a:b:127.0.0.1,a:b:127.0.0.1",
        "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-8'\n",
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            prefix, _, key = self.path.rpartition("/")
            found = prefix == "/computeMetadata/v1/instance/attributes" and key in values
            found = found and self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(values[key].encode() if found else b"not here")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def environments(name: str, index: int, server: str) -> dict[str, str]:
    return {
        "slurm": {
            "SLURM_JOB_ID": "123",
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": f"{index}",
            "SLURM_LOCALID": f"{index}",
        },
        "open_mpi": {
            "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911",
            "OMPI_COMM_WORLD_SIZE": "2",
            "OMPI_COMM_WORLD_RANK": f"{index}",
            "OMPI_COMM_WORLD_LOCAL_RANK": f"{index}",
        },
        "gke_tpu": {
            "TPU_WORKER_HOSTNAMES": "localhost,localhost",
            "TPU_WORKER_ID": f"{index}",
        },
        "gke_slices": {
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_WORKER_ID": "0",
            "MEGASCALE_COORDINATOR_ADDRESS": "localhost:8081",
            "MEGASCALE_NUM_SLICES": "2",
            "MEGASCALE_SLICE_ID": f"{index}",
        },
        "tpu_vm": {"GCE_METADATA_IP": server},
    }[name]  # fmt: skip


@pytest.fixture(scope="module")
def jobs(request):
    """Exit status and output of the two processes of each job, which ran side by side."""
    commands: dict[str, list] = {}
    failures = {
        "exception": ("time.sleep(0)", 1, "raise ValueError('the cause')"),
        "mistake": ("from jaxseg.errors import UserError", 0, "raise UserError('a wrong value')"),
        "none": ("time.sleep(jax.process_index())", -1, "pass"),
    }
    for name, (before, failing, failure) in failures.items():
        code = MAIN.format(before=before, failing=failing, failure=failure)
        commands[name] = [["-c", code, *flags] for flags in processes.joined(2)]
    with metadata_server(0) as first, metadata_server(1) as second:
        for name in ("slurm", "tpu_vm"):
            commands[name] = join_commands(name, (first, second))
        found = processes.together([command for pair in commands.values() for command in pair])
    pairs = zip(found[::2], found[1::2], strict=True)
    return dict(zip(commands, pairs, strict=True))


def join_commands(name: str, servers=("", "")) -> list[list[str]]:
    port = str(processes.free_port())
    away = ["TPU_SKIP_MDS_QUERY"] if name == "tpu_vm" else []
    return [
        ["-c", JOIN, repr(environments(name, i, servers[i]) | {"JAX_COORDINATOR_PORT": port}),
         repr(away)]
        for i in range(2)
    ]  # fmt: skip


def check_joined(pair, job: str) -> None:
    for index, (status, output) in enumerate(pair):
        assert status == 0, output
        assert f"process {index} of 2 2 devices" in output
    assert "waiting for 2 processes at " in pair[0][1] and job in pair[0][1]
    assert "waiting" not in pair[1][1]


@pytest.mark.parametrize(("name", "job"), [("slurm", "Slurm job 123"), ("tpu_vm", "TPU VM of 2")])
def test_processes_of_a_cluster_join_by_themselves(jobs, name, job):
    check_joined(jobs[name], job)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "job"),
    [("open_mpi", "Open MPI"), ("gke_tpu", "TPU slice of 2"), ("gke_slices", "2 slices")],
)
def test_processes_of_other_clusters_join_by_themselves(name, job):
    check_joined(processes.together(join_commands(name)), job)


def test_an_exception_in_one_process_ends_all_with_its_traceback(jobs):
    for status, output in jobs["exception"]:
        assert status == 1
        assert "Traceback" in output and "ValueError: the cause" in output
        assert "Check failure stack trace" not in output
    assert "process 1 on host" in jobs["exception"][0][1]


def test_a_mistake_that_one_process_finds_ends_all_with_its_message(jobs):
    for status, output in jobs["mistake"]:
        assert status == 2
        assert output.count("error: a wrong value") == 1
        assert "Traceback" not in output and "Check failure stack trace" not in output
    assert "process 0 on host" in jobs["mistake"][1][1]


def test_processes_that_are_done_wait_for_each_other(jobs):
    for status, output in jobs["none"]:
        assert status == 0, output


@pytest.mark.slow
def test_an_interrupt_ends_all():
    code = MAIN.format(before="pass", failing=1, failure="raise KeyboardInterrupt")
    for status, output in processes.together([["-c", code, *f] for f in processes.joined(2)]):
        assert status == 130
        assert output.count("interrupted; the same command continues") == 1


@pytest.mark.slow
def test_a_process_that_never_comes_is_a_mistake_without_a_stack_trace():
    soon = "import jaxseg.main; jaxseg.main.distributed.WAIT = 2.0"
    code = MAIN.replace("import jaxseg.main", soon)
    flags = processes.joined(3)[:2]
    code = code.format(before="pass", failing=-1, failure="pass")
    for status, output in processes.together([["-c", code, *f] for f in flags]):
        assert status == 2
        assert "error: waited 2 s" in output and "Missing: process 2." in output
        assert "Traceback" not in output and "stack trace" not in output
