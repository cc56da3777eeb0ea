"""Stand-in: the package of fused parts."""

from emulator.device import strict as _strict

__getattr__ = _strict(__name__, "Gaudi", submodules=("normalization", "optimizers"))
