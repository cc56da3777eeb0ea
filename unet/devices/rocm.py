"""AMD cards through ROCm's build of torch, which answers under the names of NVIDIA's: the same class but for a few
things.
"""

from __future__ import annotations

from unet.config.flags import DeviceOptions
from unet.devices.accelerator import Accelerator
from unet.devices.base import USUAL, Device, Workload, listed
from unet.devices.cuda import CUDA
from unet.devices.launchers import Rank


class ROCm(CUDA):
    """One AMD card. Several processes talk over RCCL, which torch calls nccl."""

    name, torch_name = "rocm", "cuda"
    has_tf32 = False
    visible, visible_too = "HIP_VISIBLE_DEVICES", ("CUDA_VISIBLE_DEVICES",)
    outside = ("ROCR_VISIBLE_DEVICES",)
    onnx_provider, onnx_options = "MIGraphXExecutionProvider", Device.onnx_options
    forced = CUDA.forced | {"HIP_VISIBLE_DEVICES"}
    library = "hip"
    absent = "this torch is built without ROCm; install the ROCm build (https://pytorch.org/get-started)."
    unloadable = "the ROCm libraries of that build must be there."
    silent = "no AMD card answers; compare rocm-smi, and start the container with /dev/kfd and /dev/dri."

    @classmethod
    def environment(cls, options: DeviceOptions, rank: Rank, workload: Workload = USUAL) -> dict[str, str]:
        result = super().environment(options, rank, workload)
        if options.cuda_devices:  # torch refuses two lists that differ
            result["HIP_VISIBLE_DEVICES"] = result["CUDA_VISIBLE_DEVICES"]
        return result

    @classmethod
    def missing(cls, options: DeviceOptions) -> str | None:
        return super(CUDA, cls).missing(options)

    def describe(self) -> str:
        import torch

        return f"rocm, {torch.cuda.get_device_name(self.device)}, ROCm {torch.version.hip}"

    def channels_last(self) -> bool:
        """Only where it is typed: MIOpen's convolutions copy to channels first."""
        return Device.channels_last(self)

    place = Device.place  # cuDNN is NVIDIA's

    def peak_flops(self) -> float | None:
        return None

    def card_name(self) -> str:
        """As the vendor's program, which reads no variable, counts: the lists of HIP and CUDA count the cards that
        ROCr's list leaves."""
        named, shown = Accelerator.card_name(self), listed(self.outside[0])
        return shown[int(named)] if named.isdecimal() and int(named) < len(shown) else named
