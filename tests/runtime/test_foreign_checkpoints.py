"""Checkpoints of other programs that hold more than weights: which numbers of NumPy's are let through."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import wave
from conftest import GOLDEN

from unet.errors import DamagedError
from unet.models import convert
from unet.models.planned_unet import PlannedUNet
from unet.runtime.checkpoints import checkpoint
from unet.weight_files import pickles, safetensors_header


def numpy_number(kind: str, state: tuple[Any, ...], value: object) -> bytes:
    """A checkpoint's tree {"a": number}, made of these parts whether NumPy would write them or not."""

    class Kind:
        def __reduce__(self) -> Any:
            return np.dtype, (kind, False, True), state

    class Made:
        def __reduce__(self) -> Any:
            return np.float64(0).__reduce__()[0], (Kind(), value)

    return pickle.dumps({"a": Made()}, 2)


PLAIN = (3, "<", None, None, None, -1, -1, 0)


@pytest.mark.parametrize(
    ("kind", "state", "value", "passes"),
    [
        ("f8", PLAIN, bytes(8), True),
        ("i4", PLAIN, b"\xff\x80ab", True),
        ("b1", (3, "|", *PLAIN[2:]), b"\x01", True),
        ("f8", PLAIN, bytes(7), False),
        ("f8", PLAIN, "text", False),
        ("f8", PLAIN, None, False),
        ("O8", (3, "|", None, None, None, -1, -1, 63), bytes(8), False),
        ("f8", (*PLAIN[:7], 63), bytes(8), False),  # numbers that are taken for addresses
        ("f8", (3, "<", ("f8", (2,)), *PLAIN[3:]), bytes(8), False),
        ("f8", (*PLAIN[:5], 4, 1, 0), bytes(8), False),
        ("f8", {"a": 1}, bytes(8), False),
        ("V8", PLAIN, bytes(8), False),
    ],
)
def test_numbers_of_numpy_pass_and_nothing_else_of_it(
    kind: str, state: tuple[Any, ...], value: object, passes: bool
) -> None:
    stream = io.BytesIO(numpy_number(kind, state, value))
    if passes:
        assert pickles.Reader(lambda _: -1).read(stream) == {"a": None}
    else:
        with pytest.raises(pickles.UnsafePickle):
            pickles.Reader(lambda _: -1).read(stream)


@pytest.mark.parametrize("version", ["2.4.0", torch.__version__])
def test_a_checkpoint_of_nnunet_is_read(version: str) -> None:
    """One that nnU-Net 2.8.1 wrote after two steps: with numbers of NumPy's among its scores, which are left out, and
    the state of the optimiser. torch takes none of what stood in for NumPy afterwards."""
    path = GOLDEN / "nnunet_checkpoint.pth"
    allowed = set(torch.serialization.get_safe_globals())
    content = checkpoint._torch_file(path, safetensors_header.kind(path), version)
    assert set(torch.serialization.get_safe_globals()) == allowed
    assert content["logging"]["ema_fg_dice"] == [None] and content["logging"]["lrs"] == [0.01]
    assert content["init_args"]["configuration"] == "3d_fullres" and len(content["optimizer_state"]["state"]) > 20
    state = convert.from_nnunet(checkpoint.weights_of(content, path))
    network = PlannedUNet(convert.planned_shape_of(state)).eval()
    network.load_state_dict(state)
    with torch.no_grad():
        logits = network(wave((1, 1, 8, 16, 16), 0.013, 0.0)).double()
    # of nnU-Net's own network
    assert float(logits.sum()) == pytest.approx(1864.953275, rel=1e-5)
    assert float(logits.abs().sum()) == pytest.approx(3703.132200, rel=1e-5)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_checkpoint_of_torch_under_another_name(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=zipped)
    assert checkpoint.read(path)["w"].tolist() == [1, 1]


def test_files_of_one_byte_are_damaged(tmp_path: Path) -> None:
    """Whatever the byte is: 128 begins a pickle."""
    path = tmp_path / "a.safetensors"
    for number in range(256):
        path.write_bytes(bytes([number]))
        with pytest.raises(DamagedError):
            checkpoint.read(path)
