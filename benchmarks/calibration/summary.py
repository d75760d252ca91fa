"""Means over a set's splits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.calibration.monitored import MONITOR
from benchmarks.calibration.run import METHODS
from benchmarks.results import Run
from benchmarks.table import Estimate, estimate

Summary = dict[str, Any]


def summarize(name: str, runs: Sequence[Run]) -> Summary | None:
    """A set's figures by method, mean and standard error, and the mean seconds; of the monitor's set all runs together.
    None where no split is done.

    Only methods that every split has count.
    """
    done = [r for r in runs if "error" not in r]
    if not done:
        return None
    summary: Summary = {"set": name, "task": done[0]["task"], "splits": len(done), "rows": done[0]["rows"]}
    if summary["task"] == MONITOR:
        names = ("coverage", "shifted_coverage")
        means = {n: sum(r[n] for r in done) / len(done) for n in names}
        return {**summary, **means, "runs": [one for r in done for one in r["runs"]]}
    methods = {}
    for method in [m for m in METHODS if all(m in r["methods"] for r in done)]:
        each = [r["methods"][method] for r in done]
        shared = [k for k in each[0]["figures"] if all(k in e["figures"] for e in each)]
        means = {k: estimate([e["figures"][k] for e in each]) for k in shared}
        methods[method] = {
            "figures": {k: {"mean": e.mean, "standard_error": e.standard_error} for k, e in means.items()},
            "seconds": sum(e["seconds"] for e in each) / len(each),
        }
    failed = {family: text for r in done for family, text in r["failed"].items()}
    return {**summary, "test_rows": sum(r["test_rows"] for r in done), "failed": failed, "methods": methods}


def figure(summary: Summary, method: str, name: str) -> Estimate | None:
    """A figure of a set's method, where it has one."""
    found = summary["methods"].get(method, {}).get("figures", {}).get(name)
    return None if found is None else Estimate(**found)
