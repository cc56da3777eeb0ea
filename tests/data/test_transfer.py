"""One file from a server that breaks off, stalls, changes it, lies about its length, refuses or leads elsewhere."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_server import Server, serving

from unet import host
from unet.data.download import transfer
from unet.data.download.transfer import Patience, Transfer
from unet.errors import StorageError, UnetError

BODY = random.Random(3).randbytes(50_000)
FAST = Patience(stall=0.3, tries=4, pause=0.001, longest=1.0)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as found:
        found.content["/a"] = BODY
        yield found


class Loads:
    """What a transfer told, and the part that it made."""

    def __init__(self, folder: Path) -> None:
        self.part, self.came = folder / "a.part", 0

    def tell(self, count: int) -> None:
        self.came += count

    def fetch(self, *urls: str, patience: Patience = FAST, credentials: tuple[str, str] | None = None):
        return Transfer(patience, self.tell, credentials).fetch(urls, self.part)

    def failing(self, *urls: str, patience: Patience = FAST) -> str:
        with pytest.raises(UnetError) as caught:
            self.fetch(*urls, patience=patience)
        return str(caught.value)


@pytest.fixture
def loads(tmp_path: Path) -> Loads:
    return Loads(tmp_path)


def test_a_file_comes_whole(server: Server, loads: Loads) -> None:
    answer = loads.fetch(server.url("/a"))
    assert loads.part.read_bytes() == BODY
    assert (answer.total, loads.came, answer.digests) == (len(BODY), len(BODY), {})


def test_a_connection_that_breaks_goes_on_where_it_stopped(server: Server, loads: Loads) -> None:
    server.script["/a"] = ["break 20000", "break 10000", "stall 5000"]
    loads.fetch(server.url("/a"))
    assert loads.part.read_bytes() == BODY and loads.came == len(BODY)
    etag = f'"{hashlib.md5(BODY).hexdigest()}"'
    assert [asked[1:3] for asked in server.asked] == [
        (None, None),
        ("bytes=20000-", etag),
        ("bytes=30000-", etag),
        ("bytes=35000-", etag),
    ]


def test_a_part_of_an_earlier_command_goes_on(server: Server, loads: Loads) -> None:
    server.script["/a"] = ["break 20000"] + [{"status": 503}] * 5
    assert "20.0 kB are kept" in loads.failing(server.url("/a"))
    server.script.clear()
    again = Loads(loads.part.parent)
    again.fetch(server.url("/a"))
    assert again.part.read_bytes() == BODY and again.came == len(BODY) - 20000


@pytest.mark.parametrize("word", ["stall 0", "trickle"])
def test_a_server_that_stands_still_is_given_up(server: Server, loads: Loads, word: str) -> None:
    server.etags = server.ranges = False
    server.script["/a"] = [word] * 40
    error = loads.failing(server.url("/a"))
    assert ("nothing came for 0.3 s" if word == "stall 0" else "less than 1024 bytes came in 0.3 s") in error
    assert "times in a row" in error and "goes on where it stopped" in error


def test_a_server_that_ignores_ranges_sends_all_again(server: Server, loads: Loads) -> None:
    server.ranges = False
    server.script["/a"] = ["break 20000"]
    loads.fetch(server.url("/a"))
    assert loads.part.read_bytes() == BODY and loads.came == len(BODY)


def test_a_server_that_always_breaks_at_the_same_place_is_given_up(server: Server, loads: Loads) -> None:
    server.ranges = False
    server.script["/a"] = ["break 20000"] * 20
    assert "the connection ended after 20000 of 50000 bytes, 4 times in a row" in loads.failing(server.url("/a"))


@pytest.mark.parametrize("etags", [True, False])
def test_a_file_that_changes_between_two_tries_is_loaded_anew(server: Server, loads: Loads, etags: bool) -> None:
    """With ETags by If-Range, without them by its length."""
    server.etags = etags
    server.script["/a"] = ["break 20000"] + [{"status": 503}] * 3
    loads.failing(server.url("/a"))
    server.content["/a"] = new = BODY[::-1] + b"more"
    again = Loads(loads.part.parent)
    again.fetch(server.url("/a"))
    assert again.part.read_bytes() == new and again.came == len(new) - 20000


def test_a_server_that_ignores_the_condition_is_caught_by_its_etag(
    server: Server, loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.script["/a"] = ["break 20000"] + [{"status": 503}] * 3
    loads.failing(server.url("/a"))
    server.content["/a"] = new = bytes(reversed(BODY))
    start = {"Content-Range": "bytes 20000-49999/50000", "ETag": '"another"'}
    server.script["/a"] = [{"status": 206, "headers": start, "body": new[20000:]}]
    loads.fetch(server.url("/a"))
    assert loads.part.read_bytes() == new


def test_a_part_of_another_address_is_not_gone_on_with(server: Server, loads: Loads) -> None:
    server.script["/a"] = ["break 20000"] + [{"status": 503}] * 3
    loads.failing(server.url("/a"))
    server.content["/b"] = new = BODY[::-1]
    loads.fetch(server.url("/b"))
    assert loads.part.read_bytes() == new


def test_a_length_that_is_too_long(server: Server, loads: Loads) -> None:
    """The rest does not exist: the server itself says so when it is asked for it."""
    server.script["/a"] = ["longer"]
    loads.fetch(server.url("/a"))
    assert loads.part.read_bytes() == BODY
    server.ranges = False
    server.script["/a"] = ["longer"] * 9
    loads.part.unlink()
    assert "the connection ended after 50000 of 50050 bytes" in loads.failing(server.url("/a"))


def test_a_length_that_is_too_short_or_missing(server: Server, loads: Loads) -> None:
    """What is cut off here is found when the file is read to its end (test_download)."""
    server.script["/a"] = ["shorter"]
    assert loads.fetch(server.url("/a")).total == len(BODY) - 50
    transfer.remove(loads.part)
    server.script["/a"] = ["unknown"]
    assert loads.fetch(server.url("/a")).total is None
    assert loads.part.read_bytes() == BODY


def test_a_part_that_is_whole_already(server: Server, loads: Loads) -> None:
    loads.fetch(server.url("/a"))
    server.script["/a"] = []
    loads.fetch(server.url("/a"))
    assert server.asked[-1][1] == "bytes=50000-" and loads.came == len(BODY)


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "wants an account"), (403, "refuses"), (404, "does not have it"), (410, "no longer has it")],
)
def test_what_a_server_refuses_is_not_asked_for_again(server: Server, loads: Loads, status: int, words: str) -> None:
    server.script["/a"] = [{"status": status}]
    assert words in loads.failing(server.url("/a"))
    assert len(server.asked) == 1


def test_the_next_address_is_tried(server: Server, loads: Loads, capsys: pytest.CaptureFixture[str]) -> None:
    loads.fetch(server.url("/gone"), "http://127.0.0.1:9/refused", server.url("/a"))
    assert loads.part.read_bytes() == BODY
    said = capsys.readouterr().err
    assert "does not have it: 404" in said and "cannot be reached" in said and "Trying 127.0.0.1 instead" in said


def test_a_busy_server_is_asked_again_when_it_says(server: Server, loads: Loads) -> None:
    server.script["/a"] = [{"status": 429, "headers": {"Retry-After": "0"}}, {"status": 500}, {"status": 503}]
    loads.fetch(server.url("/a"))
    assert loads.part.read_bytes() == BODY and len(server.asked) == 4
    server.script["/a"] = [{"status": 429, "headers": {"Retry-After": "3600"}}]
    transfer.remove(loads.part)
    assert "asks to wait for 3600 s" in loads.failing(server.url("/a"))
    date = {"Retry-After": "Wed, 21 Oct 2065 07:28:00 GMT"}
    server.script["/a"] = [{"status": 503, "headers": date}]
    assert "asks to wait for" in loads.failing(server.url("/a"))


def test_a_packed_answer_is_refused(server: Server, loads: Loads) -> None:
    server.script["/a"] = [{"status": 200, "headers": {"Content-Encoding": "gzip"}}]
    assert "is sent packed (gzip)" in loads.failing(server.url("/a"))


def test_redirects_to_another_host_keep_the_account_at_home(server: Server, loads: Loads) -> None:
    with serving() as other:
        other.content["/b"] = BODY
        server.script["/start"] = [{"status": 302, "headers": {"Location": "/here"}}] * 2
        server.script["/here"] = [{"status": 307, "headers": {"Location": other.url("/b")}}] * 2
        other.script["/b"] = ["break 100"]
        loads.fetch(server.url("/start"), credentials=("name", "key"))
        assert loads.part.read_bytes() == BODY
        assert [asked[3] for asked in server.asked] == ["Basic bmFtZTprZXk="] * 4
        assert [asked[3] for asked in other.asked] == [None, None]
        assert other.asked[1][1] == "bytes=100-"


def test_redirects_in_a_circle_and_to_files_are_refused(server: Server, loads: Loads) -> None:
    server.script["/a"] = [{"status": 302, "headers": {"Location": "/a"}}] * 99
    assert "302" in loads.failing(server.url("/a"))
    server.script["/b"] = [{"status": 302, "headers": {"Location": "file:///etc/passwd"}}] * 9
    loads.failing(server.url("/b"))
    assert not loads.part.exists()


def test_https_is_never_left_for_http(
    server: Server, loads: Loads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path) as safe:
        safe.content["/a"] = BODY
        assert "its certificate is not valid" in loads.failing(safe.url("/a"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "tests.pem"))
        loads.fetch(safe.url("/a"))
        assert loads.part.read_bytes() == BODY
        safe.script["/b"] = [{"status": 302, "headers": {"Location": server.url("/a")}}]
        asked = len(server.asked)
        assert "which is not safe" in loads.failing(safe.url("/b"))
        assert len(server.asked) == asked


def test_a_proxy_is_honoured(server: Server, loads: Loads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url())
    server.content["http://data.invalid/a"] = BODY
    loads.fetch("http://data.invalid/a")
    assert loads.part.read_bytes() == BODY


def test_digests_that_servers_give(server: Server, loads: Loads) -> None:
    server.s3 = True
    assert loads.fetch(server.url("/a")).digests == {"md5": hashlib.md5(BODY).hexdigest()}
    transfer.remove(loads.part)
    server.s3 = False
    linked = hashlib.sha256(BODY).hexdigest()
    where = {"Location": "/a", "X-Linked-Etag": f'"{linked}"'}
    server.script["/big"] = [{"status": 302, "headers": where}]
    assert loads.fetch(server.url("/big")).digests == {"sha256": linked}


def test_a_disk_without_room_is_known_before_it_is_full(
    server: Server, loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "disk", lambda path: 1000)
    with pytest.raises(StorageError, match=r"50\.0 kB are still to come, and 1\.0 kB are free"):
        loads.fetch(server.url("/a"))
    assert not loads.part.exists()


@pytest.mark.parametrize("note", ["", "[]", '{"url": 3}', "\x00"])
def test_a_damaged_note_of_a_part_begins_anew(server: Server, loads: Loads, note: str) -> None:
    loads.part.write_bytes(b"x" * 100)
    loads.part.with_name("a.part.json").write_text(note)
    loads.fetch(server.url("/a"))
    assert loads.part.read_bytes() == BODY
