"""report: one page on one run or several; with --watch again and again while a run goes on."""

from __future__ import annotations

import time
from pathlib import Path

from unet import host
from unet.commands import output, tables
from unet.config.resolve import Resolved
from unet.config.schema import Config, shell_path
from unet.errors import UnetError, UsageError
from unet.report.logs import analysis, read_logs
from unet.report.page import document
from unet.report.page.folder import PageFolder
from unet.report.places import runs_of
from unet.report.run import Run


def run(resolved: Resolved, command: str) -> int:
    """Write the page, and what lies beside it. Returns 0."""
    config = resolved.config
    if not config.runs.runs and not config.report.import_logs:
        raise UsageError(
            "report needs the folders of runs.",
            "Type: python -m unet report performance/RUN [performance/RUN ...]; for old logs: --import FOLDER",
        )
    folder = PageFolder(Path(config.report.page))
    every = config.report.every if config.report.watch else None
    while True:
        began = time.monotonic()
        runs, omitted, imported = found(config)
        report = document.build(runs, omitted, every)
        folder.write(report.page, report.beside)
        if every is None or not report.running:
            break
        time.sleep(max(0.5, every - (time.monotonic() - began)))
    if config.output.json:
        output.show(config, {**report.data, "page": str(folder.page.absolute())}, "")
        return 0
    for conclusion in report.data["conclusions"]:
        print("\n".join([conclusion["words"], *(f"  {words}" for words in conclusion["more"])]))
    if imported:
        print("\n" + analysis.text(imported, tables.table))
    for words in report.data["omitted"]:
        host.notice(f"left out: {words}")
    kinds = f"{sum(name.endswith('.png') for name in report.beside)} PNG and "
    kinds += f"{sum(name.endswith('.csv') for name in report.beside)} CSV files beside it"
    print(f"\n  page       {shell_path(folder.page)}  ({len(report.page) / 1e6:.1f} MB; {kinds})")
    return 0


def found(config: Config) -> tuple[list[Run], list[str], list[Run]]:
    """The runs that were named and those of imported logs, what could not be read, in words, and the imported runs
    alone. One of several that is no run is left out with its reason; raises UsageError where there is none at all."""
    paths, imports = config.runs.runs, config.report.import_logs
    runs, omitted, imported = list[Run](), list[str](), list[Run]()
    for name in paths:
        try:
            runs += runs_of(name, Path(config.run.out))
        except UnetError as error:
            if len(paths) + len(imports) == 1:
                raise
            omitted.append(f"{error.message} {error.hint}")
    for name in imports:
        logs, said = read_logs(Path(name))
        imported += logs
        omitted += said
    if not runs + imported:
        raise UsageError(
            f"None of {', '.join([*paths, *imports])} holds a run: {omitted[0] if omitted else 'they are empty'}",
            "python -m unet runs lists the folders of runs.",
        )
    return runs + imported, omitted, imported
