"""The base class of a task's settings: its flags, defaults, recipes and checks. No torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from unet.config.schema import Config


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    """The settings of one task besides the common ones (`config.task`). A subclass declares its flags as fields.

    `defaults`: defaults that the task changes; `synthetic_defaults`: defaults that --synth-data changes; `recipes`:
    named sets of settings. `inference_settings`: settings that are saved with the weights and reused by evaluate
    and predict, `scoring_settings`: by evaluate alone, `network_settings`: those that shape the network and nothing
    else, so that each of several weights has its own. `size_flags`: the flags that set the network's input, the
    one to lower first where memory ends; `folder_flags`: those that name a folder which is read. `splits`: names
    that --split takes beside the common ones. `mlperf`: whether the task is one of MLPerf's. `large_tensors`:
    whether its tensors are tens of megabytes and more. `plans`: where settings follow from the data (`plan`), the
    values of --size, the smallest network first. `notes`: words to add to the help of a common flag;
    `default_texts`: its default in words.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    defaults: ClassVar[Mapping[str, Any]] = {}
    synthetic_defaults: ClassVar[Mapping[str, Any]] = {}
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    inference_settings: ClassVar[tuple[str, ...]] = ()
    scoring_settings: ClassVar[tuple[str, ...]] = ()
    network_settings: ClassVar[tuple[str, ...]] = ()
    size_flags: ClassVar[tuple[str, ...]] = ("image_size",)
    splits: ClassVar[tuple[str, ...]] = ()
    mlperf: ClassVar[bool] = False
    large_tensors: ClassVar[bool] = False
    plans: ClassVar[tuple[str, ...]] = ()
    folder_flags: ClassVar[tuple[str, ...]] = ()
    notes: ClassVar[Mapping[str, str]] = {}
    default_texts: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def translated(cls, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """The entries of a settings file, where some are keys of the task's reference program, under the names that
        they have here. Raises ValueError in words for a key that cannot be followed."""
        return content

    @property
    def folds_by_seed(self) -> bool:
        """Whether --seed decides which cases a fold holds out."""
        return False

    def check_values(self) -> list[str]:
        """Messages on invalid values of the task's settings, with their flags."""
        return []

    def check_input_size(self, config: Config) -> list[str]:
        """Messages if the network's input does not fit its layers, with the flags."""
        return []

    def check(self, config: Config) -> list[str]:
        """Messages on other settings that contradict each other, with their flags."""
        return []

    def parameters(self, config: Config) -> int:
        """Parameters of the network; 0 where they are not known before it is built."""
        return 0

    def input_size(self, config: Config) -> int:
        """Pixels or voxels of one item of a batch; 0 where the network's first level is not known."""
        return 0

    def synthetic_cache(self, config: Config) -> str:
        """A suffix that distinguishes caches of synthetic data of several sizes."""
        return ""


def check_pair(name: str, value: Sequence[float], ordered: bool = True) -> list[str]:
    """Whether a flag has two numbers, the lower first."""
    from unet.config.options import flag

    if len(value) == 2 and (not ordered or value[0] <= value[1]):
        return []
    return [f"{flag(name)} takes two numbers, the lower first, not {' '.join(map(str, value))}"]


def unet_parameters(
    dims: int, inputs: int, outputs: int, widths: Sequence[int], norm: str = "batch", up_kernel: int = 2
) -> int:
    """Parameters of a UNet with two 3-wide convolutions on every level (`models.unet`), exactly."""
    extra = 1 if norm == "none" else 2  # a bias, or a norm's weight and bias

    def block(a: int, b: int) -> int:
        return 3**dims * b * (a + b) + 2 * extra * b

    total = sum(block(a, b) for a, b in zip([inputs, *widths], widths, strict=False))
    for deep, wide in zip(widths[:0:-1], widths[-2::-1], strict=True):
        total += up_kernel**dims * deep * wide + wide + block(2 * wide, wide)
    return total + widths[0] * outputs + outputs


def unet_widths(width: int, layers: int, most: float = math.inf) -> list[int]:
    """Channels of a UNet's levels, the bottleneck last: doubled at each level, up to `most`."""
    return [int(min(width * 2**level, most)) for level in range(layers + 1)]
