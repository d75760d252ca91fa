"""The benchmark's table and its goals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from benchmarks.quality.goals import NOT_MEASURED, Goal
from benchmarks.table import mark

MOST_DET: Final = {"MLP 13-50-1": 2.0, "LeNet-5": 17.0}
LEAST_READING: Final = ("MLP 784-256-128-10", 0.6)
MOST_STATISTICS: Final = 50.0


def table(found: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, one for each network and number of rows."""
    header = ["network", "rows", "det µs", "samples µs", "in det", "statistics µs", "together µs", "in det"]
    header += ["share of samples", "of statistics", "of reading the weights"]
    rows = []
    for f in found:
        det, predict = f["det"], f["predict"]
        cells = [f["set"], str(f["rows"]), f"{det:,.1f}", f"{f['network']:,.1f}", f"{f['network'] / det:.1f}"]
        cells += [f"{f['statistics']:,.1f}", f"{predict:,.1f}", f"{predict / det:.1f}"]
        cells += [f"{f[part] / predict:.0%}" for part in ("network", "statistics", "read")]
        rows.append(cells)
    return header, rows


def judge(found: Sequence[dict[str, Any]]) -> list[Goal]:
    """The goals, all of single rows."""
    of = {f["set"]: f for f in found if f["rows"] == 1}
    goals = []
    for name, most in MOST_DET.items():
        text = f"{name}: the outputs of 32 samples for one row within {most:g} deterministic runs"
        if name not in of:
            goals.append(Goal(text, NOT_MEASURED, ""))
            continue
        ratio = of[name]["network"] / of[name]["det"]
        goals.append(Goal(text, mark(ratio <= most), f"{ratio:.2f}"))
    name, least = LEAST_READING
    text = f"{name}: reading the weights is {least:.0%} or more of the time of the outputs for one row"
    if name in of:
        share = of[name]["read"] / of[name]["network"]
        goals.append(Goal(text, mark(share >= least), f"{share:.0%}"))
    else:
        goals.append(Goal(text, NOT_MEASURED, ""))
    text = f"Statistics of one row within {MOST_STATISTICS:g} µs"
    if of:
        slowest = max(of.values(), key=lambda f: float(f["statistics"]))
        fast = slowest["statistics"] <= MOST_STATISTICS
        goals.append(Goal(text, mark(fast), f"{slowest['statistics']:.0f} µs ({slowest['set']})"))
    else:
        goals.append(Goal(text, NOT_MEASURED, ""))
    return goals
