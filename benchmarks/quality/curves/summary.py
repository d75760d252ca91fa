"""Curves of NLL against cost, averaged over a set's splits, and what they say at the cost of the ensemble of ten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.quality.curves.points import CURVES, OURS
from benchmarks.quality.goals import NOT_MEASURED, REGRESSION_SETS, Goal
from benchmarks.quality.summary import nll_reading
from benchmarks.results import Run
from benchmarks.table import Estimate, estimate, mark

Curves = dict[str, Any]

_PEER, _MEMBERS, _WANTED = "ensemble", "10", 6


def summarize(name: str, runs: Sequence[Run]) -> Curves | None:
    """A set's curves: for each point mean NLL, its standard error and mean cost over the splits that have the curve,
    how many these are, and by how much the ensemble of ten is better on them than on all (`ahead`); None where none is
    done."""
    done = [r for r in runs if "error" not in r]
    if not done:
        return None
    curves = {}
    for curve in CURVES:
        having = [r for r in done if curve in r["curves"]]
        if not having:
            continue
        found = [r["curves"][curve] for r in having]
        ahead = _peer_nll(done, done) - _peer_nll(having, done)
        points = []
        for label in found[0]:
            each = [f[label] for f in found]
            reading = nll_reading([e["figures"] for e in each])
            nll = estimate([e["figures"][reading] for e in each])
            points.append(
                {
                    "label": label,
                    "splits": len(each),
                    "ahead": ahead,
                    "nll": {"mean": nll.mean, "standard_error": nll.standard_error},
                    "gradient_evaluations": float(np.mean([e["gradient_evaluations"] for e in each])),
                    "seconds": float(np.mean([e["seconds"] for e in each])),
                }
            )
        curves[curve] = points
    return {
        "set": name,
        "task": done[0]["task"],
        "splits": len(done),
        "failed": {family: text for r in done for family, text in r["failed"].items()},
        "curves": curves,
    }


def _peer_nll(runs: Sequence[Run], done: Sequence[Run]) -> float:
    """Mean NLL of the ensemble of ten over some runs, by the reading that is the better one over all that are done; 0
    where one of them lacks it."""
    if not all(_MEMBERS in r["curves"].get(_PEER, {}) for r in done):
        return 0.0
    reading = nll_reading([r["curves"][_PEER][_MEMBERS]["figures"] for r in done])
    return float(np.mean([r["curves"][_PEER][_MEMBERS]["figures"][reading] for r in runs]))


def judge(summary: Sequence[Curves]) -> Goal:
    """Whether five anchors beat the ensemble of ten at its own cost, on sets that have both on all their splits.

    Ours is the point with the most fibers whose cost is no more than the ensemble's: chosen by its cost, not its NLL.
    """
    text = (
        "Regression, five anchors: NLL better than the ensemble of ten at its own cost in gradients on "
        f"{_WANTED} of {REGRESSION_SETS} sets"
    )
    sets = [s for s in summary if s["task"] == "regression" and whole(s, _PEER) and whole(s, OURS)]
    if not sets:
        return Goal(text, NOT_MEASURED, "")
    better, told = 0, []
    for s in sets:
        (peer,) = [p for p in s["curves"][_PEER] if p["label"] == _MEMBERS]
        ours = within(s["curves"][OURS], peer["gradient_evaluations"])
        name = s["set"].removeprefix("uci_")
        if ours is None:
            told.append(f"{name} no point that cheap")
            continue
        better += ours["nll"]["mean"] < peer["nll"]["mean"]
        told.append(f"{name} {ours['nll']['mean']:.3f} against {peer['nll']['mean']:.3f}")
    counted = f" ({len(sets)} of {REGRESSION_SETS} sets)" if len(sets) < REGRESSION_SETS else ""
    return Goal(text, mark(better >= _WANTED), f"better on {better}: {', '.join(told)}{counted}")


def whole(s: Curves, curve: str) -> bool:
    """Whether every split of a set has a curve."""
    return curve in s["curves"] and all(p["splits"] == s["splits"] for p in s["curves"][curve])


def within(points: Sequence[dict[str, Any]], gradients: float) -> dict[str, Any] | None:
    """The dearest of the points that take no more row gradients than these; None where all take more."""
    cheap = [p for p in points if p["gradient_evaluations"] <= gradients]
    return max(cheap, key=lambda p: p["gradient_evaluations"], default=None)


def table(summary: Sequence[Curves]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: one row a point, with its NLL and its cost in row gradients and seconds on each set."""
    rows = []
    for curve, name in CURVES.items():
        has = [s["curves"][curve] for s in summary if curve in s["curves"]]
        for i, point in enumerate(has[0] if has else []):
            cells = []
            for s in summary:
                if curve not in s["curves"]:
                    cells.append("–")
                    continue
                p = s["curves"][curve][i]
                cost = f"{p['gradient_evaluations'] / 1e6:.0f} M, {p['seconds']:.0f} s"
                if not whole(s, curve):
                    cost += f", {p['splits']} of {s['splits']} splits"
                cells.append(f"{Estimate(**p['nll']).text()} ({cost})")
            rows.append([f"{name}: {point['label']}" if point["label"] else name, *cells])
    return ["method", *(f"{s['set']} ({s['splits']})" for s in summary)], rows
