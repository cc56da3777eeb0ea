"""What tasks with a cache share: finding and preprocessing cases, the split, the processes of a loader. No torch at
import."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from unet import host
from unet.config.schema import resolve_path
from unet.data import splits
from unet.data.cache import cache
from unet.tasks.base import Task

if TYPE_CHECKING:
    from unet.data.cache.cached_case import CachedCase
    from unet.data.cases import Case


class CachedTask(Task):
    """A task whose cases are preprocessed once, into a cache.

    `fold_seed`: of the shuffle before the folds, the same whatever the seed of a run, so that folds are disjoint.
    `synthetic_seed`: of the set that --synth-data makes.
    """

    fold_seed: ClassVar[int] = 2001
    synthetic_seed: ClassVar[int] = 2001

    def find_cases(self) -> list[Case]:
        root = resolve_path(self.config.data.data, "data")
        if self.config.data.synth_data:
            self.synthesize(root, self.synthetic_seed)
        return self.index(root)

    def index(self, root: Path) -> list[Case]:
        """The cases of the raw set in a folder."""
        raise NotImplementedError

    def require_layout(self, root: Path) -> None:
        """Raise DataError unless a folder has the layout of a raw set: looked at before a cache of other settings is
        refused. A task whose index opens every file looks at their names alone."""
        self.index(root)

    def cached_cases(self, choose: Callable[[list[str]], Collection[str] | None] | None = None) -> list[CachedCase]:
        limit = self.config.split.max_cases

        def chosen(ids: list[str]) -> Collection[str] | None:
            return choose(ids[:limit]) if choose else ids

        found = cache.ensure(
            resolve_path(self.config.data.cache, "data"),
            self.layout,
            self.find_cases,
            resolve_path(self.config.data.data, "data"),
            self.preprocess,
            self.manifest(),
            self.config.data.rebuild_cache,
            chosen if choose else None,
            self.config.general.task,
            self.require_layout,
        )
        for words in self.set_warnings(found):
            host.notice_once(f"warning: {words}")
        return found[:limit]

    def manifest(self) -> dict[str, Any]:
        """The manifest of a cache of these settings, without cases."""
        return cache.make_manifest(self.layout, self.cache_settings())

    def split(self, ids: Sequence[str], training: bool = True) -> splits.Split:
        return splits.make(ids, self.config.split, self.fold_seed, self.named_splits(), training, self.patients(ids))

    def patients(self, ids: Sequence[str]) -> dict[str, str]:
        """{case: its patient} of cases that a split must not part."""
        return {}

    def named_splits(self) -> dict[str, Callable[[Sequence[str]], splits.Split]]:
        """Splits that the task knows beside the common ones, by name."""
        return {}

    def loader_workers(self, options: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """(processes, the other options of a loader) from a device's; none where batches are made on the device."""
        if self.config.device.data_on == "device":
            return 0, {}
        rest = dict(options)
        suited, asked = rest.pop("workers"), self.config.data.workers
        return suited if asked == "auto" else int(asked), rest
