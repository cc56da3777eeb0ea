"""What this device reaches at best: a matrix product in the precision of the run, and a copy. Both are measured in the
process of the timed step, so they have its threads, its settings and its share of the machine."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unet.devices.base import Device

ENOUGH = 0.1  # seconds that a product should take at least, so that starting it does not count
SIDES = (256, 512, 1024, 2048, 4096, 8192)
REPEATS = 3
COPIED = 2**26  # bytes of the copy: more than caches hold


def measured(device: Device) -> dict[str, Any]:
    """FLOP/s of the best of square matrix products, with its side, and bytes a second (read and written) of a copy."""
    flops, side = product(device)
    return {
        "matrix_flops_per_second": flops,
        "matrix_side": side,
        "precision": str(device.dtype).removeprefix("torch."),
        "copy_bytes_per_second": copied(device),
    }


def product(device: Device) -> tuple[float, int]:
    """(FLOP/s, side) of the best square product, from small ones to one that takes long enough or a large one."""
    import torch

    best = (0.0, 0)
    for side in SIDES:
        left, right = (torch.rand(side, side, device=device.device, dtype=device.dtype) for _ in range(2))
        _, *rest = durations(device, lambda a=left, b=right: torch.matmul(a, b), REPEATS + 1)
        seconds = statistics.median(rest)
        best = max(best, (2 * side**3 / seconds, side))
        if seconds > ENOUGH:
            break
    return best


def copied(device: Device) -> float:
    """Bytes a second of a copy on the device: each is read once and written once."""
    import torch

    source = torch.ones(COPIED // 4, device=device.device)
    target = torch.empty_like(source)
    _, *rest = durations(device, lambda: target.copy_(source), 2 * REPEATS + 1)
    return 2 * COPIED / statistics.median(rest)


def durations(device: Device, work: Any, repeats: int) -> list[float]:
    """Seconds of `work`, each time waited for. Its result is held until then: a lazy device computes at `flush`, and
    what nobody holds is not computed."""
    seconds = []
    for _ in range(repeats):
        start = device.now()
        result = work()
        device.flush()
        seconds.append(device.now() - start)
        del result
    return seconds
