"""Where the ranks meet: what the store listens on, and that a stranger's keys count for nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, TINY
from torch.distributed import HashStore, TCPStore

from unet.devices.launchers import Rank, route
from unet.errors import UnetError, UsageError
from unet.runtime.distributed import rendezvous
from unet.runtime.distributed.rendezvous import Line, Meeting


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No secret in the environment, and a folder for temporary files of its own."""
    for name in ("UNET_TOKEN", "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # a meeting sets them; back to what they were after the test
    monkeypatch.setattr(rendezvous.tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listening(port: int) -> list[str]:
    """The addresses, as the kernel writes them, on which somebody listens on a port."""
    found = []
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            address, _, number = words[1].partition(":")
            if words[3] == "0A" and int(number, 16) == port:
                found.append(address)
    return found


def test_what_is_not_signed_with_the_secret_is_not_there() -> None:
    store = HashStore()
    line, same, other = Line(store, "a secret"), Line(store, "a secret"), Line(store, "another secret")
    line.write("beat/1", "one")
    assert same.read("beat/1") == "one" and other.read("beat/1") is None and line.read("beat/2") is None
    signed = store.get(f"{line.prefix}/beat/1")
    for forged in (b"", b"one", b"0" * 64 + b"one", b"\xff\xfe" * 40, signed + b"!"):
        store.set(f"{line.prefix}/verdict", forged)
        assert line.read("verdict") is None
    store.set(f"{line.prefix}/verdict", signed)  # true, but said of something else
    assert line.read("verdict") is None
    other.write("beat/1", "two")
    assert line.read("beat/1") == "one"


def meet(port: int, ranks: tuple[Rank, ...], seconds: float = 5, **how: Any) -> list[Any]:
    """The meetings of some ranks, or what they failed with."""
    found: list[Any] = [None] * len(ranks)

    def one(number: int) -> None:
        try:
            found[number] = Meeting(ranks[number], how.get("address", "127.0.0.1"), port, seconds, how["folder"], None)
        except UnetError as error:
            found[number] = error

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


TWO = (Rank(0, 2, 0, 2), Rank(1, 2, 1, 2))
NODES = (Rank(0, 2, 0, 1), Rank(1, 2, 0, 1))


@pytest.mark.parametrize(
    ("ranks", "version"),
    [(TWO, torch.__version__), (NODES, torch.__version__), (TWO, "2.4.1+cpu")],
    ids=["one machine", "two nodes", "the store of torch before 2.8"],
)
def test_ranks_find_the_secret_and_nobody_else_can(
    ranks: tuple[Rank, ...], version: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    port, shared = free_port(), place / "out"
    folder = place if ranks == TWO else shared
    shared.mkdir()
    path = folder / f".unet-{os.geteuid()}-127.0.0.1-{port}.token"
    path.write_text("of a run that was killed, long ago")
    first, second = meet(port, ranks, folder=shared)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert listening(port) == ["0100007F"]
    first.line.write("a", "b")
    assert second.line.wait("a", 5) == "b"  # a store answers no write
    assert TCPStore("127.0.0.1", port, None, False, timedelta(seconds=5)).check([f"{first.line.prefix}/a"])
    first.close()
    assert not list(place.rglob(".unet-*"))


def test_a_rank_without_the_secret_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    (first,) = meet(port, NODES[:1], folder=place)
    (second,) = meet(port, NODES[1:], 2, folder=place / "not shared")
    assert "does not have the secret of rank 0" in second.message and "UNET_TOKEN" in second.hint
    (place / "other").mkdir()
    path = place / "other" / first.held.name
    path.write_text(first.held.read_text())
    path.chmod(0o644)  # readable by others: not taken
    assert isinstance(meet(port, NODES[1:], 2, folder=place / "other")[0], UnetError)
    monkeypatch.setenv("UNET_TOKEN", first.held.read_text())
    assert isinstance(meet(port, NODES[1:], 2, folder=place / "not shared")[0], Meeting)
    monkeypatch.setenv("UNET_TOKEN", "short")
    with pytest.raises(UsageError, match="UNET_TOKEN has 5 characters"):
        rendezvous.typed()


def test_a_name_that_means_the_loopback_here_is_the_node_s_own_address(monkeypatch: pytest.MonkeyPatch) -> None:
    own = route("192.0.2.1")[1]
    if own is None:
        pytest.skip("this machine has no network")
    port = free_port()
    with rendezvous.listen("192.0.2.7", port, own) as listener:  # no address of this node
        assert listener.getsockname() == (own, port)
    with rendezvous.listen("127.0.0.1", port, own) as listener:
        assert listener.getsockname() == ("127.0.0.1", port)
        with pytest.raises(OSError, match="in use"):
            rendezvous.listen("127.0.0.1", port, own)
    assert rendezvous.reachable("127.0.0.1", port, own) == "127.0.0.1"
    assert rendezvous.reachable("localhost", port, own) == "localhost"
    answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer)  # as Debian writes it into /etc/hosts
    assert rendezvous.reachable("node-7", port, own) == own


# -- a stranger on the same machine ------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(phantoms: Path, place: Path, name: str) -> Iterator[subprocess.Popen[str]]:
    words = ("train", "--data", phantoms, "--cache", "c", "--device", "cpu", *TINY, "--epochs", 100000, "--devices", 2)
    process = subprocess.Popen(
        [sys.executable, "-m", "unet", *map(str, words), "--run-name", name, "--dist-timeout", "10"],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        while not list((place / "weights").glob("*.state*")):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.slow
def test_a_stranger_ends_nothing(phantoms: Path, place: Path) -> None:
    """Every key that is there is overwritten, others are added, and bytes that mean nothing are sent."""
    with running(phantoms, place, "n") as process:
        ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        variables = dict(
            item.split("=", 1)
            for item in Path(f"/proc/{ranks[0]}/environ").read_text().split("\0")
            if item.startswith("MASTER_")
        )
        port = int(variables["MASTER_PORT"])
        assert listening(port) == ["0100007F"]
        for garbage in (b"\0" * 100, b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 5000, b"\x00"):
            with socket.create_connection(("127.0.0.1", port)) as stranger, contextlib.suppress(OSError):
                stranger.sendall(garbage)
        store = TCPStore("127.0.0.1", port, None, False, timedelta(seconds=5), wait_for_workers=False)
        keys = [*store.list_keys()] if hasattr(store, "list_keys") else []
        keys += ["heart/0/verdict", "heart/0/left/0", "verdict", "left/0", "left/1", "device of 0"]
        for _ in range(3):
            for key in keys:
                store.set(key, "forged by a stranger")
            time.sleep(1)
        time.sleep(12)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
