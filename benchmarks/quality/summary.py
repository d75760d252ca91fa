"""Means over a set's splits, paired differences and mean ranks over sets, from the runs of the benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.quality.run import METHODS
from benchmarks.results import Run
from benchmarks.table import estimate

Summary = dict[str, Any]

OURS = "fiberwalk"
PEERS = [m for m in METHODS if not m.startswith(OURS)]


def summarize(name: str, runs: Sequence[Run]) -> Summary | None:
    """A set's figures by method: mean, standard error, the mean cost; None where no split is done.

    Also `behind`: by how much our NLL is above each peer's, paired by split. Only methods that every split has count.
    """
    done = [r for r in runs if "error" not in r]
    if not done:
        return None
    methods = [m for m in METHODS if all(m in r["methods"] for r in done)]
    figures: dict[str, dict[str, Any]] = {}
    for method in methods:
        each = [r["methods"][method] for r in done]
        means = {k: estimate([e["figures"][k] for e in each]) for k in each[0]["figures"]}
        figures[method] = {
            **{k: {"mean": e.mean, "standard_error": e.standard_error} for k, e in means.items()},
            "gradient_evaluations": float(np.mean([e["gradient_evaluations"] for e in each])),
            "seconds": float(np.mean([e["seconds"] for e in each])),
        }
    behind = {}
    if OURS in methods:
        nll = {m: np.array([r["methods"][m]["figures"]["nll"] for r in done]) for m in methods}
        for peer in methods:
            apart = estimate(list(nll[OURS] - nll[peer]))
            behind[peer] = {"mean": apart.mean, "standard_error": apart.standard_error}
    return {
        "set": name,
        "task": done[0]["task"],
        "splits": len(done),
        "rows": done[0]["rows"],
        "columns": done[0]["columns"],
        "failed": {family: text for r in done for family, text in r["failed"].items()},
        "methods": figures,
        "behind": behind,
    }


def mean_ranks(summary: Sequence[Summary], figure: str, methods: Sequence[str]) -> dict[str, float]:
    """Mean rank (1 is best, lower figures are better, ties share) of methods over sets that have all of them."""
    ranks = []
    for s in summary:
        if all(m in s["methods"] for m in methods):
            values = np.array([s["methods"][m][figure]["mean"] for m in methods])
            ranks.append([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])
    means = np.mean(ranks, axis=0) if ranks else []
    return {m: float(r) for m, r in zip(methods, means, strict=False)}
