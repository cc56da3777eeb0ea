"""Errors that a user can act on: one line with the actual values, one line with what to type."""

from __future__ import annotations

FAILED, USAGE, TARGET_MISSED, INTERRUPTED = 1, 2, 3, 130


class UnetError(Exception):
    """What is wrong (`message`) and what to do (`hint`). `exit_code`: of the process; `shown`: whether another process
    of the run has printed it; `shared`: whether all processes of a node find the same, and the first one prints it;
    `passing`: whether the same command may go well when it is started again."""

    exit_code = FAILED
    shown = False
    shared = False
    passing = False

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.message, self.hint = message, hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}"


class UsageError(UnetError):
    """The command line or a settings file cannot be understood."""

    exit_code = USAGE
    shared = True


class LostError(UnetError):
    """A process, a device or a connection is lost in the middle of its work."""

    passing = True


class StorageError(UnetError):
    """A file or folder cannot be read or written: missing, not permitted, disk full."""


class DataError(UnetError):
    """A raw data set or a file in it cannot be used."""


class CacheError(UnetError):
    """A cache does not match the settings, or is damaged."""


class CheckpointError(UnetError):
    """Weights or a saved run cannot be used."""


class DamagedError(CheckpointError):
    """A file of weights or a state is truncated, empty or corrupt."""


class DeviceError(UnetError):
    """The requested device cannot be used."""
