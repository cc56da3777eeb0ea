"""Weights under the key names of other programs, and back: identical outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN
from export import weights

from unet.errors import CheckpointError, UsageError
from unet.models import convert
from unet.runtime.checkpoints import checkpoint
from unet.tasks.base import Task

PLANNED = {
    "volumes": weights.folder(3, 2, 4),
    "slices": weights.folder(2),
    "residual": weights.folder(3, encoder="residual", layers=3, patch=(8, 32, 32)),
    "one head": weights.folder(3, deep_supervision=False),
}
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: ("folder", values) for name, values in PLANNED.items()},
    "Argonne": ("lgg", {}),
    "MLPerf": ("kits19", {"normalization": "instance"}),
    "nine channels": ("lgg", {"neighbours": 1}),
    "nnU-Net": ("kits19", {"encoder": "residual", "normalization": "instance"}),
}
FIRST = {
    "Argonne": "enc1.enc1conv1.weight",
    "MLPerf": "input_block.conv1.0.weight",
    "nnU-Net": "encoder.stem.convs.0.conv.weight",
    "residual": "encoder.stem.convs.0.conv.weight",
    "volumes": "encoder.stages.0.0.convs.0.conv.weight",
}


def outputs(task: Task, state: Any) -> torch.Tensor:
    network, own = task.convert_checkpoint(state)
    checkpoint.fit(network, own, Path("a.pt"))
    torch.manual_seed(5)
    with torch.no_grad():
        return network.eval()(torch.randn(2, *task.eval_input_shape()[1:]))


@pytest.mark.parametrize("name", TASKS)
def test_weights_come_back_from_the_reference_program_s_names(name: str, tmp_path: Path) -> None:
    kind, values = TASKS[name]
    task = weights.task_of(kind, **values)
    state = weights.network_of(task).state_dict()
    torch.save(task.reference_checkpoint(state, published=False), tmp_path / "a.pt")
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    theirs = checkpoint.weights_of(content)
    assert next(iter(theirs)) == FIRST.get(name, next(iter(theirs)))
    assert torch.equal(outputs(task, theirs), outputs(task, state))
    assert torch.equal(outputs(task, checkpoint.weights_of(checkpoint.read(tmp_path / "a.pt"))), outputs(task, state))


def test_kits19_reads_nnunet_s_names_without_the_flag_of_the_network() -> None:
    """As `evaluate --weights o.pt` does, where nobody types --encoder."""
    task = weights.task_of("kits19", encoder="residual", normalization="instance")
    state = weights.network_of(task).state_dict()
    theirs = checkpoint.weights_of(task.reference_checkpoint(state, published=False))
    assert torch.equal(outputs(weights.task_of("kits19"), theirs), outputs(task, state))


def test_the_published_names_of_the_argonne_network() -> None:
    task = weights.task_of("lgg")
    state = weights.network_of(task).state_dict()
    theirs = task.reference_checkpoint(state, published=True)
    assert list(theirs) == convert.published_keys(2)
    assert torch.equal(outputs(task, theirs), outputs(task, state))


def test_every_key_of_a_checkpoint_of_nnunet_is_written() -> None:
    """Of one that nnU-Net 2.8.1 wrote: its keys in its order, and its values; of the head that it does not train,
    zeros."""
    theirs = checkpoint.weights_of(checkpoint.read(GOLDEN / "nnunet_checkpoint.pth"))
    found = convert.to_nnunet(convert.from_nnunet(theirs))
    assert list(found) == list(theirs)
    untrained = [key for key in theirs if not torch.equal(found[key], theirs[key])]
    assert untrained == ["decoder.seg_layers.0.weight"]  # its bias is 0 in theirs too
    assert all(found[key].shape == theirs[key].shape and not found[key].any() for key in untrained)


@pytest.mark.parametrize("residual", [False, True])
def test_nnunet_loads_them_strictly(residual: bool) -> None:
    networks = pytest.importorskip("dynamic_network_architectures.architectures.unet", reason="needs the extra peers")
    task = weights.task_of("folder", **weights.folder(3, encoder="residual" if residual else "plain"))
    network = weights.network_of(task)
    stages = network.shape.stages
    counts = [stage.blocks for stage in stages]
    kind = networks.ResidualEncoderUNet if residual else networks.PlainConvUNet
    theirs = kind(
        *(1, len(stages), [stage.channels for stage in stages], torch.nn.Conv3d),
        *([stage.kernel for stage in stages], [stage.stride for stage in stages], counts, 3),
        [stage.decoder for stage in stages[:-1]],
        conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )
    theirs.load_state_dict(task.reference_checkpoint(network.state_dict(), published=False)["network_weights"])
    x = torch.randn(task.eval_input_shape())
    with torch.no_grad():
        assert torch.allclose(theirs.eval()(x), network(x), atol=1e-5)


def test_what_has_no_reference_says_so() -> None:
    with pytest.raises(UsageError, match="no other program"):
        weights.task_of("em").reference_checkpoint({}, published=False)
    state = weights.network_of(weights.task_of("kits19", normalization="none")).state_dict()
    with pytest.raises(CheckpointError, match="has no name"):
        convert.to_mlperf(state)
    with pytest.raises(CheckpointError, match="has no name"):
        convert.to_published_lgg(state)
