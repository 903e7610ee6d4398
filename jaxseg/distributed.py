"""Runs of several processes: how they find each other, and how they end together.

One process per host, or one per GPU; each runs the same command. `init_distributed` joins them.
From then on a failure of one ends all of them, with the report of the one that failed: see
`end_all`. jax is imported only where there may be others.
"""

import atexit
import contextlib
import json
import os
import pickle
import socket
import sys
import threading
import time
from typing import Any

from jaxseg import clusters, rendezvous
from jaxseg.errors import UserError

WAIT = 600.0  # seconds until all processes must be there: hosts may be set up one after another
_HEARTBEAT = 60  # seconds without a sign of life after which a process counts as dead
_SHUTDOWN = 30  # seconds to take leave of the others, who are at the same place
_POLL = 0.5  # seconds between looks for the failure of another
_LINGER = 2 * _POLL  # seconds for all to have looked, before the one that failed is gone
_FAILURE = "jaxseg/failure"  # keys in jax's store
_DONE = "jaxseg/done"
_LONGEST = 20_000  # characters of a report that travel


class _Watch:
    """Ends this process when another has failed: a thread that looks for its report."""

    def __init__(self, client: Any):
        self._client = client
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jaxseg-failures", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(_POLL):
            report = _failure(self._client)
            if report is not None:
                _end_with(report)

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()


_watch: _Watch | None = None  # of this process, while it is one of several


def init_distributed(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    wanted: bool | None = None,
    timeout: float | None = None,
) -> None:
    """Joins the other processes of a run, if there are any. Call it before a device is touched.

    Without arguments they are those that Slurm, Open MPI, GKE or Cloud TPU started, and on a plain
    machine there are none, see `jaxseg.clusters`. Process 0 says what it waits for.

    Args:
      coordinator, num_processes, process_id: HOST:PORT of process 0, how many there are, and which
        this is; all three, for a cluster of another kind.
      wanted: whether there must be others; False: this process has nothing to do with others,
        whatever started it. None takes it as it is found.
      timeout: seconds to wait for the others; `WAIT` when None.

    Raises:
      UserError: the arguments or the cluster's variables are wrong, or somebody is missing; it says
        who.
    """
    import jax  # sets TPU_SKIP_MDS_QUERY where there is no TPU

    if (coordinator, num_processes, process_id) != (None, None, None):
        cluster = clusters.from_flags(coordinator, num_processes, process_id)
    elif wanted is False:
        cluster = None
    else:
        interactive = sys.stdin is not None and sys.stdin.isatty()
        cluster = clusters.detect(os.environ, interactive, clusters.metadata_of_vm)
        if wanted and cluster is None:
            raise UserError(
                "--distributed: nothing here tells of other processes. Open MPI, Slurm (by srun) "
                "and Cloud TPU do; otherwise give --coordinator=HOST:PORT --num_processes=N "
                "--process_id=I"
            )
    if cluster is None:
        return
    rendezvous.meet(cluster, WAIT if timeout is None else timeout)
    jax.distributed.initialize(
        cluster.coordinator,
        cluster.num_processes,
        cluster.process_id,
        local_device_ids=cluster.gpus,
        cluster_detection_method="deactivate",
        initialization_timeout=120,  # all are here
        heartbeat_timeout_seconds=_HEARTBEAT,
        shutdown_timeout_seconds=_SHUTDOWN,
    )
    global _watch
    _watch = _Watch(store())
    atexit.register(_stop_watching)  # before jax, which was imported before, takes leave


def store() -> Any:
    """jax's connection to the store of keys and values that the processes of a run share."""
    from jax._src import distributed  # it has no public name

    return distributed.global_state.client


def _stop_watching() -> None:
    global _watch
    if _watch is not None:
        _watch.stop()
        _watch = None


def joined() -> bool:
    """Whether this process is one of several."""
    return _watch is not None


def leave() -> None:
    """Takes leave when all is done: waits for the others, who may write files still.

    A process that fails meanwhile ends this one, too.
    """
    if not joined():
        return
    import jax

    store().wait_at_barrier(_DONE, 24 * 3600 * 1000)  # ms; the dead are noticed by heartbeats
    _stop_watching()
    jax.distributed.shutdown()


def gathered(value: Any) -> list[Any]:
    """`value` of each process, in the order of processes, to all of them.

    Every process must ask for it. It travels as bytes: as arrays, int64 would become int32 on the
    way.
    """
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    lengths = multihost_utils.process_allgather(np.array([data.size], np.int32)).ravel()
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: data.size] = data
    parts = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(lengths), -1)
    return [
        pickle.loads(part[:n].tobytes()) for part, n in zip(parts, lengths.tolist(), strict=True)
    ]


def end_all(status: int, report: str) -> None:
    """Ends every process of the run with this exit status; returns where there is no other.

    Without this the others would wait minutes for one that has failed: in a collective, and then in
    jax's barriers at exit. All print the report of the first that failed, and it alone: what fails
    in others then is a consequence.

    Args:
      status: for `os._exit`.
      report: the error or the traceback.
    """
    if not joined():
        return
    import jax

    _stop_watching()  # or it might tell of this failure, too
    client, who = store(), f"process {jax.process_index()} on host {socket.gethostname()}"
    message = {"who": who, "status": status, "report": report[-_LONGEST:]}
    try:
        client.key_value_set(_FAILURE, json.dumps(message))
    except Exception:
        failure = _failure(client)
        if failure is not None:
            _end_with(failure)
    print(report, file=sys.stderr, flush=True)
    _exit(status, _LINGER)


def _failure(client: Any) -> dict[str, Any] | None:
    """The report of the first process that failed; None while all go on."""
    with contextlib.suppress(Exception):  # there is none, or jax's service is gone: jax tells that
        return json.loads(client.key_value_try_get(_FAILURE))
    return None


def _end_with(failure: dict[str, Any]) -> None:
    """Ends this process because of another's failure."""
    print(
        f"{failure['who']} failed, and all processes end:\n{failure['report']}",
        file=sys.stderr,
        flush=True,
    )
    _exit(failure["status"])


def _exit(status: int, after: float = 0.0) -> None:
    """Ends the process without what jax does at exit, which waits for the others."""
    import jax

    if jax.process_index() == 0:  # where the store is, without which jax aborts the others
        after = 2 * _LINGER
    time.sleep(after)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)
