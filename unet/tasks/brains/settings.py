"""The settings of the brains task: flags, defaults, recipes, checks, keys of the reference program. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from unet.config.options import flag, option
from unet.config.task_settings import TaskSettings, check_pair
from unet.tasks.brains import hyper_params

if TYPE_CHECKING:
    from unet.config.schema import Config

LISTS = (
    "latents_per_channel",
    "channels_per_latent",
    "channels",
    "channels_hidden",
    "channels_top_down",
    "channels_hidden_top_down",
    "kernel_sizes_bottom_up",
    "kernel_sizes_top_down",
)
LARGEST = 256  # voxels of a side
PUBLISHED = {  # what the recipes share: the reference program's JSON files
    "epochs": 10,
    "lr": 1e-3,
    "clip": 100.0,
    "skip_norm": 1e12,
}


@dataclasses.dataclass(frozen=True)
class Settings(TaskSettings):
    """A very deep VAE of volumes resampled to a cube. Lists go from fine (the cube's resolution) to coarse (one voxel),
    with an entry for each level; an empty list takes the published values for the resolution and --width."""

    name: ClassVar[str] = "brains"
    title: ClassVar[str] = "brain MRI, a very deep VAE of volumes (reconstruct, sample, find anomalies)"
    defaults: ClassVar[dict[str, Any]] = {
        "data": "brains",
        "cache": "brains_cache",
        "split": "fraction",
        "width": 20,
        "epochs": 100000,
        "batch_size": 1,
        "eval_batch_size": 1,
        "optimizer": "adamax",
        "lr": 1e-3,
        "clip": 100.0,
        "skip_norm": 1e12,
        "seed": -1,
        "save_minutes": 5.0,
        "benchmark_warmup": 20,
        "slices": 64,
        "side": 64,
    }
    synthetic_defaults: ClassVar[dict[str, Any]] = {
        "data": "synthetic_brains",
        "cache": "synthetic_brains_cache",
        "resolution": 16,
        "width": 12,
        "latents_per_channel": (1, 2, 2, 2, 1),
        "batch_size": 4,
        "epochs": 12,
        "lr": 4e-3,
        "schedule": "cosine",
        "warmup_epochs": 1,
        "warmup_by": "step",
        "augment": False,  # fourteen strong changes: a network that trains for two minutes learns them, not brains
        "seed": 2001,
        "slices": 32,
        "side": 32,
        "patients": 120,
    }
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "32": {**PUBLISHED, "resolution": 32, "batch_size": 64, "seed": 3534444907},
        "64": {**PUBLISHED, "resolution": 64, "batch_size": 8, "seed": 3085977635},
        "128": {**PUBLISHED, "resolution": 128, "batch_size": 1, "seed": 1504607023},
    }
    inference_settings: ClassVar[tuple[str, ...]] = (
        "resolution",
        "width",
        *LISTS,
        "hidden_clamp",
        "output_clamp",
        "output_activation",
    )
    network_settings: ClassVar[tuple[str, ...]] = inference_settings[1:]
    size_flags: ClassVar[tuple[str, ...]] = ("resolution",)
    splits: ClassVar[tuple[str, ...]] = ("fraction",)
    large_tensors: ClassVar[bool] = True
    notes: ClassVar[dict[str, str]] = {
        "split": "fraction: the first --train-fraction of the sorted files train",
        "layers": "not used here: a level for each halving of --resolution",
        "width": "here level l has (l + 1) times as many",
        "clip": "encoder, decoder and head each",
        "target": "here the ELBO in bits a voxel, any number",
    }

    resolution: int = option(
        128,
        "side of the cube to which volumes are resampled, a power of two",
        minimum=2,
        maximum=LARGEST,
        section="data",
        common=True,
    )
    pattern: str = option(
        "*.nii*",
        "which files of the folder are volumes",
        metavar="GLOB",
        aliases=("--nifti_filename_pattern",),
        section="data",
        common=True,
    )
    recursive: bool = option(False, "look for files in all folders below --data too", section="data")
    volume: int | None = option(
        None, "which volume of a 4-D file, from 0; without it such a file is an error", minimum=0, section="data"
    )
    train_fraction: float = option(
        0.95,
        "share of the sorted files that train; the others validate",
        above=0,
        maximum=1,
        aliases=("--train_frac",),
        section="split",
        common=True,
    )
    latents_per_channel: tuple[int, ...] = option(
        (),
        "stochastic layers of each level, fine to coarse",
        minimum=0,
        maximum=64,
        aliases=("--latent_feature_maps_per_resolution",),
        section="network",
        common=True,
        default_text="2 K K-1 ... 1",
    )
    channels_per_latent: tuple[int, ...] = option(
        (), "channels of a latent, at most those of its level", minimum=1, section="network", default_text="by --width"
    )
    channels: tuple[int, ...] = option(
        (), "channels of the encoder's levels", minimum=1, section="network", default_text="by --width"
    )
    channels_hidden: tuple[int, ...] = option(
        (), "channels inside the encoder's blocks", minimum=1, section="network", default_text="--channels"
    )
    channels_top_down: tuple[int, ...] = option(
        (), "channels of the decoder's levels", minimum=1, section="network", default_text="--channels"
    )
    channels_hidden_top_down: tuple[int, ...] = option(
        (), "channels inside the decoder's blocks", minimum=1, section="network", default_text="--channels"
    )
    kernel_sizes_bottom_up: tuple[int, ...] = option(
        (), "kernel of each level of the encoder: 1, 2 or 3", minimum=1, section="network", default_text="3 ... 3 2 1"
    )
    kernel_sizes_top_down: tuple[int, ...] = option(
        (), "kernel of each level of the decoder: 1, 2 or 3", minimum=1, section="network", default_text="3 ... 3 2 1"
    )
    hidden_clamp: tuple[float, ...] = option(
        (0.001, 1.0),
        "smallest and largest standard deviation of a latent",
        above=0,
        maximum=100,
        aliases=("--scale_hidden_clamp_bounds",),
        section="network",
    )
    output_clamp: tuple[float, ...] = option(
        (0.01, 1.0),
        "smallest and largest standard deviation of a voxel",
        above=0,
        maximum=100,
        aliases=("--scale_output_clamp_bounds",),
        section="network",
    )
    output_activation: str = option(
        "tanh",
        "of the voxels' mean; with sigmoid volumes lie in [0, 1]",
        choices=("tanh", "sigmoid"),
        aliases=("--output_activation_function",),
        section="network",
    )
    checkpoint_activations: bool = option(
        False,
        "compute each block again in the backward pass instead of storing it: less memory, a third more time, the same"
        " numbers",
        section="train",
        common=True,
    )
    l2: float = option(
        1e-4,
        "factor of the sum of the mean square of each weight tensor in the loss",
        minimum=0,
        maximum=100,
        aliases=("--l2_reg_coeff",),
        section="train",
    )
    kl_warmup: int = option(0, "epochs in which the weight of the KL rises from 0 to 1", minimum=0, section="train")
    free_bits: float = option(
        0.0, "nats of each latent's KL that cost nothing", minimum=0, maximum=1e6, section="train"
    )
    show_pipeline: bool = option(
        False,
        "before training write augmented examples into the run's folder, pipeline_test",
        aliases=("--visualise_training_pipeline_before_starting",),
        section="train",
    )
    subjects_to_plot: int = option(
        4, "validation cases whose reconstructions are drawn after an evaluation", minimum=1, maximum=64, section="eval"
    )
    importance_samples: int = option(
        1,
        "samples of the importance-weighted bound that evaluate gives",
        minimum=1,
        maximum=10**6,
        aliases=("--samples",),
        section="eval",
    )
    residual: bool = option(
        False,
        "also write the difference of a volume and its reconstruction, in standard deviations",
        section="predict",
        common=True,
    )

    @classmethod
    def translated(cls, content: Mapping[str, Any]) -> Mapping[str, Any]:
        return hyper_params.translated(content)

    @property
    def levels(self) -> int:
        """K, the halvings from the cube to one voxel."""
        return self.resolution.bit_length() - 1

    def lists(self, width: int) -> dict[str, tuple[int, ...]]:
        """The lists of the network, the published ones where none is given."""
        k = self.levels
        rising = tuple(width * (level + 1) for level in range(k + 1))
        published: dict[str, tuple[int, ...]] = {
            "latents_per_channel": (2, *range(k, 0, -1)),
            "channels_per_latent": (*(width,) * k, 10 * width),
            "kernel_sizes_bottom_up": (*(3,) * (k - 1), 2, 1),
            "kernel_sizes_top_down": (*(3,) * (k - 1), 2, 1),
            "channels": rising,
        }
        found = {name: getattr(self, name) or published.get(name, ()) for name in LISTS}
        return {name: values or found["channels"] for name, values in found.items()}

    def check_values(self) -> list[str]:
        """The resolution, and pairs in order."""
        pairs = check_pair("hidden_clamp", self.hidden_clamp) + check_pair("output_clamp", self.output_clamp)
        if self.resolution & (self.resolution - 1):
            low = 1 << self.levels
            pairs.append(
                f"--resolution {self.resolution} is no power of two; nearest: {low} or {min(2 * low, LARGEST)}"
            )
        return pairs

    def check_input_size(self, config: Config) -> list[str]:
        """The lists fit the resolution and each other."""
        if self.check_values():
            return []
        lists, entries, found = self.lists(config.network.width), self.levels + 1, list[str]()
        for name, values in lists.items():
            if len(values) != entries:
                found.append(
                    f"{flag(name)} {shown(values)} has {len(values)} entries; --resolution {self.resolution} has"
                    f" {entries} levels, {self.resolution} ... 2 1 voxels: one entry for each"
                )
        if found:
            return found
        for name in ("kernel_sizes_bottom_up", "kernel_sizes_top_down"):
            for level, kernel in enumerate(lists[name]):
                if kernel not in (1, 2, 3):
                    found.append(f"{flag(name)}: {kernel} at {self.side(level)}; a kernel is 1, 2 or 3")
        for level, (latent, own) in enumerate(
            zip(lists["channels_per_latent"][:-1], lists["channels_top_down"][:-1], strict=True)
        ):
            if latent > own:
                found.append(
                    f"--channels-per-latent: {latent} at {self.side(level)} is wider than its level"
                    f" (--channels-top-down {own})"
                )
        if lists["channels"][-1] != lists["channels_top_down"][-1]:
            found.append(
                f"--channels ends in {lists['channels'][-1]} and --channels-top-down in"
                f" {lists['channels_top_down'][-1]}: at one voxel both must be the same"
            )
        if not lists["latents_per_channel"][-1]:
            found.append("--latents-per-channel ends in 0: the level of one voxel needs a latent")
        return found

    def side(self, level: int) -> str:
        """A level in words: 32 x 32 x 32 voxels (entry 1)."""
        side = self.resolution >> level
        return f"{side} x {side} x {side} voxels (entry {level + 1})"

    def parameters(self, config: Config) -> int:
        """10,335,682, 19,267,582 and 32,749,282 at 32, 64 and 128."""
        return sum(parameters(self.lists(config.network.width)))

    def input_size(self, config: Config) -> int:
        return self.resolution**3

    def synthetic_cache(self, config: Config) -> str:
        return f"{config.synthetic.side}_{self.resolution}"


def shown(values: tuple[int, ...]) -> str:
    return " ".join(map(str, values))


def parameters(lists: Mapping[str, tuple[int, ...]]) -> tuple[int, int, int]:
    """Parameters of encoder, decoder and head, exactly."""

    def conv(a: int, b: int, kernel: int = 1) -> int:
        return kernel**3 * a * b + b

    def block(a: int, hidden: int, b: int, kernel: int, skip: bool = True) -> int:
        inner = conv(a, hidden) + 2 * conv(hidden, hidden, kernel) + conv(hidden, b)
        return inner + (conv(a, b) if skip and a != b else 0)

    encoder, before = 0, 1
    for own, hidden, kernel in zip(
        lists["channels"], lists["channels_hidden"], lists["kernel_sizes_bottom_up"], strict=True
    ):
        encoder += block(before, hidden, own, kernel) + block(own, hidden, own, kernel)
        before = own
    decoder, stream = 0, 0
    for level in reversed(range(len(lists["channels"]))):
        lateral, own = lists["channels"][level], lists["channels_top_down"][level]
        hidden, kernel = lists["channels_hidden_top_down"][level], lists["kernel_sizes_top_down"][level]
        latent = min(lists["channels_per_latent"][level], own)

        def net(a: int, hidden: int = hidden, kernel: int = kernel, latent: int = latent) -> int:
            return conv(a, hidden) + 2 * conv(hidden, hidden, kernel) + 2 * conv(hidden, latent)

        for _ in range(lists["latents_per_channel"][level]):
            if not stream:
                decoder += net(lateral) + conv(latent, own)
            else:
                decoder += net(stream) + net(lateral + stream) + conv(latent, own) + conv(hidden, own)
                decoder += conv(stream, own) if stream != own else 0
            decoder += block(own, hidden, own, kernel, skip=level > 0)
            stream = own
        if not lists["latents_per_channel"][level]:
            decoder += block(stream, hidden, own, kernel, skip=level > 0)
            stream = own
    return encoder, decoder, 2 * stream + 2
