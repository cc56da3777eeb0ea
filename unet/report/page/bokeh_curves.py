"""Curves that one can hover, zoom and switch: Bokeh's figures as JSON, and its script from the installed package. Their
points are those of the page's data, which page.js gives them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from unet.report.page.curves import OVER, Line, Panel
from unet.report.page.markup import script_json, tag

HEIGHT = 260
MARKED = 40  # points: a line of fewer shows each
MORE = 'Type pip install "bokeh>=3.4" for curves that can be zoomed, read point by point and switched.'


def installed() -> bool:
    try:
        import bokeh.plotting  # noqa: F401
    except ImportError:
        return False
    return True


def library() -> str:
    """Bokeh's own script, whole, without an address in it that could be asked for."""
    from bokeh.resources import Resources

    scripts = Resources(mode="inline", components=["bokeh"]).js_raw
    text = "\n".join(scripts).replace("</script", "<\\/script")
    text = re.sub(r"//# sourceMappingURL=\S*", "", text)
    text = re.sub(r"https://(cdn\.jsdelivr\.net|maps\.googleapis\.com)[\w./-]*", "", text)
    return f"<script>{text}</script>"


def plots(panels: Sequence[Panel]) -> dict[str, str]:
    """{key of a panel: the place of its figure} of the panels that have a line, and "" -> the figures."""
    from bokeh.embed import json_item

    found, items = {}, []
    for number, panel in enumerate(panels):
        if not panel.drawable:
            continue
        place = f"plot-{number}"
        items.append(json_item(plot(panel, number), place))
        found[f"{panel.task} {panel.key}"] = tag(
            "div", id=place, class_="plot", role="img", aria_label=f"curves: {panel.title}", style=f"height:{HEIGHT}px"
        )
    found[""] = script_json(json.loads(json.dumps(items)), "plots")
    return found


def plot(panel: Panel, number: int) -> Any:
    from bokeh.models import BoxZoomTool, HoverTool, PanTool, ResetTool, WheelZoomTool
    from bokeh.plotting import figure

    wheel = WheelZoomTool(modifiers={"ctrl": True})
    tools = [PanTool(), BoxZoomTool(), wheel, ResetTool()]
    made = figure(height=HEIGHT, sizing_mode="stretch_width", tools=tools, output_backend="canvas", min_width=200)
    made.toolbar.logo = None
    made.toolbar.active_drag = None  # a finger on the picture scrolls the page
    made.toolbar.active_scroll = wheel
    made.xaxis.axis_label = OVER["step"]
    made.background_fill_alpha = made.border_fill_alpha = 0
    made.outline_line_alpha = 0
    made.title.text = panel.title
    made.title.text_font_size, made.title.text_font = "13px", "system-ui, sans-serif"
    made.yaxis.formatter.power_limit_high = 6
    for axis in (*made.xaxis, *made.yaxis):
        axis.axis_label_text_font_style, axis.axis_label_text_font_size = "normal", "12px"
        axis.major_label_text_font_size, axis.minor_tick_line_alpha = "12px", 0
        axis.major_label_text_font = axis.axis_label_text_font = "system-ui, sans-serif"
    drawn = [draw(made, line, [line.group.number, number, place]) for place, line in enumerate(panel.lines)]
    tips = [("", "@run"), ("", "@y{0.0000a}"), ("step", "@step{0,0}"), ("minutes", "@seconds{0.0}")]
    made.add_tools(HoverTool(renderers=drawn, tooltips=tips, mode="mouse", point_policy="snap_to_data"))
    return made


def draw(made: Any, line: Line, tags: list[int]) -> Any:
    """The band of a group's seeds, its points and its line, still empty. `tags`: the group, and the places of panel and
    line in the page's data."""
    from bokeh.models import ColumnDataSource

    colour, dash = line.group.colour, "dashed" if line.dashed else line.group.dash
    source = ColumnDataSource({name: [] for name in ("x", "y", "low", "high", "run", *OVER)})
    parts = []
    if len(line.group.runs) > 1:
        parts.append(made.varea("x", "low", "high", source=source, fill_color=colour, fill_alpha=0.18))
    if len(line.y) <= MARKED:
        parts.append(made.scatter("x", "y", source=source, color=colour, size=5, line_alpha=0))
    parts.append(made.line("x", "y", source=source, line_color=colour, line_dash=dash, line_width=2))
    for part in parts:
        part.tags = tags
    return parts[-1]
