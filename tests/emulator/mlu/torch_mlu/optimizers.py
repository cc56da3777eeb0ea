"""Stand-in for the fused optimisers, with the signatures of apex."""

from typing import Any as _Any

import torch as _torch
from emulator.device import no_more as _no_more
from emulator.device import strict as _strict
from emulator.optimizers import Adam as _Adam
from emulator.optimizers import Lamb as _Lamb
from emulator.optimizers import check_weights as _check_weights


class _Zeroed:
    """Gradients are set to None, and nothing can be asked for."""

    def zero_grad(self, **other: _Any) -> None:
        _no_more(f"{type(self).__name__}.zero_grad", other)
        super().zero_grad()  # type: ignore[misc]


class FusedAdam(_Zeroed, _Adam):
    """AdamW, or Adam where not `adam_w_mode`."""

    def __init__(
        self,
        params: _Any,
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        adam_w_mode: bool = True,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        **other: _Any,
    ) -> None:
        _no_more("FusedAdam", other)
        if amsgrad:
            raise RuntimeError("FusedAdam does not support the AMSGrad variant.")
        how = {"lr": lr, "bias_correction": bias_correction, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**how, "adam_w_mode": adam_w_mode})
        _check_weights(self)


class FusedSGD(_Zeroed, _torch.optim.SGD):
    """SGD with momentum."""

    def __init__(
        self,
        params: _Any,
        lr: float,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        **other: _Any,
    ) -> None:
        _no_more("FusedSGD", other)
        super().__init__(params, lr, momentum, dampening, weight_decay, nesterov)
        _check_weights(self)


class FusedLAMB(_Zeroed, _Lamb):
    """LAMB."""

    def __init__(
        self,
        params: _Any,
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        max_grad_norm: float = 1.0,
        **other: _Any,
    ) -> None:
        _no_more("FusedLAMB", other)
        how = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "max_grad_norm": max_grad_norm}
        super().__init__(params, {**how, "bias_correction": bias_correction})
        _check_weights(self)


__getattr__ = _strict(__name__, "Cambricon")
