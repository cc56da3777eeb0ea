"""One file over HTTP: goes on where it stopped, notices what breaks off, stalls or changes, and believes no length.

A part is kept with what the server said of the file (`.json` beside it): its address, ETag, time, length. A later
request asks for the rest on the condition that these are still so. Only the standard library; its proxy settings
(`https_proxy`, `no_proxy`) hold.
"""

from __future__ import annotations

import dataclasses
import email.utils
import http.client
import json
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unet import __version__, files, host
from unet.errors import StorageError, UnetError

CHUNK = 2**18
LEAST = 1024  # bytes within the time of a stall; a server that gives less stands still
REDIRECTS = 5
MEMORY = {"url": str, "etag": str, "modified": str, "total": (int, None)}
GONE = (401, 403, 404, 410, 451)
KNOWN = {401: "wants an account", 403: "refuses", 404: "does not have it", 410: "no longer has it"}
AGAIN = "Type the command again: it goes on where it stopped. --from URL names another address."


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long a transfer waits. `stall`: seconds without data; `tries`: in a row that bring nothing new; `pause`:
    seconds before the second try, doubled for each one after; `longest`: seconds that a server may ask to wait."""

    stall: float = 30.0
    tries: int = 6
    pause: float = 1.0
    longest: float = 300.0


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a server said of a file that came: its address, ETag, length (None: not told), and digests (name -> hex)."""

    url: str
    etag: str
    total: int | None
    digests: Mapping[str, str]


class Unavailable(UnetError):
    """An address that does not have the file; another one may have it."""


class _Again(Exception):
    """A try that failed in a way that may pass. `wait`: seconds that the server asked for."""

    def __init__(self, words: str, wait: float | None = None) -> None:
        super().__init__(words)
        self.wait = wait


class Transfer:
    """Loads files; `tell(bytes)` is called for bytes that came (negative: they are loaded again). `credentials`: (user,
    key) that are sent to the host of the first address only."""

    def __init__(
        self,
        patience: Patience,
        tell: Callable[[int], None],
        credentials: tuple[str, str] | None = None,
    ) -> None:
        self.patience, self.tell, self.credentials = patience, tell, credentials
        self.stop = threading.Event()
        self.opener = urllib.request.build_opener(_Redirects())

    def fetch(self, urls: tuple[str, ...], part: Path) -> Answer:
        """Load the first of `urls` that has the file into `part`. Raises UnetError."""
        for url, after in zip(urls, (*urls[1:], None), strict=True):
            try:
                return self._persist(url, part)
            except Unavailable as error:
                if after is None:
                    raise
                host.notice_once(f"{error.message} Trying {urllib.parse.urlsplit(after).hostname} instead.")
        raise UnetError("No address is given.", "Name one with --from URL.")

    def _persist(self, url: str, part: Path) -> Answer:
        most, failures = _size(part), 0
        while True:
            try:
                return self._attempt(url, part)
            except _Again as problem:
                failures = 1 if _size(part) > most else failures + 1
                most = max(most, _size(part))
                if failures >= self.patience.tries:
                    kept = f" {host.format_bytes(_size(part))} are kept." if _size(part) else ""
                    raise UnetError(f"{url}: {problem}, {failures} times in a row.{kept}", AGAIN) from problem
                wait = (
                    problem.wait if problem.wait is not None else min(60.0, self.patience.pause * 2 ** (failures - 1))
                )
                if wait > self.patience.longest:
                    raise UnetError(f"{url}: the server asks to wait for {wait:.0f} s.", AGAIN) from problem
                if self.stop.wait(wait):
                    raise KeyboardInterrupt from problem

    def _attempt(self, url: str, part: Path) -> Answer:
        """One request, from the end of the part on. Raises _Again, Unavailable, UnetError."""
        memory, done = _remembered(part, url), _size(part)
        if memory is None:
            done = 0
        request = self._request(url)
        if done and memory:
            request.add_header("Range", f"bytes={done}-")
            if condition := memory["etag"] if memory["etag"].startswith('"') else memory["modified"]:
                request.add_header("If-Range", condition)
        try:
            with self.opener.open(request, timeout=self.patience.stall) as response:
                answer = self._receive(response, url, part, done, memory)
                return dataclasses.replace(answer, digests={**answer.digests, **request.digests})
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 416 and done and _total_of(error.headers) == done:
                    return Answer(url, memory["etag"] if memory else "", done, {})  # it was whole
                if error.code == 416:
                    self._drop(part)
                raise _refusal(url, error) from error
        except urllib.error.URLError as error:
            raise _unreachable(url, error.reason, self.patience.stall, done) from error
        except (TimeoutError, http.client.HTTPException, ConnectionError) as error:
            raise _Again(_words(error, self.patience.stall)) from error

    def _request(self, url: str) -> _Request:
        request = _Request(url, headers={"User-Agent": f"unet/{__version__}", "Accept-Encoding": "identity"})
        if self.credentials:
            import base64

            pair = base64.b64encode(":".join(self.credentials).encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {pair}")
        return request

    def _receive(self, response: Any, url: str, part: Path, done: int, memory: dict[str, Any] | None) -> Answer:
        """Write what comes behind the `done` bytes of the part, or from the start where the server sends all of it."""
        headers = response.headers
        etag, modified = headers.get("ETag", ""), headers.get("Last-Modified", "")
        if headers.get("Content-Encoding", "identity").lower() not in ("identity", ""):
            raise UnetError(f"{url}: is sent packed ({headers['Content-Encoding']}), which was not asked for.", AGAIN)
        if response.status == 206:
            start, total = _range_of(headers)
            told = memory["total"] if memory else None
            changed = memory and etag and memory["etag"] and etag != memory["etag"]
            if start != done or changed or (told is not None and total is not None and told != total):
                self._drop(part)
                raise _Again("the file has changed on the server" if start == done else "the server sent another part")
        else:
            self._drop(part)
            done, total = 0, _number(headers.get("Content-Length"))
        _require_room(part, (total or 0) - done)
        told = json.dumps({"url": url, "etag": etag, "modified": modified, "total": total})
        files.write_text(_note(part), told)
        size = done + self._copy(response, part, done)
        if total is not None and size != total:
            raise _Again(f"the connection ended after {size} of {total} bytes")
        return Answer(url, etag, total, _digest(headers, etag))

    def _copy(self, response: Any, part: Path, done: int) -> int:
        """Append the body to the part. Returns its bytes. Raises _Again where it stands still, StorageError."""
        count = 0
        begun, came = time.monotonic(), 0
        try:
            with open(part, "r+b" if done else "wb", buffering=0) as stream:
                stream.seek(done)
                stream.truncate()
                while piece := response.read1(CHUNK):
                    _write(stream, piece, part)
                    count += len(piece)
                    came += len(piece)
                    self.tell(len(piece))
                    if self.stop.is_set():
                        raise KeyboardInterrupt
                    if came >= LEAST:
                        begun, came = time.monotonic(), 0
                    elif time.monotonic() - begun > self.patience.stall:
                        raise _Again(f"less than {LEAST} bytes came in {self.patience.stall:g} s")
        except (TimeoutError, ConnectionError, http.client.HTTPException):
            raise
        except OSError as error:
            raise files.explain(error, part) from error
        return count

    def _drop(self, part: Path) -> None:
        """Begin a part anew."""
        if size := _size(part):
            self.tell(-size)
        remove(part)


def remove(part: Path) -> None:
    """Delete a part and what was remembered of it."""
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


class _Request(urllib.request.Request):
    """A request, and the requests that it was led to. `digests`: of the file, as a server on the way told them."""

    def __init__(self, url: str, headers: dict[str, str], digests: dict[str, str] | None = None) -> None:
        super().__init__(url, headers=headers)
        self.digests = {} if digests is None else digests


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects: at most five, never from https to http; an account goes to its own host only."""

    max_redirections = REDIRECTS

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        before, after = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if after.scheme not in ("http", "https") or (before.scheme == "https" and after.scheme != "https"):
            raise Unavailable(
                f"{req.full_url}: leads to {after.scheme}://{after.hostname}, which is not safe.",
                "Name another address with --from URL.",
            )
        if code not in (301, 302, 303, 307, 308):
            return None
        linked = re.fullmatch(r'"?([0-9a-f]{64})"?', headers.get("X-Linked-Etag", ""))  # of Git LFS
        if linked:
            req.digests["sha256"] = linked[1]
        request = _Request(newurl, dict(req.headers), req.digests)
        if "Authorization" in req.unredirected_hdrs and before[:2] == after[:2]:
            request.add_unredirected_header("Authorization", req.unredirected_hdrs["Authorization"])
        return request


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _remembered(part: Path, url: str) -> dict[str, Any] | None:
    """What the server said of the file that a part is of; None where that is not known, or was another address."""
    if not _size(part) or not _note(part).exists():
        return None
    try:
        found: dict[str, Any] = files.read_json(_note(part), MEMORY)
    except UnetError:
        return None
    return found if found["url"] == url else None


def _number(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"\d{1,18}", text.strip()) else None


def _range_of(headers: Any) -> tuple[int | None, int | None]:
    """(first byte, length of the whole) of a Content-Range."""
    found = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", headers.get("Content-Range", "").strip())
    return (int(found[1]), _number(found[2])) if found else (None, None)


def _total_of(headers: Any) -> int | None:
    found = re.fullmatch(r"bytes \*/(\d{1,18})", headers.get("Content-Range", "").strip())
    return int(found[1]) if found else None


def _digest(headers: Any, etag: str) -> dict[str, str]:
    """The digest that S3 gives of a file: its ETag is the MD5, unless it was sent there in pieces."""
    plain = re.fullmatch(r'"([0-9a-f]{32})"', etag)
    return {"md5": plain[1]} if plain and headers.get("x-amz-request-id") else {}


def _require_room(part: Path, needed: int) -> None:
    """Raise StorageError before a disk is filled."""
    free = host.disk(part.parent)
    if needed > free:
        raise StorageError(
            f"{part.parent.absolute()}: {host.format_bytes(needed)} are still to come, and"
            f" {host.format_bytes(free)} are free.",
            "Free some room, or name another folder with --data; the command goes on where it stopped.",
        )


def _write(stream: Any, piece: bytes, part: Path) -> None:
    view = memoryview(piece)
    while view:
        try:
            view = view[stream.write(view) :]
        except OSError as error:
            raise files.explain(error, part) from error


def _refusal(url: str, error: urllib.error.HTTPError) -> Exception:
    """The error of a status from 400 on."""
    wait = _seconds(error.headers.get("Retry-After"))
    if error.code in (408, 416, 425, 429) or error.code >= 500:
        return _Again(f"the server answers {error.code} ({error.reason})", wait)
    words = KNOWN.get(error.code, "does not give it")
    return Unavailable(f"{url}: the server {words}: {error.code} {error.reason}.", "Name another address: --from URL.")


def _seconds(text: str | None) -> float | None:
    """The seconds of Retry-After, a number or a date."""
    if text is None:
        return None
    if (number := _number(text)) is not None:
        return float(number)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _unreachable(url: str, reason: Any, stall: float, done: int) -> Exception:
    """The error where no answer came: no such name, refused, a certificate that is wrong, no time."""
    import socket
    import ssl

    if isinstance(reason, ssl.SSLCertVerificationError):
        return UnetError(
            f"{url}: its certificate is not valid ({reason.verify_message}).",
            "Set the clock and the certificates of this machine (SSL_CERT_FILE), or name another address: --from URL.",
        )
    if isinstance(reason, socket.gaierror | ConnectionRefusedError) and not done:
        return Unavailable(f"{url}: cannot be reached ({reason}).", "Check the network and https_proxy, then: " + AGAIN)
    return _Again(_words(reason, stall))


def _words(reason: Any, stall: float) -> str:
    if isinstance(reason, TimeoutError):
        return f"nothing came for {stall:g} s"
    if isinstance(reason, http.client.IncompleteRead):
        return "the connection ended too early"
    return f"the connection failed ({str(reason)[:80] or type(reason).__name__})"
