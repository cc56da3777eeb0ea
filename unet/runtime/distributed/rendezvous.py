"""Rendezvous: the ranks connect to the store of rank 0 and prove with a secret that they belong to the run.

The store listens on the loopback address where all ranks are on one machine, else on the address of the network
interface by which rank 0 is reached. Everybody who reaches that address can write into the store. So each
message is signed with the secret (HMAC-SHA-256), torch's own keys have a prefix derived from it, and anything else is
ignored. Nothing is encrypted: the network between the nodes is trusted.

The secret is UNET_TOKEN where that is set (--devices does so), else a file that only this user can read: in the folder
for temporary files on one machine, in --out, which the nodes share, on several.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import hmac
import os
import re
import secrets
import socket
import stat
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from unet import files
from unet.errors import UnetError, UsageError

TOKEN = "UNET_TOKEN"
SHORTEST = 16  # characters that a secret must have
AGENT = "TORCHELASTIC_USE_AGENT_STORE"  # torch.distributed.run holds the store itself
HELLO = "hello"


class Line:
    """A connection to the store: signed texts by key; keys without a valid signature count as missing."""

    def __init__(self, store: Any, token: str) -> None:
        self.store, self.token = store, token.encode()
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.prefix = f"unet/{hmac.new(self.token, attempt.encode(), hashlib.sha256).hexdigest()}"

    def write(self, key: str, text: str) -> None:
        self.store.set(f"{self.prefix}/{key}", self._signature(key, text) + text)

    def read(self, key: str) -> str | None:
        """The text of a key; None where there is none of this run's."""
        whole = f"{self.prefix}/{key}"
        if not self.store.check([whole]):
            return None
        found = self.store.get(whole).decode(errors="replace")
        signature, text = found[:64], found[64:]
        return text if hmac.compare_digest(signature.encode(), self._signature(key, text).encode()) else None

    def wait(self, key: str, seconds: float) -> str | None:
        """The text of a key, as soon as it is there; None where it does not come."""
        deadline = time.monotonic() + seconds
        while (text := self.read(key)) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return text

    def _signature(self, key: str, text: str) -> str:
        content = f"{self.prefix}/{key}\0{text}".encode()
        return hmac.new(self.token, content, hashlib.sha256).hexdigest()


class Meeting:
    """The store of a run, as one rank sees it: `line` for the ranks' own signs, `store` for torch's."""

    def __init__(self, rank: Any, address: str, port: int, seconds: float, folder: Path, own: str | None) -> None:
        """`seconds` to wait for the others; `folder` is shared by the nodes; `own` is this node's address as others see
        it. Raises UnetError."""
        from torch import distributed

        self.held: Path | None = None
        agent = os.environ.get(AGENT) == "True"
        if rank.one_node and not agent:
            address = "127.0.0.1"
        place = Path(tempfile.gettempdir()) if rank.one_node else folder
        path = place / f".unet-{os.geteuid()}-{re.sub(r'[^A-Za-z0-9.-]', '_', address)}-{port}.token"
        token = typed()
        if rank.rank == 0 and token is None:
            token = self._publish(path)
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address, str(port)  # some vendors' libraries read them
        patience = datetime.timedelta(seconds=5 * seconds)
        address = address if agent else reachable(address, port, own)
        if rank.rank == 0 and not agent:
            server = serve(address, port, own, patience)
            address = server.host  # what listens may be another address of this node
            self._server = server
        store = distributed.TCPStore(address, port, None, False, patience, wait_for_workers=False)
        second = distributed.TCPStore(address, port, None, False, patience, wait_for_workers=False)
        if rank.rank == 0:
            self.line = Line(second, str(token))
            self.line.write(HELLO, "")
        else:
            self.line = self._find(second, token, path, 5 * seconds if agent else seconds)
        self.store = distributed.PrefixStore(f"{self.line.prefix}/torch", store)

    def _publish(self, path: Path) -> str:
        """A new secret, for the other ranks to find. Raises UnetError where it cannot be written."""
        token = secrets.token_hex(32)
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            files.make_folder(path.parent)
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
                stream.write(token)
            temporary.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise UnetError(f"{path}: the secret of this run cannot be written ({error.strerror}).", ADVICE) from error
        self.held = path
        return token

    def _find(self, store: Any, token: str | None, path: Path, seconds: float) -> Line:
        """The line whose secret is rank 0's: a file of an earlier run may lie there until rank 0 has written its own.
        Raises UnetError where there is none."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if known := token or _read(path):
                line = Line(store, known)
                if line.read(HELLO) is not None:
                    return line
            time.sleep(0.1)
        where = (
            f"the one in {TOKEN}"
            if token
            else f"{path} holds none that fits"
            if _read(path)
            else f"{path} is not there"
        )
        raise UnetError(f"This process does not have the secret of rank 0: {where}.", ADVICE)

    def close(self) -> None:
        """All ranks are there: the file with the secret goes."""
        if self.held:
            with contextlib.suppress(OSError):
                self.held.unlink()
            self.held = None


ADVICE = (
    f"Set {TOKEN} to the same secret in every process (export {TOKEN}=$(openssl rand -hex 32); mpirun -x {TOKEN}; srun"
    " hands it on), or give an --out that all nodes share."
)


def typed(variables: Mapping[str, str] = os.environ) -> str | None:
    """The secret of the environment. Raises UsageError for one that can be guessed."""
    token = variables.get(TOKEN)
    if token is not None and len(token) < SHORTEST:
        raise UsageError(
            f"{TOKEN} has {len(token)} characters; a secret has {SHORTEST} or more.",
            f"Type: export {TOKEN}=$(openssl rand -hex 32)",
        )
    return token


def _read(path: Path) -> str | None:
    """The secret in a file, where that is this user's and nobody else could read or write it."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)) as stream:
            about = os.fstat(stream.fileno())
            own = stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid() and not about.st_mode & 0o077
            token = stream.read(200).strip() if own else ""
    except (OSError, ValueError):
        return None
    return token if len(token) >= SHORTEST else None


def serve(address: str, port: int, own: str | None, patience: datetime.timedelta) -> Any:
    """The store of the run in this process, listening on the address that the others are told and on no other. Raises
    OSError where it cannot."""
    from torch import distributed

    listener = listen(address, port, own)
    with listener:
        name = listener.getsockname()[0]
        about = (name, port, None, True, patience)
        newer = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8)  # before, only torch's older form takes one
        fd = listener.fileno()
        store = distributed.TCPStore(*about, wait_for_workers=False, master_listen_fd=fd, use_libuv=newer)
        listener.detach()  # the store closes it
    return store


def reachable(address: str, port: int, own: str | None) -> str:
    """`address`, or this node's `own` where the address is a name that means the loopback here, as a node's own name
    often does: this is the node of rank 0, and the others know it by another address. Raises OSError for a name that is
    not known."""
    found = [str(where[0]) for *_, where in socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)]
    means_loopback = address != "localhost" and address not in found and all(item.startswith("127.") for item in found)
    return own if own and means_loopback else address


def listen(address: str, port: int, own: str | None) -> socket.socket:
    """A socket that listens on `address`, or on the node's own where that is none of its (the outer address of a
    container). Raises OSError."""
    found = [(family, where) for family, _, _, _, where in socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)]
    failure = OSError(f"{address} has no address")
    for family, where in [*found, *([(socket.AF_INET, (own, port))] if own else [])]:
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            listener.listen(1024)
            return listener
        except OSError as error:
            listener.close()
            failure = error
            if error.errno != errno.EADDRNOTAVAIL:
                break
    raise failure
