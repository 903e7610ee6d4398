"""Processes that wait for each other: all come, or it is said who does not."""

import contextlib
import socket
import threading
import time

import pytest

from jaxseg import rendezvous
from jaxseg.clusters import Cluster
from jaxseg.errors import UserError
from tests import processes


def meet(cluster: Cluster, timeout: float, after: float = 0.0) -> str:
    """'' when the process met the others, or the error."""
    time.sleep(after)
    try:
        rendezvous.meet(cluster, timeout)
    except UserError as error:
        return str(error)
    return ""


def all_meet(*of: Cluster, timeout: float = 20.0, late: float = 0.0) -> list[str]:
    """What `meet` returns for each, side by side; the first starts `late` seconds later."""
    results = [""] * len(of)

    def run(i):
        results[i] = meet(of[i], timeout, late if i == 0 else 0.0)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(of))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def cluster(process: int, of: int, port: int, name: str = "a job") -> Cluster:
    return Cluster(name, f"localhost:{port}", of, process)


def test_all_meet_whoever_comes_first(capsys):
    port = processes.free_port()
    assert all_meet(*(cluster(i, 4, port) for i in range(4)), late=0.3) == [""] * 4
    assert f"waiting for 4 processes at localhost:{port} (a job)" in capsys.readouterr().out
    # And again at once, as when a run is started anew.
    assert all_meet(*(cluster(i, 4, port) for i in range(4))) == [""] * 4


def test_who_is_missing_is_said_to_all():
    port = processes.free_port()
    said = all_meet(cluster(0, 5, port), cluster(2, 5, port), cluster(4, 5, port), timeout=1.0)
    assert said[0] == said[1] == said[2]
    for words in ("waited 1 s", "a job", "3 of 5 processes came", "Missing: processes 1, 3."):
        assert words in said[0]
    assert f"2 on {socket.gethostname()}" in said[0]


def test_process_0_that_does_not_come_is_named():
    port = processes.free_port()
    said = meet(cluster(1, 2, port), timeout=0.2)
    assert said.startswith("process 1 of 2 (a job): process 0 was not found at localhost:")
    assert "refused" in said
    said = meet(Cluster("a job", f"no-such-host.invalid:{port}", 2, 1), timeout=0.2)
    assert "no-such-host.invalid" in said and ("not known" in said or "resol" in said)


@pytest.mark.parametrize(
    ("others", "words"),
    [
        (lambda port: [cluster(1, 3, port)], "one of 3 processes, process 0 as one of 2"),
        (lambda port: [cluster(0, 2, port)], "cannot listen at port"),
    ],
)
def test_processes_that_do_not_agree(others, words):
    port = processes.free_port()
    said = all_meet(cluster(0, 2, port), *others(port), timeout=1.0)
    assert any(words in text for text in said)


def test_a_number_that_is_given_twice():
    port = processes.free_port()
    said = all_meet(cluster(0, 3, port), cluster(1, 3, port), cluster(1, 3, port))
    assert all("process 1 on host" in text and "has the number of another" in text for text in said)


def test_another_job_is_sent_away_and_noise_does_no_harm():
    port = processes.free_port()
    said = {}

    def noise():
        for text in (b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b""):
            for connection in rendezvous._connections(cluster(1, 2, port), 20.0, ""):
                with connection, contextlib.suppress(OSError):
                    connection.sendall(text)
                break
        said["other"] = meet(cluster(1, 2, port, "another job"), timeout=5.0)
        said["one"] = meet(cluster(1, 2, port), timeout=5.0)

    first = threading.Thread(target=lambda: said.update(zero=meet(cluster(0, 2, port), 10.0)))
    first.start()
    noise()
    first.join()
    assert said["zero"] == said["one"] == ""
    assert said["other"] == f"localhost:{port} is where a job meets"


def test_one_that_left_may_come_again():
    port = processes.free_port()
    said = {}
    first = threading.Thread(target=lambda: said.update(zero=meet(cluster(0, 3, port), 20.0)))
    first.start()
    # It comes, and leaves before process 2 is there: interrupted, say.
    for connection in rendezvous._connections(cluster(1, 3, port), 20.0, ""):
        with connection:
            rendezvous._send(connection, rendezvous._hello(cluster(1, 3, port)))
        break
    rest = all_meet(cluster(1, 3, port), cluster(2, 3, port))
    first.join()
    assert [said["zero"], *rest] == [""] * 3
