"""What other programs need and give: the words that go with an exported network, weights in and out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unet.data.preprocessing import intensity
from unet.tasks.kits19.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor, nn


def described(settings: Settings, pad_value: float) -> dict[str, Any]:
    """What another program must know to run the network on a CT scan."""
    spacing, window = list(settings.spacing), list(settings.eval_patch)
    return {
        "channels": ["CT"],
        "classes": ["background", "kidney", "tumour"],
        "label_values": [0, 1, 2],
        "spacing": spacing,
        "window": window,
        "overlap": settings.overlap,
        "blend": settings.blend,
        "mirror": settings.mirror,
        "pad_value": pad_value,
        "pad_to": list(settings.pad_to),
        "activation": "softmax",
        "normalization": {
            "clip": [intensity.LOW, intensity.HIGH],
            "subtract": intensity.MEAN,
            "divide": intensity.DEVIATION,
        },
        "preprocessing": [
            "voxels in Hounsfield units as (slices, rows, columns), slices from head to foot, rows to the back,"
            " columns to the left",
            f"linear interpolation to voxels of {' x '.join(f'{mm:g}' for mm in spacing)} mm",
            f"clip to {intensity.LOW:g} to {intensity.HIGH:g}, subtract {intensity.MEAN:g}, divide by"
            f" {intensity.DEVIATION:g}",
            f"pad evenly to {' x '.join(map(str, settings.pad_to))} at least",
        ],
        "postprocessing": [
            "logits of overlapping windows are averaged with their weights (see blend)",
            "linear interpolation of the logits back to the scan's own grid",
            "the class with the largest logit",
        ],
    }


def converted(state: Mapping[str, Any], activation: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """The network of MLPerf's weights, or of this program's, and the weights under its keys. Raises CheckpointError."""
    from unet.models import convert
    from unet.models.unet import UNet

    bare = convert.strip_prefixes(state)
    own = convert.from_mlperf(bare) if convert.is_mlperf(bare) else bare
    return UNet(convert.shape_of(own, "kits19", activation=activation, down="stride")), own


def reference(state: Mapping[str, Tensor], encoder: str) -> dict[str, Any]:
    """A checkpoint as MLPerf's U-Net3D saves and loads it; of nnU-Net's network, pretrained weights as that one takes
    them."""
    from unet.models.convert import to_mlperf, to_nnunet

    if encoder != "reference":
        return {"network_weights": to_nnunet(state)}
    theirs = to_mlperf(state)
    return {"epoch": 0, "best_model_state_dict": theirs, "last_model_state_dict": theirs}
