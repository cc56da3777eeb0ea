"""Stand-in: which mode was read at import."""

from emulator.device import strict as _strict
from emulator.record import RECORD as _RECORD


def is_lazy() -> bool:
    return bool(_RECORD.lazy)


__getattr__ = _strict(__name__, "Gaudi")
