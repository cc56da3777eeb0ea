"""The flags of measuring, of export, of commands that read runs, and of tables; the others are in `flags`. No torch."""

from __future__ import annotations

import dataclasses

from unet.config.options import option

SOURCES = ("none", "synthetic", "real")
OPPONENTS = ("plain", "monai", "nnunet")
FORMATS = ("onnx", "openvino", "safetensors", "published", "reference")


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


@dataclasses.dataclass(frozen=True)
class MeasureOptions:
    """Measuring"""

    source: str | None = option(
        None,
        "where batches come from: none (the device alone: one batch made in memory, no data set), synthetic, real",
        choices=SOURCES,
        metavar="none|synthetic|real",
        default_text="real; synthetic with --synth-data",
        common=True,
    )
    sweep: tuple[str, ...] = option(
        (),
        "measure every combination, each in a process of its own, for example: batch_size=1,2,4 precision=fp32,bf16",
        metavar="NAME=A,B,...",
        common=True,
    )
    against: tuple[str, ...] = option(
        ("plain",),
        "what to compare with, in turn: plain (a textbook loop in fp32), monai, nnunet (their own training step)",
        choices=OPPONENTS,
        metavar="NAME",
        common=True,
    )
    profile: bool = option(
        False, "also trace three steps: trace.json in the run's folder, and a table of the operators", common=True
    )


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Export"""

    to: tuple[str, ...] = option(
        ("onnx",),
        "what to write: onnx, openvino (.xml and .bin), safetensors (weights under this program's names), published or"
        " reference (weights under the names of the published network or of the reference program)",
        choices=FORMATS,
        metavar="FORMAT",
        common=True,
    )
    half: bool = option(False, "openvino: weights in 16 bits, half the size (the arithmetic stays fp32)", common=True)
    opset: int = option(20, "onnx: version of the operators", minimum=18, maximum=20)
    passes: int = option(
        24, "passes of the network to compare with torch, on the cases that are named", minimum=1, maximum=10**6
    )
    case_names: bool = option(
        True, "--no-case-names leaves the names of the training and validation cases out of the file"
    )
