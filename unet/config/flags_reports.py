"""The flags of commands that read runs and print tables; the others are in `flags`. No torch."""

from __future__ import annotations

import dataclasses

from unet.config.options import option


@dataclasses.dataclass(frozen=True)
class OutputOptions:
    """Output"""

    json: bool = option(False, "print the result as JSON on standard output, and nothing else there", common=True)


@dataclasses.dataclass(frozen=True)
class RunsOptions:
    """Runs"""

    runs: tuple[str, ...] = option(
        (),
        "folders of runs or records; a bare name is looked for under --out and its records/ too",
        metavar="RUN",
        positional=True,
        common=True,
    )


@dataclasses.dataclass(frozen=True)
class ListOptions:
    """List"""

    records: bool = option(False, "list the records in place of the runs", common=True)
