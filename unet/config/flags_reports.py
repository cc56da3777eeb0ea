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


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """Page"""

    page: str = option(
        "report/index.html",
        "the page to write; its pictures and tables (PNG, CSV) are written beside it",
        metavar="FILE",
        aliases=("--html",),
        common=True,
    )
    import_logs: tuple[str, ...] = option(
        (),
        "also show the logs of other programs in this folder (Argonne's, MLPerf's, nnU-Net's)",
        metavar="FOLDER",
        aliases=("--import",),
        repeated=True,
        common=True,
    )
    watch: bool = option(False, "write the page again while a run goes on; the page loads itself again", common=True)
    every: float = option(
        30.0, "seconds between two pages of --watch", minimum=1, maximum=86400, metavar="S", common=True
    )
