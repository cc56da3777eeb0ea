"""preprocess: builds the cache from a raw set. Torch is not imported."""

from __future__ import annotations

import os
import time

from unet import host
from unet.commands import setup
from unet.config.resolve import Resolved
from unet.config.schema import resolve_path


def run(resolved: Resolved, command: str) -> int:
    """Preprocess new and changed cases; a second run does nothing, an interrupted one continues."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the pool has a process for each core
    from unet.data.cache import cache
    from unet.tasks.registry import create

    resolved = setup.settled(resolved)
    config = resolved.config
    task = create(config)
    folder, raw = resolve_path(config.data.cache, "data"), resolve_path(config.data.data, "data")
    start = time.perf_counter()
    cases = task.find_cases()
    counts = cache.build(
        folder,
        task.layout,
        cases,
        task.preprocess,
        cache.make_manifest(task.layout, task.cache_settings()),
        config.data.rebuild_cache,
        renew=True,
    )
    seconds = time.perf_counter() - start
    found = cache.open_cache(folder, task.layout, cache.make_manifest(task.layout, task.cache_settings()))
    cost = sum(case.cost for case in found)
    for words in task.set_warnings(found):
        host.notice(f"warning: {words}")
    removed = f", {counts['removed']} removed" if counts["removed"] else ""
    left, why = sum(len(case.images) for case in cases) - cost, task.layout.left_out
    left_out = f" ({left} left out: {why})" if why and left else ""
    host.notice(
        f"{folder}: {counts['made']} cases made, {counts['kept']} kept{removed}; {cost} {task.cost_unit} from"
        f" {raw}{left_out}; {seconds:.1f} s"
    )
    return 0
