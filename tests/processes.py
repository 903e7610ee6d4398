"""Two processes of one job, on this machine."""

import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]


def run_two(code: str, *arguments: str) -> None:
    """Runs `code` as processes 0 and 1, with a free port, the index and `arguments` in sys.argv."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="1")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(port), str(index), *arguments],
            env=env,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    for process in processes:
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
