"""Running a trained network over a case: fixed batches, the last one padded, no gradients, results on the host."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unet.devices.base import Device


@torch.no_grad()
def slices(volume: Tensor, network: nn.Module, device: Device, batch: int) -> Tensor:
    """(S, C, H, W) on the host -> the network's output (S, K, H, W) on the host.

    Every forward pass has the same shape: the last group repeats its last slice, so that devices which compile for a
    shape do it once. `network` is put in evaluation mode and back.
    """
    was_training = network.training
    network.eval()
    parts = []
    try:
        for first in range(0, len(volume), batch):
            group = volume[first : first + batch]
            count = len(group)
            if count < batch and (device.static_shapes or len(volume) > batch):
                group = torch.cat((group, group[-1:].expand(batch - count, *group.shape[1:])))
            device.flush()
            with device.autocast():
                output = network(device.to({"image": group})["image"])
            device.flush()
            parts.append(output[:count].float().cpu())
    finally:
        network.train(was_training)
    return torch.cat(parts)
