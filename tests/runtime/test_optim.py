"""Optimisers do what torch's do, without torch's compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, TINY, read_json
from torch import nn

from unet.config.flags import DeviceOptions
from unet.config.flags_training import TrainOptions
from unet.devices.cpu import CPU
from unet.devices.launchers import Rank
from unet.runtime import optim

KINDS: dict[str, Any] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "adamax": torch.optim.Adamax}


def groups(model: nn.Module) -> list[dict[str, Any]]:
    return [{"params": list(model.parameters())}]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", KINDS)
def test_steps_are_torchs(name: str, fused: bool) -> None:
    device = CPU(DeviceOptions(), Rank()) if fused else None
    train = TrainOptions(optimizer=name, lr=0.1, weight_decay=0.01)
    models = [nn.Linear(3, 2), nn.Linear(3, 2)]
    models[1].load_state_dict(models[0].state_dict())
    more = {"fused": True} if fused and name in CPU.fused else {}
    ours = optim.build(train, groups(models[0]), device)
    theirs = KINDS[name](groups(models[1]), lr=0.1, weight_decay=0.01, **more)
    for number in range(4):
        x = torch.randn(4, 3)
        for model, optimizer in zip(models, (ours, theirs), strict=True):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(*(model.parameters() for model in models), strict=True))
        if number == 1:  # a state goes from one to the other
            saved = ours.state_dict(), theirs.state_dict()
            ours.load_state_dict(saved[1])
            theirs.load_state_dict(saved[0])


def test_hooks_of_steps_are_called() -> None:
    """Vendors' software may have some."""
    optimizer = optim.build(TrainOptions(optimizer="adam"), groups(nn.Linear(3, 2)), None)
    called = []
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))
    optimizer.step()
    assert called == ["before", "after"]


def test_a_run_does_without_torchs_compiler(phantoms: Path, tmp_path: Path) -> None:
    """Its import takes longer than all else before the first step."""
    words = ["train", "--data", str(phantoms), *TINY, "--epochs", "1", "--max-steps", "2", "--run-name", "a"]
    code = (
        f"import sys; from unet.cli import main\nassert main({words!r}) == 0\n"
        "heavy = {'torch._dynamo', 'torch._inductor', 'sympy', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=path)
    assert done.returncode == 0, done.stderr
    summary = read_json(tmp_path / "performance" / "a" / "summary.json")
    assert 0 < summary["to_first_step_seconds"] < 300
