"""What a command prints: text, or with --json one JSON object and nothing else on standard output."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from unet import files
from unet.config.schema import Config

_kept: list[TextIO] = []  # standard output, while other prints go to standard error


@contextlib.contextmanager
def json_alone(config: Config) -> Iterator[None]:
    """With --json everything that is printed meanwhile goes to standard error, except `show`'s object."""
    if not config.output.json:
        yield
        return
    _kept.append(sys.stdout)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _kept.pop()


def show(config: Config, result: Mapping[str, Any], text: str) -> None:
    """Print the result of a command: `text`, or with --json `result`."""
    if config.output.json:
        print(files.json_text(dict(result)), end="", file=_kept[-1] if _kept else sys.stdout, flush=True)
    else:
        print(text)
