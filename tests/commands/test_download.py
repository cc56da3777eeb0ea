"""`download`: licence and size first, then sets that a server of this machine gives, whole or not at all."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
from conftest import ROOT, error_of, program
from faulty_server import Server, serving, wait_for

from unet import host
from unet.commands import download as command
from unet.data.download import archive, folder, transfer
from unet.errors import DataError
from unet.tasks import registry

Cli = Callable[..., tuple[int, str, str]]
YES = "--accept-licence"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    short = transfer.Patience(0.5, 3, 0.001, 1.0)
    monkeypatch.setattr(command.transfer, "Patience", lambda *_: short)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


def picture() -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.zeros((8, 8), np.uint8))
    return stream.getvalue()


TIFF = picture()


def zipped(members: dict[str, bytes], **how: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in members.items():
            made.writestr(name, content)
    return stream.getvalue()


@pytest.fixture(scope="module")
def stacks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A small set of micrographs as the archive has it, with what else lies in there."""
    from unet.tasks.em import synthetic

    made = tmp_path_factory.mktemp("em") / "em"
    synthetic.write_set(made, slices=4, side=64, seed=1)
    found = {f"ISBI-2012-challenge/{path.name}": path.read_bytes() for path in made.glob("*.tif")}
    return {**found, "ISBI-2012-challenge/notes.bsh": b"x", "__MACOSX/train-volume.tif": b"no image"}


def volume(shape: tuple[int, int, int], top: int) -> bytes:
    data = np.random.default_rng(top).integers(0, top, shape).astype(np.int16)
    header = nib.Nifti1Image(data, np.array([[0, 0, 1, 0], [0, 1, 0, 0], [3, 0, 0, 0], [0, 0, 0, 1]], float))
    return gzip.compress(header.to_bytes(), 1)


@pytest.fixture(scope="module")
def scans() -> dict[str, bytes]:
    """The files of two cases, as a mirror has them."""
    found = {"kits.json": json.dumps([{"case_id": f"case_0000{n}"} for n in range(210)]).encode()}
    for number in range(2):
        found[f"case_0000{number}/imaging.nii.gz"] = volume((8, 32, 32), 300 + number)
        found[f"case_0000{number}/segmentation.nii.gz"] = volume((8, 32, 32), 3)
    return found


def offer(server: Server, files: dict[str, bytes]) -> str:
    server.content.update({f"/kits/{name}": content for name, content in files.items()})
    return server.url("/kits")


@pytest.mark.parametrize("name", registry.downloads())
def test_licence_terms_and_size_come_before_any_request(cli: Cli, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer.Transfer, "fetch", lambda *_: pytest.fail("a server was asked"))
    code, out, err = cli("download", name, "--quiet")
    assert "The licence is not accepted" in error_of((code, out, err), 2)
    assert f"python -m unet download {name} --quiet --accept-licence" in err
    for word in ("licence", "terms", "from", "size", "into", "cite", "are free"):
        assert word in err
    assert not Path("data").exists()


def test_a_set_that_needs_an_account_says_what_to_type(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer.Transfer, "fetch", lambda *_: pytest.fail("a server was asked"))
    result = cli("download", "lgg", YES)
    assert "accounts only" in error_of(result, 2)
    assert "kaggle datasets download -d mateuszbuda/lgg-mri-segmentation" in result[2]
    typed = [line.split("unet ")[1].split() for line in result[2].splitlines() if "python -m unet" in line]
    assert len(typed) == 2
    for words in typed:
        from unet.cli import resolve

        assert resolve(words[0], words[1:]).config.general.task == "lgg"


def test_names_of_sets(cli: Cli) -> None:
    assert "No set is named" in error_of(cli("download"), 2)
    assert "There is no set 'brains' to load" in error_of(cli("download", "brains", YES), 2)
    assert "There is no set '../em'" in error_of(cli("download", "../em", YES), 2)


def test_an_archive_becomes_a_set_that_its_check_accepts(cli: Cli, server: Server, stacks: dict[str, bytes]) -> None:
    server.content["/em.zip"] = content = zipped(stacks)
    server.script["/em.zip"] = [f"break {len(content) // 2}", "stall 100"]
    code, out, err = cli("download", "em", YES, "--from", server.url("/em.zip"))
    assert code == 0, err
    assert sorted(path.name for path in Path("data/em").iterdir()) == [
        ".download.lock",
        "checksums.sha256",
        "download.json",
        "test-volume.tif",
        "train-labels.tif",
        "train-volume.tif",
    ]
    assert cli("check", "--task", "em", "--data", "em", "--checksums", "data/em/checksums.sha256")[0] == 0
    assert subprocess.run(["sha256sum", "-c", "checksums.sha256"], cwd="data/em", capture_output=True).returncode == 0
    asked = len(server.asked)
    code, out, err = cli("download", "em", "--json")  # nothing to accept: nothing is loaded
    assert code == 0 and json.loads(out)["loaded"] == 0 and "complete" in err
    assert len(server.asked) == asked
    Path("data/em/test-volume.tif").write_bytes(b"changed")
    result = cli("check", "--task", "em", "--data", "em", "--checksums", "data/em/checksums.sha256")
    assert result[0] == 1 and "differ from the list's SHA-256: test-volume.tif" in result[1]


def test_an_archive_of_the_user_is_read_and_stays(cli: Cli, stacks: dict[str, bytes]) -> None:
    Path("mine.zip").write_bytes(zipped(stacks))
    code, _, err = cli("download", "em", YES, "--from", "mine.zip", "--data", "./there")
    assert code == 0, err
    assert Path("mine.zip").exists() and Path("there/train-volume.tif").exists()


def test_the_kaggle_archive_with_its_second_copy(cli: Cli, server: Server, phantoms: Path, workplace: Path) -> None:
    """With a key, which goes to the first host and to no other; patients once; then its own check."""
    members = {}
    for path in sorted(phantoms.rglob("*.tif")):
        name = "TCGA_XX_" + path.relative_to(phantoms).as_posix().replace("/", "/TCGA_XX_")
        members[f"kaggle_3m/{name}"] = members[f"lgg-mri-segmentation/kaggle_3m/{name}"] = path.read_bytes()
    members |= {"kaggle_3m/data.csv": b"Patient\n", "kaggle_3m/README.md": b"words"}
    key = Path("kaggle.json")
    key.write_text('{"username": "me", "key": "secret"}')
    key.chmod(0o644)
    with serving() as storage:
        storage.content["/signed"] = zipped(members)
        server.script["/lgg"] = [{"status": 302, "headers": {"Location": storage.url("/signed")}}]
        code, out, err = cli("download", "lgg", YES, "--from", server.url("/lgg"), "--credentials", "kaggle.json")
        assert code == 0, err
        assert server.asked[0][3].startswith("Basic ") and storage.asked[0][3] is None
    assert "chmod 600 kaggle.json" in err and "secret" not in err + out
    assert "secret" not in Path("data/kaggle_3m/download.json").read_text()
    assert len(list(Path("data/kaggle_3m").glob("*/*.tif"))) == len(list(phantoms.rglob("*.tif")))
    assert cli("check", "--data", "kaggle_3m", "--checksums", "data/kaggle_3m/checksums.sha256")[0] == 0


def test_a_part_of_a_set_is_not_called_the_set(cli: Cli) -> None:
    members = {f"kaggle_3m/TCGA_{n}/TCGA_{n}_1{end}.tif": TIFF for n in range(110) for end in ("", "_mask")}
    Path("part.zip").write_bytes(zipped(dict([*members.items()][:6])))
    Path("whole.zip").write_bytes(zipped(members))
    for state in ("about", "  state      3 of 110 cases are there"):
        code, out, err = cli("download", "lgg", YES, "--from", "part.zip")
        assert code == 0, err
        assert state in err and "complete" not in err
        assert "3 of 110 cases are there: the archive holds no others" in out and "nothing was missing" not in out
    assert "accounts only" in error_of(cli("download", "lgg", YES), 2)
    code, out, err = cli("download", "lgg", YES, "--from", "whole.zip")
    assert code == 0 and "of 110 cases" not in out, err
    code, out, err = cli("download", "lgg")
    assert code == 0 and "  state      complete" in err and "nothing was missing" in out


def test_many_files_side_by_side(cli: Cli, server: Server, scans: dict[str, bytes], here: None) -> None:
    source = offer(server, scans)
    server.script["/kits/case_00001/imaging.nii.gz"] = ["break 300", "shorter"]
    code, out, err = cli("download", "kits19", YES, "--from", source, "--max-cases", 2)
    assert code == 0, err
    assert {path: Path("data/kits19", path).read_bytes() for path in scans} == scans
    words = ("check", "--task", "kits19", "--data", "kits19", "--checksums", "data/kits19/checksums.sha256")
    code, out, err = cli(*words)
    assert "5 of 5 files as listed" in out, out + err
    assert "\n  0 errors" in out, out
    assert not Path("data/kits19/.download").exists()


def test_a_length_that_was_too_short_is_found_and_loaded_again(
    cli: Cli, server: Server, scans: dict[str, bytes]
) -> None:
    source = offer(server, scans)
    server.script["/kits/case_00000/imaging.nii.gz"] = ["shorter"] * 2
    server.ranges = False
    result = cli("download", "kits19", YES, "--from", source, "--max-cases", 1)
    error = error_of(result)
    assert "1 of 3 files are missing" in error and "cut short or damaged" in error and "imaging.nii.gz" in error
    assert not Path("data/kits19/case_00000/imaging.nii.gz").exists()
    assert Path("data/kits19/case_00000/segmentation.nii.gz").exists()
    assert cli("download", "kits19", YES, "--from", source, "--max-cases", 1)[0] == 0
    names = [asked[0] for asked in server.asked]
    assert names.count("/kits/case_00000/segmentation.nii.gz") == 1  # what is whole is not loaded again


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html>log in</html>", "is a web page, not the file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a pointer of Git LFS"),
        (gzip.compress(b"x" * 900), "is no NIfTI file"),
        (b"", "0 bytes"),
    ],
)
def test_what_is_not_the_file(cli: Cli, server: Server, scans: dict[str, bytes], content: bytes, words: str) -> None:
    source = offer(server, {**scans, "case_00000/segmentation.nii.gz": content})
    error = error_of(cli("download", "kits19", YES, "--from", source, "--max-cases", 1))
    assert words in error and "segmentation.nii.gz" in error
    assert not Path("data/kits19/case_00000/segmentation.nii.gz").exists()


def test_a_digest_that_the_server_gives_is_believed_more_than_the_file(
    cli: Cli, server: Server, scans: dict[str, bytes]
) -> None:
    source, name = offer(server, scans), "/kits/case_00000/imaging.nii.gz"
    wrong = {"ETag": f'"{hashlib.md5(b"other").hexdigest()}"', "x-amz-request-id": "1"}
    server.script[name] = [{"status": 200, "headers": wrong, "body": scans["case_00000/imaging.nii.gz"]}] * 2
    error = error_of(cli("download", "kits19", YES, "--from", source, "--max-cases", 1))
    assert "its MD5 is" in error and hashlib.md5(b"other").hexdigest() in error


def test_files_of_the_user_are_kept_and_never_replaced(
    cli: Cli, server: Server, scans: dict[str, bytes], stacks: dict[str, bytes]
) -> None:
    source, own = offer(server, scans), Path("data/kits19/case_00000")
    own.mkdir(parents=True)
    (own / "imaging.nii.gz").write_bytes(scans["case_00000/imaging.nii.gz"])
    (own / "segmentation.nii.gz").write_bytes(b"broken")
    error = error_of(cli("download", "kits19", YES, "--from", source, "--max-cases", 1))
    assert "segmentation.nii.gz" in error and "Move this file away" in error
    assert (own / "segmentation.nii.gz").read_bytes() == b"broken" and not server.asked
    (own / "segmentation.nii.gz").unlink()
    assert cli("download", "kits19", YES, "--from", source, "--max-cases", 1)[0] == 0
    assert "/kits/case_00000/imaging.nii.gz" not in [asked[0] for asked in server.asked]
    server.content["/em.zip"] = zipped(stacks)
    Path("data/em").mkdir()
    Path("data/em/train-labels.tif").write_bytes(b"mine")
    error = error_of(cli("download", "em", YES, "--from", server.url("/em.zip")))
    assert "is there already, and is not the file of the set" in error
    assert Path("data/em/train-labels.tif").read_bytes() == b"mine"


def test_a_set_that_does_not_fit_is_not_begun(cli: Cli, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "disk", lambda path: 10**9)
    error = error_of(cli("download", "kits19", YES, "--from", server.url()))
    assert "about 20.0 GB are needed, and 1.0 GB are free" in error and "--max-cases" in error
    assert not server.asked


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_a_disk_that_is_full_in_the_middle_keeps_the_part(server: Server, tmp_path: Path) -> None:
    """A limit of this size of a file acts as a quota does."""
    server.content["/em.zip"] = os.urandom(100_000)
    words = ("download", "em", YES, "--from", server.url("/em.zip"))
    done = program(*words, cwd=tmp_path, preexec_fn=limited)
    assert done.returncode == 1 and "no room on the disk, or a quota or limit" in done.stderr, done.stderr
    assert (tmp_path / "data/em/.download/ISBI-2012-challenge.zip.part").stat().st_size == 20_000


def test_a_real_full_disk(server: Server, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        server.content["/em.zip"] = os.urandom(100_000)
        server.script["/em.zip"] = ["unknown"]  # its length is not known before
        code = "from unet import cli, host; host.disk = lambda path: 10**12; raise SystemExit(cli.main())"
        words = [
            sys.executable,
            "-c",
            code,
            "download",
            "em",
            YES,
            "--from",
            server.url("/em.zip"),
            "--data",
            disk / "em",
        ]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1 and "No space left on device" in done.stderr, done.stderr
        assert len(done.stderr[done.stderr.index("error:") :].strip().splitlines()) == 2
    finally:
        subprocess.run(["umount", disk], check=True)


def hears_ctrl_c() -> None:
    """In the background of a script SIGINT is ignored, and what is started there inherits that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_keeps_the_part_and_the_next_command_goes_on(
    server: Server, tmp_path: Path, stacks: dict[str, bytes]
) -> None:
    server.content["/em.zip"] = content = zipped(stacks)
    server.script["/em.zip"] = ["stall 4000"]
    words = [sys.executable, "-m", "unet", "download", "em", YES, "--from", server.url("/em.zip")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        words, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=hears_ctrl_c
    )
    part = tmp_path / "data/em/.download/ISBI-2012-challenge.zip.part"
    wait_for(lambda: part.exists() and part.stat().st_size == 4000)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Interrupted." in err and part.stat().st_size == 4000
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert server.asked[-1][1] == "bytes=4000-" and len(content) > 4000


def test_what_cannot_be_loaded_from(cli: Cli, stacks: dict[str, bytes]) -> None:
    Path("key").write_text("[]")
    Path("none.zip").write_bytes(b"PK no")
    Path("other.zip").write_bytes(zipped({"a.txt": b"x"}))
    for words, code, expected in (
        (("em", "--from", "ftp://host/x"), 2, "only http and https"),
        (("em", "--from", "file:///etc/passwd"), 2, "only http and https"),
        (("em", "--from", "nowhere.zip"), 2, "does not exist"),
        (("em", "--from", "none.zip"), 1, "cannot be opened as a zip file"),
        (("em", "--from", "other.zip"), 1, "holds no train-volume.tif"),
        (("lgg", "--from", "other.zip"), 1, "holds no file of this set"),
        (("kits19", "--from", "other.zip"), 2, "many files, not one archive"),
        (("lgg", "--credentials", "nokey"), 1, "nokey"),
        (("lgg", "--credentials", "key"), 1, 'It must hold {"username"'),
        (("em", "--from", "http://127.0.0.1:9/x"), 1, "cannot be reached"),
    ):
        assert expected in error_of(cli("download", *words, YES), code), words
    assert Path("none.zip").exists() and Path("other.zip").exists()
    Path("data/em").mkdir(parents=True, exist_ok=True)
    Path("data/em/download.json").write_text("{}")
    assert "download.json" in error_of(cli("download", "em", YES))


def test_hostile_archives(tmp_path: Path) -> None:
    """Names that lead out, links, encryption, bombs, damaged members."""
    path = tmp_path / "a.zip"

    def place(name: str) -> str | None:
        return name if name.endswith(".tif") else None

    path.write_bytes(zipped({"../../out.tif": b"x"}))
    with pytest.raises(Exception, match="not the name of a file in this folder"):
        list(archive.unpack(path, archive.members(path, place, 100), tmp_path / "in"))
    assert not (tmp_path.parent / "out.tif").exists()
    with zipfile.ZipFile(path, "w") as made:
        info = zipfile.ZipInfo("a.tif")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        made.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="is a link"):
        archive.members(path, place, 100)
    path.write_bytes(zipped({"a.tif": bytes(10**6)}))
    with pytest.raises(DataError, match=r"would be 1\.0 MB unpacked; the set has 100 B"):
        archive.members(path, place, 100)
    content = bytearray(zipped({"a.tif": os.urandom(1000)}))
    content[100] ^= 255
    path.write_bytes(content)
    chosen = archive.members(path, place, 1000)
    (tmp_path / "in").mkdir(exist_ok=True)
    with pytest.raises(DataError, match="is damaged"):
        list(archive.unpack(path, chosen, tmp_path / "in"))
    assert not (tmp_path / "in/a.tif").exists()
    crypted = bytearray(zipped({"a.tif": b"x"}))
    central = crypted.index(b"PK\x01\x02")
    crypted[central + 8] |= 1
    path.write_bytes(crypted)
    with pytest.raises(DataError, match="is encrypted"):
        archive.members(path, place, 1000)


def test_addresses_are_https_and_sizes_are_told() -> None:
    for name in registry.downloads():
        source = registry.source_of(name)
        for item in source.remotes(None):
            assert item.about > 0 and all(url.startswith("https://") for url in item.urls)
        assert source.home.startswith("https://") and source.licence and source.terms
    assert len(registry.source_of("kits19").remotes(None)) == 421
    assert len(registry.source_of("kits19").remotes(3)) == 7


def test_two_commands_at_once_load_a_set_once(server: Server, tmp_path: Path, stacks: dict[str, bytes]) -> None:
    server.content["/em.zip"] = zipped(stacks)
    words = [sys.executable, "-m", "unet", "download", "em", YES, "--from", server.url("/em.zip")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) for _ in "ab"]
    said = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len(server.asked) == 1
    assert not (tmp_path / "data/em" / folder.ROOM).exists()
