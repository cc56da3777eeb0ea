"""Clips gradients and skips steps by their norm, without reading from the device in a step.

The parameter groups of one `part` share a norm, and are clipped by themselves; groups without a part are taken
together. Source of parts and skipping: 3d_very_deep_vae, after Child (ICLR 2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from unet.config.flags_training import TrainOptions
from unet.devices.base import Device
from unet.errors import UnetError
from unet.runtime.progress import advice

ALL = "all"


class Gradients:
    """Clips and steps. `names`: of the parts, in order; `skipped`: steps that were not taken, as far as they are read.

    A step is skipped where the norm of a part is not finite, or not below --skip-norm, which in the first
    --skip-warmup - 1 steps of a run is not looked at. `advice` gives the hint of an error, with a change of settings.
    """

    def __init__(
        self,
        train: TrainOptions,
        optimizer: torch.optim.Optimizer,
        device: Device,
        advice: Callable[[str], str] = advice,
    ) -> None:
        self.train, self.optimizer, self.device, self.advice = train, optimizer, device, advice
        self.parts: dict[str, list[nn.Parameter]] = {}
        for group in optimizer.param_groups:
            self.parts.setdefault(group.get("part", ALL), []).extend(group["params"])
        self.pending: list[Tensor] = []  # of each step since the last read: norms, then the skips in a row
        self.row: Tensor | None = None
        self.skipped = 0

    @property
    def names(self) -> list[str]:
        return list(self.parts)

    @property
    def reported(self) -> bool:
        """Whether norms are measured."""
        return self.train.clip is not None or self.train.skip_norm is not None

    def prepare(self, loss: Tensor) -> Tensor:
        """The loss to differentiate. Where steps are skipped, one that is not finite gives gradients of NaN, on all
        ranks, so that all skip the step."""
        if self.train.skip_norm is None:
            return loss
        return loss * torch.where(loss.detach().isfinite(), 1.0, math.nan)

    def step(self, scaler: torch.amp.GradScaler, number: int) -> None:
        """Clip, and take optimiser step `number` (from 0) or skip it; then the gradients are zero."""
        if self.reported:
            scaler.unscale_(self.optimizer)
            norms = self._clip()
            if self.train.skip_norm is None:
                self.pending.append(torch.cat((norms, norms.new_zeros(1))))
                scaler.step(self.optimizer)
            else:
                warm = number + 1 < self.train.skip_warmup
                taken = (norms < (math.inf if warm else self.train.skip_norm)).all()
                row = norms.new_zeros(()) if self.row is None else self.row
                self.row = torch.where(taken, torch.zeros_like(row), row + 1)
                self.pending.append(torch.cat((norms, self.row[None])))
                self.device.step_if(taken, self.optimizer, lambda: scaler.step(self.optimizer))
        else:
            scaler.step(self.optimizer)
        scaler.update()
        self.optimizer.zero_grad()

    def _clip(self) -> Tensor:
        """The norm of each part before clipping."""
        most = math.inf if self.train.clip is None else self.train.clip
        return torch.stack([nn.utils.clip_grad_norm_(params, most) for params in self.parts.values()]).float()

    def read(self, rows: list[list[float]], step: int) -> list[dict[str, float]]:
        """Take what was read of `pending`, up to step `step`. Gives the norms of each step by name. Raises UnetError
        after --skip-limit skipped steps in a row."""
        self.pending.clear()
        self.skipped += sum(row[-1] > 0 for row in rows)
        worst = max(rows, key=lambda row: row[-1], default=[0.0])
        if worst[-1] >= self.train.skip_limit:
            shown = ", ".join(f"{name} {norm:.3g}" for name, norm in zip(self.names, worst, strict=False))
            raise UnetError(
                f"{int(worst[-1])} steps in a row up to step {step} were skipped: the norm of the gradients ({shown})"
                f" is not finite or not below --skip-norm {self.train.skip_norm:g}.",
                self.advice("a lower --lr, a lower --clip or --precision fp32"),
            )
        labels = [f"gradient_norm_{name}" if name != ALL else "gradient_norm" for name in self.names]
        return [dict(zip(labels, row, strict=False)) for row in rows]
