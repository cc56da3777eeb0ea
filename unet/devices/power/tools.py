"""The vendors' programs that tell the power of a card: how each is asked, and what it prints.

A program may be missing, forbidden, slow, hang, or print what is not known: each is an `Unreadable` with the reason.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

PATIENCE = 10.0  # seconds for a tool's answer
MOST = 2**20  # bytes of an answer


class Unreadable(Exception):
    """Why there is no reading, in words; `final`: it need not be tried again."""

    def __init__(self, why: str, final: bool = False) -> None:
        super().__init__(why)
        self.final = final


class Tool(NamedTuple):
    """A vendor's program, its arguments ({card}: the card's name), and what gives {name of a card: watts} from its
    output."""

    command: tuple[str, ...]
    parse: Callable[[str], dict[str, float]]

    @property
    def for_each(self) -> bool:
        """Whether it is asked for one card at a time."""
        return any("{card}" in word for word in self.command)


def ask(tool: Tool, card: str, over: threading.Event | None = None) -> dict[str, float]:
    """{name of a card: watts}, at least one. Raises Unreadable, also soon after `over` is set."""
    name = tool.command[0]
    text = answer([word.format(card=card or "0") for word in tool.command], over)
    with contextlib.suppress(ValueError, LookupError, AttributeError, TypeError):
        if found := tool.parse(text):
            return found
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    raise Unreadable(f"{name} printed no watts that are understood: {first[:80]!r}")


def watts_of(found: dict[str, float], card: str, alone: bool) -> float | None:
    """The watts of a card. CUDA's variable may hold the beginning of a UUID; a container sees one card, under any
    number (`alone`: no other card is asked for)."""
    if card not in found:
        named = [name for name in found if name.startswith(card)] if card.startswith("GPU-") else []
        card = next(iter(named if len(named) == 1 else found if len(found) == 1 and alone else ()), card)
    return found.get(card)


def answer(command: Sequence[str], over: threading.Event | None = None) -> str:
    """What a program prints. It is ended if it takes too long or prints too much, or when `over` is set. Raises
    Unreadable."""
    name = command[0]
    pipe = subprocess.PIPE
    try:  # a session of its own: Ctrl-C in the terminal is not for it
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, bufsize=0, start_new_session=True
        )
    except FileNotFoundError as error:
        raise Unreadable(f"{name} is not on the PATH", final=True) from error
    except OSError as error:
        raise Unreadable(f"{name} cannot be started ({error.strerror})", final=True) from error
    try:
        printed, complaint = _collect(process, name, over)
    finally:
        _end(process)
    if process.returncode:
        said = next((line.strip() for line in (complaint or printed).splitlines() if line.strip()), "")
        raise Unreadable(f"{name} ended with exit code {process.returncode}" + (f": {said[:120]}" if said else ""))
    return printed


def _collect(process: subprocess.Popen[bytes], name: str, over: threading.Event | None) -> tuple[str, str]:
    """(output, error output) of a process until it ends. The ends of the pipes are not waited for: a process that was
    forked meanwhile may hold them open."""
    deadline = time.monotonic() + PATIENCE
    parts: dict[int, bytes] = {}
    with selectors.DefaultSelector() as waiting:
        for number, stream in enumerate((process.stdout, process.stderr)):
            parts[number] = b""
            if stream is not None:
                waiting.register(stream, selectors.EVENT_READ, number)
        while True:
            ended = process.poll() is not None
            ready = waiting.select(0 if ended else 0.05) if waiting.get_map() else []
            for key, _ in ready:
                piece = os.read(key.fd, 65536)
                parts[key.data] += piece
                if not piece:
                    waiting.unregister(key.fileobj)
            if ended and not ready:
                return parts[0].decode(errors="replace"), parts[1].decode(errors="replace")
            if not waiting.get_map() and not ended:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.05)
            if over is not None and over.is_set():
                raise Unreadable(f"{name} was not waited for")
            if time.monotonic() > deadline:
                raise Unreadable(f"{name} gave no answer within {PATIENCE:g} s")
            if sum(map(len, parts.values())) > MOST:
                raise Unreadable(f"{name} printed more than {MOST // 2**20} MiB")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started, and close its pipes; one that cannot be killed is left behind."""
    if process.poll() is None:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


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
