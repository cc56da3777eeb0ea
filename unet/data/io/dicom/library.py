"""pydicom and highdicom (the extra `dicom`): found when they are needed, and kept from printing what headers hold."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unet.errors import DataError, UnetError

INSTALL = "Type: pip install 'unet-accelerators[dicom]'"
AGAIN = "Export the series again from its source, or take this file out of the folder."


def pydicom() -> Any:
    """pydicom. Raises DataError where it is not installed."""
    try:
        import pydicom
        import pydicom.pixels
    except ImportError as error:
        raise DataError("DICOM files are read by pydicom 3, which is not installed.", INSTALL) from error
    return pydicom


def highdicom() -> Any:
    """highdicom. Raises DataError where it is not installed."""
    pydicom()
    try:
        import highdicom
        import highdicom.seg
    except ImportError as error:
        raise DataError("DICOM-SEG files are written by highdicom, which is not installed.", INSTALL) from error
    return highdicom


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keep both libraries' warnings and logs to themselves: they hold values of headers, a patient's name among
    them."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def explained(path: Path, doing: str = "cannot be read as DICOM", hint: str = AGAIN) -> Iterator[None]:
    """Turn what the libraries raise into a DataError that names the file and the kind of the fault. The words of the
    fault are left out, also from a traceback: they may hold values of the header."""
    try:
        with silent():
            yield
    except (UnetError, KeyboardInterrupt, SystemExit):
        raise
    except OSError as error:
        raise DataError(f"{path}: {doing} ({error.strerror or 'cut short'}).", hint) from None
    except MemoryError:
        raise DataError(f"{path}: {doing}: it asks for more memory than there is.", hint) from None
    except Exception as error:  # damaged headers raise anything
        words = f"{path}: {doing}: damaged, or not as the standard has it ({type(error).__name__})."
        raise DataError(words, hint) from None
