"""What a task is handed: the predictor that runs networks over a case, and what loss and scores need of a device. No
torch at import."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from unet.windows import Plan


class Predictor(Protocol):
    """Runs trained networks over the input of a case, without gradients. Each method returns the mean over the networks
    of their outputs, or of `transform(output)`; `average`: how that mean is taken."""

    def slices(
        self,
        images: Tensor,
        transform: Callable[[Tensor], Any] | None = None,
        mirror: bool = False,
        average: Callable[[list[Any]], Any] | None = None,
    ) -> Any:
        """(N, C, H, W) -> (N, K, H', W') on the host; `mirror`: the mean with the mirrored images."""

    def tiles(
        self,
        images: Tensor,
        side: int,
        output: int,
        period: int,
        transform: Callable[[Tensor], Any] | None = None,
        average: Callable[[list[Any]], Any] | None = None,
    ) -> Any:
        """Images with their context (N, C, H + side - output, W + side - output) -> (N, K, H, W) on the host, through a
        network of valid convolutions that maps `side` to `output` pixels; `period`: pixels of its pooling grid."""

    def windows(
        self,
        volume: Any,
        plan: Plan,
        blend: str = "gaussian",
        mirror: bool = False,
        pad_value: float = 0.0,
    ) -> Any:
        """(C, D, H, W) array or tensor -> mean logits (K, d, h, w) of the part that the plan looks at, on the device
        where its memory allows."""

    def slabs(
        self,
        volume: Any,
        plan: Plan,
        blend: str = "gaussian",
        mirror: bool = False,
        pad_value: float = 0.0,
    ) -> Iterator[Tensor]:
        """As `windows`, in slabs (K, d, h, w) on the host along D, one after another: for many classes."""

    def each(self, work: Callable[[nn.Module, Callable[[Tensor], Tensor]], Sequence[Tensor]]) -> list[list[Tensor]]:
        """`work(network, put)` of each network: tensors, given back as float32 on the host; `put` moves a tensor to
        the device."""


class Compute(Protocol):
    """What loss and scores need of a device. `chunk`: voxels to work on at a time."""

    chunk: int = 2**24

    def flush(self) -> None:
        """A graph boundary, on devices that record graphs."""
        return

    def full_precision(self) -> contextlib.AbstractContextManager[Any]:
        """Within autocast, the context of arithmetic in the tensors' own types."""
        return contextlib.nullcontext()

    def generator(self, seed: int) -> torch.Generator:
        """A random generator with this seed, where the device draws."""
        import torch

        return torch.Generator().manual_seed(seed)


class NoDevice(Compute):
    """Before a command has chosen the device."""
