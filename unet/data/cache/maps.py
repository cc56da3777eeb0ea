"""Memory maps of the arrays of many cases: opened when they are needed and closed again, the longest unused first.

Each map holds a file descriptor, of which a process often has 1,024, or 256. No torch.
"""

from __future__ import annotations

import resource
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from unet.data.cache.cached_case import CachedCase

SHARE = 8  # cases of two maps: a quarter of the descriptors
MOST = 512  # more would save no time


def room() -> int:
    """How many cases a process keeps open."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST if limit == resource.RLIM_INFINITY else max(2, min(MOST, limit // SHARE))


class Maps:
    """Image and mask of each of some cases, by number. A copy for another process starts with none open."""

    def __init__(self, cases: Sequence[CachedCase]) -> None:
        self.cases = cases
        self._open: OrderedDict[int, tuple[NDArray[Any], NDArray[Any]]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def __getitem__(self, number: int) -> tuple[NDArray[Any], NDArray[Any]]:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        while len(self._open) >= room():
            self._open.popitem(last=False)
        self._open[number] = self.cases[number].arrays()
        return self._open[number]
