"""Files from the network, fetched once: published weights.

    <cache>/weights/<hash of the URL>/<name>          the file; never seen there half written
    <cache>/weights/<hash of the URL>/<name>.json     its SHA-256, size and time of change
    <cache>/weights/<hash of the URL>/<name>.part     what has come so far, with a .json of its own
    <cache>/weights/<hash of the URL>/<name>.lock     held by the process that downloads

<cache> is the environment variable JAXSEG_CACHE, or ~/.cache/jaxseg. JAXSEG_OFFLINE=1 forbids the
network. Proxies are those of the environment (https_proxy, no_proxy).
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import socket
import threading
import time
import urllib.parse
from collections.abc import Iterator
from typing import BinaryIO

from jaxseg import cache as cache_lib
from jaxseg.console import duration, say
from jaxseg.errors import UserError
from jaxseg.transfer import (
    Interrupted,
    Wanted,
    beside,
    forget,
    hashed,
    mebibytes,
    read_json,
    transfer,
)
from jaxseg.writer import write_atomically

ATTEMPTS = 5


def fetch(
    url: str,
    *,
    cache: str | os.PathLike | None = None,
    sha256_prefix: str | None = None,
    offline: bool | None = None,
    timeout: float = 30.0,
    backoff: float = 1.0,
) -> pathlib.Path:
    """The file of a URL, downloaded unless the cache has it. A file in the cache costs no request.

    The checksum is verified while the file comes in. A cached file is hashed again when its size
    or time of change is not the recorded one, so a file put there by hand is verified too; one
    that fails is never used, and replaced by a new download.

    Args:
      url: https://... or http://...
      cache: the folder to use in place of JAXSEG_CACHE.
      sha256_prefix: the first hexadecimal digits of the file's SHA-256, or all; '' when there is
        nothing to compare with. None takes them from the URL, see `published_prefix`.
      offline: whether to use the cache alone. None asks JAXSEG_OFFLINE.
      timeout: seconds without a byte after which an attempt is given up.
      backoff: seconds before the second attempt; twice as many before each further one.

    Raises:
      UserError: the URL is not one, the server refuses, the transfer keeps breaking off, the
        checksum is another, the cache cannot be written, or the file is absent and offline.
    """
    wanted = _wanted(url, cache, sha256_prefix)
    with _telling_of_disk(wanted.path.parent):
        trouble = _trouble(wanted)
        if trouble is None:
            return wanted.path
        if _offline() if offline is None else offline:
            raise UserError(
                f"{wanted.path} {trouble}, and downloads are off (JAXSEG_OFFLINE or offline=True); "
                f"allow them, {wanted.by_hand()}"
            )
        wanted.path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(wanted.path) as part:
            trouble = _trouble(wanted)  # another process may have fetched it in the meantime
            if trouble is not None:
                if wanted.path.exists():
                    say(f"{wanted.path} {trouble}: not used, downloading it again")
                _download(wanted, part, timeout, backoff)
    return wanted.path


def published_prefix(url: str) -> str:
    """The start of the SHA-256 that a URL's file name ends with, as OpenMMLab and PyTorch publish.

    The form is `name-0123abcd.pth`: a hyphen and 8 hexadecimal digits or more before the suffix.
    '' where the name has another form; a date (`name-20200605.pth`) is not a checksum.
    """
    name = pathlib.PurePosixPath(urllib.parse.urlsplit(url).path).name
    found = re.search(r"-([0-9a-f]{8,64})\.[A-Za-z]\w*$", name)
    if not found or re.fullmatch(r"20[0-3]\d(0[1-9]|1[0-2])([0-2]\d|3[01])", found[1]):
        return ""
    return found[1]


def _wanted(url: str, cache: str | os.PathLike | None, prefix: str | None) -> Wanted:
    try:
        parts = urllib.parse.urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid or "@" in parts.netloc or not parts.netloc.isascii():
        raise UserError(f"{url!r} is not a URL to download: expected https://host/path, no user")
    url = urllib.parse.quote(urllib.parse.urldefrag(url).url, safe="%/:?&=+~!$,;'()*[]@")
    prefix = published_prefix(url) if prefix is None else prefix.lower()
    if not re.fullmatch("[0-9a-f]{0,64}", prefix):
        raise UserError(f"sha256_prefix={prefix!r} for {url}: expected hexadecimal digits")
    name = re.sub(r"[^\w.-]", "_", pathlib.PurePosixPath(parts.path).name, flags=re.ASCII)
    name = name.lstrip(".")[-200:] or "file"  # file systems stop at 255 bytes, suffixes included
    root = cache_lib.folder() if cache is None else pathlib.Path(cache).expanduser()
    folder = root.absolute() / "weights"
    digest = hashlib.sha256(url.encode()).hexdigest()
    return Wanted(url, folder / digest[:16] / name, prefix)


def _offline() -> bool:
    return os.environ.get("JAXSEG_OFFLINE", "").strip().lower() not in ("", "0", "false", "no")


def _trouble(wanted: Wanted) -> str | None:
    """Why the cached file cannot be used, as the end of a sentence; None when it can."""
    try:
        size, changed = _size_and_time(wanted.path)
    except FileNotFoundError:
        return "is not there"
    record = read_json(beside(wanted.path, ".json"))
    sha256 = str(record.get("sha256", ""))
    if sha256 and (record.get("size"), record.get("mtime_ns")) == (size, changed):
        if sha256.startswith(wanted.prefix):
            return None
    expected = wanted.prefix or sha256
    sha256 = hashed(wanted.path).hexdigest()
    if not sha256.startswith(expected):
        return f"is damaged or another file (SHA-256 {sha256}, expected {expected})"
    _remember(wanted.path, sha256, size, changed)
    return None


def _download(wanted: Wanted, part: pathlib.Path, timeout: float, backoff: float) -> None:
    say(f"Downloading {wanted.url} to {wanted.path}")
    began, trouble = time.monotonic(), ""
    for attempt in range(ATTEMPTS):
        if attempt:
            wait = backoff * 2 ** (attempt - 1)
            say(f"{wanted.path.name}: {trouble}; attempt {attempt + 1} of {ATTEMPTS} in {wait:g} s")
            time.sleep(wait)
        try:
            sha256 = transfer(wanted, part, timeout)
            break
        except Interrupted as error:
            trouble = str(error)
    else:
        raise UserError(
            f"{wanted.url}: {trouble}, {ATTEMPTS} times over; the same command later goes on from "
            f"where this one stopped, {wanted.by_hand()}"
        )
    size, changed = _size_and_time(part)
    if not sha256.startswith(wanted.prefix):
        forget(part)
        raise UserError(
            f"{wanted.url}: its {size} bytes have SHA-256 {sha256}, expected one that begins with "
            f"{wanted.prefix}; they are deleted. Run the same command again; if the sum stays "
            "what it is, a proxy or the server gives another file than the published one: use "
            f"another network, {wanted.by_hand()}"
        )
    os.replace(part, wanted.path)
    forget(part)
    _remember(wanted.path, sha256, size, changed)
    checked = f"SHA-256 {wanted.prefix}... as published" if wanted.prefix else "no checksum known"
    took = duration(time.monotonic() - began)
    say(f"{wanted.path.name}: {mebibytes(size)} in {took}, {checked}")


@contextlib.contextmanager
def _alone(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Waits until no other process downloads `path`; gives the file to download into.

    Where there are no locks (Windows, some network file systems) that is a file of this thread's
    own, which is not resumed later.
    """
    with open(beside(path, ".lock"), "ab") as lock:
        if _locked(lock):
            yield beside(path, ".part")
            return
        own = f"{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"
        part = beside(path, f".{own}.part")
        try:
            yield part
        finally:
            forget(part)


def _locked(file: BinaryIO) -> bool:
    """Whether a lock was had. The kernel drops it with the process, however that ends."""
    try:
        import fcntl  # POSIX only

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{pathlib.Path(file.name).stem}: another process downloads it; waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
    except (ImportError, OSError):
        return False
    return True


@contextlib.contextmanager
def _telling_of_disk(folder: pathlib.Path) -> Iterator[None]:
    """Turns errors of the file system (full, read-only, not permitted) into a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: cannot be written or read ({error.strerror or error}); "
            "make room or mend the permissions, or set JAXSEG_CACHE to another folder"
        ) from error


def _remember(path: pathlib.Path, sha256: str, size: int, changed: int) -> None:
    """Notes what a file was when hashed; where nothing can be written it is hashed each time."""
    record = {"sha256": sha256, "size": size, "mtime_ns": changed}
    with contextlib.suppress(OSError):
        write_atomically(beside(path, ".json"), json.dumps(record))


def _size_and_time(path: pathlib.Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
