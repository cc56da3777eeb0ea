"""Everything that a device must do, on the emulated one that is named: a JSON object of what went wrong, by check."""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib
import io
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

KIND = sys.argv[1]
importlib.import_module("habana_frameworks.torch.core" if KIND == "hpu" else "torch_mlu")
torch.set_num_threads(1)
API = getattr(torch, KIND)
CHECKS: dict[str, Callable[[], None]] = {}


def check(function: Callable[[], None]) -> Callable[[], None]:
    CHECKS[function.__name__] = function
    return function


def raises(kind: type[BaseException], text: str, call: Callable[[], Any]) -> None:
    try:
        call()
    except kind as error:
        assert text in str(error), str(error)
    else:
        raise AssertionError(f"no {kind.__name__}")


def pair(build: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """The same module on the host and on the device."""
    torch.manual_seed(1)
    module = build()
    return module, copy.deepcopy(module).to(KIND)


def same(ours: Any, theirs: Any) -> None:
    assert ours.device.type == KIND
    assert torch.equal(ours.detach().cpu(), theirs.detach())


def close(ours: Any, theirs: Any) -> None:
    """Equal up to rounding: torch takes another kernel for some layers on a device that is not the CPU."""
    assert ours.device.type == KIND
    torch.testing.assert_close(ours.detach().cpu(), theirs.detach(), rtol=1e-5, atol=1e-5)


def flush() -> None:
    if KIND == "hpu":
        sys.modules["habana_frameworks.torch.core"].mark_step()


@check
def tensors() -> None:
    a = torch.arange(24.0).reshape(2, 3, 4)
    b = a.to(KIND)
    assert b.device == torch.device(KIND, 0) and torch.arange(3, device=KIND).tolist() == [0, 1, 2]
    same(b.permute(2, 0, 1)[1:, ..., ::2].contiguous(), a.permute(2, 0, 1)[1:, ..., ::2])
    same(torch.cat([b, b], 1)[torch.cat([b, b], 1) > 3], torch.cat([a, a], 1)[torch.cat([a, a], 1) > 3])
    b[0].fill_(5)
    b[torch.tensor([1], device=KIND), 0] = 7.0
    b.view(-1)[3:5] += 1
    assert b.flatten().tolist()[:6] == [5, 5, 5, 6, 6, 5] and b[1, 0].tolist() == [7] * 4
    a = b.cpu()
    same(b.unfold(2, 2, 1).sum(-1), a.unfold(2, 2, 1).sum(-1))
    same(torch.where(b > 5, b, b * 0).clamp(0, 6).argmax(2), torch.where(a > 5, a, a * 0).clamp(0, 6).argmax(2))
    same(b.resize_(2, 2), torch.tensor([[5.0, 5.0], [5.0, 6.0]]))
    same(F.one_hot(torch.tensor([0, 2]).to(KIND), 3), F.one_hot(torch.tensor([0, 2]), 3))
    assert "device='" + KIND in repr(b) and torch.ones(3).pin_memory().is_pinned()
    assert nn.Linear(2, 2, device="meta").to_empty(device=KIND).weight.device.type == KIND
    assert torch.accelerator.current_accelerator() == torch.device(KIND)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Linear": (lambda: nn.Linear(4, 3), (2, 4)),
    "Conv2d": (lambda: nn.Conv2d(2, 4, 3, padding=1, groups=2), (2, 2, 8, 8)),
    "Conv3d": (lambda: nn.Conv3d(2, 3, 3, stride=2), (2, 2, 8, 8, 8)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(2, 3, 2, 2), (2, 2, 4, 4)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(2, 3, 2, 2), (2, 2, 4, 4, 4)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(2), (3, 2, 4, 4)),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(2), (2, 2, 4, 4, 4)),
    "InstanceNorm3d": (lambda: nn.InstanceNorm3d(2, affine=True), (2, 2, 4, 4, 4)),
    "GroupNorm": (lambda: nn.GroupNorm(1, 2), (2, 2, 4, 4, 4)),
    "MaxPool2d": (lambda: nn.MaxPool2d(2), (1, 2, 4, 4)),
    "MaxPool3d": (lambda: nn.MaxPool3d(2), (2, 2, 4, 4, 4)),
    "AvgPool3d": (lambda: nn.AvgPool3d(2), (2, 2, 4, 4, 4)),
    "trilinear": (lambda: nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False), (2, 2, 4, 4, 4)),
    "nearest": (lambda: nn.Upsample(scale_factor=2), (2, 2, 4, 4)),
    "ReflectionPad2d": (lambda: nn.ReflectionPad2d(1), (1, 2, 4, 4)),
    "LeakyReLU": (lambda: nn.LeakyReLU(0.01), (2, 2)),
    "PReLU": (lambda: nn.PReLU(), (2, 2, 3)),
    "SiLU": (lambda: nn.SiLU(), (2, 2)),
    "GELU": (lambda: nn.GELU(), (2, 2)),
    "Softmax": (lambda: nn.Softmax(1), (2, 3)),
}


@check
def layers() -> None:
    for name, (build, shape) in LAYERS.items():
        host, device = pair(build)
        x = torch.randn(shape)
        a, b = x.clone().requires_grad_(), x.to(KIND).requires_grad_()
        theirs, ours = host(a), device(b)
        theirs.square().sum().backward()
        ours.square().sum().backward()
        flush()
        try:
            close(ours, theirs)
            close(b.grad, a.grad)
            for p, q in zip(device.state_dict().values(), host.state_dict().values(), strict=True):
                close(p, q)
        except AssertionError as error:
            raise AssertionError(name) from error


@check
def losses() -> None:
    x, y = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    same(F.cross_entropy(x.to(KIND), y.to(KIND)), F.cross_entropy(x, y))
    with_logits = F.binary_cross_entropy_with_logits
    same(with_logits(x.to(KIND), x.sign().to(KIND)), with_logits(x, x.sign()))
    grid = torch.zeros(2, 2, 2, 2)
    same(F.grid_sample(x.to(KIND), grid.to(KIND), align_corners=False), F.grid_sample(x, grid, align_corners=False))


@check
def random_numbers() -> None:
    torch.manual_seed(3)
    first = torch.randn(4, device=KIND)
    torch.manual_seed(3)
    assert torch.equal(first.cpu(), torch.randn(4, device=KIND).cpu())
    if KIND == "hpu":
        raises(RuntimeError, "not supported for torch.Generator()", lambda: torch.Generator(device="hpu"))
    else:
        own = torch.Generator(device=KIND).manual_seed(1)
        assert torch.randn(3, device=KIND, generator=own).device.type == KIND
    state = API.get_rng_state()
    API.manual_seed_all(5)
    API.set_rng_state(state)
    assert torch.equal(API.get_rng_state(), state)


@check
def autocast() -> None:
    layer, x = nn.Conv2d(2, 3, 3).to(KIND), torch.randn(1, 2, 8, 8).to(KIND)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.no_grad(), torch.autocast(KIND, dtype=dtype):
            flush()
            y = layer(x)
            flush()
            assert (y.dtype, F.softmax(y, 1).dtype) == (dtype, torch.float32)
            if KIND == "mlu":
                probability = torch.sigmoid(y)
                raises(RuntimeError, "unsafe to autocast", lambda p=probability: F.binary_cross_entropy(p, p))


@check
def files() -> None:
    buffer = io.BytesIO()
    torch.save(nn.Linear(4, 3).to(KIND).state_dict(), buffer)
    for where, place in (("cpu", "cpu"), (KIND, KIND), (None, KIND)):
        buffer.seek(0)
        assert torch.load(buffer, map_location=where, weights_only=True)["weight"].device.type == place


@check
def checkpointed() -> None:
    host, device = pair(lambda: nn.Linear(4, 3))
    x = torch.randn(2, 4)
    from torch.utils.checkpoint import checkpoint

    for module, inputs in ((host, x), (device, x.to(KIND))):
        checkpoint(module, inputs.requires_grad_(), use_reentrant=False).sum().backward()
    flush()
    same(device.weight.grad, host.weight.grad)


class Network(nn.Module):
    """A U-Net of two levels."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep, self.last = self.block(1, 8), self.block(8, 16), self.block(16, 8)
        self.pool, self.up, self.head = nn.MaxPool2d(2), nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(8, 3, 1)

    def block(self, inside: int, outside: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        high = self.down(x)
        return self.head(self.last(torch.cat((high, self.up(self.deep(self.pool(high)))), 1)))


def trained(place: str) -> tuple[str, float]:
    """Ten steps of Adam: a digest of all weights and statistics, and the last loss."""
    torch.manual_seed(0)
    network = Network().to(place)
    images = torch.randn(8, 1, 32, 32)
    labels = (images[:, 0] > 0).long() + (images[:, 0] > 1).long()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, weight_decay=1e-4)
    boundary = flush if place == KIND else lambda: None
    for step in range(10):
        part = slice(2 * step % 8, 2 * step % 8 + 2)
        x, y = images[part].to(place), labels[part].to(place)
        output = network(x)
        dice = (output.softmax(1) * F.one_hot(y, 3).movedim(-1, 1)).mean()
        loss = F.cross_entropy(output, y) - dice
        loss.backward()
        boundary()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        boundary()
    everything = b"".join(value.cpu().numpy().tobytes() for value in network.state_dict().values())
    return hashlib.sha256(everything).hexdigest(), loss.item()


@check
def training_is_bit_identical() -> None:
    torch.use_deterministic_algorithms(True)
    assert trained(KIND) == trained("cpu")
    torch.use_deterministic_algorithms(False)


@check
def optimizers() -> None:
    if KIND == "hpu":
        from habana_frameworks.torch.hpex.optimizers import FusedAdamW, FusedLamb, FusedSGD

        pairs = [(FusedAdamW, torch.optim.AdamW, {"lr": 0.1, "eps": 1e-8, "weight_decay": 0.1})]
    else:
        from torch_mlu.optimizers import FusedAdam, FusedSGD
        from torch_mlu.optimizers import FusedLAMB as FusedLamb

        pairs = [
            (functools.partial(FusedAdam, adam_w_mode=False), torch.optim.Adam, {"lr": 0.1, "weight_decay": 0.1}),
            (FusedAdam, torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.1}),
        ]
    pairs.append((FusedSGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}))
    for fused, stock, how in pairs:
        host, device = pair(lambda: nn.Linear(4, 3))
        two = (stock(host.parameters(), **how), fused(device.parameters(), **how))
        for _ in range(3):
            for module, optimizer in zip((host, device), two, strict=True):
                for weight in module.parameters():
                    weight.grad = weight.detach().sin() + 0.1
                optimizer.step()
        assert torch.allclose(device.weight.detach().cpu(), host.weight, rtol=1e-6, atol=1e-7), fused
    module = nn.Linear(4, 3).to(KIND)
    optimizer = FusedLamb(module.parameters(), lr=0.1)
    before = module.weight.detach().clone()
    module.weight.grad, module.bias.grad = torch.ones_like(module.weight), torch.ones_like(module.bias)
    optimizer.step()
    assert not torch.equal(before.cpu(), module.weight.detach().cpu())
    raises(RuntimeError, "not on", lambda: FusedSGD(nn.Linear(2, 2).parameters(), lr=0.1))
    flush()


@check
def mixed_devices() -> None:
    text = "Expected all tensors to be on the same device"
    host, device = torch.ones(2, 2, 4, 4), torch.ones(2, 2, 4, 4, device=KIND)
    raises(RuntimeError, text, lambda: host + device)
    raises(RuntimeError, text, lambda: torch.cat((device, host)))
    raises(RuntimeError, text, lambda: F.conv2d(device, host[:1, :, :3, :3]))
    raises(RuntimeError, text, lambda: F.batch_norm(device, torch.zeros(2), torch.ones(2)))
    raises(RuntimeError, text, lambda: F.cross_entropy(device, torch.zeros(2, 4, 4, dtype=torch.long)))
    assert (device + torch.tensor(1.0)).sum().item() == 128
    if KIND == "mlu":
        raises(RuntimeError, text, lambda: device + device.to("mlu:1"))
        assert (device.to("mlu:1") + 1).device == torch.device("mlu", 1)
    raises(RuntimeError, "invalid device ordinal", lambda: torch.ones(1, device=f"{KIND}:{2 if KIND == 'mlu' else 1}"))


@check
def memory() -> None:
    before = API.memory_allocated()
    API.reset_peak_memory_stats()
    block = torch.empty(1 << 20, device=KIND)
    assert API.memory_allocated() == before + (4 << 20)
    del block
    assert API.memory_allocated() == before and API.max_memory_allocated() >= before + (4 << 20)
    assert API.mem_get_info()[1] == 64 << 20
    raises(torch.OutOfMemoryError, "out of memory", lambda: torch.empty(65 << 18, device=KIND))


@check
def streams() -> None:
    from emulator.record import ContractError

    def copied(side: Any, tensor: torch.Tensor) -> torch.Tensor:
        with API.stream(side):
            return tensor.to(KIND, non_blocking=True)

    side, layer, pinned = API.Stream(), nn.Linear(3, 2).to(KIND), torch.ones(4, 3).pin_memory()
    raises(ContractError, "wait_stream comes first", lambda: copied(side, pinned))
    side.wait_stream(API.current_stream())
    batch = copied(side, pinned)
    raises(ContractError, "is used before current_stream().wait_stream", lambda: layer(batch))
    API.current_stream().wait_stream(side)
    layer(batch)
    raises(ContractError, "wait_stream comes first", lambda: copied(side, pinned))
    side.wait_stream(API.current_stream())
    flush()
    before = API.memory_allocated()
    copied(side, pinned)  # dropped at once: its memory stays that stream's, so no other tensor takes its address
    assert API.memory_allocated() > before
    API.current_stream().wait_stream(side)
    assert API.memory_allocated() == before


@check
def strictness() -> None:
    from emulator.record import ContractError

    name = "empty_cache" if KIND == "hpu" else "get_device_name"
    raises(ContractError, "not in the contract", lambda: getattr(API, name))
    raises(ContractError, "not in the contract", lambda: getattr(API, name, None))
    if KIND == "hpu":
        import habana_frameworks.torch.hpex.optimizers as fused

        raises(ContractError, "FusedAdam", lambda: fused.FusedAdam)
        raises(ContractError, "takes no argument foo", lambda: fused.FusedSGD([torch.ones(1)], lr=1, foo=1))
        raises(RuntimeError, "float64", lambda: torch.ones(1, dtype=torch.float64, device="hpu"))
    else:
        from torch_mlu.optimizers import FusedSGD

        fused = FusedSGD(nn.Linear(2, 2).to(KIND).parameters(), lr=1)
        raises(ContractError, "zero_grad takes no argument", lambda: fused.zero_grad(set_to_none=True))
        raises(ContractError, "benchmark", lambda: torch.backends.cnnl.benchmark)
        raises(ContractError, "not in the contract", lambda: setattr(torch.backends.mlu, "allow_tf32", False))
    data = torch.utils.data.DataLoader([1, 2], num_workers=1, multiprocessing_context="fork")
    raises(ContractError, "forked", lambda: list(data))


@check
def fork() -> None:
    kept = torch.ones(2, device=KIND)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        said = []
        for call in (lambda: torch.ones(2, device=KIND), lambda: kept + 1, lambda: API.synchronize()):
            try:
                call()
                said.append("worked")
            except RuntimeError as error:
                said.append(str(error))
        os.write(writing, json.dumps(said).encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as stream:
        said = json.load(stream)
    os.waitpid(child, 0)
    assert all(f"Cannot re-initialize {KIND.upper()} in forked subprocess" in text for text in said), said
    assert kept.tolist() == [1, 1]


if __name__ == "__main__":
    failed = {}
    for name, function in CHECKS.items():
        try:
            function()
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error} {error.__cause__ or ''}"
    print(json.dumps({"checks": list(CHECKS), "failed": failed}))
