"""What another program must know to run an exported network on a user's images, and the weights as nnU-Net names them.
No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unet.data.io.nifti_header import times

if TYPE_CHECKING:
    from torch import Tensor, nn

    from unet.tasks.folder.task import Folder

KINDS = {
    "zscore": "subtract the mean of the image and divide by its deviation",
    "ct": "clip to lowest and highest, subtract the mean, divide by the deviation (see normalization)",
    "rescale": "to 0 to 1: whole numbers by the range of their type, others by the image's own",
    "none": "as it is",
}


def described(task: Folder) -> dict[str, Any]:
    """See `SegmentationTask.deployment`."""
    own = task.settings
    task.require_planned()
    names = ("lowest", "highest", "mean", "deviation")
    channels = []
    for number, channel in enumerate(own.channels):
        kind = own.normalize[number] if own.normalize else "zscore"
        values = own.intensities[4 * number : 4 * number + 4] if kind == "ct" else ()
        channels.append({"channel": channel, "kind": kind, **dict(zip(names, values, strict=False))})
    used = list(dict.fromkeys(own.normalize or ("zscore",)))
    return {
        "channels": list(own.channels),
        "classes": list(own.classes),
        "label_values": list(own.label_values),
        "spacing": list(own.spacing),
        "orientation": own.orientation,
        "window": list(own.patch),
        "overlap": own.overlap,
        "blend": own.blend,
        "mirror": own.mirror,
        "pad_value": 0.0,
        "activation": "softmax",
        "normalization": channels,
        "preprocessing": [
            f"turn the volume so that slices, rows and columns go towards {own.orientation or 'as stored'}",
            *(["cut away the border where every channel is 0"] if own.crop_background else []),
            *(f"{kind}: {KINDS[kind]}" for kind in used),
            f"interpolate to voxels of {times(own.spacing)} mm",
        ],
        "postprocessing": [
            "logits of overlapping windows are averaged with their weights (see blend)",
            "linear interpolation of the logits back to the image's own grid",
            "the class with the largest logit, written as its label value",
        ],
    }


def reference_checkpoint(task: Folder, state: Mapping[str, Tensor], published: bool) -> dict[str, Any]:
    """What nnU-Net takes as pretrained weights."""
    from unet.models import convert

    return {"network_weights": convert.to_nnunet(state)}


def converted(task: Folder, state: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Tensor]]:
    """See `Task.convert_checkpoint`: weights of this program, or of nnU-Net's network."""
    from unet.models import convert
    from unet.models.planned_unet import PlannedUNet

    own = convert.strip_prefixes(state)
    if not convert.is_nnunet(own):
        return task.build_model(), own
    own = convert.from_nnunet(own)
    return PlannedUNet(convert.planned_shape_of(own)), own
