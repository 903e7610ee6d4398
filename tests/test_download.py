"""Downloads, against a server on this machine that misbehaves on request."""

import concurrent.futures
import dataclasses
import errno
import hashlib
import http.server
import io
import os
import pathlib
import random
import re
import shutil
import socket
import sys
import threading
import time
import urllib.parse
import urllib.request

import pytest

import jaxseg
from jaxseg import download, transfer
from jaxseg.errors import UserError

BODY = random.Random(0).randbytes(200_000)
OTHER = random.Random(1).randbytes(150_000)
HALF = 77_777


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


NAME = f"net_20200605_003338-{sha256(BODY)[:8]}.pth"


@dataclasses.dataclass
class Reply:
    """One answer: `cut` closes the connection after so many bytes of the body."""

    body: bytes = BODY
    status: int = 200
    headers: dict[str, str] = dataclasses.field(default_factory=lambda: {"ETag": '"a"'})
    cut: int | None = None
    ranges: bool = True
    heeds_if_range: bool = True
    length: bool = True
    stall: bool = False


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.log.append((self.path, dict(self.headers)))
        replies = self.server.plan.get(self.path, [Reply(b"", 404)])
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        body, status, headers = reply.body, reply.status, dict(reply.headers)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        unchanged = condition in (headers.get("ETag"), headers.get("Last-Modified"))
        if status == 200 and reply.ranges and asked and (unchanged or not reply.heeds_if_range):
            start = int(asked[1])
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            status, body = 206, body[start:]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if reply.length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: reply.cut])
        self.wfile.flush()
        if reply.stall:
            self.server.over.wait(10)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "JAXSEG_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.plan, server.log, server.over = {}, [], threading.Event()
    server.root = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def get(server, tmp_path):
    """Plans the answers for one URL and fetches it into a fresh cache."""

    def get(*replies: Reply, name: str = f"/a/{NAME}", **options) -> pathlib.Path:
        if replies:
            server.plan[name] = list(replies)
        options = {"cache": tmp_path, "backoff": 0.0, "timeout": 5.0} | options
        return download.fetch(server.root + name, **options)

    return get


def ranges(server) -> list[str | None]:
    return [headers.get("Range") for _, headers in server.log]


def leftovers(folder: pathlib.Path) -> list[str]:
    return [path.name for path in folder.rglob("*.part*")]


def test_a_file_is_downloaded_once(server, get, tmp_path, capfd):
    path = get(Reply())
    assert path.read_bytes() == BODY
    assert path.name == NAME and path.is_relative_to(tmp_path / "weights")
    assert server.log[0][1]["User-Agent"] == f"jaxseg/{jaxseg.__version__}"
    out, err = capfd.readouterr()
    assert err == "" and len(out.splitlines()) == 2  # no bar where nobody watches
    assert "0.2 MiB" in out and sha256(BODY)[:8] in out
    assert get() == path and len(server.log) == 1
    assert capfd.readouterr().out == ""
    assert leftovers(tmp_path) == []


def test_the_cache_is_where_the_environment_says(server, get, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path / "mine"))
    assert get(Reply(), cache=None).is_relative_to(tmp_path / "mine" / "weights")
    monkeypatch.delenv("JAXSEG_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert get(cache=None).is_relative_to(tmp_path / "home" / ".cache" / "jaxseg" / "weights")


def test_a_terminal_gets_a_bar(get, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    get(Reply())
    text = sys.stderr.getvalue()
    assert "100%" in text and "195k/195k" in text and "B/s" in text


@pytest.mark.parametrize(
    "name, expected",
    [
        ("pspnet_r50-d8_512x1024_40k_cityscapes_20200605_003338-2966598c.pth", "2966598c"),
        ("convnext-base_3rdparty_in21k_20220301-262fd037.pth", "262fd037"),
        ("resnet50_v1c-2cccc1ad.pth?download=1", "2cccc1ad"),
        ("resnet50-19c8e357.pth", "19c8e357"),
        ("fcn-" + "0a" * 32 + ".safetensors", "0a" * 32),
        ("net-12345678.pth", "12345678"),
        ("net-20200605.pth", ""),  # a date
        ("net-20209905.pth", "20209905"),
        ("nyu_class_embeddings.pth", ""),
        ("net_2966598c.pth", ""),
        ("net-2966598.pth", ""),
        ("net-2966598c", ""),
    ],
)
def test_the_checksum_is_read_from_the_name(name, expected):
    assert download.published_prefix(f"https://a.org/b-01234567.d/{name}") == expected


def test_two_urls_with_one_file_name_are_two_files(get):
    one = get(Reply(), name="/a/net.pth")
    two = get(Reply(OTHER), name="/b/net.pth")
    three = get(Reply(b"3"), name="/b/net.pth?version=3")
    assert [p.read_bytes() for p in (one, two, three)] == [BODY, OTHER, b"3"]
    assert one.name == two.name == three.name == "net.pth"


@pytest.mark.parametrize(
    "name", ["/", "/..", "/%2e%2e%2fnet", "/" + "n" * 300 + ".pth", "/ä b.pth"]
)
def test_odd_names_stay_inside_the_cache(server, get, tmp_path, name):
    wire = urllib.parse.quote(name, safe="/%.")
    server.plan[wire] = [Reply(b"x")]
    path = get(name=name)
    assert path.read_bytes() == b"x"
    assert path.resolve().parent.parent == (tmp_path / "weights").resolve()


# --- transfers that break off


@pytest.mark.parametrize("validator", [{"ETag": '"a"'}, {"Last-Modified": "Fri, 05 Jun 2020"}])
def test_a_broken_transfer_goes_on_where_it_stopped(server, get, tmp_path, validator):
    path = get(Reply(headers=validator, cut=HALF), Reply(headers=validator))
    assert path.read_bytes() == BODY
    assert ranges(server) == [None, f"bytes={HALF}-"]
    assert server.log[1][1]["If-Range"] == next(iter(validator.values()))
    assert leftovers(tmp_path) == []


def test_a_command_run_again_goes_on(server, get, tmp_path):
    with pytest.raises(UserError, match="broken off after .*same command later goes on"):
        get(Reply(cut=1000))  # each attempt brings 1000 bytes more
    assert ranges(server) == [None, *(f"bytes={n}000-" for n in range(1, download.ATTEMPTS))]
    assert list(tmp_path.rglob(NAME)) == []
    assert get(Reply()).read_bytes() == BODY
    assert ranges(server)[-1] == f"bytes={download.ATTEMPTS}000-"


def test_a_file_that_only_lacked_its_rename_is_not_asked_for_again(server, get, monkeypatch):
    replace = os.replace

    def killed(source, target):
        if str(source).endswith(".part"):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        get(Reply())
    assert get().read_bytes() == BODY
    assert len(server.log) == 1


@pytest.mark.parametrize(
    "second",
    [
        Reply(ranges=False),
        Reply(headers={"ETag": '"b"'}),
        Reply(headers={"ETag": '"b"'}, heeds_if_range=False),
        Reply(status=206, headers={"Content-Range": "bytes 5-199999/200000"}),
        Reply(status=206, headers={}),
        Reply(b"", status=416),
    ],
    ids=["no ranges", "changed", "changed, If-Range ignored", "other range", "no range", "416"],
)
def test_parts_of_two_versions_are_never_joined(server, get, second):
    first = Reply(OTHER + BODY[len(OTHER) :], cut=HALF)  # another version, of the same length
    path = get(first, second, Reply(headers={"ETag": '"b"'}))
    assert path.read_bytes() == BODY
    assert ranges(server)[1] == f"bytes={HALF}-"
    assert ranges(server)[2:] in ([], [None])


@pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"a"'}])
def test_nothing_is_resumed_without_a_strong_validator(server, get, headers):
    assert get(Reply(headers=headers, cut=HALF), Reply(headers=headers)).read_bytes() == BODY
    assert ranges(server) == [None, None]


def test_a_transfer_cut_short_each_time_is_an_error(server, get, tmp_path):
    with pytest.raises(UserError, match=f"broken off after {HALF} of {len(BODY)} bytes, 5 times"):
        get(Reply(cut=HALF, ranges=False))
    assert len(server.log) == download.ATTEMPTS
    assert list(tmp_path.rglob(NAME)) == []


def test_without_a_length_the_checksum_tells(get):
    assert get(Reply(length=False)).read_bytes() == BODY
    with pytest.raises(UserError, match=str(HALF)):
        get(Reply(length=False, cut=HALF), name=f"/b/{NAME}")


def test_a_server_that_stalls_is_left(server, get):
    path = get(Reply(cut=HALF, stall=True), Reply(), timeout=0.1)
    assert path.read_bytes() == BODY
    assert ranges(server) == [None, f"bytes={HALF}-"]


def test_the_waits_double(get, monkeypatch, capsys):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    get(*[Reply(b"", 503)] * 4, Reply(), backoff=0.5)
    assert waits == [0.5, 1, 2, 4]
    assert "503 Service Unavailable; attempt 2 of 5 in 0.5 s" in capsys.readouterr().out


# --- answers that are not the file


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_passing_error_is_tried_again(server, get, status):
    assert get(Reply(b"busy", status), Reply()).read_bytes() == BODY
    assert len(server.log) == 2


@pytest.mark.parametrize("status", [401, 403, 404, 410, 501])
def test_a_refusal_is_not(server, get, status, tmp_path):
    with pytest.raises(UserError, match=f"{status} .*put it at {tmp_path}") as caught:
        get(Reply(b"no", status))
    assert server.root in str(caught.value)
    assert len(server.log) == 1


def test_another_checksum_is_an_error_and_leaves_nothing(server, get, tmp_path):
    altered = bytes([BODY[0] ^ 1]) + BODY[1:]
    with pytest.raises(UserError) as caught:
        get(Reply(altered))
    assert sha256(altered) in str(caught.value) and sha256(BODY)[:8] in str(caught.value)
    assert len(server.log) == 1
    assert list(tmp_path.rglob(NAME)) == leftovers(tmp_path) == []
    assert get(Reply()).read_bytes() == BODY


def test_a_checksum_can_be_given_in_full_or_waived(get):
    assert get(Reply(), name="/x.pth", sha256_prefix=sha256(BODY).upper()).read_bytes() == BODY
    with pytest.raises(UserError, match=sha256(BODY)):
        get(Reply(), name="/y.pth", sha256_prefix=sha256(OTHER))
    assert get(Reply(OTHER), name=f"/z/{NAME}", sha256_prefix="").read_bytes() == OTHER
    with pytest.raises(UserError, match="is damaged or another file"):  # waived once, not for ever
        get(name=f"/z/{NAME}", offline=True)
    with pytest.raises(UserError, match="hexadecimal"):
        get(Reply(), name="/x.pth", sha256_prefix="sha256:00")


def test_a_damaged_part_is_not_resumed_twice(get, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(UserError, match="broken off"):
        patch.setattr(download, "ATTEMPTS", 1)
        get(Reply(cut=HALF))
    (part,) = tmp_path.rglob("*.part")
    part.write_bytes(bytes(HALF))
    with pytest.raises(UserError, match="Run the same command again"):
        get(Reply())
    assert get().read_bytes() == BODY


def test_a_login_page_is_not_taken_for_the_file(server, get, tmp_path):
    page = Reply(b"<html>log in</html>", headers={"Content-Type": "text/html; charset=utf-8"})
    with pytest.raises(UserError, match="web page"):
        get(page, name="/net.pth")
    with pytest.raises(UserError, match="broken off"):
        get(Reply(cut=1000))
    with pytest.raises(UserError, match="web page"):
        get(page)
    assert get(Reply()).read_bytes() == BODY
    assert ranges(server)[-1] == "bytes=5000-"  # the page has not cost what was there


def test_redirects_are_followed_and_keep_the_range(server, get):
    server.plan["/real"] = [Reply(cut=HALF), Reply()]
    moved = Reply(b"", 302, {"Location": "/real"})
    assert get(moved).read_bytes() == BODY
    assert ranges(server) == [None, None, f"bytes={HALF}-", f"bytes={HALF}-"]


@pytest.mark.parametrize("status", [301, 307, 308])
def test_a_redirect_loop_ends(server, get, status):
    with pytest.raises(UserError, match="not followed: in circles"):
        get(Reply(b"", status, {"Location": f"/a/{NAME}"}))
    assert len(server.log) <= 11


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_a_redirect_leads_to_no_other_scheme(get, target):
    with pytest.raises(UserError, match="not followed"):
        get(Reply(b"", 302, {"Location": target}))


def test_a_redirect_does_not_leave_encryption():
    def follow(old, new):
        request = urllib.request.Request(old)
        return transfer._Redirects().redirect_request(request, None, 302, "", {}, new)

    assert follow("https://a.org/x", "https://b.org/y").full_url == "https://b.org/y"
    assert follow("http://a.org/x", "https://b.org/y").full_url == "https://b.org/y"
    with pytest.raises(UserError, match="https://a.org/x.*http://b.org/y"):
        follow("https://a.org/x", "http://b.org/y")


@pytest.mark.parametrize(
    "url",
    ["net.pth", "file:///etc/passwd", "ftp://a.org/x", "https:///x", "http://a.org:x/y"]
    + ["https://user:secret@a.org/x", "", "http://[::1/x"],
)
def test_only_http_addresses_are_taken(url, tmp_path):
    with pytest.raises(UserError, match="expected https://"):
        download.fetch(url, cache=tmp_path)


# --- the cache


@pytest.mark.parametrize("locks", [True, False])
def test_threads_that_want_one_file_at_once(server, get, tmp_path, monkeypatch, locks):
    if not locks:
        fcntl = pytest.importorskip("fcntl")

        def refuse(*_):
            raise OSError(errno.ENOLCK, "no locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)
    server.plan[f"/a/{NAME}"] = [Reply()]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        paths = [task.result() for task in [pool.submit(get) for _ in range(4)]]
    assert len(set(paths)) == 1 and paths[0].read_bytes() == BODY
    if locks:
        assert len(server.log) == 1
    assert leftovers(tmp_path) == []


def test_a_file_changed_on_disk_is_replaced(server, get, capsys):
    path = get(Reply())
    path.write_bytes(BODY[:-1])
    with pytest.raises(UserError, match="is damaged.*downloads are off"):
        get(offline=True)
    assert get().read_bytes() == BODY
    assert "is damaged" in capsys.readouterr().out
    assert len(server.log) == 2


def test_a_file_without_a_published_sum_is_compared_with_its_first_one(server, get):
    path = get(Reply(), name="/net.pth")
    path.write_bytes(OTHER)
    assert get(name="/net.pth").read_bytes() == BODY
    assert len(server.log) == 2


@pytest.mark.parametrize("record", [None, "", "{", "[]", '{"sha256": 3}'])
def test_a_lost_record_or_a_new_time_costs_a_hash_only(server, get, record):
    path = get(Reply())
    beside = path.with_name(path.name + ".json")
    os.utime(path, ns=(1, 1))
    beside.unlink() if record is None else beside.write_text(record)
    assert get(offline=True) == path
    assert str(sha256(BODY)) in beside.read_text()
    assert len(server.log) == 1


def test_offline_by_the_environment(server, get, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSEG_OFFLINE", "1")
    with pytest.raises(UserError, match="downloads are off") as caught:
        get(Reply())
    message = str(caught.value)
    assert f"{server.root}/a/{NAME}" in message and sha256(BODY)[:8] in message
    assert list(tmp_path.iterdir()) == []
    # What the message says to do, done: first with the wrong file.
    path = pathlib.Path(re.search(r"put it at (\S+)$", message)[1])
    path.parent.mkdir(parents=True)
    path.write_bytes(OTHER)
    with pytest.raises(UserError, match=f"is damaged or another file .*{sha256(OTHER)}"):
        get()
    path.write_bytes(BODY)
    assert get() == path
    assert server.log == []
    monkeypatch.setenv("JAXSEG_OFFLINE", "0")
    path.unlink()
    assert get() == path and len(server.log) == 1


def test_without_a_network_the_error_comes_at_once(tmp_path, monkeypatch):
    calls = []

    def unknown(*args, **_):
        calls.append(args)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(UserError, match="no network.*put it at"):
        download.fetch(f"https://weights.invalid/{NAME}", cache=tmp_path)
    assert len(calls) == 1


def test_a_server_that_is_down(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as free:  # bound, but nobody listens
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/{NAME}"
        with pytest.raises(UserError, match="no connection .*refused.*5 times"):
            download.fetch(url, cache=tmp_path, backoff=0.0)


def test_the_proxy_of_the_environment_is_used(server, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", server.root)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    url = f"http://weights.invalid/{NAME}"
    server.plan[url] = [Reply()]
    assert download.fetch(url, cache=tmp_path).read_bytes() == BODY


def test_a_full_disk_is_told_before_and_during(get, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(UserError, match="0.2 MiB more.*0.0 MiB"):
        usage = shutil.disk_usage("/")._replace(free=100)
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        get(Reply())

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="No space left.*JAXSEG"):
        patch.setattr(os, "fsync", full)
        get(Reply())
    assert get(Reply()).read_bytes() == BODY


def test_a_cache_that_is_a_file(get, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Not a directory.*JAXSEG_CACHE"):
        get(Reply(), cache=tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_without_permission(get, tmp_path):
    path = get(Reply())
    path.with_name(path.name + ".json").unlink()
    path.parent.chmod(0o500)
    try:
        assert get() == path  # reading is enough for what is there
        path.parent.parent.chmod(0o500)
        with pytest.raises(UserError, match="Permission denied.*JAXSEG_CACHE"):
            get(Reply(), name="/net.pth")
    finally:
        path.parent.parent.chmod(0o700)
        path.parent.chmod(0o700)
