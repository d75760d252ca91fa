"""The pictures of the experiments.

Lengths: M refinements, T nodes, k latent dimensions.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from builder.canvas import BLUE, INK, SIZE, anchor_colors, png

Array = NDArray[Any]
_WORST = 1.0
"""Nats above the best at which the colours of a heat map end: cells that are far worse must not hide the others."""


def heat_maps(
    maps: Mapping[str, Array],
    rows: Sequence[str],
    columns: Sequence[str],
    row_name: str,
    column_name: str,
    value_name: str,
) -> bytes:
    """One heat map (rows, columns) a title, each with colours of its own, drawn with the rows side by side.

    The best cell is framed, and what is not finite is left empty.
    """

    def draw(figure: Figure) -> None:
        panels = np.atleast_1d(figure.subplots(1, len(maps), sharey=True))
        for axes, (title, values) in zip(panels, maps.items(), strict=True):
            low, high = float(np.nanmin(values)), float(np.nanmax(values))
            image = axes.imshow(
                values.T, cmap="viridis", vmin=low, vmax=min(high, low + _WORST), aspect="auto", origin="lower"
            )
            for (i, j), value in np.ndenumerate(values):
                light = value < low + 0.5 * (min(high, low + _WORST) - low)
                text = f"{value:.2f}" if np.isfinite(value) else "–"
                axes.text(i, j, text, ha="center", va="center", fontsize=7, color="white" if light else INK)
            i, j = np.unravel_index(np.nanargmin(values), values.shape)
            axes.plot(i, j, marker="s", ms=22, mfc="none", mec="red", mew=1.5)
            axes.set_xticks(range(len(rows)), rows)
            axes.set_yticks(range(len(columns)), columns)
            axes.set(xlabel=row_name, title=title)
            axes.grid(False)
            figure.colorbar(image, ax=axes, label=value_name, extend="max" if high > low + _WORST else "neither")
        panels[0].set_ylabel(column_name)

    return png(draw, (SIZE[0], 4.8))


@dataclass(frozen=True)
class Line:
    """A line of a panel; one without a label is not in the legend.

    Attributes:
        error: half the length of the bars, none where it is empty.
        reference: a level that is drawn dashed in the line's colour.
    """

    x: Sequence[float]
    y: Sequence[float]
    label: str | None = None
    error: Sequence[float] = ()
    reference: float | None = None
    color: Any = None
    style: str = "-"


@dataclass(frozen=True)
class Panel:
    """One set of axes.

    Attributes:
        linear_below: where given, the y axis is logarithmic above it and linear below.
        ticks: labels of x values; with them the x axis is logarithmic.
        bottom, top: ends of the y axis, where panels must be alike.
    """

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    linear_below: float | None = None
    log_y: bool = False
    ticks: Sequence[float] = ()
    bottom: float | None = None
    top: float | None = None


def lines(panels: Sequence[Panel], size: tuple[float, float] = SIZE) -> bytes:
    """Panels of lines side by side, with one legend below where all have the same."""
    labels = [[line.label for line in panel.lines] for panel in panels]
    shared = len(panels) > 1 and all(own == labels[0] for own in labels)

    def draw(figure: Figure) -> None:
        for axes, panel in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
            colors = anchor_colors(max(1, len(panel.lines)))
            for own, line in zip(colors, panel.lines, strict=True):
                color = line.color or own
                error = line.error or None
                axes.errorbar(
                    line.x, line.y, yerr=error, color=color, ls=line.style, marker="o", ms=4, lw=1.6, label=line.label
                )
                if line.reference is not None:
                    axes.axhline(line.reference, color=color, ls=":", lw=1.2)
            if panel.ticks:
                axes.set_xscale("log")
                axes.set_xticks(panel.ticks, [f"{t:g}" for t in panel.ticks])
                axes.minorticks_off()
            if panel.linear_below is not None:
                axes.set_yscale("symlog", linthresh=panel.linear_below)
                axes.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
            elif panel.log_y:
                axes.set_yscale("log")
            axes.set_ylim(panel.bottom, None if panel.top is None else 1.5 * panel.top)
            axes.set(xlabel=panel.x, ylabel=panel.y, title=panel.title)
            if not shared and any(line.label for line in panel.lines):
                axes.legend(loc="best")
        if shared:
            figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)

    return png(draw, size)


def trajectories(paths: Mapping[str, Array]) -> bytes:
    """Curves (N, T, 2) of each title in a plane, all of one anchor; they start at the star."""

    def draw(figure: Figure) -> None:
        for axes, (title, curves) in zip(np.atleast_1d(figure.subplots(1, len(paths))), paths.items(), strict=True):
            axes.add_collection(LineCollection(list(curves), colors=anchor_colors(len(curves)), lw=1.2))
            for color, curve in zip(anchor_colors(len(curves)), curves, strict=True):
                axes.plot(*curve[1:].T, ls="", marker="o", ms=2.5, mew=0, color=color)
            axes.plot(*curves[0, 0], marker="*", ms=11, color=BLUE, mec="white")
            axes.set_aspect("equal", adjustable="datalim")
            axes.set_title(textwrap.fill(title, 14), fontsize=9)
            axes.set_xticks([])
            axes.set_yticks([])

    return png(draw, (SIZE[0] * 1.25, 2.6))
