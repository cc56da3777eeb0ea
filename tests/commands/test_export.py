"""export as a user has it: a file that runs in the place of the weights, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pages
import pytest
import tifffile
import torch
from conftest import error_of, read_json, stored
from export import weights

from unet import cli as program
from unet.commands import export
from unet.devices import cpu, cuda, rocm
from unet.devices.base import Device
from unet.export import compare, onnx_file
from unet.weight_files import exported, onnx_header, openvino_header

onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
pytest.importorskip("openvino", reason="the extra `export` is not installed")

Cli = Callable[..., tuple[int, str, str]]
DEVICE = ["--device", "cpu", "--threads", 1]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> Path:
    """A folder with weights of slices, and what `export` makes of them; read only."""
    from unet.cli import main

    place = tmp_path_factory.mktemp("made")
    weights.save(place / "a.safetensors", weights.task_of("lgg"))
    patient = sorted(phantoms.iterdir())[0]
    words = ["export", "--weights", place / "a.safetensors", patient, "--to", "onnx", "openvino", *DEVICE]
    assert main([*map(str, words)]) == 0
    return place


@pytest.fixture
def here(made: Path, workplace: Path) -> Path:
    shutil.copytree(made, workplace / "weights")
    return workplace


def masks_of(folder: str) -> dict[str, Any]:
    return {path.name: tifffile.imread(path) for path in sorted(Path(folder).rglob("*.tif"))}


def test_an_exported_file_predicts_and_scores_as_its_weights(here: Path, cli: Cli, phantoms: Path) -> None:
    patient, scores = sorted(phantoms.iterdir())[1], []
    for name in ("a.safetensors", "a.onnx", "a.xml"):
        code, _, err = cli("predict", "--weights", name, patient, "--output", f"p/{name}", *DEVICE)
        assert code == 0, err
        assert ("run by" in err) == (name != "a.safetensors")
        how = ["--data", phantoms, "--cache", "c", "--split", "none", *DEVICE]
        code, out, err = cli("evaluate", "--weights", name, *how, "--run-name", name.replace(".", "-"), "--json")
        assert code == 0, err
        scores.append(json.loads(out)["best_score"])
    assert scores[0] == pytest.approx(scores[1], abs=1e-4) == pytest.approx(scores[2], abs=1e-4)
    ours = masks_of("p/a.safetensors")
    assert len(ours) == len([path for path in patient.iterdir() if "mask" not in path.name])
    for name in ("a.onnx", "a.xml"):
        theirs = masks_of(f"p/{name}")
        assert all((theirs[image] != ours[image]).mean() < 1e-3 for image in ours)


def test_a_mean_with_an_exported_network_says_both_number_formats(here: Path, cli: Cli, phantoms: Path) -> None:
    """In a line and in the record; --precision fp32 and weights alone have one."""
    weights.save(here / "weights/b.safetensors", weights.task_of("lgg"))
    both = ("--weights", "b.safetensors", "a.onnx")
    words = "note: weights/a.onnx computes in fp32, weights/b.safetensors in bf16"
    assert words in cli("predict", *both, sorted(phantoms.iterdir())[1], "--precision", "bf16", *DEVICE)[2]
    how = ("--data", phantoms, "--cache", "c", "--split", "none", *DEVICE)
    recorded = {}
    for name, given, precision in (("both", both, "bf16"), ("plain", both, "fp32"), ("alone", both[:2], "bf16")):
        code, _, err = cli("evaluate", *given, *how, "--precision", precision, "--run-name", name)
        assert code == 0, err
        assert (words in err) == (name == "both")
        recorded[name] = read_json(here / "performance" / name / "environment.json")["chosen"]["precision"]
    assert recorded == {"both": "bf16, exported networks fp32", "plain": "fp32", "alone": "bf16"}


def test_weights_and_what_was_exported_from_them_are_one_network(here: Path, cli: Cli, phantoms: Path) -> None:
    patient = sorted(phantoms.iterdir())[1]
    assert cli("export", "--weights", "a.safetensors", "--to", "safetensors", *DEVICE)[0] == 0
    (again,) = (here / "weights").glob("a.*.safetensors")
    for names in (("a.safetensors", "a.onnx"), ("a.onnx", "a.xml"), ("a.xml", again.name)):
        error = error_of(cli("predict", "--weights", *names, patient, *DEVICE), 2)
        assert f"weights/{names[0]} and weights/{names[1]} hold the same network" in error


def test_the_settings_of_an_exported_file_are_those_of_its_network(here: Path, cli: Cli, phantoms: Path) -> None:
    """So evaluations of the weights and of the file are the same computation; typed are none of them."""
    patient = sorted(phantoms.iterdir())[0]
    shape = ("--image-size", 32, "--layers", 2, "--width", 3, "--neighbours", 1)
    words = ("--data", phantoms, "--cache", "c", *DEVICE, "--epochs", 1, "--batch-size", 4)
    assert cli("train", *words, *shape, "--run-name", "small")[0] == 0
    assert cli("export", "--weights", "small.safetensors", patient, "--to", "onnx", *DEVICE)[0] == 0
    told = exported.read(here / "weights/small.onnx")["settings"]
    assert {name: told[name] for name in ("layers", "width", "neighbours")} == {
        "layers": 2,
        "width": 3,
        "neighbours": 1,
    }


def test_the_metadata_tell_how_to_run_it(made: Path) -> None:
    found = exported.read(made / "a.onnx")
    assert {name: value for name, value in exported.read(made / "a.xml").items() if name != "tensors"} == found
    assert json.loads({item.key: item.value for item in onnx.load(made / "a.onnx").metadata_props}["unet"]) == found
    assert found["format"] == "unet export 1"
    assert found["task"] == "lgg"
    assert found["input"] == {"name": "image", "shape": ["batch", 3, 32, 32], "type": "float32"}
    assert found["output"]["shape"] == ["batch", 1, 32, 32]
    assert found["training"] == ["a", "b"]
    assert found["weights"] == export.files.digest_files(made / "a.safetensors")
    told = found["deployment"]
    assert told["classes"] == ["background", "tumour"]
    assert told["label_values"] == [0, 255]
    assert told["activation"] == "sigmoid"


@pytest.mark.parametrize(
    ("task", "values"),
    [
        ("em", {}),
        ("kits19", {}),
        ("folder", weights.folder(2, 2)),
        ("folder", weights.folder(3, 2, normalize=("ct",) * 2, intensities=(-100.0, 300.0, 90.0, 70.0) * 2)),
    ],
)
def test_each_task_describes_its_networks(task: str, values: dict[str, Any]) -> None:
    found = weights.task_of(task, **values).deployment()
    assert json.loads(json.dumps(found))
    names = ("channels", "classes", "label_values", "spacing", "window", "overlap", "blend", "mirror", "pad_value")
    assert all(name in found for name in (*names, "normalization", "activation", "preprocessing", "postprocessing"))
    assert len(found["classes"]) == len(found["label_values"])


def test_exports_are_compared_without_cases_too_and_say_what_with(here: Path, cli: Cli) -> None:
    code, out, err = cli(
        "export", "--weights", "a.safetensors", "--output", "b/x.onnx", "--no-case-names", "--json", *DEVICE
    )
    assert code == 0, err
    (found,) = json.loads(out)["made"]
    assert found["files"] == [str(here / "b/x.onnx")]
    assert "of noise" in found["compared_on"]
    assert found["difference"] < 1e-4 * max(1, found["largest"])
    assert found["differing"] == 0
    assert found["spread"][0] <= found["ratio"] <= found["spread"][1]
    assert "training" not in exported.read(Path("b/x.onnx"))
    assert [path.name for path in Path("b").iterdir()] == ["x.onnx"]


def test_a_file_beyond_the_tolerance_is_not_written(here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "TOLERANCE", {False: (-1.0, 0.0), True: (-1.0, 0.0)})
    before = sorted(path.name for path in Path("weights").iterdir())
    found = error_of(cli("export", "--weights", "a.safetensors", "--output", "weights/b.onnx", *DEVICE))
    assert "b.onnx was not written: logits differ" in found
    assert sorted(path.name for path in Path("weights").iterdir()) == before


def test_weights_alone_in_every_form(here: Path, cli: Cli) -> None:
    code, _, err = cli("export", "--weights", "a.safetensors", "--to", "safetensors", "published", "reference", *DEVICE)
    assert code == 0, err
    ours = stored("weights/a.safetensors")
    alone = stored("weights/a.weights.safetensors")
    assert alone["settings"]["image_size"] == 32
    published = torch.load("weights/a.published.pt", weights_only=True)
    reference = torch.load("weights/a.reference.pt", weights_only=True)
    assert "encoder1.enc1conv1.weight" in published
    assert "enc1.enc1conv1.weight" in reference
    assert all(torch.equal(value, alone["model"][key]) for key, value in ours["model"].items())
    cli("export", "--weights", "a.safetensors", "--to", "published", "--output", "bare.safetensors", *DEVICE)
    from safetensors.torch import load_file

    assert all(torch.equal(value, published[key]) for key, value in load_file("bare.safetensors").items())


def test_weights_without_the_names_of_cases(here: Path, cli: Cli) -> None:
    from unet.runtime.checkpoints import checkpoint

    content = stored("weights/a.safetensors")
    facts = {name: value for name, value in content.items() if name != "model"}
    facts |= {"training": ["Ann_Smith"], "validation": ["Joe_Bloggs"]}
    checkpoint.save_weights(Path("weights/named.safetensors"), facts, content["model"])
    words = ("export", "--weights", "named.safetensors", "--output", "alone.safetensors", "--overwrite", *DEVICE)
    for more, kept in (((), True), (("--no-case-names",), False)):
        code, _, err = cli(*words, "--to", "safetensors", *more)
        assert code == 0, err
        found = Path("alone.safetensors").read_bytes()
        assert [name in found for name in (b"Ann_Smith", b"Joe_Bloggs")] == [kept, kept]
    assert stored("alone.safetensors")["settings"] == facts["settings"]
    assert cli("export", "--weights", "./alone.safetensors", "--to", "reference", *DEVICE)[0] == 0
    code, _, err = cli(*words[:3], "--to", "onnx", "--output", "alone.onnx", "--no-case-names", *DEVICE)
    assert code == 0, err
    assert b"Ann_Smith" not in Path("alone.onnx").read_bytes()


def test_flags_that_no_format_has_are_told(here: Path, cli: Cli) -> None:
    words = ("export", "--weights", "a.safetensors", *DEVICE, "--output", "told.pt", "--to", "reference")
    code, _, err = cli(*words, "--half", "--opset", 18)
    assert code == 0, err
    assert "--half is for --to openvino: it changes nothing with reference" in err
    assert "--opset is for --to onnx or openvino: it changes nothing with reference" in err
    assert "changes nothing" not in cli(*words, "--overwrite")[2]


def test_nothing_is_replaced_that_was_not_exported(here: Path, cli: Cli) -> None:
    words = ["export", "--weights", "a.safetensors", *DEVICE]
    before = Path("weights/a.safetensors").read_bytes()
    assert "is there already" in error_of(cli(*words), 2)
    to_itself = cli(*words, "--to", "safetensors", "--output", "weights/a.safetensors", "--overwrite")
    assert "does not say that this program exported it" in error_of(to_itself, 2)
    assert Path("weights/a.safetensors").read_bytes() == before
    Path("mine.onnx").write_bytes(b"mine")
    assert "does not say" in error_of(cli(*words, "--output", "mine.onnx", "--overwrite"), 2)
    Path("mine.bin").write_bytes(b"mine")
    assert "mine.bin is there" in error_of(cli(*words, "--to", "openvino", "--output", "mine.xml", "--overwrite"), 2)
    Path("large.onnx.data").write_text("mine")
    assert "large.onnx.data is there" in error_of(cli(*words, "--output", "large.onnx", "--overwrite"), 2)
    assert Path("mine.onnx").read_bytes() == Path("mine.bin").read_bytes() == b"mine"
    size = Path("weights/a.bin").stat().st_size
    assert cli(*words, "--to", "openvino", "--half", "--overwrite")[0] == 0  # 16 bits: half the size
    assert Path("weights/a.bin").stat().st_size < 0.6 * size
    assert "ends in .onnx" in error_of(cli(*words, "--output", "a.pt"), 2)
    assert "writes 2" in error_of(cli(*words, "--to", "onnx", "openvino", "--output", "a.onnx"), 2)


def test_an_exported_network_is_not_trained(here: Path, cli: Cli, phantoms: Path) -> None:
    for name in ("a.onnx", "a.xml"):
        found = error_of(cli("train", "--load", name, "--data", phantoms, "--run-name", "t", *DEVICE))
        assert "an exported network" in found
        assert "not trained" in found
        assert "exported network" in error_of(cli("export", "--weights", name, "--output", "b.onnx", *DEVICE))


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """A file with other metadata, and the digest that fits them."""
    model, found = onnx.load(path), exported.read(path)
    change(found)
    del model.metadata_props[:]
    path.write_bytes(onnx_header.appended(model.SerializeToString(), json.dumps(found)))


def foreign(path: Path) -> None:
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)


def outside(path: Path) -> None:
    """An initializer whose values lie in another folder."""
    model = onnx.load(path)
    told = {item.key: item.value for item in model.metadata_props}["unet"]
    del model.metadata_props[:]
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    (path.parent.parent / "secret").write_bytes(bytes(10**6))
    path.write_bytes(onnx_header.appended(model.SerializeToString(), told))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5000])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


BAD = {
    "later version": (lambda path: rewritten(path, lambda found: found.update(format="unet export 2")), "export 2"),
    "other types": (lambda path: rewritten(path, lambda found: found.update(settings=3)), "settings is 3"),
    "other settings": (
        lambda path: rewritten(path, lambda found: found["settings"].update(image_size="../x")),
        "not valid",
    ),
    "other sides": (
        lambda path: rewritten(path, lambda found: found["input"].update(shape=["batch", 3, 16, 16])),
        "its metadata tell of",
    ),
    "unknown task": (lambda path: rewritten(path, lambda found: found.update(task="nothing")), "does not exist here"),
    "another program's": (foreign, "without this program's metadata"),
    "a file outside": (outside, "no file of its folder"),
    "cut short": (cut, "cut short"),
    "a changed byte": (flipped, "damaged"),
    "the start alone": (lambda path: path.write_bytes(path.read_bytes()[:12]), "cut short"),
}


@pytest.mark.parametrize("how", BAD)
def test_a_file_that_cannot_be_trusted_is_refused(how: str, here: Path, cli: Cli, phantoms: Path) -> None:
    change, words = BAD[how]
    change(Path("weights/a.onnx"))
    found = error_of(cli("predict", "--weights", "a.onnx", "--task", "lgg", sorted(phantoms.iterdir())[0], *DEVICE))
    assert words in found
    assert not list(Path().glob("predictions/**/*.tif"))


def test_a_model_of_openvino_that_cannot_be_trusted_is_refused(here: Path, cli: Cli, phantoms: Path) -> None:
    xml, weight = Path("weights/a.xml"), Path("weights/a.bin")
    text, content = xml.read_text(), weight.read_bytes()

    def refused() -> str:
        return error_of(cli("predict", "--weights", "a.xml", "--task", "lgg", sorted(phantoms.iterdir())[0], *DEVICE))

    weight.write_bytes(content[:-4])
    assert "not the weights of a.xml, or damaged" in refused()
    weight.unlink()
    assert "do not lie beside it" in refused()
    weight.write_bytes(content)
    xml.write_text(text[: len(text) // 2])
    assert "cut short" in refused()
    xml.write_text('<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "b">]><net/>')
    assert "defines entities" in refused()
    xml.write_text('<?xml version="1.0"?><net><layers/></net>')
    assert "without this program's metadata" in refused()
    xml.write_text(text.replace("unet export 1", "unet export 7"))
    assert "'unet export 7'" in refused()
    assert openvino_header.read(xml)


@pytest.mark.parametrize(("package", "name"), [("onnxruntime", "a.onnx"), ("openvino", "a.xml")])
def test_a_runtime_that_is_not_installed_is_named(
    package: str, name: str, here: Path, cli: Cli, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    found = error_of(cli("predict", "--weights", name, sorted(phantoms.iterdir())[0], *DEVICE))
    assert f"package {package}, which is not installed" in found
    assert "pip install 'unet-accelerators[export]'" in found
    to = "onnx" if package == "onnxruntime" else "openvino"
    assert package in error_of(
        cli("export", "--weights", "a.safetensors", "--to", to, "--output", f"b.{name[2:]}", *DEVICE)
    )
    assert not list(Path().glob("b.*"))


@pytest.mark.parametrize("threads", [1, 3])
def test_onnxruntime_has_as_many_threads_as_asked(threads: int, made: Path) -> None:
    tasks = Path("/proc/self/task")
    before = len(list(tasks.iterdir()))
    session = onnx_file.session(made / "a.onnx", threads, "")
    session.run(torch.zeros(2, 3, 32, 32).numpy())
    assert len(list(tasks.iterdir())) - before == threads - 1  # the calling one works too


@pytest.mark.parametrize(("kind", "told"), [(cuda.CUDA, {"use_tf32": "0"}), (rocm.ROCm, {})])
def test_a_card_computes_exported_networks_in_fp32(
    kind: type[cuda.CUDA],
    told: dict[str, str],
    here: Path,
    cli: Cli,
    phantoms: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """onnxruntime takes TF32 on NVIDIA's cards unless it is told not to. No card is needed to see what it is told."""
    import onnxruntime

    heard, session = list[Any](), onnxruntime.InferenceSession

    def opened(path: str, options: Any, providers: list[Any]) -> Any:
        heard.append(providers)
        return session(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [kind.onnx_provider, "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    for name in (name for name in vars(Device) if name.startswith("onnx_")):
        monkeypatch.setattr(cpu.CPU, name, getattr(kind, name))
    patient = sorted(phantoms.iterdir())[0]
    assert cli("predict", "--weights", "a.onnx", patient, *DEVICE)[0] == 0
    assert cli("export", "--weights", "a.safetensors", patient, "--output", "b.onnx", *DEVICE)[0] == 0
    assert heard == [[(kind.onnx_provider, told), "CPUExecutionProvider"]] * 2


def test_another_size_than_that_of_the_file_is_refused(here: Path, cli: Cli, phantoms: Path) -> None:
    patient = sorted(phantoms.iterdir())[0]
    found = error_of(cli("predict", "--weights", "a.onnx", "--image-size", 64, patient, *DEVICE), 2)
    assert "takes inputs of 3 x 32 x 32 (channels and sides), not 3 x 64 x 64" in found
    assert "type them for export too, where it has them (otherwise the size is that of the training)" in found


def test_exported_networks_compute_in_fp32_and_the_run_says_so(here: Path, cli: Cli, phantoms: Path) -> None:
    told = "--precision bf16 changes nothing: exported networks compute in fp32"
    how = ["--data", phantoms, "--cache", "c", "--split", "none", "--eval-steps", 1, "--precision", "bf16", *DEVICE]
    kept = {}
    for name in ("a.onnx", "a.xml", "a.safetensors"):
        code, _, err = cli("evaluate", "--weights", name, *how, "--run-name", name)
        assert code == 0, err
        assert (told in err) == (name != "a.safetensors")
        entries = json.loads(Path(f"performance/{name}/config.json").read_text())["settings"]["device"]
        kept[name] = entries["precision"]
    assert kept["a.onnx"] == {"value": "fp32", "source": "weights a.onnx"}
    assert kept["a.xml"]["value"] == "fp32"
    assert kept["a.safetensors"]["value"] == "bf16"
    patient = sorted(phantoms.iterdir())[0]
    assert told in cli("predict", "--weights", "a.onnx", "--precision", "bf16", patient, *DEVICE)[2]
    assert told not in cli("predict", "--weights", "a.onnx", patient, *DEVICE, "--output", "q")[2]


def test_export_tells_of_another_number_format_of_predict(here: Path, cli: Cli) -> None:
    words = ("export", "--weights", "a.safetensors", "--output", "x.onnx", "--overwrite", "--passes", 1, *DEVICE)
    assert "runs the weights in --precision bf16: some labels may differ" in cli(*words, "--precision", "bf16")[1]
    assert "compute in fp32" not in cli(*words)[1]
    words = ("export", "--weights", "a.safetensors", "--to", "published", "--precision", "bf16", *DEVICE)
    assert "compute in fp32" not in cli(*words)[1]


def test_the_page_on_sides_names_flags_that_export_takes() -> None:
    (said,) = re.findall(r"^- The batch may have any size\..*?(?=^- )", pages.text_of("docs/export.md"), re.M | re.S)
    named = dict.fromkeys(re.findall(r"`--([a-z-]+)`", said))
    assert [*named] == ["image-size", "eval-patch"]
    for name, task in (("image_size", "lgg"), ("image_size", "em"), ("eval_patch", "kits19")):
        assert name in program.settings_by("export", task)
    assert "patch" not in program.settings_by("export", "folder")


def test_the_program_of_the_page_finds_what_is_above_the_threshold(made: Path) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", pages.text_of("docs/export.md"), re.M | re.S)
    assert "weights/own.onnx" in code
    known: dict[str, Any] = {}
    exec(code.replace("weights/own.onnx", str(made / "a.onnx")), known)  # a network of one channel
    assert known["logits"].shape == (1, 1, 32, 32)
    assert set(known["labels"].ravel()) == {0, 255}
    assert ((known["labels"] == 255) == (known["logits"][:, 0] > 0)).all()


def test_a_generative_network_is_refused_with_its_reason(cli: Cli) -> None:
    weights.save(Path("v.safetensors"), weights.task_of("brains", resolution=8))
    found = error_of(cli("export", "--weights", "./v.safetensors", *DEVICE), 2)
    assert "random" in found
    assert "--to safetensors" in found
    assert cli("export", "--weights", "./v.safetensors", "--to", "safetensors", *DEVICE)[0] == 0
    assert stored("v.weights.safetensors")["settings"]["resolution"] == 8
