"""The picture of NLL against cost, one small plot a set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.quality.curves.points import CURVES
from benchmarks.quality.curves.summary import Curves, whole
from builder.canvas import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED, SKY, png

_LOOKS: Final = {
    "ensemble": (RED, "o"),
    "laplace_full": (GREY, "s"),
    "laplace_kron": (GREY, "^"),
    "laplace_last": (GREY, "v"),
    "swag": (ORANGE, "o"),
    "mc_dropout": (PURPLE, "o"),
    "fiberwalk_1": (SKY, "D"),
    "fiberwalk_5": (BLUE, "D"),
    "fiberwalk_20": (GREEN, "D"),
}
"""Colour and marker."""
_COLUMNS: Final = 3
_ROOM: Final = 0.08


def picture(summary: Sequence[Curves]) -> bytes:
    """PNG: test NLL over row gradients (logarithmic), a line a method, one plot for each of at least one set.

    Methods far worse than all others would flatten the rest: a plot ends above the worst of the first members of the
    ensemble and of our curves, and what lies beyond is drawn at its edge, hollow. A curve of fewer splits than the set
    has is dotted, and moved by how much easier these are for the ensemble of ten.
    """
    columns = min(_COLUMNS, len(summary))
    lines = math.ceil(len(summary) / columns)

    def draw(figure: Figure) -> None:
        axes = figure.subplots(lines, columns, squeeze=False).flatten().tolist()
        for at, s in zip(axes, summary, strict=False):
            _one_set(at, s)
        for at in axes[len(summary) :]:
            at.set_visible(False)
        handles, labels = axes[0].get_legend_handles_labels()
        # What the points differ in stands in the table.
        names = [label.partition(" (")[0] for label in labels]
        figure.legend(handles, names, loc="outside lower center", ncols=columns if columns > 1 else 2)

    return png(draw, (3.6 * columns + 1.0, 2.9 * lines + 1.4))


def _one_set(at: Axes, s: Curves) -> None:
    shown = [_nll(p) for c, points in s["curves"].items() if c.startswith(("ensemble", "f")) for p in points]
    every = [_nll(p) for points in s["curves"].values() for p in points]
    low, high = min(every), max(shown or every)
    room = _ROOM * max(high - low, 1e-3)
    top = high + 2 * room
    for curve, points in s["curves"].items():
        colour, marker = _LOOKS[curve]
        x = [p["gradient_evaluations"] / 1e6 for p in points]
        y = [min(_nll(p), top) for p in points]
        line = "-" if whole(s, curve) else ":"
        at.plot(x, y, color=colour, lw=1.2, ls=line, label=CURVES[curve], marker=marker, ms=4.5)
        _hollow(at, [(a, b) for a, b, p in zip(x, y, points, strict=True) if _nll(p) > top], marker, colour)
    at.set_xscale("log")
    at.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
    at.xaxis.set_minor_formatter(lambda v, _: f"{v:g}" if str(v)[0] in "25" else "")
    at.tick_params(which="both", labelsize=8)
    at.set_ylim(low - room, top + room)
    at.set_title(f"{s['set']} ({s['splits']})")
    at.set_xlabel("row gradients, millions", fontsize=8.5, color=INK)
    at.set_ylabel("test NLL", fontsize=8.5, color=INK)


def _nll(point: dict[str, Any]) -> float:
    return float(point["nll"]["mean"] + point["ahead"])


def _hollow(at: Axes, points: Sequence[tuple[float, float]], marker: str, colour: Any) -> None:
    for x, y in points:
        at.plot([x], [y], marker=marker, ms=4.5, mfc="white", mec=colour, ls="")
