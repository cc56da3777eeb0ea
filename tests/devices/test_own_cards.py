"""Sites that show each process one card alone: allowed where the cards differ, refused where they do not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from emulated_runs import FLAGS
from emulator import NoCompiler, environment
from test_emulated import training

from unet.config.flags import DeviceOptions
from unet.devices import select
from unet.devices.hpu import HPU
from unet.devices.launchers import OWN_CARD, Rank
from unet.errors import UsageError

FOUR = "Rank(1, 4, 1, 4, 'mpirun')"
CODE = f"""
import sys
from unet.config.flags import DeviceOptions
from unet.devices import select
from unet.devices.launchers import Rank
from unet.errors import DeviceError
device = select.load(sys.argv[1])
device.installed = classmethod(lambda cls: False)  # the variables alone: no package is asked
device.missing = classmethod(lambda cls, options: None)
device.cards = classmethod(lambda cls: 1)
try:
    print(select.usable(device, DeviceOptions(cuda_devices=tuple(map(int, sys.argv[2:]))), {FOUR}))
except DeviceError as error:
    print(error.message, error.hint, sep="\\n")
"""
VARIABLES = [
    ("cuda", "CUDA_VISIBLE_DEVICES"),
    ("hpu", "HABANA_VISIBLE_MODULES"),
    ("hpu", "HABANA_VISIBLE_DEVICES"),
    ("mlu", "MLU_VISIBLE_DEVICES"),
    ("mlu", "CN_VISIBLE_DEVICES"),
    ("mlu", "CUDA_VISIBLE_DEVICES"),
    ("rocm", "ROCR_VISIBLE_DEVICES"),
    ("rocm", "HIP_VISIBLE_DEVICES"),
    ("rocm", "CUDA_VISIBLE_DEVICES"),
    ("xpu", "ZE_AFFINITY_MASK"),
    ("npu", "ASCEND_RT_VISIBLE_DEVICES"),
]


def answer(device: str, launcher: dict[str, str], script: str = "", typed: str = "") -> list[str]:
    """What a process says that sees one card, under a launcher with these variables and a script that sets others."""
    line = f"{script} {sys.executable} -c '{CODE.replace(chr(39), chr(34))}' {device} {typed}; true"
    clean = {name: value for name, value in os.environ.items() if "VISIBLE" not in name and "ZE_AFF" not in name}
    done = subprocess.run(
        ["sh", "-c", line], env={**clean, **launcher}, cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize(("device", "variable"), VARIABLES)
def test_a_variable_that_a_script_sets_for_each_process(device: str, variable: str) -> None:
    assert answer(device, {}, f"{variable}=2") == ["None"]


@pytest.mark.parametrize(("device", "variable"), [VARIABLES[0], VARIABLES[4]])
def test_a_variable_that_all_have_from_the_launcher(device: str, variable: str) -> None:
    first, second = answer(device, {variable: "2"})
    assert first == f"mpirun runs 4 processes on this node, but it has 1 {device} card ({variable}=2 in each)."
    assert "Start 1 process on each node, or set " in second and "VISIBLE_DEVICES to another card" in second
    assert answer(device, {variable: "0,1,2,3"}, f"{variable}=2") == ["None"]  # a script takes one of the job's
    assert "it has 1" in answer(device, {})[0]  # nothing says that the cards differ


def test_a_card_that_a_flag_names_is_not_the_process_s_own() -> None:
    assert "it has 1 cuda card." in answer("cuda", {}, "CUDA_VISIBLE_DEVICES=2", typed="2")[0]


@pytest.mark.parametrize("name", OWN_CARD)
def test_slurm_gives_each_process_its_cards(name: str) -> None:
    assert answer("cuda", {name: "single:1"}) == ["None"]
    for all_cards in ("none", "verbose,none"):  # --gpu-bind=none: each process sees all cards
        assert "it has 1" in answer("cuda", {"SLURM_GPUS_PER_TASK": "1", "SLURM_GPU_BIND": all_cards})[0]


@pytest.mark.parametrize(
    ("variables", "module"),
    [
        ({"HABANA_VISIBLE_MODULES": "5"}, "5"),
        ({"HABANA_VISIBLE_MODULES": "4,5,6,7"}, "7"),
        ({"HABANA_VISIBLE_DEVICES": "5"}, None),
        ({}, "3"),
    ],
)
def test_the_module_of_a_gaudi_process(
    variables: dict[str, str], module: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in HPU.visible_by():
        monkeypatch.setenv(name, variables.get(name, ""))
    found = HPU.environment(DeviceOptions(), Rank(3, 4, 3, 4, "mpirun"))
    assert found.get("HLS_MODULE_ID") == module


@pytest.mark.parametrize(("typed", "module"), [("6", "6"), ("", "4"), ("3", "4")])
def test_a_user_chooses_one_of_the_modules_of_a_gaudi(typed: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """HLS_MODULE_ID, of those that a container lists; a process of several takes the one of its number."""
    monkeypatch.setenv("HABANA_VISIBLE_MODULES", "4,5,6,7")
    monkeypatch.setenv("HLS_MODULE_ID", typed)
    found = {"HLS_MODULE_ID": typed} | HPU.environment(DeviceOptions(), Rank())
    assert found["HLS_MODULE_ID"] == module
    assert HPU.environment(DeviceOptions(), Rank(1, 2, 1, 2, "mpirun"))["HLS_MODULE_ID"] == "5"


def test_the_recipes_of_a_gaudi_are_kept_for_later_runs(tmp_path: Path) -> None:
    folder = tmp_path / "recipes"
    for local in (0, 1):  # all ranks of the machine share it, and nobody empties it
        found = HPU.environment(DeviceOptions(recipe_cache=str(folder)), Rank(local, 2, local, 2, "mpirun"))
        assert found["PT_HPU_RECIPE_CACHE_CONFIG"] == f"{folder},False,8192"
    assert folder.is_dir() and "PT_HPU_RECIPE_CACHE_CONFIG" in HPU.forced
    assert "PT_HPU_RECIPE_CACHE_CONFIG" not in HPU.environment(DeviceOptions(), Rank())
    with pytest.raises(UsageError, match="the path has a comma"):
        HPU.environment(DeviceOptions(recipe_cache=str(tmp_path / "a,b")), Rank())


def test_the_variable_that_a_fold_gets_is_the_one_that_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLU_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("CN_VISIBLE_DEVICES", "6,4")
    assert select.load("mlu").card(1) == {"CN_VISIBLE_DEVICES": "4"}  # the stronger one
    monkeypatch.delenv("CN_VISIBLE_DEVICES")
    assert select.load("mlu").card(1) == {"MLU_VISIBLE_DEVICES": "1"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert select.load("mlu").card(1) == {"MLU_VISIBLE_DEVICES": "1"}
    monkeypatch.delenv("MLU_VISIBLE_DEVICES")
    assert select.load("mlu").card(1) == {"CUDA_VISIBLE_DEVICES": "7"}  # the weakest
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert select.load("mlu").card(1) == {"MLU_VISIBLE_DEVICES": "1"}


def two_ranks(place: Path, words: list[object], mode: str, variable: str, cards: list[str]) -> list[tuple[int, str]]:
    """(exit code, messages) of two processes that see one card each, which a script gave them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    kind, cards_of_node = ("hpu", 1) if mode == "eager" else (mode, 2)
    try:
        common: dict[str, Any] = {**os.environ, **environment(kind, place / "x.json", cards_of_node)}
    except NoCompiler as error:
        pytest.skip(str(error))
    common |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    line = [sys.executable, "-m", "unet", *map(str, words), *FLAGS[mode]]
    processes = [
        subprocess.Popen(
            line,
            cwd=place,
            env={**common, "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank), variable: card},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, card in enumerate(cards)
    ]
    said = [process.communicate(timeout=300)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "variable"), [("npu", "ASCEND_RT_VISIBLE_DEVICES"), ("eager", "HABANA_VISIBLE_MODULES")]
)
def test_two_processes_with_a_card_each(mode: str, variable: str, tmp_path: Path, phantoms: Path) -> None:
    words = [*training(phantoms, "own", "--overwrite"), "-v"]
    first, second = two_ranks(tmp_path, words, mode, variable, ["0", "0"])
    assert (first[0], second[0]) == (1, 1), first[1] + second[1]
    kind = {"eager": "hpu"}.get(mode, mode)
    two = [line for line in first[1].splitlines() if line.strip()][-2:]
    assert two[0] == f"error: Ranks 0 and 1 both use the {kind} card 0 of {socket.gethostname()}."
    assert f"Set {variable}" in two[1] and "to another card for each process" in two[1]
    assert "error:" not in second[1]
    for code, text in two_ranks(tmp_path, words, mode, variable, ["1", "0"]):
        assert code == 0, text
