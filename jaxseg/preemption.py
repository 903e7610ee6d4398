"""SIGTERM: a run saves and leaves, to be started again. Clouds and schedulers send it some seconds
before they take a machine away.

In one process a handler takes note of the signal, and a second one ends the process at once. In
several, jax's preemption service does: it lets the processes agree on the next point that all of
them have yet to reach. So that they can, `asked` and `checked` are polled by all of them equally
often and in the same order.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import TypeVar

import jax
from jax.experimental import multihost_utils

from jaxseg.errors import Preempted

T = TypeVar("T")

_asked = False
_polls = 0  # by this process, ever: jax's service wants a number that grows


@contextlib.contextmanager
def watch() -> Iterator[None]:
    """While this lasts, SIGTERM no longer ends the process: `asked` tells of it.

    Several processes need nothing of it: jax's service takes the signal from the start. In a thread
    other than the main one nothing changes, because Python has no signals there.
    """
    global _asked
    _asked = False
    main = threading.current_thread() is threading.main_thread()
    if not main or jax.process_count() > 1:
        yield
        return
    before = signal.signal(signal.SIGTERM, _take_note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
        _asked = False


def _take_note(number: int, frame: object) -> None:
    global _asked
    _asked = True
    signal.signal(number, signal.SIG_DFL)
    # Not by print, which the signal may have interrupted.
    os.write(2, b"SIGTERM: stopping at the next step; a second one stops at once\n")


def asked() -> bool:
    """Whether to save and leave here; every process gets the same answer at the same poll."""
    global _asked, _polls
    if jax.process_count() > 1 and jax.config.jax_enable_preemption_service and not _asked:
        _polls += 1
        _asked = multihost_utils.reached_preemption_sync_point(_polls)
        if _asked and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return _asked


def checked(batches: Iterator[T]) -> Iterator[T]:
    """The same batches, of which every process has equally many.

    Raises:
      Preempted: between two of them, when the process is asked to end.
    """
    with contextlib.closing(batches):
        for batch in batches:
            yield batch
            if asked():
                raise Preempted
