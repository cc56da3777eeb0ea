"""The flags of what is asked of others: power meters, trackers, downloads, the shell. No torch."""

from __future__ import annotations

import dataclasses

from unet.config.options import option

SHORTEST = 0.05  # seconds; no tool answers faster


@dataclasses.dataclass(frozen=True)
class PowerOptions:
    """Power"""

    power: float = option(
        0.0,
        "read the power of cards, processors and memory every so many seconds, and add it up to joules",
        minimum=0,
        maximum=3600,
        metavar="SECONDS",
        default_text="off",
        common=True,
    )


@dataclasses.dataclass(frozen=True)
class TrackOptions:
    """Trackers"""

    wandb: str | None = option(
        None,
        "also keep the run with Weights & Biases: offline writes files under --out, online sends them to its server",
        choices=("offline", "online"),
        const="offline",
        default_text="off",
    )
    mlflow: str | None = option(
        None,
        "also keep the run with MLflow: in a store on this machine (sqlite:///FILE, a folder; without a value"
        " mlflow.db under --out) or on a server (http://..., https://...)",
        const="local",
        metavar="URI",
        default_text="off",
    )
    track: tuple[str, ...] = option(
        (),
        "what trackers get beside numbers and settings: pictures (of cases), weights",
        choices=("pictures", "weights"),
        metavar="WHAT",
    )
    track_project: str = option(
        "unet", "project (wandb) or experiment (MLflow) that the run belongs to", metavar="NAME"
    )
    track_group: str | None = option(
        None, "a name that several runs share", metavar="NAME", default_text="crossval: its run name"
    )
    track_wait: float = option(
        5.0,
        "seconds for the server of a tracker to take what is left, at the end of the run",
        minimum=0,
        maximum=600,
        metavar="S",
    )


@dataclasses.dataclass(frozen=True)
class DownloadOptions:
    """Download"""

    accept_licence: bool = option(
        False,
        "the licence is read and accepted; without this nothing is loaded",
        aliases=("--accept-license", "--yes"),
        common=True,
    )
    download_from: str | None = option(
        None,
        "another address, http or https: of the archive, or of the folder that holds the files; or an archive that you"
        " have",
        metavar="URL|FILE",
        aliases=("--from",),
        common=True,
    )
    credentials: str | None = option(
        None,
        'a file with {"username": ..., "key": ...} for an address that wants an account (kaggle.json)',
        metavar="FILE",
        common=True,
    )
    at_once: int = option(4, "files that are loaded at the same time", minimum=1, maximum=16)
    stall: float = option(
        30.0, "seconds without data after which a connection is given up", minimum=0.1, maximum=3600, metavar="S"
    )
    tries: int = option(6, "tries in a row that bring nothing new", minimum=1, maximum=1000)


SHELLS = ("bash", "zsh", "fish")


@dataclasses.dataclass(frozen=True)
class CompletionOptions:
    """Shell"""

    shell: str = option("bash", "the shell to complete in", choices=SHELLS, metavar="SHELL", common=True)
