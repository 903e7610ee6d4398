"""One HTTP transfer into a partial file: resumed, checked against its length, hashed on the way.

Resuming is RFC 9110's section 14 (Range) under the validator of section 13.1.5 (If-Range), so that
halves of two versions of a file are never joined.
"""

import dataclasses
import hashlib
import http.client
import json
import os
import pathlib
import re
import shutil
import socket
import ssl
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import jax

import jaxseg
from jaxseg.errors import UserError
from jaxseg.writer import write_atomically

_CHUNK = 1 << 20
_RETRIED = (408, 425, 429, 500, 502, 503, 504)  # HTTP statuses that pass by themselves


class Interrupted(Exception):
    """The transfer broke off in a way that another attempt may mend; says how."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A URL, the path of its file in the cache, and how its SHA-256 begins ('' when unknown)."""

    url: str
    path: pathlib.Path
    prefix: str

    def by_hand(self) -> str:
        """How to do without the network, as the end of an error message."""
        known = f" (its SHA-256 begins with {self.prefix})" if self.prefix else ""
        return f"or download {self.url}{known} elsewhere and put it at {self.path}"


def transfer(wanted: Wanted, part: pathlib.Path, timeout: float) -> str:
    """Brings `part` to its full length in one request, and returns its SHA-256 in hexadecimal.

    Raises:
      Interrupted: what came is kept in `part` for the next attempt, unless it is stale.
      UserError: another attempt would not help.
    """
    note = beside(part, ".json")
    known = read_json(note)
    validator, total = known.get("validator"), known.get("total")
    start = part.stat().st_size if validator and part.exists() else 0
    if start and start == total:  # killed between the last byte and the rename
        return hashed(part).hexdigest()
    ask = {"Range": f"bytes={start}-", "If-Range": validator} if start else {}
    with _open(wanted, ask, timeout) as response:
        now = response.headers.get("ETag") or ""
        if not now or now.startswith("W/"):  # If-Range takes strong validators only
            now = response.headers.get("Last-Modified")
        if response.status in (206, 416):
            span = re.match(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range") or "")
            offered = [int(n) for n in span.groups()] if span else None
            if offered != [start, total] or now not in (None, validator):
                forget(part)
                raise Interrupted("the file on the server is not the one that was begun")
        else:  # a whole file: the first attempt, the file changed, or the server knows no ranges
            _refuse_page(wanted, response)
            start, total = 0, response.length
            note.unlink(missing_ok=True)  # in this order a kill never leaves a note on other bytes
            part.write_bytes(b"")
            write_atomically(note, json.dumps({"validator": now, "total": total}))
        free = shutil.disk_usage(part.parent).free
        if total is not None and total - start > free:
            raise UserError(
                f"{part.parent}: {mebibytes(total - start)} more are needed for {wanted.url}, "
                f"{mebibytes(free)} are free; make room, or set JAXSEG_CACHE to another folder"
            )
        digest = hashed(part)
        with open(part, "ab") as file, _bar(wanted.path.name, start, total) as bar:
            for chunk in _chunks(response, start, total):
                file.write(chunk)
                digest.update(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    return digest.hexdigest()


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a few redirects, but not away from encryption."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme != "https" and (scheme != "http" or req.type == "https"):
            raise UserError(
                f"{req.full_url}: the server redirects to {newurl}, which is not https; not "
                "followed: use another network or download the file by hand"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(wanted: Wanted, headers: dict[str, str], timeout: float) -> Any:
    """The response to a GET, of status 200, 206 or 416."""
    headers = headers | {
        "User-Agent": f"jaxseg/{jaxseg.__version__}",
        "Accept-Encoding": "identity",
    }
    request = urllib.request.Request(wanted.url, headers=headers)
    try:
        return urllib.request.build_opener(_Redirects).open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and "Range" in headers:
            return error
        error.close()
        if error.code in _RETRIED:
            raise Interrupted(f"the server answers {error.code} {error.reason}") from error
        why = f"{error.code} {error.reason}"
        if error.code < 400:
            why = f"{error.code}, a redirect that is not followed: in circles, or not to http"
        raise UserError(
            f"{wanted.url}: the server answers {why}; check the address and that this network may "
            f"reach it, {wanted.by_hand()}"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise UserError(
                f"{wanted.url}: the server's certificate is not trusted ({reason.verify_message}); "
                "behind a proxy that decrypts, set SSL_CERT_FILE to its authority's certificate, "
                f"{wanted.by_hand()}"
            ) from error
        if isinstance(reason, socket.gaierror):
            raise UserError(
                f"{wanted.url}: no network, or no such host ({reason.strerror}); connect and run "
                f"the same command again, {wanted.by_hand()}"
            ) from error
        raise Interrupted(f"no connection ({reason or type(reason).__name__})") from error


def _refuse_page(wanted: Wanted, response: Any) -> None:
    kind = response.headers.get_content_type()
    if kind in ("text/html", "application/xhtml+xml"):
        raise UserError(
            f"{wanted.url}: the answer is a web page ({kind} from {response.url}), not the file: a "
            f"network that wants a login first, or a link that has moved; log in, "
            f"{wanted.by_hand()}"
        )


def _chunks(response: Any, start: int, total: int | None) -> Iterator[bytes]:
    """The bytes of a body as they come; `Interrupted` when there are fewer than promised."""
    came = start
    while came != total:
        try:
            chunk = response.read1(_CHUNK)
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
            raise Interrupted(f"broken off after {came} bytes ({reason})") from error
        if not chunk:
            break
        came += len(chunk)
        yield chunk
    if total is not None and came < total:
        raise Interrupted(f"broken off after {came} of {total} bytes")


def _bar(name: str, start: int, total: int | None) -> Any:
    """A progress bar with bytes, percent, speed and time left; silent where nobody watches."""
    from tqdm import tqdm

    return tqdm(
        desc=name if len(name) < 40 else f"{name[:18]}...{name[-18:]}",
        total=total,
        initial=start,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        disable=not sys.stderr.isatty() or jax.process_index() != 0,
    )


def beside(path: pathlib.Path, suffix: str) -> pathlib.Path:
    return path.with_name(path.name + suffix)


def forget(part: pathlib.Path) -> None:
    """Deletes a partial file and the note on it, where they are."""
    beside(part, ".json").unlink(missing_ok=True)
    part.unlink(missing_ok=True)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a file; {} when the file is absent or torn, which costs a hash or a restart."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def hashed(path: pathlib.Path) -> Any:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256")


def mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
