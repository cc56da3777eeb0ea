"""Other projects' checkpoints: their key names, in and out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from unet.errors import CheckpointError
from unet.models.planned_shape import PlannedShape, Stage, Triple
from unet.models.unet import UNetShape

_PREFIXES = re.compile(r"^(?:(?:module|_orig_mod|model|net|network)\.)+")
_PUBLISHED = re.compile(r"^(?:encoder|decoder|enc|dec)\d+\.|^bottleneck\.bottleneck(?:conv|norm)|^upconv\d+\.")
_BLOCK = re.compile(r"^(encoder|enc|decoder|dec)(\d+)\.(?:enc|dec)\d+(conv|norm)([12])\.(.+)$")
_ARGONNE = re.compile(r"^(enc|dec)oder(?=\d)")
_PART = {("conv", "1"): 0, ("norm", "1"): 1, ("conv", "2"): 3, ("norm", "2"): 4}


def strip_prefixes(state: Mapping[str, Any]) -> dict[str, Any]:
    """Keys without `module.` (data-parallel wrappers), `_orig_mod.` (torch.compile), `model.` and the like (Lightning:
    the attribute that holds the network), however nested."""
    return {_PREFIXES.sub("", key): value for key, value in state.items()}


def is_published_lgg(state: Mapping[str, Any]) -> bool:
    """Whether the keys are those of brain-segmentation-pytorch or of the Argonne variant of it."""
    return any(_PUBLISHED.match(key) for key in state)


def from_published_lgg(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys of brain-segmentation-pytorch (`encoder1.enc1conv1.weight`) or of the Argonne variant
    (`enc1.enc1conv1.weight`) -> keys of `models.unet.UNet`. Raises CheckpointError for a key of neither."""
    levels = sum(1 for key in state if re.match(r"^upconv\d+\.weight$", key))
    return {_own_key(key, levels): value for key, value in state.items()}


def _own_key(key: str, levels: int) -> str:
    if match := _BLOCK.match(key):
        side, number, part, index, rest = match.groups()
        position = int(number) - 1 if side.startswith("enc") else levels - int(number)
        return f"{'encoders' if side.startswith('enc') else 'decoders'}.{position}.{_PART[part, index]}.{rest}"
    if match := re.match(r"^bottleneck\.bottleneck(conv|norm)([12])\.(.+)$", key):
        return f"bottleneck.{_PART[match[1], match[2]]}.{match[3]}"
    if match := re.match(r"^upconv(\d+)\.(weight|bias)$", key):
        return f"ups.{levels - int(match[1])}.conv.{match[2]}"
    if match := re.match(r"^conv\.(weight|bias)$", key):
        return f"head.{match[1]}"
    raise CheckpointError(
        f"Key {key!r} belongs to no known network.", "Give weights of the published LGG network or of this program."
    )


def to_published_lgg(state: Mapping[str, Tensor], argonne: bool = False) -> dict[str, Tensor]:
    """Keys of `models.unet.UNet` -> the published form, or that of the Argonne variant, in the published order
    (encoders, bottleneck, ups and decoders). Raises CheckpointError for a network of another kind."""
    levels = _levels(state)
    names = {_own_key(key, levels): key for key in published_keys(levels)}
    if unknown := sorted(set(state) - set(names)):
        raise CheckpointError(
            f"Key {unknown[0]!r} has no name in the published network.", "Give weights of a network with batch norms."
        )
    found = {names[key]: value for key, value in state.items()}
    ordered = {key: found[key] for key in published_keys(levels) if key in found}
    return {_ARGONNE.sub(r"\1", key): value for key, value in ordered.items()} if argonne else ordered


def published_keys(levels: int) -> list[str]:
    """State-dict keys of the published network with `levels` levels, in its order."""

    def block(prefix: str, short: str) -> list[str]:
        return [
            f"{prefix}.{short}{part}{i}.{leaf}"
            for i in (1, 2)
            for part, leaves in (
                ("conv", ("weight",)),
                ("norm", ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
            )
            for leaf in leaves
        ]

    keys = [key for i in range(1, levels + 1) for key in block(f"encoder{i}", f"enc{i}")]
    keys += block("bottleneck", "bottleneck")
    for i in range(levels, 0, -1):
        keys += [f"upconv{i}.weight", f"upconv{i}.bias", *block(f"decoder{i}", f"dec{i}")]
    return [*keys, "conv.weight", "conv.bias"]


_MLPERF = re.compile(r"^(input_block|downsample\.\d+|bottleneck|upsample\.\d+)\.conv([12])\.([01])\.(\w+)$")
_MLPERF_ENDS = re.compile(r"^(?:upsample\.(\d+)\.upsample_conv\.0|output\.conv)\.(weight|bias)$")


def is_mlperf(state: Mapping[str, Any]) -> bool:
    """Whether the keys are those of the U-Net3D of MLPerf Training."""
    return any(_MLPERF.match(key) for key in state)


def from_mlperf(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys of MLPerf Training's U-Net3D (`downsample.0.conv1.0.weight`) -> keys of `models.unet.UNet`. Raises
    CheckpointError for any other key."""
    return {_own_of_mlperf(key): value for key, value in state.items()}


def _own_of_mlperf(key: str) -> str:
    if match := _MLPERF.match(key):
        block, conv, part, leaf = match.groups()
        name, _, level = block.partition(".")
        own = {
            "input_block": "encoders.0",
            "downsample": f"encoders.{int(level or 0) + 1}",
            "bottleneck": "bottleneck",
            "upsample": f"decoders.{level}",
        }[name]
        return f"{own}.{3 * (int(conv) - 1) + int(part)}.{leaf}"
    if match := _MLPERF_ENDS.match(key):
        level, leaf = match.groups()
        return f"head.{leaf}" if level is None else f"ups.{level}.conv.{leaf}"
    raise CheckpointError(
        f"Key {key!r} belongs to no known network.", "Give weights of MLPerf's U-Net3D or of this program."
    )


def to_mlperf(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys of a strided `models.unet.UNet` with a norm -> those of MLPerf Training's U-Net3D, in its order.

    Raises CheckpointError for a network without norms, which the reference does not have.
    """
    levels = _levels(state)
    names = {_own_of_mlperf(key): key for key in mlperf_keys(levels)}
    if unknown := sorted(set(state) - set(names)):
        raise CheckpointError(
            f"Key {unknown[0]!r} has no name in MLPerf's U-Net3D.", "Give weights of a network with instance norms."
        )
    found = {names[key]: value for key, value in state.items()}
    return {key: found[key] for key in mlperf_keys(levels) if key in found}


def mlperf_keys(levels: int) -> list[str]:
    """State-dict keys of the reference with `levels` levels and either norm, in its order."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

    def block(prefix: str) -> list[str]:
        return [
            f"{prefix}.conv{conv}.{part}.{leaf}"
            for conv in (1, 2)
            for part, leaves in (("0", ("weight",)), ("1", norm))
            for leaf in leaves
        ]

    keys = [key for name in ("input_block", *(f"downsample.{i}" for i in range(levels - 1))) for key in block(name)]
    keys += block("bottleneck")
    for i in range(levels):
        keys += [f"upsample.{i}.upsample_conv.0.weight", f"upsample.{i}.upsample_conv.0.bias", *block(f"upsample.{i}")]
    return [*keys, "output.conv.weight", "output.conv.bias"]


def _levels(state: Mapping[str, Any]) -> int:
    return sum(1 for key in state if re.match(r"^ups\.\d+\.conv\.weight$", key))


def shape_of(state: Mapping[str, Tensor], task: str, **rest: Any) -> UNetShape:
    """The shape of a network from its weights (own keys); `rest` is what they do not tell: activation, padding, how it
    goes down. Raises CheckpointError where they are no UNet's."""
    levels = _levels(state)
    try:
        first, head = state["encoders.0.0.weight"], state["head.weight"]
        features = tuple(state[f"encoders.{level}.0.weight"].shape[0] for level in range(levels))
        bottom, up = state["bottleneck.0.weight"].shape[0], state["ups.0.conv.weight"].shape[2]
        norm = "batch" if "encoders.0.1.running_mean" in state else "instance"
        return UNetShape(
            dims=first.ndim - 2,
            inputs=first.shape[1],
            outputs=head.shape[0],
            features=features,
            bottleneck=bottom,
            norm=norm if "encoders.0.1.weight" in state else "none",
            up_kernel=up,
            **rest,
        )
    except (KeyError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"These weights are not those of a UNet of task {task}: {error} is missing.",
            f"Give weights of `unet train --task {task}` or of the program that it replaces; for another task add"
            " --task NAME.",
        ) from error


_NNUNET = (
    (re.compile(r"^encoder\.stem\.convs\.0\.(conv|norm)\.(\w+)$"), "stem"),
    (re.compile(r"^encoder\.stages\.(\d+)\.0\.convs\.(\d+)\.(conv|norm)\.(\w+)$"), "encoder"),
    (re.compile(r"^encoder\.stages\.(\d+)\.blocks\.(\d+)\.conv([12])\.(conv|norm)\.(\w+)$"), "block"),
    (re.compile(r"^encoder\.stages\.(\d+)\.blocks\.(\d+)\.skip\.([01])\.(conv|norm)\.(\w+)$"), "skip"),
    (re.compile(r"^decoder\.stages\.(\d+)\.convs\.(\d+)\.(conv|norm)\.(\w+)$"), "decoder"),
    (re.compile(r"^decoder\.transpconvs\.(\d+)\.(\w+)$"), "up"),
    (re.compile(r"^decoder\.seg_layers\.(\d+)\.(\w+)$"), "head"),
)
_NNUNET_MODULE = re.compile(r"\.all_modules\.([01])\.")
_NNUNET_TWICE = re.compile(r"^decoder\.encoder\.|\.all_modules\.")  # second names of the same tensors


def is_nnunet(state: Mapping[str, Any]) -> bool:
    """Whether the keys are those of nnU-Net's PlainConvUNet or ResidualEncoderUNet."""
    return any("decoder.seg_layers." in key for key in state)


def from_nnunet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys of nnU-Net's PlainConvUNet or ResidualEncoderUNet (`network_weights` of a checkpoint) -> keys of
    `models.planned_unet.PlannedUNet`. The head of the lowest decoder stage, which nnU-Net does not train, is left out.
    Raises CheckpointError for any other key."""
    heads = sum(1 for key in state if re.match(r"^decoder\.seg_layers\.\d+\.weight$", key))
    names = {key: _own_of_nnunet(key, heads) for key in state if not _NNUNET_TWICE.search(key)}
    return {own: state[key] for key, own in names.items() if own is not None}


def planned_network(state: Mapping[str, Tensor]) -> tuple[nn.Module, dict[str, Tensor]]:
    """The network of nnU-Net's weights, and the weights under its keys. Raises CheckpointError."""
    from unet.models.planned_unet import PlannedUNet

    own = from_nnunet(strip_prefixes(state))
    return PlannedUNet(planned_shape_of(own)), own


def _own_of_nnunet(key: str, heads: int) -> str | None:
    kind, match = next(((kind, match) for form, kind in _NNUNET if (match := form.match(key))), ("", None))
    if match is None:
        raise CheckpointError(
            f"Key {key!r} belongs to no known network.",
            "Give weights of nnU-Net's PlainConvUNet or ResidualEncoderUNet, or of this program.",
        )
    *places, leaf = match.groups()
    if kind in ("up", "head"):
        level = int(places[0])
        lowest = level == 0 and heads > 1
        return f"ups.{level}.{leaf}" if kind == "up" else None if lowest else f"heads.{heads - 1 - level}.{leaf}"
    numbers, part = [int(place) for place in places[:-1]], 0 if places[-1] == "conv" else 1
    if kind == "stem":
        return f"stem.{part}.{leaf}"
    if kind in ("encoder", "decoder"):
        return f"{kind}s.{numbers[0]}.{3 * numbers[1] + part}.{leaf}"
    inner = f"convolutions.{3 * (numbers[2] - 1) + part}" if kind == "block" else f"skip.{numbers[2] + part}"
    return f"encoders.{numbers[0]}.{numbers[1]}.{inner}.{leaf}"


def to_nnunet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys of `models.planned_unet.PlannedUNet` -> all of those of nnU-Net's PlainConvUNet or ResidualEncoderUNet, in
    its order, those that name a tensor twice too. What ours has not is 0: the biases of convolutions before a norm,
    heads that are not trained. Raises CheckpointError for another network."""
    shape = planned_shape_of(state)
    heads = len(shape.stages) - 1
    found = {}
    for key in nnunet_keys(shape):
        once = _NNUNET_MODULE.sub(lambda match: f".{('conv', 'norm')[int(match[1])]}.", key)
        own = _own_of_nnunet(once.removeprefix("decoder.") if "decoder.encoder." in once else once, heads)
        if own in state:
            found[key] = state[str(own)]
        elif match := re.match(r"decoder\.seg_layers\.(\d+)\.(\w+)$", key):
            stage = shape.stages[heads - 1 - int(match[1])]
            sides = (shape.outputs, stage.channels, *(1,) * shape.dims)
            found[key] = state["heads.0.weight"].new_zeros(sides if match[2] == "weight" else sides[:1])
        else:
            weight = state[str(own).removesuffix("bias") + "weight"]
            found[key] = weight.new_zeros(len(weight))
    return found


def nnunet_keys(shape: PlannedShape) -> list[str]:
    """State-dict keys of nnU-Net's network of this shape, in its order."""

    def unit(name: str, bias: bool = True) -> list[str]:
        leaves = [f"{part}.{leaf}" for part in ("conv", "norm") for leaf in ("weight", "bias")]
        leaves += [f"all_modules.{part}.{leaf}" for part in (0, 1) for leaf in ("weight", "bias")]
        return [f"{name}.{leaf}" for leaf in leaves if bias or leaf not in ("conv.bias", "all_modules.0.bias")]

    encoder = unit("encoder.stem.convs.0") if shape.residual else []
    channels = shape.stages[0].channels
    for level, stage in enumerate(shape.stages):
        for number in range(stage.blocks):
            if not shape.residual:
                encoder += unit(f"encoder.stages.{level}.0.convs.{number}")
                continue
            block = f"encoder.stages.{level}.blocks.{number}"
            encoder += unit(f"{block}.conv1") + unit(f"{block}.conv2")
            if channels != stage.channels:
                encoder += unit(f"{block}.skip.{int(number == 0 and max(stage.stride) > 1)}", bias=False)
            channels = stage.channels
    keys = [*encoder, *(f"decoder.{key}" for key in encoder)]
    upward = range(len(shape.stages) - 1)
    for level in upward:
        for number in range(shape.stages[len(shape.stages) - 2 - level].decoder):
            keys += unit(f"decoder.stages.{level}.convs.{number}")
    ends = [(part, level) for part in ("transpconvs", "seg_layers") for level in upward]
    return keys + [f"decoder.{part}.{level}.{leaf}" for part, level in ends for leaf in ("weight", "bias")]


def planned_shape_of(state: Mapping[str, Tensor]) -> PlannedShape:
    """The shape of a `PlannedUNet` from its weights (own keys). Raises CheckpointError for those of another network."""

    def count(form: str) -> int:
        return len({match[1] for key in state if (match := re.match(form, key))})

    def triple(sides: Sequence[int]) -> Triple:
        return (1, sides[-2], sides[-1]) if len(sides) == 2 else (sides[0], sides[1], sides[2])

    try:
        levels, residual = count(r"^encoders\.(\d+)\."), "stem.0.weight" in state
        inner = "0.convolutions.0.weight" if residual else "0.weight"
        first = [state[f"encoders.{level}.{inner}"] for level in range(levels)]
        head, heads = state["heads.0.weight"], count(r"^heads\.(\d+)\.weight$")
        stages = []
        for level, weight in enumerate(first):
            unit = rf"^encoders\.{level}\.(\d+)\." + ("convolutions" if residual else r"weight")
            ups = state[f"ups.{levels - 1 - level}.weight"].shape[2:] if level else (1, 1, 1)
            blocks = count(unit) if residual else count(unit) // 2  # a convolution and a norm have weights
            decoder = count(rf"^decoders\.{levels - 2 - level}\.(\d+)\.weight") // 2 if level < levels - 1 else 1
            stages.append(Stage(weight.shape[0], triple(weight.shape[2:]), triple(ups), blocks, decoder))
        stem = state["stem.0.weight"] if residual else first[0]
        bias = ("stem.0.bias" if residual else "encoders.0.0.bias") in state
        sizes = first[0].ndim - 2, stem.shape[1], head.shape[0]
        return PlannedShape(*sizes, tuple(stages), residual, heads == max(1, levels - 2), bias)
    except (KeyError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"These weights are not those of a planned UNet: {error} is missing.",
            "Give weights that this task has trained, or a checkpoint of nnU-Net.",
        ) from error
