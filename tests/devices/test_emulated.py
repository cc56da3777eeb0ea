"""The program on the emulated Gaudi and MLU: from the command line to weights that are the CPU's bit for bit, by the
vendors' rules. What this shows and what it cannot is said in tests/emulator/__init__.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, TINY, program, read_json, stored
from emulated_runs import FLAGS, emulated, listed, run, same_bits

STEPS = 12
FUSED = "the device's own optimiser"  # not a flag: it leaves --deterministic out
slow = pytest.mark.slow


def training(phantoms: Path, name: str, *more: object) -> list[object]:
    common = ("--data", phantoms, "--cache", "c", "--layout", "NCHW", "--workers", 0, *TINY)
    if FUSED not in more:
        common = (*common, "--deterministic")
    more = tuple(word for word in more if word is not FUSED)
    return ["train", *common, "--run-name", name, "--weights-file", f"{name}.pt", "--max-steps", STEPS, *more]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> Path:
    """A folder with the run of the CPU that the devices must repeat."""
    folder = tmp_path_factory.mktemp("emulated")
    done = program(*training(phantoms, "cpu"), "--device", "cpu", cwd=folder, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("mode", ["lazy", "mlu", pytest.param("eager", marks=slow)])
def test_the_weights_are_the_cpu_s_bit_for_bit(mode: str, place: Path, phantoms: Path) -> None:
    done = run(place, mode, *training(phantoms, mode))
    assert done.code == 0, done.err
    assert same_bits(place, mode, "cpu")
    log, counts = done.log, done.log["counts"]
    assert log["violations"] == []
    assert counts["optimizer_step"] == counts["backward"] == STEPS
    assert counts["side_streams"] >= STEPS and "unpinned_copies" not in counts
    evaluations = counts["forward"] - STEPS
    assert evaluations > 0
    if mode == "lazy":
        assert log["lazy"] is True
        assert log["environment"]["PT_HPU_LAZY_MODE"] == "1"
        assert counts["mark_step"] == 2 * STEPS + 2 * evaluations
        assert {"module_cacher", "wrap_in_hpu_graph"} <= set(counts)
        assert "2 graph compilations, 0 fallbacks to the CPU" in done.out  # one shape to train, one to score
        assert "lazy mode" in done.err
        listed(log, "training")
    if mode == "eager":
        assert (log["lazy"], counts.get("mark_step", 0)) == (False, 0)
        assert log["environment"]["PT_HPU_LAZY_MODE"] == "0"
        assert counts["graphs_captured"] >= 2  # one to train, one to score
        assert "eager mode, compiled by hpu_backend" in done.err
    if mode == "mlu":
        assert log["tf32"] == {"cnnl": False, "matmul": False}  # fp32 that is fp32
        listed(log, "training")


@slow
@pytest.mark.parametrize("batches", [2, 3])
def test_recorded_graphs_add_up_the_gradients_of_a_step(batches: int, place: Path, phantoms: Path) -> None:
    """The memory of a graph's gradients is written again by its next run."""
    more, names = ("--accumulate", batches, "--overwrite"), (f"cpu-{batches}-added", f"lazy-{batches}-added")
    here = program(*training(phantoms, names[0], *more), "--device", "cpu", cwd=place, env={"OMP_NUM_THREADS": "1"})
    assert here.returncode == 0, here.stderr
    done = run(place, "lazy", *training(phantoms, names[1], *more, "--capture"))
    assert done.code == 0, done.err
    assert same_bits(place, *names)
    assert done.log["counts"]["set_iteration_count"] == done.log["counts"]["backward"] == batches * STEPS


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lazy", "mlu"])
def test_masks_of_a_device_are_the_cpu_s(mode: str, place: Path, phantoms: Path) -> None:
    words = ("predict", "--weights", "cpu.pt", phantoms, "--layout", "NCHW", "--overwrite")
    done = run(place, mode, *words, "--output", mode)
    assert done.code == 0, done.err
    assert done.log["violations"] == []
    listed(done.log, "prediction")
    here = program(*words, "--output", "here", "--device", "cpu", cwd=place, env={"OMP_NUM_THREADS": "1"})
    assert here.returncode == 0, here.stderr
    masks = sorted((place / "here").rglob("*.tif"))
    assert masks
    for mask in masks:
        assert mask.read_bytes() == (place / mode / mask.relative_to(place / "here")).read_bytes()


@pytest.mark.slow
def test_memory_that_runs_out_ends_in_the_largest_batch_that_fits(place: Path, phantoms: Path) -> None:
    wide = ("--width", 16, "--quiet", "--overwrite", "--eval-batch-size", 4, FUSED)
    done = run(place, "mlu", *training(phantoms, "full", *wide, "--batch-size", 34), memory_mb=7)
    assert done.code == 1, done.out
    assert "Traceback" not in done.err
    assert "ran out of memory" in done.err
    fits = int(done.err.split("the largest batch that fits is ")[1].split(".")[0])
    batch, accumulate = map(int, re.findall(r"Type --batch-size (\d+) --accumulate (\d+)", done.err)[0])
    assert batch <= fits
    assert 34 <= batch * accumulate < 34 + accumulate
    for batch, code in ((fits, 0), (fits + 1, 1)):
        again = run(place, "mlu", *training(phantoms, "full", *wide, "--batch-size", batch), memory_mb=7)
        assert again.code == code, (batch, again.err)


def test_doctor_says_what_is_missing(place: Path) -> None:
    assert "hpu    usable, 3 cards" in run(place, "eager", "doctor", cards=3).out
    assert "mlu    not usable: no MLU card answers" in run(place, "mlu", "doctor", cards=0).out


@slow
@pytest.mark.parametrize("kind", ["ImportError", "OSError"])
def test_a_bridge_that_does_not_load(kind: str, place: Path, phantoms: Path) -> None:
    done = run(place, "mlu", *training(phantoms, "x"), env={"EMULATED_IMPORT_ERROR": kind})
    assert done.code == 1
    assert f"torch_mlu does not load ({kind}" in done.err
    assert len(done.err.strip().splitlines()) == 2


@slow
@pytest.mark.parametrize("mode", ["lazy", "eager", "mlu"])
def test_benchmark_keeps_to_the_vendor_s_order_on_both_sides(mode: str, place: Path, phantoms: Path) -> None:
    common = ("--data", phantoms, "--cache", "c", *TINY, "--rounds", 1, "--steps", 2)
    done = run(place, mode, "benchmark", *common)
    assert done.code == 0, done.err
    assert "times the plain one" in done.out


OPPONENT = """
import sys
import torch
from builders import task_config
from torch import nn
from unet.benchmarks import peers, steps
from unet.tasks.registry import create

name, device = sys.argv[1:]
how = {"precision": "tf32"} if name == "tf32" else {"precision": "fp32"}
small = {"image_size": 16, "layers": 2, "width": 4, "batch_size": 2, "use_lazy_mode": device == "hpu"}
config = task_config("lgg", device=device, **how, **small)
batch = steps.batch_of(None, create(config))
peers.monai = lambda shape: peers.Peer(
    "a network",
    lambda: nn.Conv2d(3, 1, 3, padding=1),
    lambda logits, mask: nn.functional.binary_cross_entropy_with_logits(logits, mask.float()),
    lambda weights: torch.optim.SGD(weights, 1e-3),
    "",
)
loop = steps.PlainLoop(config, batch) if name == "plain" else peers.PeerLoop(config, batch, "monai", "float32")
assert len(loop.run(2)[0]) == 2
if device == "mlu":
    print(torch.backends.cnnl.allow_tf32, torch.backends.mlu.matmul.allow_tf32)
"""


@pytest.mark.parametrize(
    ("name", "device", "said"),
    [
        ("plain", "mlu", "False False"),
        ("fp32", "mlu", "False False"),
        ("tf32", "mlu", "True True"),
        ("fp32", "hpu", ""),
    ],
)
def test_what_a_step_is_compared_with_is_as_it_is_called(name: str, device: str, said: str, tmp_path: Path) -> None:
    """fp32 is fp32 there too, and beside lazy mode a peer is eager: nobody marks its steps."""
    (tmp_path / "opponent.py").write_text(OPPONENT)
    env = {**os.environ, "OMP_NUM_THREADS": "1", **emulated(device, tmp_path / "log")}
    done = subprocess.run(
        [sys.executable, tmp_path / "opponent.py", name, device], env=env, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == said


MEETING = """
from unet.config.flags import DeviceOptions, DistributedOptions
from unet.devices import launchers, select

def found():
    rank = launchers.find_rank(DistributedOptions())
    return rank, launchers.master_address(DistributedOptions(), rank)

before = found()
select.choose(DeviceOptions(device="hpu"), before[0])
assert found() == before, (before, found())
print(before[1][0])
"""


@pytest.mark.parametrize("nodes", [1, 2])
def test_the_bridge_leaves_rank_and_meeting_point_as_they_were(nodes: int, tmp_path: Path) -> None:
    """Importing it sets the variables of a launcher: the address of rank 0 on this machine, and one process."""
    (tmp_path / "hosts").write_text("node-3\nnode-4\n")
    mpi = {"COMM_WORLD_RANK": 1, "COMM_WORLD_SIZE": 2, "COMM_WORLD_LOCAL_RANK": 0, "COMM_WORLD_LOCAL_SIZE": 1}
    launched = {"PMIX_NAMESPACE": "7", "PBS_NODEFILE": str(tmp_path / "hosts")}
    launched |= {f"OMPI_{name}": str(value) for name, value in mpi.items()}
    env = {**os.environ, **emulated("hpu", tmp_path / "log.json"), **(launched if nodes == 2 else {})}
    done = subprocess.run([sys.executable, "-c", MEETING], env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["127.0.0.1" if nodes == 1 else "node-3"]
    (log,) = map(read_json, tmp_path.glob("log.json*"))
    assert log["counts"]["master_default"] == 2  # the bridge did set them


WINDOWS = """
from unet.devices import launchers, select
from unet.config.flags import DeviceOptions

options = DeviceOptions(device="hpu", use_lazy_mode=True)
device = select.choose(options, launchers.Rank())[0](options, launchers.Rank())
import torch
from emulator.record import RECORD
from unet import windows
from unet.runtime.inference.predictor import Predictor

network = torch.nn.Conv3d(1, 2, 1).to("hpu")
for depth in (16, 40):
    plan = windows.plan((depth, 16, 24), (8, 8, 8), 0.5, "full")
    Predictor([network], device, 4).windows(torch.randn(1, depth, 16, 24), plan)
    Predictor([network], device, 4).slices(torch.randn(depth + 1, 1, 8, 8, 8))
    print(RECORD.device.slices(), len(RECORD.shapes))
"""


def test_windows_are_cut_and_put_together_where_no_slice_is_compiled(tmp_path: Path) -> None:
    """In lazy mode a slice of a tensor of the device is a graph of its own, for each place where it begins."""
    env = {**os.environ, **emulated("hpu", tmp_path / "log.json")}
    done = subprocess.run([sys.executable, "-c", WINDOWS], env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["0 1", "0 1"]


@slow
def test_auto_takes_the_accelerator_and_says_so(place: Path, phantoms: Path) -> None:
    words = training(phantoms, "auto", "--overwrite")
    log = place / "device.json"
    done = program(*words, cwd=place, env={"OMP_NUM_THREADS": "1", **emulated("mlu", log)})
    assert done.returncode == 0, done.stderr
    assert "lgg on mlu" in done.stderr
    assert "not used: hpu: habana_frameworks is not installed" in done.stderr


@slow
def test_lazy_mode_needs_intel_s_torch(place: Path, phantoms: Path) -> None:
    done = run(place, "lazy", *training(phantoms, "x"), intel_torch=False)
    assert done.code == 1
    assert "lazy mode needs Intel's build of torch" in done.err
    assert len(done.err.strip().splitlines()) == 2


@slow
@pytest.mark.parametrize("mode", ["lazy", "eager"])
def test_the_mode_is_set_before_a_bridge_that_torch_loads_by_itself(mode: str, place: Path, phantoms: Path) -> None:
    """`import torch` alone loads an installed bridge, and an exported variable says otherwise."""
    other = {"PT_HPU_LAZY_MODE": "0" if mode == "lazy" else "1"}
    done = run(place, mode, *training(phantoms, "loaded", "--overwrite"), env=other, autoload=True)
    assert done.code == 0, done.err
    assert done.log["lazy"] is (mode == "lazy")


@slow
@pytest.mark.parametrize(
    ("mode", "more", "said"),
    [
        ("eager", ("--compile", "off"), "eager mode, float32"),
        ("eager", ("--recipe-cache", "recipes"), "compiled by hpu_backend"),
        ("lazy", ("--precision", "bf16"), "bfloat16"),
        ("lazy", ("--capture", "off"), "lazy mode"),
        ("mlu", ("--precision", "fp16"), "float16"),
        ("mlu", ("--precision", "auto"), "bfloat16"),
        ("lazy", ("--optimizer", "adamw", FUSED), "lazy mode"),
        ("lazy", ("--optimizer", "sgd", FUSED, "--accumulate", 2, "--clip", 1), "lazy mode"),
        ("mlu", ("--optimizer", "sgd", FUSED), "TF32 off"),
        ("mlu", ("--optimizer", "adam", FUSED), "TF32 off"),
        ("lazy", ("--workers", 2), "lazy mode"),
        ("mlu", ("--workers", 2), "TF32 off"),
        ("mlu", ("--data-on", "device"), "TF32 off"),
        ("lazy", ("--data-on", "device"), "lazy mode"),
    ],
)
def test_settings_run(mode: str, more: tuple[object, ...], said: str, place: Path, phantoms: Path) -> None:
    done = run(place, mode, *training(phantoms, "settings", "--overwrite", *more))
    assert done.code == 0, done.err
    assert said in done.err
    assert done.log["violations"] == []


@slow
@pytest.mark.parametrize(
    ("mode", "more", "said"),
    [
        ("lazy", ("--precision", "fp16"), "bf16"),
        ("lazy", ("--compile",), "--compile is for an HPU's eager mode"),
        ("eager", ("--capture",), "HPU graphs are for lazy mode"),
        ("eager", ("--layout", "NHWC"), "--layout NHWC: hpu keeps images channels first"),
        ("mlu", ("--recipe-cache", "r"), "--recipe-cache: mlu has no recipes"),
        ("mlu", ("--compile",), "no compiler backend"),
        ("mlu", ("--capture",), "no graphs to record"),
        ("mlu", ("--precision", "bf16"), "this mlu runs fp32 and fp16, not bf16"),
        ("mlu", ("--precision-ops", "x.json"), "--precision-ops"),
        ("mlu", ("--devices", 2), "2 processes on this node, but it has 1 mlu card"),
        ("lazy", ("--devices", 2), "2 processes on this node, but it has 1 hpu card"),
    ],
)
def test_settings_that_a_device_cannot_follow(
    mode: str, more: tuple[object, ...], said: str, place: Path, phantoms: Path
) -> None:
    done = run(place, mode, *training(phantoms, "refused", *more), env={"EMULATED_BF16": "0"}, cards=1)
    assert done.code in (1, 2)
    assert said in done.err
    assert done.err.count("error:") == 1
    assert not (place / "performance" / "refused").exists()


@slow
def test_operator_lists_reach_the_bridge(place: Path, phantoms: Path) -> None:
    (place / "ops.json").write_text('{"lower": ["conv2d"], "fp32": ["mul", "mean"]}')
    words = training(phantoms, "lists", "--precision", "bf16", "--bf16_config_path", "ops.json", "--overwrite")
    done = run(place, "lazy", *words)
    assert done.code == 0, done.err
    assert list(done.log["autocast_lists"].values()) == [["conv2d"], ["mul", "mean"]]
    (place / "ops.json").write_text('{"lower": ["mul"], "fp32": ["mul"]}')
    done = run(place, "lazy", *words)
    assert (done.code, "in both lists: mul" in done.err) == (2, True), done.err


@slow
@pytest.mark.parametrize("mode", ["lazy", "mlu"])
def test_training_reads_the_device_when_a_log_line_is_due_alone(mode: str, place: Path, phantoms: Path) -> None:
    """Rule 5: no synchronisation inside a step; as many reads for 4 steps as for 9."""
    reads = []
    for steps in (4, 9):
        more = ("--split", "none", "--log-every", 100, "--no-checkpoints", "--overwrite", "--max-steps", steps)
        done = run(place, mode, *training(phantoms, "reads", *more))
        assert done.code == 0, done.err
        reads.append(done.log["counts"]["reads"])
    assert reads[0] == reads[1]


@slow
@pytest.mark.parametrize("mode", ["lazy", "mlu"])
def test_two_ranks_give_the_weights_of_two_cpu_ranks(mode: str, place: Path, phantoms: Path) -> None:
    more = ("--devices", 2, "--accumulate", 2, "--overwrite")
    if not (place / "weights" / "cpu-2.safetensors").exists():
        here = program(*training(phantoms, "cpu-2", *more), "--device", "cpu", cwd=place, env={"OMP_NUM_THREADS": "1"})
        assert here.returncode == 0, here.stderr
    done = run(place, mode, *training(phantoms, f"{mode}-2", *more))
    assert done.code == 0, done.err
    assert same_bits(place, f"{mode}-2", "cpu-2")
    losses = [
        [row["loss"] for row in read_history(place, name) if row["event"] == "epoch"] for name in ("cpu-2", f"{mode}-2")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-7)
    assert len(done.logs) == 2
    for rank, log in enumerate(done.logs):
        assert log["violations"] == []
        assert log["ddp"]["device_ids"] == ([rank] if mode == "mlu" else None)
        assert log["ddp"]["broadcast_buffers"] is False
        assert log["ddp"]["gradient_as_bucket_view"] is True
        # gradients are exchanged once a step, not once a batch
        assert log["counts"]["collective"] < STEPS + 8
        if mode == "lazy":
            assert log["environment"]["HLS_MODULE_ID"] == str(rank)


def read_history(place: Path, name: str) -> list[dict[str, Any]]:
    text = (place / "performance" / name / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@slow
def test_the_cards_of_the_container_are_used(place: Path, phantoms: Path) -> None:
    words = training(phantoms, "modules", "--devices", 2, "--overwrite")
    done = run(place, "lazy", *words, env={"HABANA_VISIBLE_MODULES": "5,3"}, cards=8)
    assert done.code == 0, done.err
    assert [log["environment"]["HLS_MODULE_ID"] for log in done.logs] == ["5", "3"]


@slow
@pytest.mark.parametrize("mode", ["lazy", "mlu"])
def test_a_stopped_run_goes_on_bit_for_bit(mode: str, place: Path, phantoms: Path) -> None:
    first = run(place, mode, *training(phantoms, f"{mode}-stopped", "--overwrite", "--max-steps", 5))
    assert first.code == 0, first.err
    again = ("train", "--resume", "--run-name", f"{mode}-stopped", "--max-steps", STEPS)
    done = run(place, mode, *again)
    assert done.code == 0, done.err
    states = [stored(place / "weights" / f"{name}.state.safetensors")["model"] for name in ("cpu", f"{mode}-stopped")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


CARELESS = """
from unet.devices.{module} import {name}

class Careless({name}):
    def to(self, batch):
        return {{**super().to(batch), **({{"mask": batch["mask"]}} if "mask" in batch else {{}})}}
"""


@slow
@pytest.mark.parametrize("mode", ["lazy", "mlu"])
def test_a_tensor_that_was_not_moved_fails_as_on_other_cards(mode: str, place: Path, phantoms: Path) -> None:
    module, name = ("mlu", "MLU") if mode == "mlu" else ("hpu", "HPU")
    (place / "careless.py").write_text(CARELESS.format(module=module, name=name))
    done = run(place, mode, *training(phantoms, "careless", "--overwrite", "--device-module", "careless:Careless"))
    assert done.code == 1
    assert "Expected all tensors to be on the same device" in done.err


FLUSHES = [
    (path.relative_to(ROOT), number)
    for path in (ROOT / "unet" / "runtime" / "trainer.py", ROOT / "unet" / "runtime" / "inference" / "predictor.py")
    for number, line in enumerate(path.read_text().splitlines())
    if line.strip() == "device.flush()"
]


def test_the_places_of_mark_step() -> None:
    assert len(FLUSHES) == 4  # after backward, after the optimiser; before and after a forward pass of scoring


@slow
@pytest.mark.parametrize(("path", "number"), FLUSHES)
def test_no_mark_step_can_be_left_out(path: Path, number: int, place: Path, phantoms: Path, tmp_path: Path) -> None:
    """A copy of the program without one of them: the emulated bridge refuses it."""
    shutil.copytree(ROOT / "unet", tmp_path / "unet", ignore=shutil.ignore_patterns("__pycache__"))
    lines = (tmp_path / path).read_text().splitlines()
    lines[number] = ""
    (tmp_path / path).write_text("\n".join(lines) + "\n")
    words = training(phantoms, "without", "--overwrite")
    log = tmp_path / "device.json"
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **emulated("hpu", log)}
    variables["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{variables['PYTHONPATH']}"
    line = [sys.executable, "-m", "unet", *map(str, words), *FLAGS["lazy"]]
    done = subprocess.run(line, cwd=place, env=variables, capture_output=True, text=True, timeout=300)
    broken = done.returncode != 0 and "ContractError" in done.stderr
    assert broken or read_json(log)["violations"], done.stderr
