"""Stand-in for the bridge. Importing it loads the device and reads the environment, lazy or eager, for good."""

import os as _os
import re as _re
from importlib import metadata as _metadata
from pathlib import Path as _Path

import torch as _torch
from emulator import device as _device
from emulator import rules as _rules
from emulator.record import RECORD as _RECORD

_RECORD.lazy = _os.environ.get("PT_HPU_LAZY_MODE") != "0"
if _RECORD.lazy:
    _version = _metadata.version("torch")
    _local = _version.partition("+")[2]
    assert _local.startswith("git"), f"lazy mode needs the vendor's build of torch, this is {_version}"
    assert _re.match(r"\d+\.\d+", _version)[0] == _re.match(r"\d+\.\d+", _torch.__version__)[0], _version  # type: ignore[index]
for _name in ("PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST", "PT_HPU_AUTOCAST_FP32_OPS_LIST"):
    if _os.environ.get(_name):
        _RECORD.autocast_lists[_name] = _Path(_os.environ[_name]).read_text().split()
_device.start("hpu", _device.cards_here())

from habana_frameworks.torch import hpu as hpu  # noqa: E402

_torch._register_device_module("hpu", hpu)
_rules.watch(_RECORD.lazy)


def _seed_the_device_too() -> None:
    seed_all = _torch.manual_seed

    def manual_seed(seed: int) -> _torch.Generator:
        if not _RECORD.device.forked():
            hpu.manual_seed_all(int(seed))
        return seed_all(seed)

    _torch.manual_seed = _torch.random.manual_seed = manual_seed


def _print_on_the_host() -> None:
    """torch prints numbers as float64, which the device does not have."""
    shown = _torch._tensor_str._tensor_str

    def on_host(tensor: _torch.Tensor, indent: int) -> str:
        return shown(tensor.cpu() if tensor.device.type == "hpu" else tensor, indent)

    _torch._tensor_str._tensor_str = on_host


_seed_the_device_too()
_print_on_the_host()
_rules.watch_compile()

from habana_frameworks.torch.distributed import hccl as _hccl  # noqa: E402, F401
from habana_frameworks.torch.hpu.graphs import ModuleCacher as ModuleCacher  # noqa: E402
from habana_frameworks.torch.hpu.graphs import wrap_in_hpu_graph as wrap_in_hpu_graph  # noqa: E402

_RECORD.note(f"habana_frameworks.torch loaded, {'lazy' if _RECORD.lazy else 'eager'}", "loaded")
__getattr__ = _device.strict(__name__, "Gaudi", submodules=("core", "distributed", "hpex", "utils"))
