"""Stand-in: the package of the collective backend."""

from emulator.device import strict as _strict

__getattr__ = _strict(__name__, "Gaudi", submodules=("hccl",))
