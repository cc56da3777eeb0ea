"""The settings: one frozen dataclass, composed of the groups of the flag table.

A value comes from the strongest layer that sets it: default < task < made data < recipe < --config file < flag. No
torch.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
from pathlib import Path
from typing import Any

from unet.config import capacity
from unet.config.flags import (
    CheckOptions,
    CommonOptions,
    DataOptions,
    DeviceOptions,
    DistributedOptions,
    InputOptions,
    MLPerfOptions,
    PhantomOptions,
    PredictOptions,
    RunOptions,
    SaveOptions,
    SplitOptions,
    TalkOptions,
    TimingOptions,
    WeightsOptions,
)
from unet.config.flags_training import EvalOptions, NetworkOptions, TrainOptions
from unet.config.options import flag
from unet.config.recipes import VOLUME_TASKS
from unet.errors import UsageError

MEND = "Change the named flags; `python -m unet config` shows what is in force and why."
SIDES = ("patch", "eval_patch", "eval_crop", "pad_to", "spacing")


@dataclasses.dataclass(frozen=True)
class Config(
    CommonOptions,
    RunOptions,
    TalkOptions,
    DataOptions,
    SplitOptions,
    NetworkOptions,
    WeightsOptions,
    TrainOptions,
    SaveOptions,
    DeviceOptions,
    DistributedOptions,
    EvalOptions,
    InputOptions,
    PredictOptions,
    TimingOptions,
    PhantomOptions,
    MLPerfOptions,
    CheckOptions,
):
    """Every setting of the program; a command sets those of its own groups, the others keep their defaults.

    One number given for the three sides of a volume stands for all of them.
    """

    def __post_init__(self) -> None:
        for name in SIDES:
            value = getattr(self, name)
            if len(value) == 1:
                object.__setattr__(self, name, value * 3)

    def replace(self, **changes: Any) -> Config:
        return dataclasses.replace(self, **changes)


def check(config: Config, shaping: bool = True) -> None:
    """Settings that contradict one another. Raises one UsageError with all of them."""
    mistakes = contradictions(config, shaping)
    if mistakes:
        raise UsageError("; ".join(mistakes) + ".", MEND)


def contradictions(config: Config, shaping: bool = True) -> list[str]:
    """What in the settings contradicts something else, in words with the flags.

    `shaping`: the command makes a network, so its input must fit its layers, and the network the memory.
    """
    sides = wrong_sides(config)
    mistakes = sides + wrong_pairs(config)
    if shaping and not sides:
        mistakes += misshapen(config) or capacity.too_large(config)
    elif not shaping:  # evaluate and predict build it too where --width is typed
        mistakes += capacity.too_large(config, own_memory=True)
    if config.mlperf_division and config.task != "kits19":
        mistakes.append(f"--mlperf-division is for --task kits19, not for {config.task}")
    if config.use_lazy_mode and config.device not in ("auto", "hpu"):
        mistakes.append(f"--use-lazy-mode is for an HPU, but --device is {config.device}")
    if config.use_lazy_mode and config.compile:
        mistakes.append("--compile is for an HPU's eager mode, not for --use-lazy-mode (which has graphs: --capture)")
    if config.workers != "auto" and int(config.workers) > 256:
        mistakes.append(f"--workers takes auto or a whole number up to 256, not {config.workers!r}")
    if config.fold_scheme == "seed" and (config.task != "em" or config.folds != 5):
        mistakes.append("--fold-scheme seed is of --task em and --folds 5")
    if config.fold is not None and config.fold >= config.folds:
        mistakes.append(f"--fold {config.fold} is outside 0 to {config.folds - 1} (--folds {config.folds})")
    if config.schedule == "multistep" and not config.lr_milestones:
        mistakes.append("--schedule multistep needs --lr-milestones")
    port = config.dist_url.rstrip("/").rpartition(":")[2]
    if port.isdecimal() and not 0 < int(port) < 65536:
        mistakes.append(f"--dist-url {config.dist_url}: {port} is no port, 1 to 65535")
    if config.verbose and config.quiet:
        mistakes.append("--verbose and --quiet contradict each other")
    if config.rebuild_cache and config.resume:
        mistakes.append("--rebuild-cache and --resume contradict each other")
    if config.resume and config.overwrite:
        mistakes.append("--resume and --overwrite contradict each other")
    name = config.run_name or "name"
    if set(name) & set("/\\") or name[0] in ".- " or len(name) > 200:
        mistakes.append(
            "--run-name must be a name without / and \\, at most 200 letters, no dot, dash or blank first, not"
            f" {name[:60]!r}"
        )
    if config.world_size is not None and config.rank is not None and config.rank >= config.world_size:
        mistakes.append(
            f"--rank {config.rank} is outside 0 to {config.world_size - 1} (--world-size {config.world_size})"
        )
    return mistakes


def misshapen(config: Config) -> list[str]:
    """Whether the input of the task's network fits its layers."""
    shape_of = misfits if config.task in VOLUME_TASKS else misfit_valid if config.task == "em" else misfit_slices
    return shape_of(config)


def misfit_slices(config: Config) -> list[str]:
    """Whether --image-size fits --layers."""
    side = 2**config.layers
    if config.image_size == side and config.batch_size == 1:
        return [
            f"--image-size {side} with --layers {config.layers} leaves one value of a slice to the deepest batch norm,"
            f" and --batch-size 1 has one slice: type --image-size {2 * side}, --layers {config.layers - 1} or"
            " --batch-size 2"
        ]
    if config.image_size % side == 0:
        return []
    low = max(side, config.image_size // side * side)
    return [f"--image-size {config.image_size} is not a multiple of {side} (2^layers); nearest: {low} or {low + side}"]


def misfit_valid(config: Config) -> list[str]:
    """Whether --image-size leaves even sides at every level of valid convolutions, and an output."""
    step = 2**config.layers
    least, over = 16 * step - 4, (config.image_size + 4) % step
    if config.image_size < least:
        return [f"--image-size {config.image_size} is too small for --layers {config.layers}; the least is {least}"]
    low = config.image_size - over
    return (
        []
        if not over
        else [f"--image-size {config.image_size} does not fit --layers {config.layers}; nearest: {low} or {low + step}"]
    )


def misfits(config: Config) -> list[str]:
    """Whether crop and window fit --layers and the volumes."""
    step = 2**config.layers
    least = 2 * step if config.normalization == "instance" else step
    found = []
    for name, sides in (("--patch", config.patch), ("--eval-patch", config.eval_patch)):
        if len(sides) == 3 and any(side % step or side < least for side in sides):
            fitting = " ".join(str(max(least, round(side / step) * step)) for side in sides)
            found.append(
                f"{name} {' '.join(map(str, sides))}: each side must be a multiple of {step} (2^layers) and at least"
                f" {least}; nearest: {fitting}"
            )
    alone = config.normalization == "batch" and config.batch_size == 1
    if not found and alone and config.patch == (step,) * 3:
        found.append(
            f"--patch {step} with --layers {config.layers} leaves one value of a crop to the deepest batch norm, and"
            f" --batch-size 1 has one crop: type --patch {2 * step} or --batch-size 2"
        )
    if len(config.patch) == len(config.pad_to) == 3 and any(
        a > b for a, b in zip(config.patch, config.pad_to, strict=True)
    ):
        found.append(
            f"--patch {' '.join(map(str, config.patch))} is larger than --pad-to {' '.join(map(str, config.pad_to))}:"
            " a volume may be smaller than the crop"
        )
    return found


def wrong_sides(config: Config) -> list[str]:
    """Flags that take one side or three."""
    return [
        f"{flag(name)} takes one number or three, not {len(getattr(config, name))}"
        for name in SIDES
        if len(getattr(config, name)) not in ((0, 3) if name == "eval_crop" else (3,))
    ]


def wrong_pairs(config: Config) -> list[str]:
    """Flags that take two numbers, in order."""
    found = []
    for name in ("brightness", "noise", "lamb_betas"):
        value = getattr(config, name)
        if len(value) != 2 or (name != "lamb_betas" and value[0] > value[1]):
            found.append(f"{flag(name)} takes two numbers, the lower first, not {' '.join(map(str, value))}")
    return found


def where(name: str, parent: str) -> Path:
    """A path (anything with a separator, `.` and `..`) as it is; a bare name under `parent`."""
    path = Path(os.path.expanduser(name))  # noqa: PTH111 (an unknown user is left as it is)
    return path if "/" in name or path.is_absolute() or name in (".", "..") else Path(parent) / path


def weights_to_write(name: str) -> Path:
    """The path of weights that are written: always safetensors, whatever suffix was typed."""
    path = where(name, "weights")
    if not name or path.name in ("", ".."):  # no file's name: refused where it is used
        return path
    kept = path.with_suffix("") if path.suffix in (".pt", ".pth", ".ckpt", ".safetensors") else path
    return kept.with_name(kept.name + ".safetensors")


def weights_to_read(name: str) -> Path:
    """The path of weights that are read: as typed, or the safetensors of that name where only those exist."""
    path, ours = where(name, "weights"), weights_to_write(name)
    return ours if not os.path.exists(path) and os.path.exists(ours) else path  # noqa: PTH110 (no error for long names)


def spelt(path: Path) -> str:
    """A path as a flag takes it: `./name`, since a bare name would mean one under data/ or weights/."""
    return shlex.quote(str(path) if len(path.parts) > 1 else f"./{path}")
