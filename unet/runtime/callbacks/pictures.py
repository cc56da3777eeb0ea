"""The pictures of a run: its curves and its predictions."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unet.files import atomic

BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"  # told apart by the colour-blind (Okabe and Ito, 2008)


def progress(history: Sequence[Mapping[str, Any]], best_epoch: int, score: str, title: str, path: Path) -> None:
    """Loss (left axis) and score (right axis, called `score`) over the epochs; the best one (0: there is none) is
    marked."""
    from matplotlib.ticker import MaxNLocator

    figure, axis = _pyplot().subplots(figsize=(8, 4.5), layout="constrained")
    epochs = [row["epoch"] for row in history]
    _line(axis, history, "loss", "training loss", BLUE, "o-")
    _line(axis, history, "eval_loss", "validation loss", ORANGE, "s--")
    axis.set(xlabel="epoch", ylabel="loss", title=title, ylim=_range(history, ("loss", "eval_loss")))
    margin = max(0.5, 0.02 * (epochs[-1] - epochs[0]))
    axis.set_xlim(epochs[0] - margin, epochs[-1] + margin)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    lines = axis.get_lines()
    scored = [row for row in history if "score" in row]
    if scored:
        right = axis.twinx()
        best = next((row["score"] for row in reversed(scored) if row["epoch"] == best_epoch), math.nan)
        words = f"validation {score}" + (f" (best {best:.3f}, epoch {best_epoch})" if math.isfinite(best) else "")
        _line(right, history, "score", words, GREEN, "D-.")
        right.plot(best_epoch, best, "o", color=GREEN, fillstyle="none", markersize=14, clip_on=False)
        low, high = _range(history, ("score",))
        right.set(ylabel=score, ylim=(low, high if low < 0 else max(1.05, high)))
        lines = [*lines, right.get_lines()[0]]
    figure.legend(handles=lines, loc="outside lower center", ncols=3, frameon=False)
    axis.grid(alpha=0.3)
    _save(figure, path)


def _line(axis: Any, history: Sequence[Mapping[str, Any]], key: str, label: str, colour: str, style: str) -> None:
    """The rows that have a number of this name; the fewer they are, the larger their marks."""
    rows = [row for row in history if key in row]
    if rows:
        size = 7 if len(rows) < 4 else 3 if len(rows) <= 100 else 0
        how = {"color": colour, "label": label, "markersize": size, "linewidth": 1.4, "clip_on": False}
        axis.plot([row["epoch"] for row in rows], [row[key] for row in rows], style, **how)


def terms(
    history: Sequence[Mapping[str, Any]], curves: Mapping[str, Sequence[str]], score: str, title: str, path: Path
) -> None:
    """A panel for each title, with the terms whose names begin so: in training (line) and validation (dashes; that of
    `score` is called "score" in the history)."""
    found = {name: _terms(history, starts) for name, starts in curves.items()}
    shown = {name: keys for name, keys in found.items() if keys}
    if not shown:
        return
    rows = -(-len(shown) // 2)
    figure, axes = _pyplot().subplots(rows, 2, figsize=(11, 3.2 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis, (name, keys) in zip(axes.flat, shown.items(), strict=False):
        colours = _pyplot().get_cmap("viridis")
        for number, key in enumerate(keys):
            colour = colours(0.9 * number / max(1, len(keys) - 1))
            words = key.replace("_", " ")
            _line(axis, history, key, words, colour, "-")
            _line(axis, history, "score" if key == score else f"eval_{key}", f"{words}, validation", colour, "--")
        axis.set(title=name, xlabel="epoch")
        axis.grid(alpha=0.3)
        if len(axis.get_lines()) <= 6:
            axis.legend(frameon=False, fontsize=8)
        else:
            axis.set_title(f"{name}\n{keys[0]} (dark) to {keys[-1]} (light); dashes: validation", fontsize=9)
    figure.suptitle(title)
    _save(figure, path)


def _terms(history: Sequence[Mapping[str, Any]], starts: Sequence[str]) -> list[str]:
    """The terms whose names begin so; where `starts` ends in `_`, those with a number after it."""
    names = dict.fromkeys(name for row in history for name in row)
    return [
        name
        for name in names
        if any(
            name[len(s) :].isdigit() if s.endswith("_") else name.startswith(s) for s in starts if name.startswith(s)
        )
    ]


def _range(history: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> tuple[float, float]:
    """The ends of an axis on which all finite numbers are seen: from 0, or from below the lowest where that is
    negative."""
    values = [row[key] for row in history for key in keys if key in row and math.isfinite(row[key])]
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low >= 0:
        return 0.0, 1.05 * high or 1.0
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def panels(
    rows: Sequence[tuple[str, Mapping[str, Any]]],
    title: str,
    path: Path,
    key: Sequence[tuple[str, tuple[int, int, int]]] = (),
) -> None:
    """One row for each (label, {name: (H, W, 3) image or (H, W) probability}); `key` says what the colours mean."""
    from matplotlib.patches import Patch

    columns = list(rows[0][1])
    bar = any(image.ndim == 2 for image in rows[0][1].values())
    first = next(iter(rows[0][1].values()))
    tall = first.shape[0] / first.shape[1]
    size = (2.6 * len(columns) + bar, 2.7 * len(rows) + (0.4 if key else 0))
    if tall < 0.7:  # strips of slices
        size = (3.6 * len(columns), (3.6 * tall + 0.15) * len(rows) + 1.0)
    figure, axes = _pyplot().subplots(len(rows), len(columns), figsize=size, squeeze=False, layout="constrained")
    shown = None
    for line, (label, images) in zip(axes, rows, strict=True):
        for axis, name in zip(line, columns, strict=True):
            if images[name].ndim == 2:
                shown = axis.imshow(images[name], cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
            else:
                axis.imshow(images[name], interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(label, fontsize=8)
    for axis, name in zip(axes[0], columns, strict=True):
        axis.set_title(name, fontsize=9)
    if shown is not None:
        figure.colorbar(shown, ax=axes, shrink=min(1.0, 2.2 / len(rows)), label="probability")
    if key:
        patches = [Patch(color=(r / 255, g / 255, b / 255), label=name) for name, (r, g, b) in key]
        figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False, fontsize=9)
    figure.suptitle("\n".join(textwrap.wrap(title, 28 * len(columns))), fontsize=10)
    _save(figure, path)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    with atomic(path) as stream:
        figure.savefig(stream, format="png", dpi=110)
    _pyplot().close(figure)
