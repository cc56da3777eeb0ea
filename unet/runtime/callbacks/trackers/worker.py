"""The process of a tracker: takes events as lines of JSON from standard input, and gives them to the library.

It answers with lines of JSON: {"ready": ..}, then {"ended": ..} or {"failed": words}. Where its input ends early (the
run was killed), it closes the tracked run as failed, and does not stay.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

PARTING = 15.0  # seconds to close after the run is gone


def main(kind: str) -> int:
    """Serve one run."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what the library prints is no answer

    def say(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    try:
        sink, last = None, ""
        for line in sys.stdin:
            event, *values = json.loads(line)
            if event == "start":
                sink = made(kind, values[0])
                say(ready=True, later=sink.later)
                sink.start(values[1])
                say(where=sink.where, later=sink.later)
            elif sink is not None:
                getattr(sink, event)(*values)
            last = event
        if sink is not None and last != "end":
            threading.Timer(PARTING, os._exit, (1,)).start()
            sink.end("failed", {})
        say(ended=True)
    except BaseException as error:
        say(failed=reason(error))
        return 1
    return 0


def reason(error: BaseException) -> str:
    """An error in a line, with what it began with: libraries wrap a refused connection several times."""
    first = error
    while (cause := first.__cause__ or first.__context__) is not None:
        first = cause
    words = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return words if first is error else f"{words} ({' '.join(str(first).split())[:120] or type(first).__name__})"


def made(kind: str, options: dict[str, Any]) -> Any:
    """The sink of a kind."""
    if kind == "wandb":
        from unet.runtime.callbacks.trackers.wandb import WeightsAndBiases

        return WeightsAndBiases(**options)
    from unet.runtime.callbacks.trackers.mlflow import MLflow

    return MLflow(**options)


if __name__ == "__main__":
    code = main(sys.argv[1])
    sys.stdout.flush()
    os._exit(code)  # threads of a library that waits for a server do not hold it
