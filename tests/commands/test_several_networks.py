"""Several --weights: networks of other shapes are averaged, each built as it was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import error_of
from export import weights

from unet import cli as program
from unet.commands import setup

BRAINS = {"resolution": 16, "width": 4}


def given(task: str, shapes: list[dict[str, Any]]) -> tuple[list[Path], list[Any]]:
    """Weights of networks with these settings, and the networks."""
    paths = [Path(f"weights/{number}.safetensors") for number in range(len(shapes))]
    common = weights.folder() if task == "folder" else BRAINS if task == "brains" else {}
    tasks = [weights.task_of(task, **{**common, **shape}) for shape in shapes]
    return paths, [weights.save(path, item) for path, item in zip(paths, tasks, strict=True)]


@pytest.mark.parametrize(
    ("task", "shape"),
    [
        ("kits19", {"width": 3}),
        ("kits19", {"layers": 3}),
        ("kits19", {"activation": "leaky_relu"}),
        ("kits19", {"encoder": "residual", "deep_supervision": False, "activation": "relu"}),
        ("folder", {"width": 3}),
        ("folder", {"layers": 3}),
        ("folder", {"encoder": "residual"}),
        ("em", {"activation": "leaky_relu"}),
        ("brains", {"width": 2}),
        ("brains", {"hidden_clamp": (0.1, 2.0)}),
    ],
)
@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_networks_of_other_shapes_are_built_as_they_were_trained(
    task: str, shape: dict[str, Any], command: str, workplace: Path
) -> None:
    paths, trained = given(task, [{}, shape])
    for order in (1, -1):
        words = ["--task", task, "--device", "cpu", "--weights", *map(str, paths[::order])]
        resolved = program.resolve(command, words)
        context = setup.assemble(resolved.config, resolved.sources)
        declared = context.task.Settings
        resolved, _ = setup.apply_checkpoint_settings(resolved, paths[::order], declared.inference_settings)
        context = context.with_config(resolved.config)
        for path, network in zip(paths, trained, strict=True):
            found = setup.read_network(context, path, resolved).eval()
            assert str(found) == str(network)
            assert all(torch.equal(a, b) for a, b in zip(found.parameters(), network.parameters(), strict=True))


@pytest.mark.parametrize(
    ("task", "first", "second", "expected"),
    [
        ("kits19", {}, {"spacing": (3.0, 1.0, 1.0)}, "--spacing"),
        ("folder", {}, {"patch": (16, 16, 16)}, "--patch"),
        ("brains", {}, {"resolution": 32}, "--resolution"),
    ],
)
def test_networks_of_other_inputs_are_not_averaged(
    task: str, first: dict[str, Any], second: dict[str, Any], expected: str, cli: Any
) -> None:
    paths, _ = given(task, [first, second])
    Path("x").mkdir()
    words = ("predict", "--task", task, "--device", "cpu", "--weights", *paths, "./x")
    error = error_of(cli(*words), 2)
    assert "trained with different settings" in error and expected in error


def test_a_later_network_whose_depth_does_not_fit_is_told_of(cli: Any) -> None:
    paths, _ = given("lgg", [{}, {"layers": 4}])
    Path("x").mkdir()
    error = error_of(cli("predict", "--device", "cpu", "--image-size", 40, "--weights", *paths, "./x"), 2)
    assert f"{paths[1].absolute()} (a network of 4 layers): " in error
