"""The curves by matplotlib: SVG in the page where Bokeh is not installed, and PNG files beside every page."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

from unet.report.page.curves import OVER, Panel
from unet.report.page.markup import escaped, tag

INK = "#010203"  # stands for the colour of the page's text, which is known where it is shown
STYLES = {"solid": "-", "dotted": ":", "dashdot": "-."}
MARKED = 40  # points: a line of fewer shows each


def png(panel: Panel) -> bytes:
    return _drawn(panel, "step", "png", dpi=120)


def svg(panel: Panel) -> str:
    """The panel over step, wall time and joules: an SVG for each, of which the page shows one."""
    found = []
    for over, words in OVER.items():
        if not any(over in line.over for line in panel.lines):
            continue
        text = _drawn(panel, over, "svg", transparent=True).decode()
        text = re.sub(r"^.*?(?=<svg)|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = text.replace(INK, "currentColor")
        text = re.sub(r' width="[^"]*pt"', "", re.sub(r' height="[^"]*pt"', "", text, count=1), count=1)
        title = f"<title>{escaped(f'{panel.title} over {words}')}</title>"
        head, _, rest = text.partition(">")
        text = f'{head} role="img">{title}{rest}'
        found.append(tag("div", text, class_="still", data_over=over, hidden=over != "step"))
    return "".join(found)


def _drawn(panel: Panel, over: str, kind: str, **how: Any) -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ink = INK if kind == "svg" else "black"
    style: Any = {f"{part}.color": ink for part in ("text", "xtick", "ytick")} | {"axes.labelcolor": ink}
    style |= {"axes.edgecolor": ink, "svg.fonttype": "none", "svg.hashsalt": f"{panel.task} {panel.key} {over}"}
    style |= {
        "font.family": "sans-serif",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.parse_math": False,
    }
    with pyplot.rc_context(style):
        picture, axis = pyplot.subplots(figsize=(6, 3), layout="constrained")
        for line in panel.lines:
            x, colour = line.over.get(over), line.group.colour
            if x is None:
                continue
            style_of = "--" if line.dashed else STYLES[line.group.dash]
            mark = "o" if len(line.y) <= MARKED else ""
            axis.plot(x, line.y, style_of, marker=mark, markersize=3, color=colour, label=line.label, linewidth=1.5)
            if len(line.group.runs) > 1:
                axis.fill_between(x, line.low, line.high, color=colour, alpha=0.18, linewidth=0)
        axis.set(xlabel=OVER[over], title=panel.title)
        axis.title.set_fontsize(11)
        axis.grid(alpha=0.2, color=ink)
        if kind == "png" and len(panel.lines) <= 12:
            axis.legend(frameon=False, fontsize=8)
        stream = io.BytesIO()
        none = {"Date": None, "Creator": None} if kind == "svg" else {}
        picture.savefig(stream, format=kind, metadata=none, **how)
        pyplot.close(picture)
    return stream.getvalue()


def plots(panels: Sequence[Panel]) -> dict[str, str]:
    """{key of a panel: its SVGs}."""
    return {f"{panel.task} {panel.key}": svg(panel) for panel in panels if panel.drawable}
