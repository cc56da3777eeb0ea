"""A server of files on this machine that does what bad ones do: breaks off, stalls, lies, refuses, leads elsewhere."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import re
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# A key and a certificate of localhost, for tests alone.
PEM = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgtZYC3e9e/orAxi6U
4vc1imfhjlJ/M2g0onlLs4t/YmqhRANCAAQltXQK5hh5zQdRW+HaCU1D0HAYjIM4
S64ACv2pYfPCB68Vocmu8nF2ySJs/huDwUhZh8LzvTrIrljVNVi6RBcH
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBmjCCAUGgAwIBAgIUes/eCB+cZHrgKtYcrYv4YCWqDhswCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyNzA5MTEyOVoYDzIxMjYxMTAz
MDkxMTI5WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAQltXQK5hh5zQdRW+HaCU1D0HAYjIM4S64ACv2pYfPCB68Vocmu8nF2
ySJs/huDwUhZh8LzvTrIrljVNVi6RBcHo28wbTAdBgNVHQ4EFgQUPm0bLSB+PYWU
dMhSlWFFavPSmVwwHwYDVR0jBBgwFoAUPm0bLSB+PYWUdMhSlWFFavPSmVwwDwYD
VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZI
zj0EAwIDRwAwRAIgRRofE/DHLKtbWf8m40l045zzzB0AYMb4JegmRk1zN00CIDET
UDBRFlLuzZA8XdC06an1ZI1uRuLYnm6NazAsEt08
-----END CERTIFICATE-----
"""


class Server(http.server.ThreadingHTTPServer):
    """`content`: path -> bytes. `script`: path -> what the next answers do, in turn; then they are right. `asked`:
    (path, Range, If-Range, Authorization) of each request."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content: dict[str, bytes] = {}
        self.script: dict[str, list[Any]] = {}
        self.asked: list[tuple[str, str | None, str | None, str | None]] = []
        self.etags, self.ranges, self.s3 = True, True, False
        self.scheme = "http"
        self.over = threading.Event()

    def url(self, path: str = "") -> str:
        name = "localhost" if self.scheme == "https" else "127.0.0.1"
        return f"{self.scheme}://{name}:{self.server_address[1]}{path}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are part of the tests."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None:
        return

    def do_GET(self) -> None:
        server, path = self.server, self.path
        self.close_connection = True
        server.asked.append((path, *(self.headers.get(name) for name in ("Range", "If-Range", "Authorization"))))
        turns = server.script.get(path, [])
        how = turns.pop(0) if turns else "right"
        if isinstance(how, dict):  # status, and headers
            body = how.get("body", b"sorry")
            self.send_response(how["status"])
            for name, value in {"Content-Length": str(len(body)), **how.get("headers", {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
            return
        if path not in server.content:
            self.send_error(404)
            return
        self.give(server.content[path], how)

    def give(self, body: bytes, how: str) -> None:
        """A file, or the rest of it; `how`: "break 100", "stall 100", "trickle", "longer", "shorter", "unknown"."""
        server, word = self.server, how.split()[0]
        etag = f'"{hashlib.md5(body).hexdigest()}"'
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked and server.ranges and self.headers.get("If-Range", etag) == etag else 0
        if start and start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        rest = body[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if server.etags:
            self.send_header("ETag", etag)
        if server.s3:
            self.send_header("x-amz-request-id", "1")
        told = {"longer": len(rest) + 50, "shorter": len(rest) - 50}.get(word, len(rest))
        if word == "unknown":
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(told))
        self.end_headers()
        if word in ("break", "stall"):
            self.wfile.write(rest[: int(how.split()[1])])
            self.wfile.flush()
            if word == "stall":
                server.over.wait(30)
        elif word == "trickle":
            for number in range(len(rest)):
                self.wfile.write(rest[number : number + 1])
                if server.over.wait(0.02):
                    return
        else:
            self.wfile.write(rest[: max(told, 0)])


@contextlib.contextmanager
def serving(tls: Path | None = None) -> Iterator[Server]:
    """A server that runs in this process. `tls`: a folder for its key, then it is one of https."""
    server = Server()
    if tls is not None:
        (tls / "tests.pem").write_text(PEM)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls / "tests.pem")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.scheme = "https"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()


def wait_for(condition: Any, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened in time"
        time.sleep(0.01)
