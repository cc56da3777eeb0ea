"""What a task is: the data, network, loss and score of one system. The loop, the devices and the commands know no more.

No torch at import; methods import what they need.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet import host
from unet.config.schema import Config, where
from unet.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from unet.data.cache.cached_case import CachedCase
    from unet.data.cache.layout import Layout
    from unet.data.cases import Case
    from unet.data.checks import Report
    from unet.data.loading.loader import Loader

Infer = Callable[[Any], "Tensor"]


Column = tuple[str, str, str]


class Task:
    """One system. `best` is (score, "max" | "min"): what --target, --patience and the best weights look at.

    `item` is what a batch holds, `subject` what a case is, `unit` what scoring it costs, in words. `columns` (key,
    heading, format) are the scores of a case, `foot` their conventions, `picture` what predictions.png shows, in the
    colours of `key`. `tied` are the settings that weights hand on to evaluate and predict. `by_steps`: a run is so many
    steps, which several processes share, and its epochs are pieces of them.
    """

    name: str
    best: tuple[str, str] = ("dsc", "max")
    item, subject, unit = "slices", "patient", "slices"
    columns: tuple[Column, ...] = ()
    foot = ""
    picture = ""
    key: tuple[tuple[str, tuple[int, int, int]], ...] = ()
    tied: tuple[str, ...] = ()
    layout: Layout
    by_steps = False

    @property
    def given(self) -> str:
        """What prediction is given, in a word."""
        return self.subject

    @property
    def score(self) -> str:
        """What `best` looks at, in words."""
        return self.best[0].replace("_", " ").upper()

    def size(self, config: Config) -> str:
        """The size of an item, in words."""
        raise NotImplementedError

    def window(self, config: Config) -> str:
        """What a forward pass of scoring sees, in words."""
        return self.size(config)

    def shape(self, config: Config) -> tuple[int, ...]:
        """The network's input for one item: (1, channels, *sides)."""
        raise NotImplementedError

    def seen(self, config: Config) -> tuple[int, ...]:
        """The network's input for one item where it scores: (1, channels, *sides)."""
        return self.shape(config)

    def sizing(self, config: Config) -> str:
        """The flags that set it, as typed."""
        raise NotImplementedError

    def schedule(self, config: Config, samples: int, step: int) -> tuple[int, int]:
        """(first epoch that is evaluated, epochs between evaluations) where an epoch trains `samples`, a step `step`
        of them."""
        return 1, 1

    def asked(self, config: Config) -> tuple[int | None, int | None]:
        """(first epoch, epochs between evaluations; 0 = at the end) as the settings ask; None: the task's own."""
        return config.start_eval_at, config.evaluate_every

    def completed(self, config: Config, cases: Sequence[CachedCase], world: int) -> Config:
        """The settings of a training run, with what its cases and its number of processes decide."""
        return config

    def diverged(self, score: float) -> bool:
        """Whether a score says that the run is lost."""
        return False

    def tiling(self, config: Config) -> dict[str, Any] | None:
        """How a network runs over a volume (arguments of `runtime.inference.windows`); None: slice by slice."""
        return None

    def plain(self, config: Config) -> tuple[nn.Module, Callable[[Tensor, Mapping[str, Tensor]], Tensor]]:
        """Network and loss as a first script has them: what `benchmark` compares with."""
        return self.model(config), lambda outputs, batch: self.loss(outputs, batch, config)["loss"]

    def index(self, config: Config) -> list[Case]:
        """The cases of the raw set."""
        raise NotImplementedError

    def prepare(self, case: Case, config: Config) -> dict[str, Any]:
        """A raw case -> arrays for the cache, and what is needed to undo it."""
        raise NotImplementedError

    def remarks(self, cases: Sequence[CachedCase]) -> list[str]:
        """What is odd about a whole set, in words; said where it is prepared or used."""
        return []

    def cases(self, config: Config, choose: Callable[[list[str]], Collection[str]] | None = None) -> list[CachedCase]:
        """Every cached case, or those that `choose` takes of the ids of the whole set; builds the cache (of these
        cases) where there is none."""
        from unet.data.cache import cache

        def chosen(ids: list[str]) -> Collection[str]:
            return choose(ids[: config.max_cases]) if choose else ids

        found = cache.ensure(
            where(config.cache, "data"),
            self.layout,
            functools.partial(self.index, config),
            where(config.data, "data"),
            functools.partial(self.prepare, config=config),
            cache.make_manifest(self.layout, self.settings(config)),
            config.rebuild_cache,
            chosen if choose else None,
        )
        for words in self.remarks(found):
            host.notice_once(f"warning: {words}")
        return found[: config.max_cases]

    def settings(self, config: Config) -> dict[str, Any]:
        """What decides the content of the cache."""
        raise NotImplementedError

    def split(self, ids: Sequence[str], config: Config, training: bool = True) -> dict[str, list[str]]:
        """{"train": ids, "validation": ids}; training cases are needed unless `training` is false."""
        raise NotImplementedError

    def batches(
        self,
        cases: Sequence[CachedCase],
        config: Config,
        shard: tuple[int, int],
        options: dict[str, Any],
        place: Callable[[Tensor], Tensor],
    ) -> Loader:
        """Training batches of fixed shapes: dicts of CPU tensors (or device tensors with --data-on device).

        `shard` is (rank, world); `options` are the device's for a loader, "workers" among them.
        """
        raise NotImplementedError

    def model(self, config: Config) -> nn.Module:
        """The network, initialised."""
        raise NotImplementedError

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Parameter groups for the optimiser."""
        return [{"params": [parameter for parameter in model.parameters() if parameter.requires_grad]}]

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
        """Scalar tensors, "loss" among them."""
        raise NotImplementedError

    def evaluate(
        self, case: CachedCase, infer: Infer, config: Config, full: bool = False
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """(numbers, arrays) of one case; `full` adds the costly scores. `infer` runs the network on a case's batch."""
        raise NotImplementedError

    def panel(self, case: CachedCase, arrays: dict[str, Any]) -> dict[str, Any]:
        """Name -> image (H, W, 3) in uint8, or probability (H, W), of one case, for predictions.png."""
        raise NotImplementedError

    def restore(self, arrays: Any, raw: Any) -> Any:
        """Arrays on the network's grid -> on the raw case's grid."""
        raise NotImplementedError

    def inputs(self, paths: Sequence[Path]) -> dict[Path, list[Path]]:
        """What the user named -> {folder: the images of one case, in order}."""
        raise NotImplementedError

    def outputs(self, image: Path, place: Path, config: Config) -> dict[str, Path]:
        """The files that prediction writes for an image of the case whose outputs go to `place`, "mask" among them."""
        raise NotImplementedError

    def sources(self, image: Path, config: Config) -> list[Path]:
        """The files that the outputs of an image are made of: itself, or the files of a folder of slices."""
        return sorted(path for path in image.iterdir() if path.is_file()) if image.is_dir() else [image]

    def predict(
        self, images: Sequence[Path], wanted: Sequence[Path], place: Path, members: Sequence[Infer], config: Config
    ) -> None:
        """Write the outputs of the `wanted` images of a case: the mean of the `members`."""
        raise NotImplementedError

    def check_raw(self, path: Path, config: Config) -> Report:
        """Look a raw set over."""
        raise NotImplementedError

    def check_cache(self, path: Path, config: Config) -> Report:
        """Look a cache over."""
        raise NotImplementedError

    def synthesize(self, path: Path, config: Config) -> None:
        """Write a made raw set."""
        raise NotImplementedError

    def load(self, state: Mapping[str, Any], config: Config) -> tuple[nn.Module, dict[str, Tensor]]:
        """A network that fits foreign weights, and the weights under its own key names."""
        raise NotImplementedError


def loading(config: Config, options: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """(processes, the other options of a DataLoader) from a device's; none where batches are made on the device."""
    if config.data_on == "device":
        return 0, {}
    rest = dict(options)
    suited = rest.pop("workers")
    return suited if config.workers == "auto" else int(config.workers), rest


def create(name: str) -> Task:
    """The task of a name."""
    try:
        module = importlib.import_module(f"unet.tasks.{name}.task")
    except ModuleNotFoundError as error:
        raise UsageError(f"Unknown task {name!r}.", "See: python -m unet train --help") from error
    task: Task = module.TASK()
    return task
