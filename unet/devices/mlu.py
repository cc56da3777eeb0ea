"""Cambricon MLU through torch_mlu: true fp32 (TF32, its default, is turned off), fp16 with loss scaling, bf16 if the
card has it, fused optimisers.

Written against torch_mlu for torch 2.4.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from unet.config.flags import DeviceOptions
from unet.devices.accelerator import Accelerator
from unet.devices.base import USUAL, Workload

if TYPE_CHECKING:
    import torch

    from unet.devices.launchers import Rank


class MLU(Accelerator):
    """One MLU card."""

    name = "mlu"
    has_tf32 = pins = True
    collective = "cncl"
    visible, visible_too = "MLU_VISIBLE_DEVICES", ("CN_VISIBLE_DEVICES",)
    outside = ("CUDA_VISIBLE_DEVICES",)  # read where neither of these is set
    vendor = "torch_mlu"
    compiles = False
    absent = "torch_mlu is not installed; start Cambricon's PyTorch container, which has it."
    unloadable = "the Neuware libraries must be installed."
    silent = "no MLU card answers; compare cnmon, and start the container with the cards in it."

    def __init__(self, options: DeviceOptions, rank: Rank, workload: Workload = USUAL) -> None:
        import torch

        super().__init__(options, rank, workload)
        self.exact(self.dtype == torch.float32 and options.precision != "tf32")

    @classmethod
    def environment(cls, options: DeviceOptions, rank: Rank, workload: Workload = USUAL) -> dict[str, str]:
        # the count of cards is asked through the driver's tool, which leaves the process able to fork
        return super().environment(options, rank, workload) | {"PYTORCH_CNDEV_BASED_MLU_CHECK": "1"}

    @classmethod
    def listing(cls) -> str:
        return next((name for name in (super().listing(), *cls.outside) if os.environ.get(name)), cls.visible)

    @classmethod
    def exact(cls, on: bool) -> None:
        import torch

        torch.backends.cnnl.allow_tf32 = not on  # type: ignore[attr-defined]
        torch.backends.mlu.matmul.allow_tf32 = not on  # type: ignore[attr-defined]

    def describe(self) -> str:
        import torch

        tf32 = "on" if torch.backends.cnnl.allow_tf32 else "off"  # type: ignore[attr-defined]
        return f"mlu, card {self.device.index} of {self._api.device_count()}, TF32 {tf32}"

    def seed(self, number: int) -> None:
        super().seed(number)
        self._api.manual_seed_all(number)

    def optimizer(self, name: str, groups: list[dict[str, Any]], **how: Any) -> torch.optim.Optimizer | None:
        """The fused Adam family (coupled L2 for adam, decoupled for adamw) and SGD."""
        if name not in ("adam", "adamw", "sgd"):
            return None
        fused = importlib.import_module("torch_mlu.optimizers")
        made: torch.optim.Optimizer = (
            fused.FusedSGD(groups, **how)
            if name == "sgd"
            else fused.FusedAdam(groups, adam_w_mode=name == "adamw", **how)
        )
        return made
