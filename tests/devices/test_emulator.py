"""The emulated accelerators themselves: they compute what the CPU computes, and they are strict."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from emulator import NoCompiler, build, environment

PROGRAMS = ROOT / "tests" / "emulator" / "programs"
TRAIN = """
import torch
layer = torch.nn.Conv2d(1, 2, 3).to(KIND)
optimizer = torch.optim.SGD(layer.parameters(), 0.1)
layer(torch.ones(1, 1, 4, 4, device=KIND)).sum().backward()
optimizer.step()
"""
IMPORT = {"hpu": "import habana_frameworks.torch.core as core; KIND = 'hpu'", "mlu": "import torch_mlu; KIND = 'mlu'"}


def variables(kind: str, log: Path, **how: Any) -> dict[str, str]:
    try:
        return {**os.environ, "OMP_NUM_THREADS": "1", **environment(kind, log, **how)}
    except NoCompiler as error:
        pytest.skip(str(error))


def run(*words: object, env: dict[str, str], code: int | None = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *map(str, words)], env=env, capture_output=True, text=True, timeout=300)
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return done


def say(kind: str, code: str, log: Path, more: dict[str, str] | None = None, **how: Any) -> tuple[str, dict[str, Any]]:
    """Run a few lines on a device that is eager: what they print, and the log."""
    done = run("-c", code, env={**variables(kind, log, **how), "PT_HPU_LAZY_MODE": "0", **(more or {})})
    return done.stdout.strip(), json.loads(log.read_text()) if log.exists() else {}


@pytest.mark.parametrize("kind", ["hpu", "mlu"])
def test_everything_a_device_must_do(kind: str, tmp_path: Path) -> None:
    done = run(PROGRAMS / "sweep.py", kind, env=variables(kind, tmp_path / "log.json", memory_mb=64))
    result = json.loads(done.stdout)
    assert result["failed"] == {}
    assert {"training_is_bit_identical", "mixed_devices", "memory", "strictness", "fork"} <= set(result["checks"])
    log = json.loads((tmp_path / "log.json").read_text())
    assert {"aten::convolution_overrideable", "aten::native_batch_norm", "aten::_copy_from"} <= set(log["ops"])
    assert 0 < log["peak_bytes"] <= 64 << 20
    assert log["counts"]["optimizer_step"] >= 10
    assert log["tf32"] == ({"cnnl": True, "matmul": False} if kind == "mlu" else None)


GOOD = {"good_training", "good_evaluation", "good_activation_outside", "good_disabled_scaling"}
BROKEN = {
    "step_right_after_backward": "an optimiser step with no mark_step since the last backward pass",
    "forward_right_after_backward": "training forward with no mark_step since the last backward pass",
    "forward_right_after_step": "training forward with no mark_step since the last optimiser step",
    "evaluation_right_after_step": "evaluation forward with no mark_step since the last optimiser step",
    "evaluation_read_too_early": "read by the host with no mark_step since the last evaluation forward",
    "evaluation_item_too_early": "read by the host with no mark_step since the last evaluation forward",
    "evaluation_twice": "evaluation forward with no mark_step since the last evaluation forward",
    "mark_step_in_forward": "mark_step during a module's forward pass",
    "mark_step_in_backward": "mark_step during a backward pass",
    "loss_scaling": "no loss scaling on hpu",
    "symbolic_shapes": "needs eager mode",
    "compiled": "needs eager mode",
    "distributed_with_device_ids": "takes no device_ids",
    "distributed_with_buffers": "needs broadcast_buffers=False",
}


def test_lazy_mode_asks_for_an_order_of_calls(tmp_path: Path) -> None:
    env = {**variables("hpu", tmp_path / "log.json"), "PT_HPU_LAZY_MODE": "1"}
    said = json.loads(run(PROGRAMS / "orders.py", env=env).stdout)
    log = json.loads((tmp_path / "log.json").read_text())
    for name, text in BROKEN.items():
        assert text in said[name], name
    assert {name for name, text in said.items() if text == ""} == GOOD | {"training_graph", "inference_graph"}
    assert len(log["violations"]) == len(BROKEN) + 1
    assert log["violations"][-1] == "lazy mode: the process ends with no mark_step since the last optimiser step"
    assert log["counts"]["graphs_captured"] == 2
    assert log["lazy"] is True
    assert said["compilations"] == len(log["shapes"])


@pytest.mark.slow
def test_eager_mode_has_no_boundaries_and_compiles(tmp_path: Path) -> None:
    env = {**variables("hpu", tmp_path / "log.json", intel_torch=False), "PT_HPU_LAZY_MODE": "0"}
    said = json.loads(run(PROGRAMS / "orders.py", env=env).stdout)
    assert all("eager mode" in said[name] for name in ("good_training", "good_evaluation", "mark_step_in_backward"))
    assert said["compiled"] == said["step_right_after_backward"] == said["evaluation_twice"] == ""
    assert "dynamic=False" in said["symbolic_shapes"]
    assert "needs lazy mode" in said["training_graph"] and "needs lazy mode" in said["inference_graph"]
    log = json.loads((tmp_path / "log.json").read_text())
    assert log["lazy"] is False and log["counts"]["graphs_captured"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "backend"), [("hpu", "hccl"), ("mlu", "cncl")])
def test_two_ranks_agree_with_the_cpu(kind: str, backend: str, tmp_path: Path) -> None:
    env = variables(kind, tmp_path / "log.json")
    ranks = []
    for rank in range(2):
        mpi = {"RANK": rank, "LOCAL_RANK": rank, "SIZE": 2}
        own = {**env, **{f"OMPI_COMM_WORLD_{name}": str(value) for name, value in mpi.items()}}
        words = [sys.executable, str(PROGRAMS / "ranks.py"), kind, backend, str(tmp_path)]
        ranks.append(subprocess.Popen(words, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    weights = []
    for rank, process in enumerate(ranks):
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        result = json.loads(out)
        assert result["device"] == result["cpu"]
        assert result["device"][:4] == [[3] * 3, [[0, 0], [1, 1]], [0], [{"rank": 0}, {"rank": 1}]]
        weights.append(result["device"][-1])
        log = json.loads((tmp_path / f"log.json.rank{rank}").read_text())
        assert {"allreduce", "allgather", "broadcast", "barrier"} <= set(log["collectives"])
        assert log["ddp"]["device_ids"] == (None if kind == "hpu" else [rank])
        assert log["ddp"]["static_graph"] is (kind == "hpu")
        assert log["violations"] == []
    assert weights[0] == weights[1]


def test_lazy_mode_needs_the_vendors_torch(tmp_path: Path) -> None:
    env = variables("hpu", tmp_path / "log.json", intel_torch=False)
    env.pop("PT_HPU_LAZY_MODE", None)  # lazy is the default
    done = run("-c", "import habana_frameworks.torch", env=env, code=1)
    assert "AssertionError: lazy mode needs the vendor's build of torch" in done.stderr


@pytest.mark.slow
def test_torch_loads_an_installed_bridge_by_itself(tmp_path: Path) -> None:
    code = "import torch; print(torch.ones(2, device='hpu').sum().item())"
    out, log = say("hpu", code, tmp_path / "log.json", autoload=True, more={"UNRELATED": "1"})
    assert out == "2.0" and log["lazy"] is False and log["environment"]["PT_HPU_LAZY_MODE"] == "0"
    out, log = say(
        "hpu",
        "import torch; print(hasattr(torch, 'hpu'))",
        tmp_path / "none.json",
        autoload=True,
        more={"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"},
    )
    assert (out, log) == ("False", {})


@pytest.mark.slow
def test_an_mlu_without_bfloat16_and_one_card_of_three(tmp_path: Path) -> None:
    code = f"{IMPORT['mlu']}; import torch; print(torch.mlu.is_bf16_supported(), torch.mlu.device_count())\n"
    code += "try: torch.ones(1, device='mlu', dtype=torch.bfloat16)\nexcept RuntimeError as error: print(error)"
    more = {"EMULATED_BF16": "0", "MLU_VISIBLE_DEVICES": "1"}
    out, _ = say("mlu", code, tmp_path / "log.json", more, cards=3)
    assert out.splitlines()[0] == "False 1" and "bfloat16 is not supported" in out


@pytest.mark.slow
def test_no_card_and_no_libraries(tmp_path: Path) -> None:
    code = f"{IMPORT['mlu']}; import torch; print(torch.mlu.is_available(), torch.mlu.device_count())"
    assert say("mlu", code, tmp_path / "log.json", cards=0)[0] == "False 0"
    env = {**variables("mlu", tmp_path / "log.json"), "EMULATED_IMPORT_ERROR": "OSError"}
    assert "OSError: libcnrt.so" in run("-c", "import torch_mlu", env=env, code=1).stderr


@pytest.mark.slow
def test_a_killed_process_leaves_a_log(tmp_path: Path) -> None:
    lists = tmp_path / "ops.txt"
    lists.write_text("conv2d\nlinear\n")
    name = "PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST"
    env = {**variables("hpu", tmp_path / "log.json"), "PT_HPU_LAZY_MODE": "0", name: str(lists)}
    code = f"{IMPORT['hpu']}\n{TRAIN}\nimport os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    run("-c", code, env=env, code=-signal.SIGKILL)
    log = json.loads((tmp_path / "log.json").read_text())
    assert log["events"][-3:] == ["training forward", "backward", "optimizer_step SGD"]
    assert log["autocast_lists"] == {name: ["conv2d", "linear"]}


def test_a_machine_without_a_compiler_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(NoCompiler, match=r"need g\+\+, which is not on the PATH"):
        build.library("mlu")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hpu", "mlu"])
def test_a_process_may_end_right_after_a_backward_pass(kind: str, tmp_path: Path) -> None:
    for _ in range(2):
        said, log = say(kind, f"{IMPORT[kind]}\n{TRAIN}", tmp_path / "log.json")
        assert (said, log["counts"]["backward"], log["violations"]) == ("", 1, [])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hpu", "mlu"])
def test_workers_of_a_forkserver_leave_the_log_alone(kind: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(f"""
{IMPORT[kind]}
import torch
if __name__ == "__main__":
    print(torch.ones(2, device=KIND).sum().item())
    data = torch.utils.data.TensorDataset(torch.arange(8.0))
    loader = torch.utils.data.DataLoader(
        data, batch_size=2, num_workers=2, multiprocessing_context="forkserver", pin_memory=True
    )
    print(sum(batch[0].to(KIND).sum().item() for batch in loader))
""")
    env = {**variables(kind, tmp_path / "log.json"), "PT_HPU_LAZY_MODE": "0"}
    assert run(program, env=env).stdout.split() == ["2.0", "28.0"]
    log = json.loads((tmp_path / "log.json").read_text())
    assert log["counts"]["workers"] == 1 and log["counts"]["reads"] >= 5


@pytest.mark.slow
def test_two_processes_build_once(tmp_path: Path) -> None:
    variables("mlu", tmp_path / "log.json")
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "tests")}
    words = [sys.executable, "-c", "from emulator import library; print(library('mlu'))"]
    both = [subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = {process.communicate(timeout=600)[0] for process in both}
    assert len(said) == 1 and [process.returncode for process in both] == [0, 0]
    library = Path(said.pop().strip())
    assert sorted(path.name for path in library.parent.iterdir()) == [library.name, "lock"]
