"""Standard streams that still work after their terminal, or the reader of their pipe, is gone."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator
from typing import Any


class Terminal:
    """A standard stream on a terminal or a pipe. After the terminal is closed, or the reader of the pipe has ended
    (`tee` dies of the same Ctrl-C), output is discarded, so that it does not end a run that is being saved."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._dropping():
            self._stream.flush()

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EPIPE):
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def outlive_terminal() -> None:
    """Let this process go on writing when its terminal, or the reader of its pipe, is gone."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, Terminal) and is_read_by_another(stream):
            setattr(sys, name, Terminal(stream))


def is_read_by_another(stream: Any) -> bool:
    """Whether a stream goes to a terminal, a pipe or a socket."""
    try:
        mode = os.fstat(stream.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stream.isatty() or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
