"""Stand-in for the vendor's package. Importing it renames torch's private device to `npu` and brings `torch.npu`, with
the functions alone that Ascend's API reference names and that every device of torch has; EMULATED_FP64=0 takes float64
away, which some accelerators lack.
"""

import os as _os

import torch as _torch
from emulator import collective as _collective
from emulator import device as _device
from emulator import rules as _rules
from emulator.record import RECORD as _RECORD

if _os.environ.get("EMULATED_IMPORT_ERROR"):  # the vendor's libraries are not there
    raise ImportError("libascendcl.so: cannot open shared object file: No such file or directory")


def _visible() -> int:
    """How many of the machine's cards this process may see."""
    listed = _os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
    if listed is None:
        return _device.cards_here()
    return sum(int(card) < _device.cards_here() for card in listed.split(",") if card.strip())


_device.start("npu", _visible())
_torch.utils.rename_privateuse1_backend("npu")

from torch_npu import npu as npu  # noqa: E402

_torch._register_device_module("npu", npu)
_torch.utils.generate_methods_for_privateuse1_backend(for_tensor=True, for_module=True, for_storage=True)
_rules.watch(lazy=False)
_collective.register("hccl")
_RECORD.note("torch_npu loaded", "loaded")
__getattr__ = _device.strict(__name__, "Ascend")
