"""NVIDIA cards through torch.cuda: channels last, fused optimisers, pinned prefetch; no TF32 with --precision fp32."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet import host
from unet.config.flags import DeviceOptions
from unet.devices.accelerator import Accelerator
from unet.devices.base import USUAL, Workload
from unet.devices.refusals import C
from unet.errors import DeviceError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from unet.devices.launchers import Rank

PEAKS = {  # FLOP/s in bf16 and fp16, dense; a longer name comes before the shorter one that it begins with
    "H200 NVL": 835e12,
    "H200": 989e12,
    "GH200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H20": 148e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 150e12,
    "A30": 165e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
}
SLICE = re.compile(r"\bMIG (?:(\d)c\.)?(\d)g\.")  # "MIG 3g.40gb"; "MIG 1c.3g.40gb" has one of the three for itself


class CUDA(Accelerator):
    """One NVIDIA card."""

    name = "cuda"
    has_tf32 = graphs = numbered = converts = pins = numbers = True
    compilers = (C,)
    collective = "nccl"
    visible = "CUDA_VISIBLE_DEVICES"
    onnx_provider = "CUDAExecutionProvider"
    onnx_options: Mapping[str, str] = {"use_tf32": "0"}  # onnxruntime's own default is 1
    fused = ("adam", "adamw", "sgd")
    forced = Accelerator.forced | {"CUDA_VISIBLE_DEVICES"}

    def __init__(self, options: DeviceOptions, rank: Rank, workload: Workload = USUAL) -> None:
        import torch

        super().__init__(options, rank, workload)
        self.exact(self.dtype == torch.float32 and options.precision != "tf32")
        torch.backends.cudnn.benchmark = options.cudnn_benchmark and not options.deterministic

    @classmethod
    def environment(cls, options: DeviceOptions, rank: Rank, workload: Workload = USUAL) -> dict[str, str]:
        result = super().environment(options, rank, workload)
        if options.deterministic:
            result["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        if rank.one_node and rank.world > 1:
            result["NCCL_SOCKET_IFNAME"] = "lo"  # its own choice is an interface that others reach
        if options.cuda_devices:
            result["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, options.cuda_devices))
        return result

    @classmethod
    def missing(cls, options: DeviceOptions) -> str | None:
        if not any(Path(name).exists() for name in ("/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/dxg")):
            return "no NVIDIA driver is loaded; install it, or start the container with the cards in it."
        import torch

        if torch.version.cuda is None:
            return f"this torch ({torch.__version__}) is built without CUDA; install the CUDA build."
        if not torch.cuda.is_available():
            return "torch.cuda.is_available() is false; compare the driver's version with torch.version.cuda."
        return None

    @classmethod
    def exact(cls, on: bool) -> None:
        import torch

        torch.backends.cuda.matmul.allow_tf32 = not on
        torch.backends.cudnn.allow_tf32 = not on

    def require(self, options: DeviceOptions) -> None:
        super().require(options)
        batches = self.workload.accumulate
        if options.capture == "on" and batches > 1:  # so does the compiler: each run of a graph has the same memory
            raise DeviceError(
                f"--capture with --accumulate {batches}: a recorded graph overwrites the gradients of the last batch.",
                "Leave out --capture, or type --accumulate 1 with a larger --batch-size.",
            )

    def describe(self) -> str:
        import torch

        return f"cuda, {torch.cuda.get_device_name(self.device)}, CUDA {torch.version.cuda}"

    def dtypes(self) -> tuple[str, ...]:
        import torch

        return ("bf16", "fp16") if torch.cuda.get_device_capability() >= (8, 0) else ("fp16",)

    def generator(self, seed: int) -> torch.Generator:
        """On the card, unless the run is to have the same bits on every device."""
        import torch

        if self.options.deterministic:
            return super().generator(seed)
        return torch.Generator(self.device).manual_seed(seed)

    def deterministic(self, on: bool) -> None:
        import torch

        super().deterministic(on)
        torch.backends.cudnn.deterministic = on

    def channels_last(self) -> bool:
        import torch

        return super().channels_last() or (self.options.layout == "auto" and self.dtype != torch.float32)

    def place(self, module: nn.Module) -> nn.Module:
        import torch

        volumes = any(parameter.ndim == 5 for parameter in module.parameters())
        versions = torch.__version__, torch.backends.cudnn.version()
        if volumes and self.dtype != torch.float32 and (words := cudnn_fault(*versions, self.dtype == torch.bfloat16)):
            host.notice_once(words)
        return super().place(module)

    def optimize(self, module: nn.Module) -> nn.Module:
        """Norm and activation, and the loss, in Triton where it is installed. Else, of volumes in channels-last order,
        a norm that makes no copies in the other one. With --kernels plain the network as it is."""
        from unet.kernels import select
        from unet.kernels.cards import forms

        plain = self.options.kernels == "plain"
        whole = forms.install(self.torch_type(), not plain)
        return select.optimize_norms(module, whole) if whole or (self.channels_last() and not plain) else module

    def compile(self, module: nn.Module) -> nn.Module:
        import torch

        how = {"mode": "reduce-overhead"} if self.options.capture == "on" else {}
        compiled: nn.Module = torch.compile(module, dynamic=False, **how)  # type: ignore[call-overload]
        return compiled

    def capture(self, module: nn.Module, training: bool = True) -> nn.Module:
        """CUDA graphs by torch's own recorder; with --compile the compiler records them (`reduce-overhead`)."""
        import torch

        if self.options.capture != "on" or self.compiled():
            return module
        captured: nn.Module = torch.compile(module, backend="cudagraphs", dynamic=False)  # type: ignore[assignment]
        return captured

    def loader_options(self) -> dict[str, Any]:
        return super().loader_options() | {"pin_memory": True}  # of CUDA, which torch takes for granted

    def check(self) -> list[str]:
        """Whether Triton's kernels are right on this card, in the fastest precision."""
        import torch

        from unet.kernels.cards import forms

        return forms.tried(self.device, self.dtype if self.dtype != torch.float32 else self._dtype("auto"))

    def peak_flops(self) -> float | None:
        """Dense tensor-core peak in half precision, by the card's name; half of it for TF32."""
        import torch

        known = peak_of(torch.cuda.get_device_name(self.device))
        if known is None or (self.dtype == torch.float32 and self.options.precision != "tf32"):
            return None
        return known / 2 if self.dtype == torch.float32 else known

    def is_out_of_memory(self, error: BaseException) -> bool:
        import torch

        return super().is_out_of_memory(error) or isinstance(error, torch.cuda.OutOfMemoryError)

    def card_name(self) -> str:
        """Its UUID: the order of the driver's tool may be another than CUDA's. Of a slice (MIG) what the variable
        lists: torch may know the whole card's."""
        import torch

        named = super().card_name()
        own = getattr(torch.cuda.get_device_properties(self.device), "uuid", None)
        return f"GPU-{own}" if own and not named.startswith("MIG-") else named

    def identity(self) -> str:
        named = self.card_name()
        return named if named.startswith(("GPU-", "MIG-")) else super().identity()

    def power(self, interval: float = 0.2) -> float | None:
        import torch

        if SLICE.search(torch.cuda.get_device_name(self.device)):
            host.notice_once("No watts: nvidia-smi gives none for a slice of a card (MIG).")
            return None
        return super().power(interval)

    def power_sources(self, cards: list[str]) -> list[Any]:
        import torch

        if not SLICE.search(torch.cuda.get_device_name(self.device)):
            return super().power_sources(cards)
        from unet.devices.power import sources

        why = "a slice of a card (MIG) has no watts of its own"
        return [sources.Absent(self.name, why), sources.Counters()]


def peak_of(name: str) -> float | None:
    """FLOP/s of a card in bf16 and fp16 (dense), by its name; of a slice (MIG) its share. None for a card that is not
    known. Sources: NVIDIA's data sheets; its MIG user guide (a card has 7 slices, an A30 4)."""
    card, peak = next(((card, peak) for card, peak in PEAKS.items() if re.search(rf"\b{card}\b", name)), ("", None))
    if peak is None or not (slices := SLICE.search(name)):
        return peak
    return peak * int(slices[1] or slices[2]) / (4 if card == "A30" else 7)


def cudnn_fault(torch_version: str, cudnn: int | None, bf16: bool) -> str | None:
    """What is known to be wrong with 3D convolutions in bf16 and fp16 in these versions (cuDNN 9.15.0 is 91500); None
    if nothing is. Sources: PyTorch's issues 166122, 166643 and 163539."""
    if cudnn is None or not ((90800 <= cudnn < 91100 and bf16) or (torch_version.startswith("2.9.") and cudnn < 91500)):
        return None
    wrong = "may give wrong results" if 90800 <= cudnn < 91100 else "is slow"
    found = f"{cudnn // 10000}.{cudnn // 100 % 100}"
    return (
        f"warning: cuDNN {found} with torch {torch_version} {wrong} in 3D convolutions of {'bf16' if bf16 else 'fp16'}."
        " Type: pip install 'nvidia-cudnn-cu12>=9.15', or --precision fp32."
    )
