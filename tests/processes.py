"""Several processes of one job, on this machine."""

import os
import pathlib
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def together(
    commands: Sequence[Sequence[str]],
    variables: Sequence[Mapping[str, str]] = (),
    timeout: float = 900,
) -> list[tuple[int, str]]:
    """Runs Python with these arguments side by side, one CPU device each.

    Args:
      commands: the arguments of each.
      variables: of the environment, of each.
      timeout: seconds, against hanging.

    Returns:
      The exit status of each, and what it printed.
    """
    base = dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="1")
    outputs = [tempfile.TemporaryFile("w+") for _ in commands]
    processes = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=base | dict(variables[i] if variables else {}),
            stdin=subprocess.DEVNULL,
            stdout=outputs[i],
            stderr=subprocess.STDOUT,
        )
        for i, command in enumerate(commands)
    ]
    try:
        statuses = [process.wait(timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    found = []
    for output, status in zip(outputs, statuses, strict=True):
        with output:
            output.seek(0)
            found.append((status, output.read()))
    return found


def run_two(code: str, *arguments: str) -> list[str]:
    """Runs `code` as processes 0 and 1, with a free port, the index and `arguments` in sys.argv.

    Returns:
      What each printed.
    """
    port = str(free_port())
    found = together([["-c", code, port, str(index), *arguments] for index in range(2)])
    for status, output in found:
        assert status == 0, output
    return [output for _, output in found]


def joined(count: int) -> list[list[str]]:
    """The flags that make processes of `jaxseg.main` one run, for each of them."""
    common = [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={count}"]
    return [[*common, f"--process_id={index}"] for index in range(count)]
