"""The compilers of the host that --compile runs."""

from __future__ import annotations

import os
import shutil
from typing import NamedTuple

from unet.errors import DeviceError


class Compiler(NamedTuple):
    """A compiler of the host that --compile runs: the one that `variable` names, or the first of `usual` on the
    PATH."""

    language: str
    variable: str
    usual: tuple[str, ...]

    def require(self, device: str) -> None:
        """Raise DeviceError if it is not there: torch would find out in the first step, with a traceback."""
        named = os.environ.get(self.variable)
        if any(shutil.which(name) for name in (self.usual if named is None else (named,))):
            return
        found = f"{self.variable} names {named!r}, which is no program"
        if named is None:
            found = f"{self.variable} names none, and the PATH has no {' or '.join(self.usual)}"
        raise DeviceError(
            f"--compile needs a {self.language} compiler on {device}: {found}.",
            f"Install one (Debian: apt-get install {'gcc' if self.language == 'C' else 'g++'}), name it in"
            f" {self.variable}, or leave out --compile.",
        )


C = Compiler("C", "CC", ("gcc", "clang"))  # for triton, which compiles for NVIDIA's, AMD's and Intel's cards
