"""evaluate and predict: scores that agree with one another, masks on the input's own grid."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from builders import make_config
from conftest import error_of, read_json, stored

from unet.config.flags import DeviceOptions
from unet.config.flags_training import PredictOptions
from unet.data.preprocessing import slice_geometry
from unet.devices.cpu import CPU
from unet.devices.launchers import Rank
from unet.metrics import overlap
from unet.runtime.checkpoints import checkpoint
from unet.runtime.inference.predictor import Predictor
from unet.tasks.lgg import dataset as lgg
from unet.tasks.lgg.task import LGG

Run = Callable[..., tuple[int, str, str]]


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path) as stream:
        return list(csv.DictReader(stream))


SMALL_RUN = (
    *("train", "--cache", "c32", "--device", "cpu", "--image-size", 32, "--layers", 2, "--width", 2),
    *("--batch-size", 4, "--epochs", 1),
)


def train_small(use: Run, name: str, *flags: object) -> None:
    """Train a small network on the 32-px phantoms as run `name`."""
    code, _, err = use(*SMALL_RUN, *flags, "--run-name", name)
    assert code == 0, err


@pytest.fixture(scope="module")
def trained(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights of a network that has learnt something about 32-px phantoms."""
    from conftest import program

    folder = tmp_path_factory.mktemp("trained")
    done = program(
        "train",
        "--data",
        phantoms,
        "--cache",
        "c32",
        "--device",
        "cpu",
        "--image-size",
        32,
        "--layers",
        3,
        "--width",
        8,
        "--batch-size",
        8,
        "--epochs",
        25,
        "--lr",
        3e-3,
        "--run-name",
        "a",
        "--evaluate-every",
        5,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def use(trained: Path, cli: Run, workplace: Path) -> Run:
    for name in ("data", "weights", "performance"):
        shutil.copytree(trained / name, workplace / name)

    def run(*words: object) -> tuple[int, str, str]:
        """Weights do not tell where the data are."""
        return cli(*words, *(("--cache", "c32") if words[0] == "evaluate" and "--cache" not in words else ()))

    return run


def test_evaluate_agrees_with_training(use: Run) -> None:
    code, out, err = use("evaluate", "--weights", "a.pt", "--run-name", "e")
    assert code == 0, err
    best = read_json(Path("performance/a/summary.json"))["best_score"]
    assert read_json(Path("performance/e/summary.json"))["best_score"] == pytest.approx(best, abs=1e-9)
    rows = rows_of(Path("performance/e/cases.csv"))
    assert [row["case"] for row in rows] == read_json(Path("performance/a/splits.json"))["validation"]
    for words in ("mean", "median", "worst 1", "HD95", "where mask and prediction are empty"):
        assert words in out
    assert Path("performance/e/predictions.png").stat().st_size > 10_000


def test_evaluate_every_case_does_not_depend_on_the_batch(use: Run) -> None:
    scores = []
    for batch in (1, 5, 64):
        assert (
            use(
                "evaluate",
                "--weights",
                "a.pt",
                "--split",
                "none",
                "--test-batch-size",
                batch,
                "--run-name",
                f"e{batch}",
            )[0]
            == 0
        )
        scores.append(read_json(Path(f"performance/e{batch}/summary.json")))
    assert scores[0]["cases"] == 6
    assert [item["best_score"] for item in scores] == pytest.approx([scores[0]["best_score"]] * 3, abs=1e-6)


def test_a_case_is_scored_as_the_reference_scores_it(use: Run, phantoms: Path) -> None:
    """Slice by slice with plain torch: sigmoid, round at 0.5, largest component, 2 sum(pt) / (sum p + sum t)."""
    from scipy import ndimage

    use("evaluate", "--weights", "a.pt", "--split", "none", "--run-name", "e")
    rows = {row["case"]: float(row["dsc"]) for row in rows_of(Path("performance/e/cases.csv"))}
    network, own = LGG(make_config()).convert_checkpoint(stored("weights/a.safetensors")["model"])
    network.load_state_dict(own)
    network.eval()
    for name, dsc in rows.items():
        image, mask = np.load(f"data/c32/{name}.npy"), np.load(f"data/c32/{name}_mask.npy")[..., 0]
        with torch.no_grad():
            p = np.stack(
                [
                    np.round(network(torch.from_numpy(item).permute(2, 0, 1)[None]).sigmoid()[0, 0].numpy())
                    for item in image
                ]
            )
        labels, count = ndimage.label(p)
        if count:
            p = labels == 1 + np.argmax([np.sum(labels == number) for number in range(1, count + 1)])
        assert dsc == pytest.approx(2 * np.sum(p * mask) / (np.sum(p) + np.sum(mask)), abs=1e-6)


def test_weights_of_the_published_form_are_evaluated(use: Run) -> None:
    from unet.models import convert

    use("evaluate", "--weights", "a.pt", "--split", "none", "--run-name", "own")
    state = stored("weights/a.safetensors")["model"]
    torch.save(
        {"module." + key: value for key, value in convert.to_published_lgg(state).items()}, "weights/published.pt"
    )
    code, _, err = use(
        "evaluate",
        "--weights",
        "published.pt",
        "--cache",
        "c32",
        "--image-size",
        32,
        "--split",
        "none",
        "--run-name",
        "p",
    )
    assert code == 0, err
    own, published = (read_json(Path(f"performance/{name}/summary.json"))["best_score"] for name in ("own", "p"))
    assert own == published


def test_predict_a_whole_set(use: Run, phantoms: Path) -> None:
    code, _, err = use("predict", "--weights", "a.pt", phantoms, "--overlay", "--probabilities")
    assert code == 0, err
    inputs = sorted(path for path in phantoms.glob("*/*.tif") if "mask" not in path.name)
    found = []
    for path in inputs:
        mask = tifffile.imread(Path("predictions") / path.parent.name / path.name)
        assert mask.shape == (64, 64)
        assert mask.dtype == np.uint8
        assert set(np.unique(mask)) <= {0, 255}
        probability = tifffile.imread(Path("predictions") / path.parent.name / f"{path.stem}_probability.tif")
        assert probability.dtype == np.float32
        assert 0 <= probability.min() <= probability.max() <= 1
        assert not ((mask > 0) & (probability <= 0.5)).any()
        assert (Path("predictions") / path.parent.name / f"{path.stem}_overlay.png").exists()
        found.append(mask)
    folders = sorted({path.parent for path in inputs})
    scores = []
    for folder in folders:
        volume = np.stack([mask for path, mask in zip(inputs, found, strict=True) if path.parent == folder]) > 0
        truth, _ = lgg.read_masks([lgg.mask_of(path) for path in inputs if path.parent == folder])
        scores.append(overlap.dice(volume, truth))
    use("evaluate", "--weights", "a.pt", "--split", "none", "--run-name", "e")
    assert np.mean(scores) == pytest.approx(read_json(Path("performance/e/summary.json"))["best_score"], abs=0.1)


def test_predict_continues_where_it_stopped(use: Run, phantoms: Path) -> None:
    use("predict", "--weights", "a.pt", phantoms)
    masks = sorted(Path("predictions").glob("*/*.tif"))
    kept, lost = masks[0], masks[-1]
    stamp = kept.stat().st_mtime_ns
    lost.unlink()
    code, _, err = use("predict", "--weights", "a.pt", phantoms)
    assert code == 0
    assert f"1 mask written, {len(masks) - 1} were there already" in err
    assert kept.stat().st_mtime_ns == stamp
    shutil.copy("weights/a.state.safetensors", "weights/other.pt")
    assert "was made of other weights" in error_of(use("predict", "--weights", "other.pt", phantoms), 2)
    code, _, err = use("predict", "--weights", "other.pt", phantoms, "--overwrite")
    assert code == 0, err
    assert f"{len(masks)} masks written, 0 were there already" in err


def test_a_patient_folder_and_a_single_image(use: Run, phantoms: Path) -> None:
    folder = sorted(path for path in phantoms.iterdir() if path.is_dir())[0]
    assert use("predict", "--weights", "a.pt", folder)[0] == 0
    slices = len(list(folder.glob("*[0-9].tif")))
    assert len(list(Path("predictions").glob("*/*.tif"))) == slices
    image = folder / f"{folder.name}_5.tif"
    code, _, _ = use("predict", "--weights", "a.pt", image, "--output", "one")
    assert code == 0
    assert [path.name for path in Path("one").glob("*/*.tif")] == [image.name]
    assert tifffile.imread(Path("one") / folder.name / image.name).shape == (64, 64)


def test_what_a_shell_pattern_gives(use: Run, phantoms: Path) -> None:
    """folder/*.tif names masks too: they are passed over; what is no image is named."""
    folder = sorted(path for path in phantoms.iterdir() if path.is_dir())[0]
    assert use("predict", "--weights", "a.pt", *folder.glob("*.tif"))[0] == 0
    assert len(list(Path("predictions").glob("*/*.tif"))) == len(list(folder.glob("*[0-9].tif")))
    assert "is no .tif image" in error_of(use("predict", "weights/a.safetensors", "--weights", "a.pt"))
    assert "nowhere does not exist" in error_of(use("predict", "--weights", "a.pt", "nowhere"), 2)
    shutil.copytree(folder, Path("other") / folder.name)
    assert "would meet" in error_of(use("predict", "--weights", "a.pt", folder, Path("other") / folder.name))


def test_masks_are_never_written_over_images(use: Run, phantoms: Path) -> None:
    shutil.copytree(phantoms, "set")
    folder = sorted(path for path in Path("set").iterdir() if path.is_dir())[0]
    before = {path: path.read_bytes() for path in Path("set").glob("*/*.tif")}
    for words in (
        ("./set", "--output", "set"),
        (folder, "--output", "set"),
        (next(folder.glob("*_4.tif")), "--output", "./set/"),
    ):
        assert "written over the images" in error_of(use("predict", "--weights", "a.pt", *words, "--overwrite"), 2)
    assert {path: path.read_bytes() for path in Path("set").glob("*/*.tif")} == before


def test_a_black_patient_gets_empty_masks(use: Run) -> None:
    Path("set/black").mkdir(parents=True)
    for number in range(1, 5):
        tifffile.imwrite(f"set/black/black_{number}.tif", np.zeros((50, 60, 3), np.uint8), photometric="rgb")
    code, _, err = use("predict", "--weights", "a.pt", "./set")
    assert code == 0, err
    assert "Its masks are empty" in err
    assert all(tifffile.imread(path).shape == (50, 60) for path in Path("predictions/black").glob("*.tif"))


def test_weights_trained_on_every_case_are_not_validated_on_them(use: Run, phantoms: Path) -> None:
    code, _, err = use(
        "train",
        "--data",
        phantoms,
        "--cache",
        "c32",
        "--image-size",
        32,
        "--layers",
        2,
        "--width",
        2,
        "--batch-size",
        4,
        "--split",
        "none",
        "--epochs",
        1,
        "--run-name",
        "all",
        "--weights",
        "all.pt",
        "--device",
        "cpu",
    )
    assert code == 0, err
    assert "trained on every case" in error_of(use("evaluate", "--weights", "all.pt", "--run-name", "e"), 2)
    code, _, err = use("evaluate", "--weights", "all.pt", "--run-name", "e", "--split", "none")
    assert code == 0
    assert "6 of the 6 cases were used for training" in err


def make_twin() -> None:
    """Other weights with the same values."""
    content = stored("weights/a.safetensors")
    checkpoint.save_weights(Path("weights/twin.safetensors"), {"task": "lgg"}, content["model"])


def test_several_weights_are_averaged(use: Run, phantoms: Path) -> None:
    folder = sorted(path for path in phantoms.iterdir() if path.is_dir())[0]
    make_twin()
    for names, output in ((["a.pt"], "a"), (["a.pt", "twin.safetensors"], "b")):
        assert (
            use(
                "predict",
                *(word for name in names for word in ("--weights", name)),
                folder,
                "--output",
                output,
                "--probabilities",
            )[0]
            == 0
        )
    for path in Path("a").glob("*/*_probability.tif"):
        np.testing.assert_allclose(tifffile.imread(path), tifffile.imread("b" / path.relative_to("a")), atol=1e-6)


def test_evaluate_scores_the_mean_of_several_networks(use: Run) -> None:
    """Twice the same network scores as once; networks of other widths are averaged too."""
    make_twin()
    train_small(use, "wide", "--width", 3, "--epochs", 3)
    runs = {"a": ["a"], "twins": ["a", "twin"], "wide": ["wide"], "both": ["a", "wide"]}
    outputs: dict[str, tuple[str, str]] = {}
    for name, weights in runs.items():
        given = ("--weights", *(f"{each}.safetensors" for each in weights))
        code, *outputs[name] = use("evaluate", *given, "--run-name", f"e-{name}")  # type: ignore[assignment]
        assert code == 0, outputs[name]
    scores = {name: rows_of(Path(f"performance/e-{name}/cases.csv")) for name in runs}
    assert [row["dsc"] for row in scores["twins"]] == [row["dsc"] for row in scores["a"]]
    for one, wide, both in zip(scores["a"], scores["wide"], scores["both"], strict=True):
        assert float(both["loss"]) not in (float(one["loss"]), float(wide["loss"]))
    assert "weights/a.safetensors + weights/wide.safetensors" in outputs["both"][1]
    summary = read_json(Path("performance/e-both/summary.json"))
    assert summary["paths"]["weights"] == ["weights/a.safetensors", "weights/wide.safetensors"]
    recorded = read_json(Path("performance/e-both/config.json"))["settings"]
    width = next(section["width"] for section in recorded.values() if "width" in section)
    assert width == {"value": 8, "source": "weights a.safetensors"}


def test_a_network_is_not_counted_twice(use: Run, phantoms: Path) -> None:
    """By the same name, by another path to its file, and as a copy."""
    Path("link").symlink_to("weights")
    shutil.copy("weights/a.safetensors", "copy.safetensors")
    make_twin()
    for command in (("evaluate", "--run-name", "e"), ("predict", phantoms, "--output", "masks")):
        for other in ("weights/a.safetensors", "./link/a.safetensors", "./copy.safetensors"):
            given = ("--weights", "a.safetensors", "twin.safetensors", other)
            error = error_of(use(*command, *given), 2)
            assert "weights/a.safetensors" in error and "twin" not in error
            assert "count that network twice" in error and "Name each network once" in error
    assert not Path("masks").exists() and not Path("performance/e").exists()


def test_a_state_is_no_further_network(use: Run) -> None:
    given = sorted(Path("weights").glob("a*.safetensors"))
    assert len(given) > 1
    error = error_of(use("evaluate", "--weights", *given, "--run-name", "e"), 2)
    assert "saved beside weights/a.safetensors" in error
    assert "weights/NAME-fold?.safetensors" in error


def test_several_networks_are_scored_on_cases_that_none_was_trained_on(use: Run) -> None:
    for fold in (0, 1):
        train_small(use, f"f{fold}", "--fold", fold, "--folds", 3)
    both = ("--weights", "f0.safetensors", "--weights", "f1.safetensors")
    error = error_of(use("evaluate", *both, "--run-name", "none"), 2)
    assert "Each case of this set was used to train one of these 2 networks" in error
    train_small(use, "again", "--fold", 0, "--folds", 3, "--lr", 1e-3)
    given = ("--weights", "f0.safetensors", "--weights", "again.safetensors", "--run-name", "same")
    code, _, err = use("evaluate", *given)
    assert code == 0, err
    held = read_json(Path("performance/f0/splits.json"))["validation"]
    assert [row["case"] for row in rows_of(Path("performance/same/cases.csv"))] == sorted(held)
    assert "too good" not in err
    code, _, err = use("evaluate", *both, "--run-name", "typed", "--fold", 0, "--folds", 3)
    assert code == 0
    assert f"{len(held)} of the {len(held)} cases were used for training: their scores are too good" in err


def test_networks_that_take_other_slices_are_not_averaged(use: Run, phantoms: Path) -> None:
    """Typing --neighbours does not make them fit, and for one network it is told which value does."""
    train_small(use, "beside", "--neighbours", 1)
    both = ("--weights", "a.safetensors", "--weights", "beside.safetensors")
    for command in (("evaluate", "--run-name", "e"), ("predict", phantoms, "--output", "masks")):
        error = error_of(use(*command, *both), 2)
        assert "--neighbours 0 or 1" in error
        assert "type the value" not in error
        error = error_of(use(*command, *both[2:], "--neighbours", 0))
        assert "take 9 channels, and --neighbours 0 gives 3" in error
        assert "Type --neighbours 1" in error


def test_cases_that_loaded_weights_were_trained_on_are_told_of(use: Run) -> None:
    """In the run that begins from them, and where its own weights are scored."""
    train_small(use, "first", "--fold", 0, "--folds", 3)
    words = ("--fold", 1, "--folds", 3, "--load", "first.safetensors", "--run-name", "second")
    code, _, err = use(*SMALL_RUN, *words)
    assert code == 0, err
    told = "2 of the 2 validation cases were used to train the weights of --load: their scores are too good"
    assert told in err
    code, _, err = use("evaluate", "--weights", "second.safetensors", "--run-name", "e")
    assert code == 0, err
    assert "2 of the 2 cases were used for training" in err
    code, _, err = use("train", "--resume", "--run-name", "second", "--epochs", 2)
    assert code == 0, err
    assert stored("weights/second.safetensors")["trained_before"] == stored("weights/first.safetensors")["training"]
    code, _, err = use(*SMALL_RUN, "--fold", 0, "--folds", 3, "--load", "first.safetensors", "--run-name", "third")
    assert code == 0
    assert "too good" not in err


def test_a_bad_patient_in_the_middle_does_not_stop_the_others(use: Run, phantoms: Path) -> None:
    shutil.copytree(phantoms, "raw")
    bad = sorted(path for path in Path("raw").glob("*_0003_*/*_4.tif"))[0]
    bad.write_bytes(b"no tiff")
    error = error_of(use("predict", "--weights", "a.pt", "./raw"))
    assert "1 of 6 patients could not be predicted" in error
    assert bad.name in error
    assert sum(path.is_dir() for path in Path("predictions").iterdir()) == 5


@pytest.mark.parametrize(("sides", "size"), [((64, 48), 32), ((40, 40), 64), ((50, 61), 48)])
def test_what_was_cropped_and_resized_comes_back_where_it_was(sides: tuple[int, int], size: int) -> None:
    """A disc through crop, square, resize and back, as a probability: its centre stays within half a pixel."""
    rows, columns = np.mgrid[: sides[0], : sides[1]]
    volume = np.zeros((5, *sides, 3), np.uint8)
    volume[:, 4:-6, 3:-2] = 60
    disc = (rows - 0.55 * sides[0]) ** 2 + (columns - 0.45 * sides[1]) ** 2 < (0.15 * min(sides)) ** 2
    volume[:, disc] = 255
    how = slice_geometry.geometry(volume, size)
    small = slice_geometry.resize_image(slice_geometry.to_square((volume > 200).astype(np.uint8) * 255, how), how)[:, 0]
    back = LGG(make_config()).restore(small, how)
    assert back.shape == (5, *sides)
    found, expected = np.argwhere(back[2] > 0.5), np.argwhere(disc)
    assert np.abs(found.mean(0) - expected.mean(0)).max() < 0.5
    assert len(found) == pytest.approx(len(expected), rel=0.12)


def test_a_task_gives_arrays_and_writes_nothing(phantoms: Path, tmp_path: Path) -> None:
    """What prediction makes of each wanted slice, on its own grid, the mask last; the command writes it."""
    task = LGG(make_config(image_size=32))
    folder, images = sorted(task.find_inputs([phantoms]).items())[0]
    before = {path: path.stat().st_mtime_ns for path in phantoms.rglob("*")}
    options = PredictOptions(output=str(tmp_path / "out"), overlay=True, probabilities=True)
    networks = [torch.nn.Conv2d(3, 1, 1), torch.nn.Conv2d(3, 1, 1)]
    predictor = Predictor(networks, CPU(DeviceOptions(device="cpu"), Rank()), 8)
    outputs = list(task.predict_case(images, images[1:3], predictor, options))
    assert [(output.image, output.name) for output in outputs] == [
        (image, name) for image in images[1:3] for name in ("probability", "overlay", "mask")
    ]
    for output in outputs:
        assert output.name in task.output_files(output.image, tmp_path / folder.name, options)
        if output.name != "overlay":
            assert output.array.shape == tifffile.imread(output.image).shape[:2]
    assert len(predictor.seconds) == 1
    assert {path: path.stat().st_mtime_ns for path in phantoms.rglob("*")} == before and not list(tmp_path.iterdir())


def test_a_pickle_with_code_is_refused(use: Run, workplace: Path) -> None:
    import pickle

    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            import os

            return os.system, (f"touch {workplace}/owned",)

    torch.save({"model": Attack()}, "weights/bad.pt")
    Path("weights/raw.pt").write_bytes(pickle.dumps(Attack()))
    for name in ("bad.pt", "raw.pt"):
        for command in ("evaluate", "predict"):
            error = error_of(use(command, "--weights", name))
            by_opcodes = ("the object posix.system", "a pickle that torch did not write")  # torch below 2.10
            assert any(f"holds {words}" in error for words in ("code or objects", *by_opcodes))
    assert not Path("owned").exists()


def test_a_checkpoint_of_another_network(use: Run, tiny: Run) -> None:
    error = error_of(use("evaluate", "--weights", "a.pt", "--layers", 2, "--run-name", "e"))
    assert "weights of another network" in error
    error = error_of(tiny("--load", "a.pt", "--run-name", "b", "--weights", "b.pt"))
    assert "task lgg, layers 3, width 8; here lgg, layers 2, width 4" in error
    torch.save({"a.weight": torch.zeros(3)}, "weights/alien.pt")
    assert "not those of a UNet of task lgg" in error_of(use("evaluate", "--weights", "alien.pt"))
    content = Path("weights/a.safetensors").read_bytes()
    Path("weights/short.pt").write_bytes(content[: len(content) // 2])
    assert "cut short" in error_of(use("evaluate", "--weights", "short.pt"))
    assert "none.pt does not exist" in error_of(use("predict", "--weights", "none.pt"), 2)


@pytest.mark.real
def test_real_patients_go_through(cli: Run, real_lgg: Path, workplace: Path) -> None:
    """Two patients of different crop, an untrained network: shapes and grids, the first and last slice included."""
    from unet.models.unet import UNet, UNetShape

    torch.save(UNet(UNetShape(features=(4, 8), bottleneck=16)).state_dict(), "w.pt")
    folders = [real_lgg / "TCGA_DU_7018_19911220", real_lgg / "TCGA_HT_7860_19960513"]
    code, _, err = cli("predict", "--weights", "./w.pt", *folders, "--image-size", 64)
    assert code == 0, err
    for folder in folders:
        images = [path for path in folder.glob("*.tif") if "mask" not in path.name]
        assert all(
            tifffile.imread(Path("predictions") / folder.name / path.name).shape == (256, 256) for path in images
        )


def test_an_output_that_is_not_finite_is_an_error_of_evaluate(use: Run) -> None:
    """Finite weights whose output overflows: a score of 0.0000 would hide it."""
    content = stored("weights/a.safetensors")
    state = content["model"]
    state |= {name: torch.full_like(state[name], 3e38) for name in list(state)[-2:]}
    torch.save(state, "weights/over.pt")
    words = ("--weights", "over.pt", "--cache", "c32", "--image-size", 32, "--split", "none", "--run-name", "e")
    error = error_of(use("evaluate", *words))
    assert "TCGA" in error and "the network's output is not finite" in error
