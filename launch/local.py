"""N processes of one jaxseg command on this machine; see local.sh, which calls it.

python launch/local.py N [COMMAND] --config FILE --workdir FOLDER ...
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import BinaryIO

PREEMPTED = 42  # saved, start me again: every process is about to end by itself
GRACE = 5.0  # seconds that the others have to end by themselves after one failed
GRACE_SAVED = 120.0  # the same after one said that it has saved: another may be writing still


def commands(count: int, arguments: Sequence[str]) -> list[list[str]]:
    """The command line of each process; `arguments` may start with a sub-command."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    joined = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}"]
    main = [sys.executable, "-m", "jaxseg.main", *arguments, *joined]
    return [[*main, f"--process_id={index}"] for index in range(count)]


def run(lines: Sequence[Sequence[str]], grace: float = GRACE) -> int:
    """Runs the command lines side by side until all have ended.

    SIGINT and SIGTERM go to each of them once; when they come again all are killed. When one fails
    the others are killed after `grace` seconds. None outlives this process.

    Returns:
      The status of the first that failed, 128 + signal for one that a signal ended, or 0.
    """
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: received.append(number))
    processes = [_start(line) for line in lines]
    output = Output()
    readers = [
        threading.Thread(target=output.copy, args=(process.stdout, index), daemon=True)
        for index, process in enumerate(processes)
    ]
    for reader in readers:
        reader.start()
    status = _wait(processes, received, grace)
    for reader in readers:
        reader.join(timeout=5.0)  # not for ever: a grandchild may hold the pipe
    output.finish()
    return status


def _start(line: Sequence[str]) -> subprocess.Popen:
    """Starts one process in a session of its own, so that the terminal's Ctrl-C comes once."""
    die_with_me = None
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None).prctl

        def die_with_me() -> None:  # also if this process is killed and cannot clean up
            prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    return subprocess.Popen(
        line,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
        preexec_fn=die_with_me,
    )


def _wait(processes: Sequence[subprocess.Popen], received: list[int], grace: float) -> int:
    """Waits for all, passing signals on; returns the status of the first that failed."""
    forwarded, status, deadline, why = 0, 0, float("inf"), ""

    def end(number: int) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    while True:
        codes = [process.poll() for process in processes]
        failed = [(index, code) for index, code in enumerate(codes) if code]
        if failed and not status:
            index, code = failed[0]
            status = code if code > 0 else 128 - code
            deadline = time.monotonic() + (GRACE_SAVED if code == PREEMPTED else grace)
            why = f"process {index} ended with exit status {code}"
            if code < 0:  # it cannot have said why itself
                why = f"process {index} was ended by {signal.Signals(-code).name}"
                print(f"[local] {why}", file=sys.stderr, flush=True)
        if None not in codes:
            return status
        if time.monotonic() > deadline:
            print(f"[local] {why}; ending the others", file=sys.stderr, flush=True)
            end(signal.SIGKILL)
            deadline = float("inf")
        if forwarded < len(received):
            end(received[forwarded] if forwarded == 0 else signal.SIGKILL)
            forwarded += 1
        time.sleep(0.05)


class Output:
    """What the processes print, by line: process 0 as it is, the others after their number.

    A mistake of the user's is met by all processes alike. So from a line 'error: ...' on the output
    of the others is kept back, and shown only where it is not what process 0 said.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._errors: dict[int, list[bytes]] = {}

    def copy(self, pipe: BinaryIO, index: int) -> None:
        """Copies one process's output as it comes, until it ends."""
        error = self._errors.setdefault(index, [])
        for line in pipe:
            if error or line.startswith(b"error: "):
                error.append(line)
            if not error or index == 0:
                self._write(index, line)

    def finish(self) -> None:
        """Shows the errors that were kept back and are not those of process 0."""
        for index in sorted(self._errors):
            if self._errors[index] != self._errors.get(0):
                for line in self._errors[index]:
                    self._write(index, line)

    def _write(self, index: int, line: bytes) -> None:
        prefix = b"[%d] " % index if index else b""
        with self._lock:
            sys.stdout.buffer.write(prefix + line)
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(run(commands(int(sys.argv[1]), sys.argv[2:])))
