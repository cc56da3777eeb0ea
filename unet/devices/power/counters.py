"""The kernel's energy counters of processors and memory (RAPL, AMD's too): microjoules that start again at 0 after
max_energy_range_uj. Source: the Linux kernel's powercap documentation.
"""

from __future__ import annotations

import time
from pathlib import Path

from unet.devices.power.tools import Unreadable

POWERCAP = Path("/sys/class/powercap")


def zones(memory: bool = True) -> dict[str, Path]:
    """{package-0, dram-0 ...: the folder of its counter}; memory only where it is wanted. Cores and the like are parts
    of a package, psys is all of it again. Raises Unreadable where there is none."""
    found: dict[str, Path] = {}
    for zone in sorted(POWERCAP.glob("intel-rapl:*")):
        name = _text(zone / "name")
        package = _text(zone.with_name(zone.name.rpartition(":")[0]) / "name") if name == "dram" else name
        if package.startswith("package") and (memory or name != "dram"):
            channel = package.replace("package", "dram") if name == "dram" else package
            found[channel if channel not in found else f"{channel} ({zone.name})"] = zone
    if not found:
        raise Unreadable(f"there are no energy counters in {POWERCAP} (a virtual machine or a container?)", final=True)
    return found


def energy(found: dict[str, Path]) -> dict[str, tuple[int, int]]:
    """{channel: (microjoules so far, the most that the counter holds)}. Raises Unreadable: the kernel lets only root
    read them, as a rule."""
    try:
        return {
            channel: (int(_text(zone / "energy_uj")), int(_text(zone / "max_energy_range_uj")))
            for channel, zone in found.items()
        }
    except ValueError as error:
        raise Unreadable(f"a counter in {POWERCAP} is no number ({error})") from error


def used(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> dict[str, float]:
    """Joules between two readings."""
    return {
        channel: (now - before[channel][0] + (most if now < before[channel][0] else 0)) / 1e6
        for channel, (now, most) in after.items()
        if channel in before
    }


def processors(interval: float) -> float | None:
    """Mean watts of all processors over these seconds; None if they cannot be read."""
    try:
        found = zones(memory=False)
        start, before = time.perf_counter(), energy(found)
        time.sleep(interval)
        after, seconds = energy(found), time.perf_counter() - start
    except Unreadable:
        return None
    return sum(used(before, after).values()) / seconds if seconds > 0 else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except PermissionError as error:
        raise Unreadable(
            f"only root may read {path}; an administrator can type: chmod a+r {POWERCAP}/intel-rapl*/energy_uj",
            final=True,
        ) from error
    except OSError as error:
        raise Unreadable(f"{path} cannot be read ({error.strerror})") from error
