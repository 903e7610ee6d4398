"""Processes meet before they join jax: whoever does not come is known by number.

jax's own start ends the process with a stack trace of its C++ when somebody is missing. So process
0 first listens at the address that jax's service is about to use. The others come there and tell
their number, and wait until process 0 lets all of them go, or says why not. Each message is a line
of JSON.
"""

import contextlib
import json
import socket
import time
from collections.abc import Iterable, Iterator
from typing import Any

from jaxseg.clusters import Cluster
from jaxseg.errors import UserError

_TOLD_EVERY = 60.0  # seconds between lines on who is missing
_PATIENCE = 5.0  # seconds that one connection may take to be made, or to tell its number
_RETRY = 0.5  # seconds between tries to reach process 0


def meet(cluster: Cluster, timeout: float) -> None:
    """Returns when all processes of the cluster have called it.

    Process 0 says what it waits for; the others say so when nobody answers for a while.

    Args:
      cluster: whose process this is.
      timeout: seconds to wait for the others.

    Raises:
      UserError: some did not come, which is said in all that came; the processes do not agree on
        how many they are; a number was given twice; or the address cannot be used.
    """
    if cluster.process_id == 0:
        _receive(cluster, timeout)
    else:
        _come(cluster, timeout)


def split(coordinator: str) -> tuple[str, int]:
    """'host:8476' -> ('host', 8476); an IPv6 address loses its brackets."""
    host, _, port = coordinator.rpartition(":")
    return host.strip("[]"), int(port)


def _say(text: str) -> None:
    print(text, flush=True)  # jax does not know yet which process this is


def _hello(cluster: Cluster) -> dict[str, Any]:
    return {
        "process": cluster.process_id,
        "of": cluster.num_processes,
        "job": cluster.name,
        "host": socket.gethostname(),
    }


def _send(connection: socket.socket, message: Any) -> None:
    with contextlib.suppress(OSError):  # one that has gone is noticed elsewhere
        connection.sendall(json.dumps(message).encode() + b"\n")


def _read(connection: socket.socket) -> Any:
    """The next message; None when the other side has gone, or is not one of ours."""
    try:
        line = connection.makefile("rb").readline(4096)
        return json.loads(line)
    except (OSError, ValueError):
        return None


# ---- Process 0 ----


def _receive(cluster: Cluster, timeout: float) -> None:
    _say(f"waiting for {cluster.num_processes} processes at {cluster.coordinator} ({cluster.name})")
    came: dict[int, tuple[socket.socket, str]] = {}  # process -> its connection and host
    try:
        with contextlib.closing(_listen(cluster)) as server:
            _fill(came, server, cluster, timeout)
    except UserError as error:
        for connection, _ in came.values():
            _send(connection, {"error": str(error)})
        raise
    else:
        for connection, _ in came.values():
            _send(connection, {"go": True})
    finally:
        for connection, _ in came.values():
            connection.close()


def _listen(cluster: Cluster) -> socket.socket:
    _, port = split(cluster.coordinator)
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, backlog=256, dualstack_ipv6=dual)
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen at port {port} ({error.strerror}): is another run, or an "
            "earlier one that has not ended, using it on this host? Choose another port by "
            "--coordinator or JAX_COORDINATOR_PORT"
        ) from error


def _fill(came: dict, server: socket.socket, cluster: Cluster, timeout: float) -> None:
    """Takes connections until there is one of every other process."""
    deadline = time.monotonic() + timeout
    tell_at = time.monotonic() + _TOLD_EVERY
    while missing := set(range(1, cluster.num_processes)) - came.keys():
        now = time.monotonic()
        if now > deadline:
            raise UserError(
                f"waited {timeout:.0f} s at {cluster.coordinator} ({cluster.name}): "
                f"{len(came) + 1} of {cluster.num_processes} processes came. Missing: "
                f"{_listed(missing)}. Here: {_listed_hosts(came)}. See what those that are missing "
                "printed, and whether their hosts reach this address"
            )
        if now > tell_at:
            tell_at = now + _TOLD_EVERY
            _say(
                f"{len(came) + 1} of {cluster.num_processes} are here; missing: {_listed(missing)}"
            )
        server.settimeout(min(1.0, deadline - now + 0.01))
        try:
            connection, _ = server.accept()
        except TimeoutError:
            pass
        else:
            _admit(came, connection, cluster)
        for process in [process for process in came if _has_gone(came[process][0])]:
            came.pop(process)[0].close()  # it may come again


def _admit(came: dict, connection: socket.socket, cluster: Cluster) -> None:
    connection.settimeout(_PATIENCE)
    hello = _read(connection)
    if not isinstance(hello, dict) or not _hello(cluster).keys() <= hello.keys():
        connection.close()  # something else that tries ports
        return
    who = f"process {hello['process']} on host {hello['host']}"
    if hello["job"] != cluster.name:
        _send(connection, {"error": f"{cluster.coordinator} is where {cluster.name} meets"})
        connection.close()
        return
    if hello["of"] != cluster.num_processes:
        raise _refused(
            connection,
            f"{who} was started as one of {hello['of']} processes, process 0 as one of "
            f"{cluster.num_processes}: give all the same --num_processes",
        )
    before = came.get(hello["process"])
    if hello["process"] == 0 or (before and not _has_gone(before[0])):
        other = before[1] if before else socket.gethostname()
        raise _refused(
            connection,
            f"{who} has the number of another, on host {other}: give each its own --process_id",
        )
    connection.setblocking(False)
    came[hello["process"]] = connection, hello["host"]


def _refused(connection: socket.socket, reason: str) -> UserError:
    _send(connection, {"error": reason})
    connection.close()
    return UserError(reason)


def _has_gone(connection: socket.socket) -> bool:
    """Whether the other side closed an admitted connection, on which it has nothing to send."""
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _listed(processes: Iterable[int], most: int = 16) -> str:
    """'process 3', or 'processes 1, 2, 5 and 40 more'."""
    processes = sorted(processes)
    more = f" and {len(processes) - most} more" if len(processes) > most else ""
    plural = "es" if len(processes) > 1 else ""
    return f"process{plural} {', '.join(map(str, processes[:most]))}{more}"


def _listed_hosts(came: dict) -> str:
    hosts = {0: socket.gethostname()} | {process: host for process, (_, host) in came.items()}
    shown = [f"{process} on {hosts[process]}" for process in sorted(hosts)[:16]]
    return ", ".join(shown) + (" ..." if len(hosts) > len(shown) else "")


# ---- The others ----


def _come(cluster: Cluster, timeout: float) -> None:
    who = f"process {cluster.process_id} of {cluster.num_processes} ({cluster.name})"
    for connection in _connections(cluster, timeout, who):
        with connection:
            _send(connection, _hello(cluster))
            connection.settimeout(timeout + 2 * _PATIENCE)  # process 0 gives up first, and says why
            answer = _read(connection)
        if isinstance(answer, dict) and "error" in answer:
            raise UserError(answer["error"])
        if isinstance(answer, dict) and answer.get("go"):
            return


def _connections(cluster: Cluster, timeout: float, who: str) -> Iterator[socket.socket]:
    """Connections to process 0, one after another as they break."""
    began = time.monotonic()
    told = False
    while True:
        try:
            connection = socket.create_connection(split(cluster.coordinator), timeout=_PATIENCE)
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            yield connection
            reason = "it hung up"
        waited = time.monotonic() - began
        if waited > timeout:
            raise UserError(
                f"{who}: process 0 was not found at {cluster.coordinator} in {timeout:.0f} s "
                f"({reason}). See what process 0 printed, and whether this host reaches it there"
            )
        if waited > 2 * _PATIENCE and not told:
            told = True
            _say(f"{who}: waiting for process 0 at {cluster.coordinator} ({reason})")
        time.sleep(_RETRY)
