"""Other programs' networks and training steps, on the same batch: MONAI's and nnU-Net's, each as its own authors write
them, in a network of the same shape as ours. What cannot be the same is said."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple

from unet.benchmarks import limit
from unet.benchmarks.steps import Loop, chosen
from unet.commands import setup
from unet.config.schema import Config
from unet.errors import UnetError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from unet.models.unet import UNetShape
    from unet.tasks.base import Task

PACKAGES = {"monai": ("monai",), "nnunet": ("nnunetv2", "dynamic_network_architectures")}
CLIP = 12.0  # nnU-Net's bound of the norm of the gradients


class Peer(NamedTuple):
    """A network in words, what builds it, its loss of (logits, labels), what makes its optimiser, in words what it is;
    `differences` from our network."""

    name: str
    build: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: Callable[[Any], torch.optim.Optimizer]
    step: str
    differences: tuple[str, ...] = ()


def require(name: str, config: Config) -> None:
    """Raise UnetError where the packages of a peer are not installed."""
    missing = [package for package in PACKAGES.get(name, ()) if importlib.util.find_spec(package) is None]
    if missing:
        raise UnetError(
            f"--against {name}: the package {missing[0]} is not installed.",
            "Type: pip install 'unet-accelerators[peers]', or leave it out of --against.",
        )


def require_network(name: str, task: Task) -> None:
    """Raise UsageError where a peer has no network like that of the task."""
    if name in PACKAGES:
        shape_of(name, task)


def shape_of(name: str, task: Task) -> UNetShape:
    """The shape of the task's U-Net. Raises UsageError for another network."""
    import torch

    from unet.models.unet import UNet

    with torch.device("meta"):
        model = task.build_model()
    if not isinstance(model, UNet):
        raise UsageError(
            f"--against {name}: it has no network like that of the task {task.name} ({type(model).__name__}).",
            "Type --against plain.",
        )
    return model.shape


class PeerLoop(Loop):
    """A peer's training step: its network, loss and optimiser, channels first, in the precision of the run (`precision`
    as torch names it) by autocast, eager, with the loss scaler of fp16; the batch is moved to the device each time."""

    def __init__(self, config: Config, batch: Mapping[str, Any], name: str, precision: str) -> None:
        kind = chosen(config.replace(use_lazy_mode=False))  # its authors mark no steps
        import torch

        self.task, self.name = setup.create(config), name
        self.shape = shape_of(name, self.task)
        self.peer = (monai if name == "monai" else nnunet)(self.shape)
        self.place, self.dtype = kind.torch_type(), getattr(torch, precision)
        kind.exact(self.dtype == torch.float32 and config.device.precision != "tf32")  # as our step
        self.model = self.peer.build().to(self.place)
        self.optimizer = self.peer.optimizer(self.model.parameters())
        self.scaler = torch.amp.GradScaler(self.place, enabled=self.dtype == torch.float16)
        self.image, self.mask = (torch.from_numpy(batch[key]).contiguous() for key in ("image", "mask"))
        self.memory = kind.peak_memory

    def step(self) -> Any:
        import torch

        image, mask = (value.to(self.place, non_blocking=True) for value in (self.image, self.mask))
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.place, self.dtype, enabled=self.dtype != torch.float32):
            loss = self.peer.loss(self.logits(image, mask), mask)
        self.scaler.scale(loss).backward()
        if self.name == "nnunet":
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def logits(self, image: Tensor, mask: Tensor) -> Tensor:
        """The output in the size of the masks: cropped where the network keeps the size of a larger image."""
        from unet.models.layers import crop

        output: Tensor = self.model(fitted(image, self.shape))
        return crop(output, mask.shape[2:])

    def facts(self) -> dict[str, Any]:
        """The network beside ours: parameters, FLOP an item, output of an item, differences in words."""
        import torch

        shape = self.task.input_shape()
        ours, output = limit.flops(self.task.build_model, shape)
        padded = tuple(fitted(torch.empty(shape, device="meta"), self.shape).shape)
        theirs, own_output = limit.flops(self.peer.build, padded)
        with torch.device("meta"):
            own = parameters(self.task.build_model())
        differences = list(self.peer.differences)
        if self.shape.padding != "same":
            size = " x ".join(map(str, padded[2:]))
            differences.append(f"convolutions keep the size: the input is padded to {size}, the output cropped")
        return {
            "version": metadata.version(PACKAGES[self.name][0]),
            "network": self.peer.name,
            "step": self.peer.step,
            "parameters": parameters(self.model),
            "parameters_ours": own,
            "flops_per_item": theirs,
            "flops_per_item_ours": ours,
            "output_shape": list(own_output[1:]),
            "output_shape_ours": list(output[1:]),
            "differences": differences,
        }


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def fitted(image: Tensor, shape: UNetShape) -> Tensor:
    """An image whose sides the levels of a network that keeps sizes divide: padded with zeros where ours need not."""
    from torch.nn import functional as F

    step = 2 ** len(shape.features)
    around = [(-side % step) for side in image.shape[2:]]
    pads = [pad for extra in reversed(around) for pad in (extra // 2, extra - extra // 2)]
    return F.pad(image, pads) if any(pads) else image


def resampling(shape: UNetShape) -> tuple[str, ...]:
    """The differences of a network that goes down by strided convolutions, and up by kernel 2."""
    down = () if shape.down == "stride" else ("strided convolutions in place of max pooling",)
    return down if shape.up_kernel == 2 else (*down, "transposed convolutions of kernel 2")


def monai(shape: UNetShape) -> Peer:
    """DynUNet with the loss and optimiser of MONAI's tutorials (spleen segmentation, 2D U-Net training)."""
    import torch
    from monai.losses import DiceCELoss, DiceLoss
    from monai.networks.nets import DynUNet

    widths = (*shape.features, shape.bottleneck)
    levels, differences = len(widths), [*resampling(shape)]
    norms: dict[str, Any] = {"batch": "batch", "instance": ("instance", {"affine": True})}
    if shape.norm not in norms:
        differences.append("batch norm, without which it does not exist")
    slope = {"negative_slope": 0.01} if shape.activation == "leaky_relu" else {}
    act = ("leakyrelu" if slope else "relu", {"inplace": True, **slope})

    def build() -> nn.Module:
        made: nn.Module = DynUNet(
            *(shape.dims, shape.inputs, shape.outputs, [3] * levels, [1] + [2] * (levels - 1)),
            [2] * (levels - 1),
            filters=list(widths),
            norm_name=norms.get(shape.norm, "batch"),
            act_name=act,
            trans_bias=True,
        )
        return made

    one = shape.outputs == 1
    return Peer(
        "DynUNet",
        build,
        DiceLoss(sigmoid=True) if one else DiceCELoss(to_onehot_y=True, softmax=True),
        lambda weights: torch.optim.Adam(weights, 1e-4, weight_decay=1e-5, amsgrad=True),
        f"{'DiceLoss' if one else 'DiceCELoss'}, Adam with amsgrad",
        tuple(differences),
    )


def nnunet(shape: UNetShape) -> Peer:
    """PlainConvUNet with the loss and optimiser of nnU-Net's trainer without deep supervision."""
    import torch
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
    from torch import nn

    widths, dims, bare = (*shape.features, shape.bottleneck), shape.dims, shape.norm == "none"
    levels = len(widths)
    norms = {"batch": (nn.BatchNorm2d, nn.BatchNorm3d), "instance": (nn.InstanceNorm2d, nn.InstanceNorm3d)}
    leaky = shape.activation == "leaky_relu"

    def build() -> nn.Module:
        made: nn.Module = PlainConvUNet(
            *(shape.inputs, levels, list(widths), (nn.Conv2d, nn.Conv3d)[dims - 2], 3, [1] + [2] * (levels - 1)),
            *(2, shape.outputs, 2),
            conv_bias=bare,
            norm_op=None if bare else norms[shape.norm][dims - 2],
            norm_op_kwargs={"affine": True},
            nonlin=nn.LeakyReLU if leaky else nn.ReLU,
            nonlin_kwargs={"inplace": True},
            deep_supervision=False,
        )
        return made

    dice = {"batch_dice": dims == 2, "smooth": 1e-5, "ddp": False}
    if shape.outputs == 1:  # its loss of regions, which are sigmoids
        named = "DC_and_BCE_loss"
        loss = DC_and_BCE_loss({}, dice | {"do_bg": True}, dice_class=MemoryEfficientSoftDiceLoss)
    else:
        named = "DC_and_CE_loss"
        loss = DC_and_CE_loss(dice | {"do_bg": False}, {}, dice_class=MemoryEfficientSoftDiceLoss)
    differences = (
        *resampling(shape),
        "heads at the lower levels, which are not used without deep supervision",
        *(() if bare else ("transposed convolutions without bias",)),
    )
    return Peer(
        "PlainConvUNet",
        build,
        loss,
        lambda weights: torch.optim.SGD(weights, 1e-2, weight_decay=3e-5, momentum=0.99, nesterov=True),
        f"{named}, SGD of momentum 0.99, clipped gradients",
        differences,
    )
