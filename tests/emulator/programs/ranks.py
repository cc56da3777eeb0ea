"""One rank of two, started by a launcher: the vendor's collective and gloo on the CPU, and whether they agree."""

from __future__ import annotations

import json
import os
import sys

import torch
from torch import distributed, nn

KIND, BACKEND, FOLDER = sys.argv[1:]
RANK, WORLD = int(os.environ["OMPI_COMM_WORLD_RANK"]), int(os.environ["OMPI_COMM_WORLD_SIZE"])
if KIND == "hpu":
    import habana_frameworks.torch.core as core
    import habana_frameworks.torch.distributed.hccl  # noqa: F401  (reads the launcher's variables)

    assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == (str(RANK), str(WORLD))
    PLACE, HOW = (
        torch.device("hpu"),
        {"broadcast_buffers": False, "static_graph": True, "gradient_as_bucket_view": True},
    )
else:
    import torch_mlu  # noqa: F401

    torch.mlu.set_device(RANK)
    PLACE, HOW = torch.device("mlu", RANK), {"device_ids": [RANK]}
torch.set_num_threads(1)


def work(place: torch.device, how: dict[str, object]) -> list[object]:
    """Collectives, then a training whose ranks start apart."""
    flush = core.mark_step if place.type == "hpu" else lambda: None
    total = torch.full((3,), float(RANK + 1), device=place)
    distributed.all_reduce(total)
    parts = [torch.empty(2, device=place) for _ in range(WORLD)]
    distributed.all_gather(parts, torch.full((2,), float(RANK), device=place))
    first = torch.tensor([float(RANK)], device=place)
    distributed.broadcast(first, 0)
    objects: list[object] = [None] * WORLD
    distributed.all_gather_object(objects, {"rank": RANK})
    distributed.barrier()
    torch.manual_seed(RANK)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).to(place)
    parallel = nn.parallel.DistributedDataParallel(network, **how)
    optimizer = torch.optim.SGD(parallel.parameters(), 0.1)
    images = torch.randn(4 * WORLD, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for _ in range(5):
        output = parallel(images[RANK::WORLD].to(place))
        loss = nn.functional.cross_entropy(output, (images[RANK::WORLD, 0, 1:-1, 1:-1] > 0).long().to(place))
        loss.backward()
        flush()
        optimizer.step()
        optimizer.zero_grad()
        flush()
    weights = [value.double().sum().item() for value in (p.detach().cpu() for p in network.parameters())]
    return [total.tolist(), [part.tolist() for part in parts], first.tolist(), objects, loss.item(), weights]


def grouped(backend: str, place: torch.device, how: dict[str, object]) -> list[object]:
    store = f"file://{FOLDER}/{backend}"
    distributed.init_process_group(backend, init_method=store, rank=RANK, world_size=WORLD)
    result = work(place, how)
    distributed.destroy_process_group()
    return result


if __name__ == "__main__":
    theirs = grouped(BACKEND, PLACE, HOW)
    ours = grouped("gloo", torch.device("cpu"), {"broadcast_buffers": KIND == "mlu"})
    print(json.dumps({"device": theirs, "cpu": ours}))
