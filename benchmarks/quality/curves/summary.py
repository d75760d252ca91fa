"""Curves of NLL against cost, averaged over a set's splits, and what they say at the cost of the ensemble of ten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.curves.points import CURVES, OURS
from benchmarks.quality.goals import REGRESSION_SETS, Goal, make_goal
from benchmarks.quality.summary import nll_reading
from benchmarks.results import Results, Run
from benchmarks.table import Estimate, estimate, verdict

Curves = dict[str, Any]

_PEER, _MEMBERS, _WANTED = "ensemble", "10", 6
_COSTS = {"gradient_evaluations": "gradients", "seconds": "seconds"}


def summarize_all(results: Results) -> list[Curves]:
    """All sets of a file that any split is done of, each as it was run last."""
    return [s for name in results.sets if (s := summarize(name, results.latest(name))) is not None]


def summarize(name: str, runs: Sequence[Run]) -> Curves | None:
    """A set's curves: for each point mean NLL, its standard error and mean cost over the splits that have the curve,
    how many these are, and by how much the ensemble of ten is better on them than on all (`ahead`); and `behind`, our
    points beside that ensemble. None where none is done."""
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
        "behind": _behind(done),
    }


def _behind(done: Sequence[Run]) -> list[dict[str, Any]]:
    """By how much the NLL of each point of five anchors is above that of the ensemble of ten, paired by split over
    those that have both, and how many times the ensemble's mean cost it takes on these."""
    both = [r["curves"] for r in done if OURS in r["curves"] and _MEMBERS in r["curves"].get(_PEER, {})]
    peer = [curves[_PEER][_MEMBERS] for curves in both]
    points = []
    for label in both[0][OURS] if both else []:
        ours = [curves[OURS][label] for curves in both]
        nll = estimate(list(_nll(ours) - _nll(peer)))
        ratios = {cost: sum(p[cost] for p in ours) / sum(p[cost] for p in peer) for cost in _COSTS}
        of_nll = {"mean": nll.mean, "standard_error": nll.standard_error}
        points.append({"label": label, "splits": len(both), "nll": of_nll, **ratios})
    return points


def _nll(points: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
    """Of one point on several splits, by the reading that is the better one over these."""
    figures = [p["figures"] for p in points]
    reading = nll_reading(figures)
    return np.array([f[reading] for f in figures])


def _peer_nll(runs: Sequence[Run], done: Sequence[Run]) -> float:
    """Mean NLL of the ensemble of ten over some runs, by the reading that is the better one over all that are done; 0
    where one of them lacks it."""
    if not all(_MEMBERS in r["curves"].get(_PEER, {}) for r in done):
        return 0.0
    reading = nll_reading([r["curves"][_PEER][_MEMBERS]["figures"] for r in done])
    return float(np.mean([r["curves"][_PEER][_MEMBERS]["figures"][reading] for r in runs]))


def judge(summary: Sequence[Curves]) -> list[Goal]:
    """Whether five anchors beat the ensemble of ten at its own cost, in gradients and in seconds, beyond two standard
    errors of the paired differences.

    Ours is the dearest point whose cost is no more than the ensemble's: chosen by its cost, not its NLL.
    """
    return [_at_cost([s for s in summary if s["task"] == "regression" and s["behind"]], cost) for cost in _COSTS]


def _at_cost(sets: Sequence[Curves], cost: str) -> Goal:
    def met() -> tuple[str, str]:
        better, surely, told, dear = 0, 0, [], []
        for s in sets:
            name, point = s["set"].removeprefix("uci_"), within(s["behind"], 1.0, cost)
            if point is None:
                dear.append(name)
                continue
            behind, splits = Estimate(**point["nll"]), point["splits"]
            better += behind.mean < 0
            surely += behind.surely_below(0)
            of = f" ({splits} of {s['splits']} splits)" if splits < s["splits"] else " (1 split)" if splits == 1 else ""
            told.append(f"{name} {'+' if behind.mean >= 0 else ''}{behind.text()}{of}")
        state = verdict(surely >= _WANTED, better >= _WANTED)
        found = [f"better on {better}, on {surely} by more than two standard errors", ", ".join(told)]
        lacking = f"; no point that cheap on {', '.join(dear)}" if dear else ""
        return state, ": ".join(filter(None, found)) + lacking

    text = (
        f"Regression, five anchors: NLL better than the ensemble of ten at its own cost in {_COSTS[cost]} on "
        f"{_WANTED} of {REGRESSION_SETS} sets"
    )
    return make_goal(text, sets, REGRESSION_SETS, met)


def whole(s: Curves, curve: str) -> bool:
    """Whether every split of a set has a curve."""
    return curve in s["curves"] and all(p["splits"] == s["splits"] for p in s["curves"][curve])


def within(points: Sequence[dict[str, Any]], most: float, cost: str) -> dict[str, Any] | None:
    """The dearest of the points that cost no more than this; None where all cost more."""
    cheap = [p for p in points if p[cost] <= most]
    return max(cheap, key=lambda p: p[cost], default=None)


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
