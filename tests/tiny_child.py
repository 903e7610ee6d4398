"""A training run of `tests/tiny_config.py` in a process of its own, which may send itself a signal.

    python tests/tiny_child.py SIGNAL STEP DELAY WORKDIR ARGUMENTS...

SIGNAL is 'none', or comes DELAY seconds after step STEP of this start (0 is the first) is enqueued.
SIGTERM at once when DELAY is 0; in a run of several processes steps take longer from then on, so
that only few pass until all know. With 'rss' every tenth step and batch of evaluation leaves a line
{"step", "images", "rss": MiB} in WORKDIR/rss.jsonl.
"""

import json
import os
import pathlib
import signal
import sys
import threading
import time

import jax
from tiny_runs import command, compiled_once

from jaxseg import evaluate, loop

what, when, delay, workdir = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
take, batches = loop.Loop._take_step, evaluate.batches


def send() -> None:
    os.kill(os.getpid(), getattr(signal, what))


def note_memory(**where: int) -> None:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    with open(pathlib.Path(workdir) / "rss.jsonl", "a") as file:
        row = where | {"rss": pages * os.sysconf("SC_PAGE_SIZE") / 2**20}
        file.write(json.dumps(row) + "\n")


def hooked(self, step, batch) -> None:
    take(self, step, batch)
    if what == "rss" and step % 10 == 0:
        note_memory(step=step)
    if what.startswith("SIG"):
        if step == (when or self.start + 1):
            threading.Timer(delay, send).start() if delay else send()
        if step >= when and jax.process_count() > 1:
            time.sleep(0.1)


def noted(*arguments):
    images = 0
    for number, batch in enumerate(batches(*arguments)):
        yield batch
        images += int(batch["mask"].sum())
        if number % 10 == 0:
            note_memory(images=images)


loop.Loop._take_step = hooked
if what == "rss":
    evaluate.batches = noted
with compiled_once():
    sys.exit(command(workdir, *sys.argv[5:]))
