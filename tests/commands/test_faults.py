"""Bad luck and bad input: two lines each, nothing lost. The faults are real: bytes cut off, limits of the kernel,
file modes.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from conftest import ROOT, TINY, error_of, program, read_json

from unet import files


@pytest.fixture
def raw(phantoms: Path, workplace: Path) -> Path:
    shutil.copytree(phantoms, "raw")
    return Path("raw")


def train_raw(cli, *words: object) -> tuple[int, str, str]:
    return cli("train", "--data", "./raw", "--cache", "c", "--device", "cpu", *TINY, "--epochs", 1, *words)


def test_a_missing_folder(cli) -> None:
    for command in ("train", "preprocess", "check"):
        error = error_of(cli(command, "--data", "nowhere"), 2)
        assert str(Path("data/nowhere").absolute()) in error
    assert "--synth-data" in error_of(cli("train", "--data", "nowhere"), 2)


def test_weights_of_several_tasks(tiny, cli, phantoms: Path) -> None:
    from unet.runtime.checkpoints import checkpoint

    assert tiny("--run-name", "a", "--epochs", 1)[0] == 0
    checkpoint.save_weights(Path("weights/b.safetensors"), {"task": "em"}, {"w": torch.zeros(1)})
    words = ("predict", "--weights", "a.safetensors", "--weights", "b.safetensors", phantoms)
    error = error_of(cli(*words), 2)
    assert "a.safetensors is of lgg" in error and "b.safetensors is of em" in error
    error = error_of(cli("predict", "--weights", "b.safetensors", phantoms, "--task", "lgg"), 2)
    assert "b.safetensors belongs to task em" in error


def test_loaded_weights_of_another_network_are_told_by_their_settings(tiny, cli) -> None:
    from unet.cli import resolve
    from unet.runtime.checkpoints import checkpoint
    from unet.tasks.registry import create

    words = ["--task", "em", "--image-size", "76", "--layers", "2", "--width", "2"]
    network = create(resolve("train", words).config).build_model()
    Path("weights").mkdir()
    facts = {"task": "em", "settings": {"layers": 2, "width": 2}}
    checkpoint.save_weights(Path("weights/em-0.safetensors"), facts, network.state_dict())
    shutil.rmtree("data")
    error = error_of(tiny("--load", "em-0.safetensors", "--run-name", "a"))
    assert "em-0.safetensors: task em, layers 2, width 2; here lgg, layers 2, width 4." in error
    assert "--task em --layers 2 --width 2" in error
    assert not list(Path("data").glob("*/*.npy"))


def test_an_empty_folder(cli) -> None:
    Path("data/empty").mkdir(parents=True)
    assert "holds no patient folders" in error_of(cli("train", "--data", "empty"))


def test_a_mask_without_an_image_and_an_image_without_a_mask(cli, raw: Path) -> None:
    image = sorted(raw.glob("*/*_3.tif"))[0]
    image.unlink()
    assert f"{image.stem}_mask.tif: is a mask without an image" in error_of(train_raw(cli))
    other = sorted(raw.glob("*_0004_*/*_2_mask.tif"))[0]
    other.unlink()
    error = error_of(train_raw(cli))
    assert "has no mask" in error
    assert "python -m unet check" in error


@pytest.mark.parametrize("kept", [0, 7, 100, 3000])
def test_a_truncated_tiff(cli, raw: Path, kept: int) -> None:
    path = sorted(raw.glob("*/*_3.tif"))[1]
    path.write_bytes(path.read_bytes()[:kept])
    error = error_of(train_raw(cli))
    assert path.name in error
    assert f"{kept} bytes" in error or "expected" in error


@pytest.mark.parametrize(
    "image", [np.zeros((64, 64), np.uint8), np.zeros((64, 64, 4), np.uint8), np.zeros((64, 64, 3), np.uint16)]
)
def test_a_tiff_that_is_not_rgb(cli, raw: Path, image: np.ndarray) -> None:
    path = sorted(raw.glob("*/*_3.tif"))[1]
    tifffile.imwrite(path, image)
    error = error_of(train_raw(cli))
    assert path.name in error
    assert "3 channels are expected" in error or "8-bit" in error


def test_sizes_that_differ_within_a_patient(cli, raw: Path) -> None:
    path = sorted(raw.glob("*/*_3.tif"))[1]
    tifffile.imwrite(path, np.zeros((32, 64, 3), np.uint8), photometric="rgb")
    error = error_of(train_raw(cli))
    assert "32 x 64 x 3" in error
    assert "64 x 64 x 3" in error


def test_a_black_patient(cli, raw: Path) -> None:
    folder = sorted(path for path in raw.iterdir() if path.is_dir())[0]
    for path in folder.glob("*[0-9].tif"):
        tifffile.imwrite(path, np.zeros((64, 64, 3), np.uint8), photometric="rgb")
    error = error_of(train_raw(cli))
    assert folder.name in error
    assert "every voxel" in error


def test_a_batch_larger_than_the_set(tiny) -> None:
    assert "is larger than the training set" in error_of(tiny("--batch-size", 9999))


def test_an_empty_split(tiny) -> None:
    Path("none.txt").write_text("\n")
    assert "leaves no validation cases" in error_of(tiny("--split", "none.txt"))
    assert "6 cases" in error_of(tiny("--folds", 9, "--fold", 1))


def test_the_same_run_name_twice(tiny) -> None:
    assert tiny("--run-name", "a", "--epochs", 1)[0] == 0
    before = {path: path.read_bytes() for path in Path("performance/a").rglob("*") if path.is_file()}
    error = error_of(tiny("--run-name", "a", "--epochs", 1), 2)
    assert "--resume --run-name a" in error
    assert "--overwrite" in error
    assert {path: path.read_bytes() for path in Path("performance/a").rglob("*") if path.is_file()} == before
    assert tiny("--run-name", "a", "--epochs", 1, "--overwrite")[0] == 0


def test_weights_of_another_run_are_not_overwritten(tiny) -> None:
    tiny("--run-name", "a", "--epochs", 1)
    before = Path("weights/a.safetensors").read_bytes()
    code, out, err = tiny("--run-name", "b", "--epochs", 1)
    assert code == 0, err
    assert "evaluate --weights b.safetensors" in out
    assert Path("weights/a.safetensors").read_bytes() == before
    error = error_of(tiny("--run-name", "c", "--epochs", 1, "--weights", "a.pt"), 2)
    assert "a.safetensors exists" in error
    assert Path("weights/a.safetensors").read_bytes() == before


def test_overwriting_a_run_keeps_the_weights_of_the_others(tiny) -> None:
    tiny("--run-name", "a", "--epochs", 1)
    tiny("--run-name", "b", "--epochs", 1)
    before = Path("weights/a.safetensors").read_bytes()
    assert tiny("--run-name", "b", "--epochs", 2, "--overwrite")[0] == 0
    assert Path("weights/a.safetensors").read_bytes() == before
    assert read_json(Path("performance/b/summary.json"))["paths"]["weights"] == "weights/b.safetensors"
    assert tiny("--run-name", "a", "--epochs", 2, "--overwrite")[0] == 0
    kept = {f"{run}{ending}.safetensors" for run in "ab" for ending in ("", ".state")}
    found = {path.name for path in Path("weights").iterdir()}
    assert kept <= found <= kept | {f"{run}.{name}-before.safetensors" for run in "ab" for name in ("state", "best")}


def test_resume_without_a_run(tiny) -> None:
    assert "no run" in error_of(tiny("--resume"), 2)
    assert "no run nobody" in error_of(tiny("--resume", "--run-name", "nobody"), 2)


def test_resume_with_settings_that_change_its_course(tiny) -> None:
    tiny("--run-name", "a", "--epochs", 1)
    error = error_of(tiny("--resume", "--run-name", "a", "--epochs", 2, "--batch-size", 3), 2)
    assert "batch_size 4 -> 3" in error


def test_a_damaged_state(tiny, cli) -> None:
    tiny("--run-name", "a", "--epochs", 1)
    path = Path("weights/a.state.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    assert "cut short" in error_of(cli("train", "--resume", "--run-name", "a", "--epochs", 2))


def test_a_damaged_cache_array(tiny) -> None:
    tiny("--run-name", "a", "--epochs", 1)
    path = sorted(Path("data/cache_16").glob("*_mask.npy"))[0]
    path.write_bytes(path.read_bytes()[:60])
    error = error_of(tiny("--run-name", "b", "--epochs", 1))
    assert path.name in error
    assert "--rebuild-cache" in error


@pytest.fixture
def nobody(tmp_path: Path, phantoms: Path):
    """Leave root's rights for the length of a test: root may write anywhere."""
    for folder in (phantoms.parent, tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid():
            folder.chmod(folder.stat().st_mode | stat.S_IXOTH | stat.S_IROTH | stat.S_IXGRP | stat.S_IRGRP)
    yield
    if os.getuid() == 0:
        os.seteuid(0)


def test_a_read_only_output_folder(tiny, workplace: Path, nobody: None) -> None:
    assert tiny("--run-name", "a", "--epochs", 1)[0] == 0
    Path("closed").mkdir(mode=0o555)
    if os.getuid() == 0:
        os.seteuid(65534)
    for words in (
        ("--out", "closed/runs", "--no-checkpoints"),
        ("--out", "closed", "--no-checkpoints"),
        ("--weights", "closed/w.pt", "--out", "closed/runs"),
    ):
        error = error_of(tiny("--run-name", "b", "--epochs", 1, *words))
        assert str(workplace / "closed") in error
        assert "Permission denied" in error


def test_a_full_disk(phantoms: Path, tmp_path: Path) -> None:
    """A file-size limit stops the state in the middle of its bytes: the run fails in two lines, the old state is
    whole.
    """
    words = (
        "train",
        "--data",
        phantoms,
        "--cache",
        "c",
        "--device",
        "cpu",
        "--image-size",
        16,
        "--layers",
        2,
        "--width",
        16,
        "--batch-size",
        4,
        "--run-name",
        "a",
    )
    assert program(*words, "--epochs", 1, cwd=tmp_path).returncode == 0
    before = {path: path.read_bytes() for path in (tmp_path / "weights").iterdir()}
    assert all(len(content) > 400_000 for content in before.values())
    full = program(
        "train",
        "--resume",
        "--run-name",
        "a",
        "--epochs",
        3,
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)),
    )
    error = error_of((full.returncode, full.stdout, full.stderr))
    assert "cannot be written" in error
    assert "weights/" in error
    assert "--resume" in error
    assert {path: path.read_bytes() for path in (tmp_path / "weights").iterdir()} == before
    assert read_json(tmp_path / "performance/a/status.json")["status"] == "failed"
    done = program("train", "--resume", "--run-name", "a", "--epochs", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_full_disk_while_the_cache_is_built(phantoms: Path, tmp_path: Path) -> None:
    full = program(
        "preprocess",
        "--data",
        phantoms,
        "--cache",
        "c",
        "--image-size",
        128,
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    error = error_of((full.returncode, full.stdout, full.stderr))
    assert "cannot be written" in error
    assert not list((tmp_path / "data/c").glob("*.npy"))
    done = program("preprocess", "--data", phantoms, "--cache", "c", "--image-size", 128, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_atomic_writes_leave_the_old_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(ValueError, match="midway"), files.atomic(path) as stream:
        stream.write(b"half of the new")
        raise ValueError("midway")
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["a.txt"]
    files.write_text(path, "new")
    assert path.read_text() == "new"


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_kept(tmp_path: Path) -> None:
    mine = files._HOST
    dead, living = tmp_path / f".a.pt.{mine}-4194304.tmp", tmp_path / f".b.pt.{mine}-{os.getppid()}.tmp"
    elsewhere = tmp_path / ".c.pt.otherhost-4194304.tmp"
    elsewhere.touch()
    dead.touch()
    living.touch()
    files.remove_leftovers(tmp_path)
    assert not dead.exists()
    assert living.exists()
    assert elsewhere.exists()


def test_a_file_that_a_process_of_another_container_writes_is_no_leftover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "first")
    with monkeypatch.context() as there:
        there.setattr(os, "getpid", lambda: 4194304)  # no process has this number here
        with files.atomic(path, tmp_path / "before.txt") as stream:
            stream.write(b"second")
            files.remove_leftovers(tmp_path)
    assert (path.read_text(), (tmp_path / "before.txt").read_text()) == ("second", "first")
    assert len(list(tmp_path.iterdir())) == 2


def test_leftovers_on_a_file_system_without_locks_are_told_by_their_age(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    old, fresh = (tmp_path / f".{name}.pt.{files._HOST}-4194304.tmp" for name in ("old", "fresh"))
    for leftover in (old, fresh):
        leftover.touch()
    os.utime(old, (0, time.time() - 2 * files.LOCK_TIMEOUT))
    files.write_text(tmp_path / "a.txt", "written")
    files.remove_leftovers(tmp_path)
    assert sorted(item.name for item in tmp_path.iterdir()) == [fresh.name, "a.txt"]


def test_out_of_memory_becomes_advice(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that no machine holds: the allocator's own error ends in a smaller --batch-size."""
    from unet.models.unet import UNet

    def forward(self: UNet, x: object) -> object:
        import torch

        return torch.empty(2**50)

    monkeypatch.setattr(UNet, "forward", forward)
    error = error_of(tiny("--run-name", "a", "--epochs", 1))
    assert "ran out of memory at --image-size 16 with --batch-size 4" in error
    assert "--batch-size 2" in error


def test_a_loader_process_that_dies_becomes_advice(tiny) -> None:
    """kill -9 of a worker in the middle of an epoch, as the kernel does when memory runs out."""
    from unet.runtime import trainer

    def kill_a_worker(run: trainer.Trainer) -> None:
        if run.progress.step == 2:
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            os.kill(int(children[-1]), signal.SIGKILL)

    original = trainer.optimizer_step

    def step(run: trainer.Trainer) -> None:
        original(run)
        kill_a_worker(run)

    trainer.optimizer_step = step
    try:
        error = error_of(tiny("--run-name", "a", "--epochs", 50, "--workers", 2))
    finally:
        trainer.optimizer_step = original
    assert "A loader process died" in error
    assert "fewer --workers" in error


@pytest.mark.slow
def test_a_second_benchmark_of_one_name_and_a_folder_that_is_no_run(tiny, cli, phantoms: Path) -> None:
    words = (
        "benchmark",
        "--data",
        phantoms,
        "--cache",
        "cache_16",
        "--device",
        "cpu",
        *TINY,
        "--rounds",
        1,
        "--steps",
        1,
    )
    assert cli(*words, "--run-name", "b")[0] == 0
    assert "--overwrite" in error_of(cli(*words, "--run-name", "b"), 2)
    Path("performance/mine").mkdir()
    Path("performance/mine/config.json").write_text("{}")
    Path("performance/mine/model.safetensors").write_text("precious")
    for extra in ((), ("--overwrite",)):
        assert "holds more than a run" in error_of(tiny("--run-name", "mine", "--epochs", 1, *extra), 2)
    assert Path("performance/mine/model.safetensors").exists()


def test_evaluate_does_not_replace_a_training_run(tiny, cli) -> None:
    tiny("--run-name", "a", "--epochs", 1)
    words = ("--weights", "a.pt", "--cache", "cache_16", "--run-name", "a")
    for extra in ((), ("--overwrite",)):
        assert "Give another --run-name" in error_of(cli("evaluate", *words, *extra), 2)
    assert Path("performance/a/metrics.jsonl").exists()


def test_another_set_does_not_empty_a_cache(tiny, cli, workplace: Path) -> None:
    from unet.tasks.lgg import synthetic

    tiny("--run-name", "a", "--epochs", 1)
    synthetic.write_set(workplace / "other", patients=3, slices=6, side=64, seed=9)
    for folder in sorted(path for path in (workplace / "other").iterdir() if path.is_dir()):
        new = folder.with_name("NEW" + folder.name)
        folder.rename(new)
        for path in new.iterdir():
            path.rename(path.with_name("NEW" + path.name))
    before = sorted(path.name for path in Path("data/cache_16").glob("*.npy"))
    for command in ("preprocess", "train", "evaluate"):
        words = {"preprocess": (), "evaluate": ("--weights", "a.pt", "--run-name", "b")}.get(
            command, ("--run-name", "b")
        )
        error = error_of(cli(command, "--data", "./other", "--cache", "cache_16", "--image-size", 16, *words))
        assert "holds another set" in error
        assert "another --cache" in error
    assert sorted(path.name for path in Path("data/cache_16").glob("*.npy")) == before
    code, _, err = cli(
        "evaluate", "--weights", "a.pt", "--data", "./other", "--cache", "other_cache", "--run-name", "e"
    )
    assert code == 0, err
    assert "validation cases of these weights is in this set" in err
    assert read_json(Path("performance/e/summary.json"))["cases"] == 3


def test_fewer_cases_of_a_whole_cache(tiny) -> None:
    assert tiny("--run-name", "a", "--epochs", 1)[0] == 0
    assert tiny("--run-name", "b", "--epochs", 1, "--max-cases", 4)[0] == 0
    assert sum(map(len, read_json(Path("performance/b/splits.json")).values())) == 4
    assert len(list(Path("data/cache_16").glob("*_mask.npy"))) == 6


def test_a_folder_of_another_layout_is_told_before_other_settings_of_the_cache(cli, here: None, phantoms: Path) -> None:
    assert cli("preprocess", "--data", phantoms, "--cache", "c", "--image-size", 16)[0] == 0
    Path("ct64/images").mkdir(parents=True)
    words = ("train", "--cache", "c", "--device", "cpu", "--layers", 2, "--batch-size", 4)
    error = error_of(cli(*words, "--data", "./ct64"))
    assert f"{Path('ct64').absolute()}: holds no patient folders" in error and "(task lgg)" in error
    assert "image_size 16 (asked: 64)" in error_of(cli(*words, "--data", phantoms))


def test_a_split_that_cannot_be_made_is_told_before_the_cache_is_built(cli, here: None, phantoms: Path) -> None:
    Path("names.txt").write_text("nobody\n")
    words = ("--data", phantoms, "--cache", "c", "--device", "cpu", *TINY)
    assert "'nobody' names 0 cases" in error_of(cli("train", *words, "--split", "names.txt", "--dry-run"))
    assert "a fold would be empty" in error_of(cli("crossval", *words, "--folds", 7))
    assert not list(Path("data").glob("c/*.npy"))


def test_half_a_cache_without_its_raw_set(cli, raw: Path) -> None:
    words = ("--cache", "c", "--image-size", 16)
    cli("preprocess", "--data", "./raw", *words)
    manifest = read_json(Path("data/c/manifest.json"))
    manifest["cases"].popitem()
    files.write_json("data/c/manifest.json", manifest)
    shutil.rmtree("raw")
    assert "5 of 6 cases are made" in error_of(cli("train", *words, "--layers", 2, "--batch-size", 4))


def test_sigterm_to_the_whole_process_group_saves(phantoms: Path, tmp_path: Path) -> None:
    """What a scheduler, `timeout` or a terminal does: the loader's workers get the signal too."""
    words = (
        "train",
        "--data",
        phantoms,
        "--cache",
        "c",
        "--device",
        "cpu",
        *TINY,
        "--epochs",
        100000,
        "--workers",
        2,
        "--run-name",
        "a",
        "--evaluate-every",
        0,
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "unet", *map(str, words)],
        cwd=tmp_path,
        env=environment,
        start_new_session=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    while not (tmp_path / "weights/a.state.safetensors").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert read_json(tmp_path / "performance/a/status.json")["why"] == "stopped: SIGTERM"
