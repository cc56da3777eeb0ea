"""Stand-in: the package of the bridge's own state."""

from emulator.device import strict as _strict

__getattr__ = _strict(__name__, "Gaudi", submodules=("internal",))
