"""Tells of training cases that hold the image of a case that is scored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from unet import host
from unet.commands import run_end
from unet.config.schema import Config, resolve_path
from unet.data.cache.layout import Layout


def known_images(config: Config, layout: Layout) -> dict[str, tuple[str, ...]]:
    """{case: digests of its image, or of each of its slices} of all that lies in the cache, opened or not."""
    from unet.data.cache.cached_case import images_of
    from unet.data.cache.manifest import read_manifest

    found = read_manifest(resolve_path(config.data.cache, "data"), layout)
    return {case: images_of(record) for case, record in found["cases"].items()} if found else {}


def tell(config: Config, known: Mapping[str, Sequence[str]], train: Iterable[str], scored: Iterable[str]) -> None:
    """Say so, if one of the cases in `scored` shares its image, or slices, with one in `train`; `known`: the digests
    of each case's images."""
    from unet.data.cache.cached_case import leaks

    if found := leaks(known, train, scored):
        more = f" (and {host.counted(len(found) - 1, 'more pair')})" if found[1:] else ""
        host.notice(
            f"leakage: {found[0]}; one trains, the other validates{more}: scores are too good; all of them: python -m"
            f" unet check --task {config.general.task}{run_end.data_flags(config)}"
        )
