"""What predict keeps, makes again and refuses: a result is its image's, its weights' and its settings', and nobody
else's file is replaced."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from conftest import ROOT, error_of, program

from unet.cli import resolve
from unet.commands import predict_outputs
from unet.errors import DataError, UsageError
from unet.runtime.folders.output_folder import MANIFEST, OutputFolder
from unet.tasks.registry import create

Run = Callable[..., tuple[int, str, str]]
WORDS = ("predict", "--weights", "./w.pt", "--image-size", 32, "--device", "cpu", "--output", "out")


def save_network(path: Path, seed: int, head: float | None = None) -> None:
    from unet.models.unet import UNet, UNetShape

    torch.manual_seed(seed)
    state = UNet(UNetShape(features=(2, 4), bottleneck=8)).state_dict()
    if head is not None:
        last = list(state)[-2:]
        state |= {name: torch.full_like(state[name], head) for name in last}
    torch.save(state, path)


def paint(folder: Path, seed: int, count: int = 3, name: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    for number in range(1, count + 1):
        image = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        tifffile.imwrite(folder / f"{name or folder.name}_{number}.tif", image, photometric="rgb")
    return folder


@pytest.fixture
def predict(cli: Run, workplace: Path) -> Run:
    save_network(workplace / "w.pt", 0)
    paint(workplace / "P1", 1)

    def run(*words: object) -> tuple[int, str, str]:
        return cli(*WORDS, *words)

    return run


def contents(folder: str = "out") -> dict[str, bytes]:
    return {
        str(p): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file() and "predictions." not in p.name
    }


def test_what_is_the_same_is_kept_and_what_differs_is_refused(predict: Run, cli: Run) -> None:
    assert predict("./P1", "--probabilities")[0] == 0
    before, stamps = contents(), [path.stat().st_mtime_ns for path in Path("out/P1").iterdir()]
    code, _, err = predict("./P1", "--probabilities")
    assert code == 0 and "0 masks written, 3 were there already" in err
    assert [path.stat().st_mtime_ns for path in Path("out/P1").iterdir()] == stamps
    shutil.copy("w.pt", "same.pt")
    assert "0 masks written" in cli(*("./same.pt" if word == "./w.pt" else word for word in WORDS), "./P1")[2]

    def refused(words: str, *typed: object) -> None:
        assert f"was made of other {words}" in error_of(predict("./P1", "--probabilities", *typed), 2)
        assert contents() == before

    refused("settings (and 5 more)", "--image-size", 16)
    save_network(Path("w.pt"), 5)
    refused("weights (and 5 more)")
    refused("weights and settings", "--image-size", 16)
    save_network(Path("w.pt"), 0)
    stamp = Path("P1/P1_2.tif").stat()
    paint(Path("P1"), 2)
    os.utime("P1/P1_2.tif", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # the same size and time, other pixels
    refused("images (and 5 more)")
    assert predict("./P1", "--probabilities", "--overwrite")[0] == 0
    changed = contents()
    names = [name for name in before if "probability" in name]
    assert len(names) == 3 and all(before[name] != changed[name] for name in names)
    assert predict("./P1", "--probabilities", "--output", "fresh")[0] == 0
    assert [changed[name] for name in names] == [Path("fresh", *Path(n).parts[1:]).read_bytes() for n in names]


def test_overlays_and_probabilities_follow_their_masks(predict: Run) -> None:
    """Made before and not asked for again, they would lie beside the mask of another image."""
    assert predict("./P1", "--probabilities", "--overlay")[0] == 0
    before = contents()
    paint(Path("P1"), 2)
    assert predict("./P1", "--overwrite")[0] == 0
    after = contents()
    assert before.keys() == after.keys()
    assert all(before[name] != after[name] for name in before if "probability" in name or "overlay" in name)


def test_a_folder_of_the_same_name_is_another_case(predict: Run) -> None:
    assert predict("./P1")[0] == 0
    before = contents()
    paint(Path("other/P1"), 2)
    error = error_of(predict("./other/P1"), 2)
    assert f"was made of other images, in {Path('P1').absolute()} (and 2 more)" in error
    assert "--output" in error and "--overwrite" in error
    assert contents() == before
    shutil.move("P1", "moved")
    Path("there").mkdir()
    shutil.move("moved", "there/P1")  # the same images elsewhere are the same case
    assert "0 masks written" in predict("./there/P1")[2]
    assert predict("./other/P1", "--overwrite")[0] == 0
    assert "0 masks written" in predict("./other/P1")[2]


def test_an_empty_mask_is_made_again_and_an_edited_one_is_not_replaced(predict: Run) -> None:
    assert predict("./P1")[0] == 0
    before = contents()
    Path("out/P1/P1_3.tif").write_bytes(b"")
    assert "1 mask written, 2 were there already" in predict("./P1")[2]
    assert contents() == before
    edited = np.full((32, 32), 255, np.uint8)
    tifffile.imwrite("out/P1/P1_2.tif", edited)
    error = error_of(predict("./P1"), 2)
    assert "P1_2.tif was changed after this program wrote it" in error and "--overwrite" in error
    assert np.array_equal(tifffile.imread("out/P1/P1_2.tif"), edited)
    assert predict("./P1", "--overwrite")[0] == 0
    assert contents() == before


@pytest.mark.parametrize("kind", ["file", "folder", "link", "dead link"])
def test_what_the_program_did_not_write_is_not_replaced(predict: Run, kind: str) -> None:
    place = Path("out/P1/P1_2.tif")
    place.parent.mkdir(parents=True)
    Path("mine.tif").write_text("mine")
    if kind == "file":
        place.write_text("mine")
    elif kind == "folder":
        place.mkdir()
    else:
        place.symlink_to(Path("mine.tif" if kind == "link" else "nowhere").absolute())
    for words in ((), ("--overwrite",)):
        error = error_of(predict("./P1", *words), 2)
        assert f"P1_2.tif is there, and {MANIFEST} does not list it" in error
    assert os.path.lexists(place) and Path("mine.tif").read_text() == "mine"
    assert [path.name for path in place.parent.iterdir()] == ["P1_2.tif"]


def test_two_images_never_write_one_file(predict: Run) -> None:
    shutil.copy("P1/P1_1.tif", "P1/P1_1.tiff")
    assert "would both be written to" in error_of(predict("./P1", "--overlay"), 2)
    Path("P1/P1_1.tiff").unlink()
    shutil.copy("P1/P1_1.tif", "P1/P1_1_probability.tif")
    assert "would both be written to" in error_of(predict("./P1", "--probabilities"), 2)
    assert not Path("out").exists()


def test_a_killed_predict_goes_on(predict: Run, workplace: Path) -> None:
    """Killed after a mask was written and before it was noted as done, with a line of the manifest cut short."""
    assert predict("./P1")[0] == 0
    before, manifest = contents(), Path("out", MANIFEST)
    begun, done = manifest.read_text().splitlines(keepends=True)
    manifest.write_text(begun + done[: len(done) // 2])
    Path("out/P1/P1_3.tif").unlink()
    tifffile.imwrite("out/P1/P1_1.tif", np.zeros((32, 32), np.uint8))
    code, _, err = predict("./P1")
    assert code == 0 and "3 masks written" in err and "damaged" not in err
    assert contents() == before
    assert "0 masks written" in predict("./P1")[2]
    manifest.write_bytes(b'\xff\xfe nothing\n[1]\n{"files": 3}\n' + manifest.read_bytes())
    code, _, err = predict("./P1")
    assert code == 0 and "lines are damaged and passed over" in err
    for mine in (os.urandom(3000) + b"\n", b"my notes", b'{"a": 1}\n'):
        manifest.write_bytes(mine)
        assert "is not a list of results of this program" in error_of(predict("./P1"), 2)
        assert manifest.read_bytes() == mine
    manifest.unlink()
    assert "does not list it" in error_of(predict("./P1"), 2)
    assert contents() == before


def test_names_in_the_manifest_are_no_paths(predict: Run, workplace: Path) -> None:
    assert predict("./P1")[0] == 0
    victim = workplace / "victim.tif"
    victim.write_text("mine")
    line = json.loads(Path("out", MANIFEST).read_text().splitlines()[1])
    line["files"] = {"../victim.tif": None, str(victim): None}
    with open(Path("out", MANIFEST), "a") as stream:
        stream.write(json.dumps(line) + "\n")
    assert predict("./P1", "--overwrite")[0] == 0
    assert victim.read_text() == "mine"


def test_the_manifest_is_shortened_where_most_of_it_is_replaced(workplace: Path) -> None:
    from unet.runtime.folders.output_folder import Made

    out = OutputFolder(workplace)
    paths = [workplace / f"{number}.tif" for number in range(3)]
    for number in range(20):
        out.note(Made("a", str(number), "w", "s"), dict.fromkeys(paths, "d"))
    out.read()
    out.shorten(least=5)
    assert len((workplace / MANIFEST).read_text().splitlines()) == 1
    again = OutputFolder(workplace)
    again.read()
    assert again.records == out.records and len(again.records) == 3


def test_two_predicts_take_turns(predict: Run) -> None:
    out = OutputFolder(Path("out").absolute())
    held, found = threading.Event(), []

    def hold() -> None:
        with out.held():
            held.set()
            time.sleep(1)
            found.append(Path("out/P1").exists())

    other = threading.Thread(target=hold)
    other.start()
    held.wait(5)
    code, _, err = predict("./P1")
    other.join()
    assert code == 0 and "waiting for process" in err
    assert found == [False]


def test_the_output_is_looked_at_before_training(workplace: Path) -> None:
    paint(workplace / "data/P1", 1)
    words = ["--data", "data", "--output", "out", "--mode", "train_and_predict", "--device", "cpu"]
    config = resolve("train", [*words[:1], "./data", *words[2:]]).config
    task = create(config)
    predict_outputs.require_free(task, config)
    assert not Path("out").exists()
    Path("out/P1").mkdir(parents=True)
    Path("out/P1/P1_2.tif").write_text("mine")
    with pytest.raises(UsageError, match="does not list it"):
        predict_outputs.require_free(task, config)
    with pytest.raises(DataError, match="no such file or folder"):
        predict_outputs.require_free(task, config.replace(data="./nowhere"))
    predict_outputs.require_free(task, config.replace(synth_data=True, data="later"))


def test_masks_of_another_run_are_found_before_training(tiny: Run, workplace: Path) -> None:
    """Case by case: a first run, another one, the first one gone on with, one beside a run that holds the folder."""
    words = ("--mode", "train_and_predict", "--epochs", 1, "--output", "out")
    assert tiny(*words, "--run-name", "a")[0] == 0
    before = contents()
    assert before
    error = error_of(tiny(*words, "--run-name", "b", "--seed", 5), 2)
    assert "was made of other weights" in error
    assert not list(Path("weights").glob("b.*")) and not Path("performance/b").exists()
    assert contents() == before
    assert tiny("--resume", "--run-name", "a", "--epochs", 3, "--lr", 0.1)[0] == 0  # its own masks give way
    assert tiny(*words, "--run-name", "b", "--seed", 5, "--overwrite")[0] == 0
    changed = contents()
    assert changed.keys() == before.keys()
    assert "was made of other weights" in error_of(tiny("--resume", "--run-name", "a", "--epochs", 4), 2)
    assert contents() == changed

    lock = workplace / ".out2.unet.lock"
    with open(lock, "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        other = (*words[:-1], "out2")
        assert "another run will write its masks into" in error_of(tiny(*other, "--run-name", "c"), 2)


def test_settings_that_are_of_no_account_keep_the_masks() -> None:
    config = resolve("predict", ["--task", "kits19"]).config
    digest = predict_outputs.settings_digest(config, "float32")
    same = config.replace(workers="3", eval_batch_size=1, data="other", cache="other", bootstrap=200)
    assert predict_outputs.settings_digest(same, "float32") == digest
    others = [config.replace(overlap=0.25), config.replace(mirror=True), config.replace(layers=3)]
    assert len({digest, *(predict_outputs.settings_digest(each, "float32") for each in others)}) == 4
    assert predict_outputs.settings_digest(config, "bfloat16") != digest


def test_model_dir_holds_the_masks_too(workplace: Path) -> None:
    words = ["--exec_mode", "predict", "--model_dir", "results/unet"]
    assert resolve("train", words).config.predict.output == "results/unet/predictions"
    assert resolve("train", [*words, "--output", "here"]).config.predict.output == "here"
    assert resolve("train", ["--mode", "predict", "--out", "runs"]).config.predict.output == "predictions"


def test_an_output_that_is_not_finite_is_an_error_with_its_case(predict: Run) -> None:
    save_network(Path("w.pt"), 0, 3e38)
    paint(Path("set/P2"), 2)
    error = error_of(predict("./set"))
    assert "1 of 1 patient could not be predicted: P2: the network's output is not finite" in error
    assert not list(Path("out").glob("*/*.tif"))


def test_a_stack_with_a_changed_slice_and_masks_given_as_images(cli: Run, workplace: Path) -> None:
    from PIL import Image

    words = ["--task", "em", "--layers", 2, "--width", 2, "--image-size", 60, "--raw-side", 32, "--device", "cpu"]
    torch.save(create(resolve("config", [str(word) for word in words]).config).build_model().state_dict(), "em.pt")
    Path("stack").mkdir()
    generator = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(generator.integers(0, 255, (32, 32), dtype=np.uint8)).save(f"stack/{number}.png")
    command = ("predict", *words, "--weights", "./em.pt", "--output", "out")
    assert cli(*command, "./stack")[0] == 0
    assert "0 masks written, 1 were there already" in cli(*command, "./stack")[2]
    Image.fromarray(np.zeros((32, 32), np.uint8)).save("stack/1.png")
    assert "was made of other images" in error_of(cli(*command, "./stack"), 2)
    assert "is a result of this program, not an image" in error_of(cli(*command, *Path("out").glob("*.tif")), 2)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_whole_masks_and_the_rest_is_made_later(tmp_path: Path, number: int) -> None:
    save_network(tmp_path / "w.pt", 0)
    first = paint(tmp_path / "set/P0", 0, 5)
    for case in range(1, 400):  # enough to be cut off on a busy machine, which sees the first masks late
        shutil.copytree(first, tmp_path / f"set/P{case}")
    command = [sys.executable, "-m", "unet", *map(str, WORDS), "./set"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=environment)
    while process.poll() is None and len(list(tmp_path.glob("out/*/*.tif"))) < 20:
        time.sleep(0.01)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "goes on from there" in told and "Traceback" not in told
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*/*.tif")}
    assert 0 < len(made) < 2000
    assert not list(tmp_path.glob("out/**/.*.tmp"))
    done = program(*WORDS, "./set", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    masks = list(tmp_path.glob("out/*/*.tif"))
    assert len(masks) == 2000 and all(tifffile.imread(path).shape == (32, 32) for path in masks)
    assert sum(path.stat().st_mtime_ns == made.get(path) for path in masks) >= len(made) - 5


@pytest.mark.slow
def test_many_images_with_few_open_files(tmp_path: Path) -> None:
    """3,000 slices and a limit of 256 open files; the cost of a case does not grow with their number."""
    save_network(tmp_path / "w.pt", 0)
    first = paint(tmp_path / "set/P0", 0, 3)
    for case in range(1, 1000):
        shutil.copytree(first, tmp_path / f"set/P{case}")
    words = " ".join(map(str, WORDS))
    command = f"ulimit -n 256; exec {sys.executable} -m unet {words} ./set"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    how = {"cwd": tmp_path, "env": environment, "text": True, "capture_output": True, "timeout": 300}
    done = subprocess.run(["bash", "-c", command], **how)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    assert "3000 masks written" in done.stderr
    start = time.monotonic()
    done = subprocess.run(["bash", "-c", command], **how)  # type: ignore[call-overload]
    assert "0 masks written, 3000 were there already" in done.stderr
    assert time.monotonic() - start < 30
