"""The power of a card, asked of the vendor's tool, or of the processors, from the kernel's energy counters (RAPL).

A reading that cannot be had is None, never an error: the tool may be missing, slow, or forbidden.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

POWERCAP = Path("/sys/class/powercap")
PATIENCE = 10.0  # seconds for a tool's answer


class Tool(NamedTuple):
    """A vendor's program, its arguments ({card}: the card's name), and what gives {name of a card: watts} from its
    output."""

    command: tuple[str, ...]
    parse: Callable[[str], dict[str, float]]


def read(device: str, card: str = "", interval: float = 0.2) -> float | None:
    """Power in watts of a device's card (empty: the only one), after `interval` seconds; of the processors their mean
    over these seconds. None if unknown."""
    if device == "cpu":
        return _processors(interval)
    time.sleep(interval)
    tool = TOOLS.get(device)
    found = _answer(tool, card) if tool else {}
    if card not in found:  # CUDA's variable may hold the beginning of a UUID; a container sees one card
        named = [name for name in found if name.startswith(card)] if card.startswith("GPU-") else []
        card = next(iter(named if len(named) == 1 else found if len(found) == 1 else ()), card)
    return found.get(card)


def _answer(tool: Tool, card: str) -> dict[str, float]:
    command = [word.format(card=card or "0") for word in tool.command]
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError, LookupError, AttributeError, TypeError):
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PATIENCE)
        return tool.parse(done.stdout) if done.returncode == 0 else {}
    return {}


def _rows(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        yield [cell.strip() for cell in line.split(",")]


def _watts(cell: str) -> float | None:
    """The number of a cell such as "103 W" or "71.33"; None for "N/A" and the like."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*W?", cell)
    return float(found[1]) if found else None


def nvidia(text: str) -> dict[str, float]:
    """`0, GPU-6d8c…, 71.33`: by index and by UUID. Source: `nvidia-smi --help-query-gpu` (index, uuid, power.draw)."""
    rows = [(row, _watts(row[2])) for row in _rows(text) if len(row) == 3]
    by_uuid = {row[1]: watts for row, watts in rows if watts is not None}
    by_index = {row[0]: watts for row, watts in rows if watts is not None}
    return by_uuid | by_index if len(rows) > 1 else by_uuid


def gaudi(text: str) -> dict[str, float]:
    """`1, 103 W`: by module. Source: Gaudi's System Management Interface Tool, option -Q (docs.habana.ai)."""
    rows = [(row[0], _watts(row[1])) for row in _rows(text) if len(row) == 2]
    return {module: watts for module, watts in rows if watts is not None}


def cambricon(text: str) -> dict[str, float]:
    """The table of two lines a card: `| 0     /   MLU370-X8    v1.1.6 | …` and `|  0%   32C        106 W/ 250 W | …`.
    Source: outputs of cnmon 4.20 and 5.10 in PaddlePaddle's installation guides for MLU."""
    found, card = {}, None
    for line in text.splitlines():
        if row := re.match(r"\|\s*(\d+)\s+\S+\s+MLU", line):
            card = row[1]
        elif card is not None and (used := re.search(r"(\d+(?:\.\d+)?)\s*W\s*/", line)):
            found[card], card = float(used[1]), None
    return found


def amd(text: str) -> dict[str, float]:
    """`{"card0": {"Average Graphics Package Power (W)": "42.0"}}`; newer cards say "Current Socket Graphics …". Source:
    `rocm-smi --showpower --json` (ROCm's rocm_smi_lib)."""
    found = {}
    for card, values in json.loads(text).items():
        for key, value in values.items():
            if card.startswith("card") and re.fullmatch(r"(Average|Current Socket) Graphics Package Power \(W\)", key):
                found[card.removeprefix("card")] = float(value)
    return found


def intel(text: str) -> dict[str, float]:
    """`Timestamp, DeviceId, GPU Power (W)`, then `06:14:46.000,    0, 14.61`. Source: Intel XPU Manager's command line
    guide, `dump`, metric 1."""
    rows = [(row[1], _watts(row[2])) for row in _rows(text) if len(row) == 3]
    return {card: watts for card, watts in rows if watts is not None}


def ascend(text: str) -> dict[str, float]:
    """`NPU Real-time Power(W)         : 71.2`, on some cards `Power Dissipation(W)`: of the card that was asked for.
    Source: npu-smi's command reference (hiascend.com), `info -t power`."""
    found = re.search(r"^\s*(?:NPU Real-time Power|Power Dissipation)\(W\)\s*:\s*(\d+(?:\.\d+)?)", text, re.MULTILINE)
    return {"": float(found[1])} if found else {}


TOOLS = {
    "cuda": Tool(("nvidia-smi", "--query-gpu=index,uuid,power.draw", "--format=csv,noheader,nounits"), nvidia),
    "hpu": Tool(("hl-smi", "-Q", "module_id,power.draw", "-f", "csv,noheader"), gaudi),
    "mlu": Tool(("cnmon",), cambricon),
    "rocm": Tool(("rocm-smi", "--showpower", "--json"), amd),
    "xpu": Tool(("xpu-smi", "dump", "-d", "-1", "-m", "1", "-n", "1"), intel),
    "npu": Tool(("npu-smi", "info", "-t", "power", "-i", "{card}"), ascend),
}


def _processors(interval: float) -> float | None:
    """Mean watts of all processors: the change of their energy counters. Source: the Linux kernel's powercap
    documentation (energy_uj in microjoules, which starts again at 0 after max_energy_range_uj)."""
    start, before = time.perf_counter(), _energy()
    time.sleep(interval)
    after, seconds = _energy(), time.perf_counter() - start
    if not before or before.keys() != after.keys() or seconds <= 0:
        return None
    used = 0
    for zone, (now, most) in after.items():
        then = before[zone][0]
        used += now - then if now >= then else now + most - then
    return used / 1e6 / seconds


def _energy() -> dict[str, tuple[int, int]]:
    """{processor: (microjoules so far, the most that the counter holds)}; empty where one is forbidden: the kernel
    lets only root read them, as a rule."""
    found = {}
    try:
        for zone in sorted(POWERCAP.glob("intel-rapl:*")):  # AMD's too
            if (zone / "name").read_text().startswith("package"):
                found[zone.name] = (
                    int((zone / "energy_uj").read_text()),
                    int((zone / "max_energy_range_uj").read_text()),
                )
    except (OSError, ValueError):
        return {}
    return found
