"""Stand-in for the vendor's package. Importing it renames torch's private device to `mlu` and brings `torch.mlu`."""

import functools as _functools
import os as _os

import torch as _torch
from emulator import collective as _collective
from emulator import device as _device
from emulator import rules as _rules
from emulator.record import RECORD as _RECORD

if _os.environ.get("EMULATED_IMPORT_ERROR"):  # the vendor's libraries are not there
    raise {"OSError": OSError, "ImportError": ImportError}[_os.environ["EMULATED_IMPORT_ERROR"]](
        "libcnrt.so: cannot open shared object file: No such file or directory"
    )


def _visible() -> int:
    """How many of the machine's cards this process may see."""
    for name in ("CN_VISIBLE_DEVICES", "MLU_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
        if name in _os.environ:
            return sum(int(card) < _device.cards_here() for card in _os.environ[name].split(",") if card.strip())
    return _device.cards_here()


_device.start("mlu", _visible())
_torch.utils.rename_privateuse1_backend("mlu")

from torch_mlu import mlu as mlu  # noqa: E402

_torch._register_device_module("mlu", mlu)
_torch.utils.generate_methods_for_privateuse1_backend(for_tensor=True, for_module=True, for_storage=True)


_Switches = _functools.partial(_device.Switches, vendor="Cambricon")
_torch.backends.cnnl = _Switches("torch.backends.cnnl", allow_tf32=True)
_torch.backends.mlu = _Switches("torch.backends.mlu", matmul=_Switches("torch.backends.mlu.matmul", allow_tf32=False))
_rules.watch(lazy=False)
_collective.register("cncl")
_RECORD.note("torch_mlu loaded", "loaded")
__getattr__ = _device.strict(__name__, "Cambricon", submodules=("optimizers",))
