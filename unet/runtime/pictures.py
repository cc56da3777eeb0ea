"""The pictures of a run: its curves and its predictions."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unet.files import atomic


def progress(history: Sequence[Mapping[str, Any]], score: str, title: str, path: Path) -> None:
    """Loss (left axis) and score (right axis) over the epochs; the best epoch is marked."""
    plot = _pyplot()
    figure, axis = plot.subplots(figsize=(8, 4.5), layout="constrained")
    epochs, name = [row["epoch"] for row in history], score.replace("_", " ").upper()
    marker = "." if len(history) <= 100 else None
    axis.plot(
        epochs,
        [row["loss"] for row in history],
        color="tab:blue",
        label="training loss",
        marker=marker,
        markersize=4,
        linewidth=1,
    )
    scored = [row for row in history if "score" in row]
    with_loss = [row for row in scored if "eval_loss" in row]
    axis.plot(
        [row["epoch"] for row in with_loss],
        [row["eval_loss"] for row in with_loss],
        color="tab:orange",
        label="validation loss",
        marker=".",
        markersize=4,
    )
    axis.set(xlabel="epoch", ylabel="loss", title=title)
    axis.set_ylim(bottom=0)
    axis.xaxis.get_major_locator().set_params(integer=True)
    lines = axis.get_lines()
    if scored:
        right = axis.twinx()
        values = [row["score"] for row in scored]
        right.plot(
            [row["epoch"] for row in scored],
            values,
            color="tab:green",
            label=f"validation {name}",
            marker=".",
            markersize=4,
        )
        best = max(range(len(values)), key=values.__getitem__)
        right.annotate(
            f"{values[best]:.3f}",
            (scored[best]["epoch"], values[best]),
            textcoords="offset points",
            xytext=(0, -14),
            ha="center",
            color="tab:green",
        )
        right.set(ylabel=name, ylim=(0, 1))
        lines = [*lines, *right.get_lines()]
    figure.legend(handles=lines, loc="outside lower center", ncols=3, frameon=False)
    axis.grid(alpha=0.3)
    _save(figure, path)


def panels(rows: Sequence[tuple[str, Mapping[str, Any]]], title: str, path: Path) -> None:
    """One row of images for each (label, {name: (H, W) or (H, W, 3) array})."""
    plot = _pyplot()
    columns = list(rows[0][1])
    figure, axes = plot.subplots(
        len(rows), len(columns), figsize=(2.6 * len(columns), 2.75 * len(rows)), squeeze=False, layout="constrained"
    )
    for line, (label, images) in zip(axes, rows, strict=True):
        for axis, name in zip(line, columns, strict=True):
            axis.imshow(
                images[name], cmap="gray", vmin=0, vmax=1 if images[name].ndim == 2 else None, interpolation="nearest"
            )
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(label, fontsize=8)
    for axis, name in zip(axes[0], columns, strict=True):
        axis.set_title(name, fontsize=9)
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
