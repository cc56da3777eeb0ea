"""What a task is: the data, network, loss and scores of one system.

Everything else uses a task only through this class. A task is made with its settings and holds them. No torch at
import; methods import what they need.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from unet.config.options import flag
from unet.config.schema import Config
from unet.config.task_settings import TaskSettings
from unet.errors import UsageError
from unet.tasks.protocols import Compute, NoDevice, Predictor

if TYPE_CHECKING:
    from torch import Tensor, nn

    from unet.config.flags_training import PredictOptions
    from unet.data.cache.cached_case import CachedCase
    from unet.data.cache.layout import Layout
    from unet.data.cases import Case
    from unet.data.checks import Report
    from unet.data.io.outputs import Output
    from unet.data.loading.loader import Loader
    from unet.data.splits import Split

Step = Callable[["nn.Module", Mapping[str, "Tensor"]], "Tensor"]


class Metric(NamedTuple):
    """The score that --target, --patience and the best weights look at: its key in a case's scores, whether more is
    better, its title if that is not the key, the lowest and the highest value that it can have."""

    key: str
    goal: str  # "max" or "min"
    title: str = ""
    lowest: float = 0.0
    highest: float = 1.0

    @property
    def name(self) -> str:
        return self.title or self.key.replace("_", " ").upper()

    def described(self) -> dict[str, str]:
        """For the summary of a run."""
        return {"metric": self.key, "metric_title": self.name, "metric_goal": self.goal}

    def refused(self, target: float) -> list[str]:
        """A message if no case can have this score."""
        if self.lowest <= target <= self.highest:
            return []
        bound = f"at most {self.highest:g}" if target > self.highest else f"at least {self.lowest:g}"
        return [f"--target is {bound} ({self.name}), not {target:g}"]

    @property
    def sign(self) -> int:
        return 1 if self.goal == "max" else -1


class Column(NamedTuple):
    """A column of the table of scores: the key of a case's scores, the heading, the format."""

    key: str
    heading: str
    format: str


class Decision(NamedTuple):
    """A setting that follows from a set: its name and value, why, what was seen, what else would do."""

    name: str
    value: Any
    reason: str
    saw: str
    other: str = ""

    @property
    def line(self) -> str:
        """value · reason · what was seen · what else would do, after the flag."""
        other = f" · else {self.other}" if self.other else ""
        return f"{flag(self.name)} {as_typed(self.value)} · {self.reason} · saw {self.saw}{other}"


def as_typed(value: Any) -> str:
    """A setting's value as it is typed."""
    if isinstance(value, tuple | list):
        return " ".join(map(as_typed, value)) or "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = "-" if value is None else str(value)
    return f"'{text}'" if " " in text else text


@dataclasses.dataclass(frozen=True)
class MLPerfBenchmark:
    """What MLPerf's rules say of a task: the benchmark's name, the settings of a closed submission (of a list one),
    its numbers of cases, what the log tells of the settings, the layers whose weights are initialised."""

    name: str
    closed: Mapping[str, Any]
    training_cases: int
    evaluation_cases: int
    events: Mapping[str, Any]
    initialized_layers: Sequence[str]


class Task:
    """One system: a subclass, in a folder of `unet.tasks` or in a package of the user's own.

    `item` is what a batch holds, `subject` what a case is, `cost_unit` what scoring a case costs, `input_noun` what
    prediction is given, in words. `columns` are the scores of a case, `metric_notes` their conventions, `figure_title`
    what predictions.png shows, in the colours of `colour_key`; `classes` names the labels of `slices`. `by_steps`: a
    run is so many steps, which several processes share, and its epochs are pieces of them. `terms`: those of the loss
    that the line of an epoch shows; none named: all. `curves`: title -> how the names of the terms begin that terms.png
    draws under it. `compute`: the device, once a command has chosen it.
    """

    Settings: ClassVar[type[TaskSettings]]
    metric: ClassVar[Metric]
    layout: ClassVar[Layout]
    item: ClassVar[str] = "slices"
    subject: ClassVar[str] = "patient"
    cost_unit: ClassVar[str] = "slices"
    columns: ClassVar[tuple[Column, ...]] = ()
    metric_notes: ClassVar[str] = ""
    figure_title: ClassVar[str] = ""
    colour_key: ClassVar[tuple[tuple[str, tuple[int, int, int]], ...]] = ()
    classes: ClassVar[tuple[str, ...]] = ()
    by_steps: ClassVar[bool] = False
    terms: ClassVar[tuple[str, ...]] = ()
    curves: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    compute: Compute = NoDevice()
    settings: TaskSettings  # a subclass says that they are its own

    def __init__(self, config: Config) -> None:
        assert isinstance(config.task, self.Settings)
        self.config, self.settings = config, config.task

    def __getstate__(self) -> dict[str, Any]:
        """The device stays in its process: those that prepare cases have no card, or lack the vendor's package."""
        return {name: value for name, value in self.__dict__.items() if name != "compute"}

    @property
    def name(self) -> str:
        return self.Settings.name

    @property
    def output_noun(self) -> str:
        """What prediction makes of an image, in words."""
        return "mask"

    @property
    def figures_in_training(self) -> int:
        """How many validation cases are drawn after each evaluation."""
        return 0

    @property
    def input_noun(self) -> str:
        return self.subject

    @property
    def size_text(self) -> str:
        """The flags that set the size of the network's input, as typed."""
        words = []
        for name in self.Settings.size_flags:
            value = self.config.get(name)
            words.append(f"{flag(name)} {' '.join(map(str, value)) if isinstance(value, tuple) else value}")
        return " ".join(words)

    # What a user reads.

    def describe_input(self) -> str:
        """The size of an item, in words."""
        raise NotImplementedError

    def describe_window(self) -> str:
        """What a forward pass of scoring sees, in words."""
        return self.describe_input()

    # Data.

    def find_cases(self) -> list[Case]:
        """The cases of the raw set."""
        raise NotImplementedError

    def preprocess(self, case: Case) -> dict[str, Any]:
        """A raw case -> arrays for the cache, and what is needed to undo it."""
        raise NotImplementedError

    def cache_settings(self) -> dict[str, Any]:
        """The settings that decide the content of the cache."""
        raise NotImplementedError

    def cached_cases(self, choose: Callable[[list[str]], Collection[str] | None] | None = None) -> list[CachedCase]:
        """Every cached case, or those that `choose` takes of the ids of the whole set (None: all); builds the cache of
        these where there is none."""
        raise NotImplementedError

    def set_warnings(self, cases: Sequence[CachedCase]) -> list[str]:
        """What is odd about a whole set, in words; told where it is prepared or used."""
        return []

    def split(self, ids: Sequence[str], training: bool = True) -> Split:
        """{"train": ids, "validation": ids}; training cases are needed unless `training` is false."""
        raise NotImplementedError

    def train_loader(
        self,
        cases: Sequence[CachedCase],
        shard: tuple[int, int],
        options: dict[str, Any],
        to_device: Callable[[Tensor], Tensor],
    ) -> Loader:
        """Training batches of fixed shapes: dicts of CPU tensors (or device tensors with --data-on device).

        `shard` is (rank, world); `options` are the device's for a loader, "workers" among them.
        """
        raise NotImplementedError

    def random_batch(self) -> dict[str, Tensor]:
        """Random values in the form of a training batch: `benchmark --source none` needs no data set."""
        raise UsageError(f"The task {self.name} makes no random batch.", "Give a data set: leave --source none out.")

    def patch_seconds(self) -> float:
        """Seconds of one core that a training patch takes to load and change, tried on noise; 0 where it is little."""
        return 0.0

    def preview(self, cases: Sequence[CachedCase]) -> Iterator[Output]:
        """What training makes of the first cases, as files to look at before it starts, where that is asked for."""
        return iter(())

    # Network and training.

    def build_model(self) -> nn.Module:
        """The network, initialised."""
        raise NotImplementedError

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Parameter groups for the optimiser."""
        return [{"params": [parameter for parameter in model.parameters() if parameter.requires_grad]}]

    def training_step(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Forward pass and loss of a batch: scalar tensors, "loss" among them."""
        raise NotImplementedError

    def reference_step(self) -> tuple[nn.Module, Step]:
        """(network, its loss of a batch) as a first script has them: what `benchmark` compares with."""
        return self.build_model(), lambda model, batch: self.training_step(model, batch)["loss"]

    def input_shape(self) -> tuple[int, ...]:
        """The network's input for one item in training: (1, channels, *sides)."""
        raise NotImplementedError

    def eval_input_shape(self) -> tuple[int, ...]:
        """The network's input for one item where it scores: (1, channels, *sides)."""
        return self.input_shape()

    def decisions(self, unchosen: Collection[str]) -> list[Decision]:
        """Every setting that follows from the raw set, where the task has such; those that are not `unchosen` are the
        user's and kept. Raises DataError."""
        return []

    def settings_from_data(self, unchosen: Collection[str]) -> dict[str, Any]:
        """The same by name, before the set is prepared for a run; empty where they are known."""
        return {}

    def finalize_config(self, cases: Sequence[CachedCase], world: int) -> Config:
        """The settings of a training run, with what its cases and its number of processes decide."""
        return self.config

    def eval_schedule(self, samples: int, step: int) -> tuple[int, int]:
        """(first epoch that is evaluated, epochs between) where an epoch trains `samples`, a step `step` of them."""
        return 1, 1

    def requested_eval_schedule(self) -> tuple[int | None, int | None]:
        """As `eval_schedule`, from the user's flags; None means the task's own, 0 epochs between: at the end only."""
        return self.config.train.start_eval_at, self.config.train.evaluate_every

    def is_diverged(self, score: float) -> bool:
        """Whether a score says that the run is lost."""
        return False

    # Scoring and prediction.

    def warm_up(self, predictor: Predictor) -> None:
        """Run the network over zeros in all shapes that scoring uses, so that kernels are chosen and memory is taken
        (before MLPerf's clock starts)."""
        import torch

        predictor.slices(torch.zeros(self.eval_input_shape()))

    def evaluate_case(
        self, case: CachedCase, predictor: Predictor, full: bool = False
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """(scores, arrays) of one case; `full` adds the costly scores."""
        raise NotImplementedError

    def common_scores(self, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """All cases' `full` scores, with those that only all cases together decide."""
        return records

    def score_files(self, predictions: Path, masks: Path) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
        """(the scores of each mask's prediction, by name; the classes, the background first) of two folders of label
        maps, whatever program has written them: mean_dice, and dice_<n>, surface_<n>, hd95_<n>, volume_<n>. Raises
        UnetError."""
        raise UsageError(
            f"Label maps in folders are not scored by task {self.name}.",
            "Leave out --task: any label maps are then scored.",
        )

    def figure(self, case: CachedCase, arrays: dict[str, Any]) -> dict[str, Any]:
        """Name -> image (H, W, 3) in uint8, or probability (H, W), of one case, for predictions.png."""
        raise NotImplementedError

    def slices(self, case: CachedCase, arrays: dict[str, Any]) -> dict[str, Any]:
        """Name -> slices of one case in uint8, for the report: images (S, H, W) or (S, H, W, 3), and labels (S, H, W)
        named "truth" and "prediction", 0 for nothing, all of one S, H and W. {}: the task has none."""
        return {}

    def find_inputs(self, paths: Sequence[Path]) -> dict[Path, list[Path]]:
        """What the user named -> {folder: the images of one case, in order}."""
        raise NotImplementedError

    def output_files(self, image: Path, output_prefix: Path, options: PredictOptions) -> dict[str, Path]:
        """The files that prediction writes for an image of a case, "mask" among them."""
        raise NotImplementedError

    def source_files(self, image: Path, options: PredictOptions) -> list[Path]:
        """The files that the outputs of an image are made of: itself, or the files of a folder of slices."""
        return sorted(path for path in image.iterdir() if path.is_file()) if image.is_dir() else [image]

    def predict_case(
        self, images: Sequence[Path], wanted: Sequence[Path], predictor: Predictor, options: PredictOptions
    ) -> Iterator[Output]:
        """The outputs of the `wanted` images of a case, one after another, those of `output_files` and "mask" last;
        `images` are all of the case. The caller writes them."""
        raise NotImplementedError

    def convert_checkpoint(self, state: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Tensor]]:
        """A network that fits the weights of another project (or these settings' own), and the weights under its key
        names."""
        raise NotImplementedError

    def settings_of_checkpoint(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """The settings that a checkpoint of another project names, as they stand in weights of this program. Raises
        CheckpointError."""
        return {}

    # Where the task has them.

    def deployment(self) -> dict[str, Any]:
        """What another program must know to run the exported network on images, as JSON: `tasks.segmentation` has the
        entries. Raises UsageError where networks of the task are not exported."""
        raise UsageError(
            f"Networks of task {self.name} are not written as ONNX or OpenVINO: they are more than a function of an"
            " image.",
            "Type --to safetensors: the weights alone, under their own names.",
        )

    def reference_checkpoint(self, state: Mapping[str, Tensor], published: bool) -> dict[str, Any]:
        """What the reference program of the task loads with torch.load, its key names included; with `published` that
        of the published network. Raises UnetError."""
        raise UsageError(
            f"The task {self.name} has no other program that reads torch weights of its network.",
            "Type --to safetensors: the weights alone, under their own names.",
        )

    def sample(self, predictor: Predictor, count: int, temperature: float, seed: int) -> Iterator[Output]:
        """`count` samples of a generative network and pictures of them; the noise of each latent is scaled by
        `temperature`. Sample n depends on the seed and n alone."""
        raise UsageError(
            f"The task {self.name} draws no samples: its networks label images.",
            "Give weights of a generative task, for example --task brains.",
        )

    def sample_files(self, folder: Path, count: int) -> dict[str, Path]:
        """The files that `sample` fills, by the names of its outputs, in order."""
        return {}

    def check_raw(self, path: Path) -> Report:
        """Check a raw set."""
        raise UsageError(f"The task {self.name} cannot check a raw set.", "Leave `check` out.")

    def check_cache(self, path: Path) -> Report:
        """Check a cache."""
        raise UsageError(f"The task {self.name} cannot check a cache.", "Leave `check` out.")

    def synthesize(self, path: Path, seed: int, overwrite: bool = False) -> None:
        """Write a synthetic raw set."""
        raise UsageError(f"The task {self.name} has no synthetic data.", "Give a raw set with --data.")

    def mlperf(self) -> MLPerfBenchmark:
        """What MLPerf's rules say of the task, where `Settings.mlperf` is true."""
        raise NotImplementedError
