"""config: prints every setting of `train` and where it came from."""

from __future__ import annotations

from unet.commands import output
from unet.config.options import flag
from unet.config.resolve import Resolved


def run(resolved: Resolved, command: str) -> int:
    """Print a table of setting, value and source; settings that differ from their default come first."""
    rows = [(flag(name), value(resolved.config.get(name)), resolved.sources[name]) for name in resolved.names]
    rows.sort(key=lambda row: row[2] == "default")
    wide = max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)
    text = "\n".join(f"{name:<{wide[0]}}  {text:<{min(wide[1], 28)}}  {source}" for name, text, source in rows)
    output.show(resolved.config, resolved.entries(), text)
    return 0


def value(item: object) -> str:
    if item is None or item == ():
        return "-"
    return " ".join(map(str, item)) if isinstance(item, tuple) else str(item)
