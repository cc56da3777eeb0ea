"""The callback that writes results.csv: a line an epoch, with all numbers of its row of the history."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from unet.config.run_files import RESULTS_CSV
from unet.runtime.folders.run_folder import RunFolder
from unet.runtime.trainer import Trainer


class ResultsTable:
    """Columns are in the order in which they first came; a cell is empty where an epoch does not have the number. The
    file is written anew at the start, from the history that is resumed, and where a column joins; else a line is
    added. Where that breaks off (a full disk), the next epoch writes it anew."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.columns: list[str] = []

    def on_train_start(self, run: Trainer) -> None:
        if run.progress.history or os.path.lexists(self.folder / RESULTS_CSV):
            self.write(run.progress.history)

    def on_epoch_end(self, run: Trainer, row: Mapping[str, Any], **rest: Any) -> None:
        if set(numbers(row)) <= set(self.columns):
            columns, self.columns = self.columns, []  # until the line is there
            self.folder.append(RESULTS_CSV, line(columns, row))
            self.columns = columns
        else:
            self.write(run.progress.history)

    def write(self, history: Sequence[Mapping[str, Any]]) -> None:
        columns = list(dict.fromkeys(name for row in history for name in numbers(row))) or ["epoch"]
        text = [cells(columns), *(line(columns, row) for row in history)]
        self.folder.write(RESULTS_CSV, "\n".join(text) + "\n")
        self.columns = columns


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row; those that a state could not hold (NaN is null there) are NaN."""
    known = {name: math.nan if value is None else value for name, value in row.items()}
    return {name: value for name, value in known.items() if isinstance(value, int | float)}


def line(columns: Sequence[str], row: Mapping[str, Any]) -> str:
    """A line of the table, with all digits."""
    found = numbers(row)
    return cells([repr(found[name]) if name in found else "" for name in columns])


def cells(words: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(words)
    return text.getvalue()
