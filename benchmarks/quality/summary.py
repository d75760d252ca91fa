"""Means over a set's splits, paired differences and mean ranks over sets, from the runs of the benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.run import METHODS
from benchmarks.results import Run
from benchmarks.table import estimate

Summary = dict[str, Any]

OURS = "fiberwalk"
PEERS = [m for m in METHODS if not m.startswith(OURS)]


def summarize(name: str, runs: Sequence[Run]) -> Summary | None:
    """A set's figures by method: mean, standard error, the mean cost; None where no split is done.

    Also `behind`: by how much our NLL is above each peer's, paired by split. Only methods that every split has count.
    For regression `nll` is the better reading of a method (`nll_reading`).
    """
    done = [r for r in runs if "error" not in r]
    if not done:
        return None
    methods = [m for m in METHODS if all(m in r["methods"] for r in done)]
    figures: dict[str, dict[str, Any]] = {}
    nll: dict[str, NDArray[np.float64]] = {}
    for method in methods:
        each = [r["methods"][method] for r in done]
        values = {k: np.array([e["figures"][k] for e in each]) for k in each[0]["figures"]}
        nll[method] = values["nll"] = values[nll_reading([e["figures"] for e in each])]
        means = {k: estimate(list(v)) for k, v in values.items()}
        figures[method] = {
            **{k: {"mean": e.mean, "standard_error": e.standard_error} for k, e in means.items()},
            "gradient_evaluations": float(np.mean([e["gradient_evaluations"] for e in each])),
            "seconds": float(np.mean([e["seconds"] for e in each])),
        }
    behind = {}
    if OURS in methods:
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


def nll_reading(figures: Sequence[Mapping[str, float]]) -> str:
    """The NLL that a method's predictions for regression are judged by, over all splits: of the mixture of its samples,
    or of the Gaussian with the mixture's mean and variance, whichever is less.

    Libraries and papers of the peers do either. Ours has no choice: it is what a server answers, that Gaussian.
    """
    means = {k: np.mean([f[k] for f in figures]) for k in ("nll", "gaussian_nll") if all(k in f for f in figures)}
    return min(means, key=lambda k: float(np.nan_to_num(means[k], nan=np.inf)))


def mean_ranks(summary: Sequence[Summary], figure: str, methods: Sequence[str]) -> dict[str, float]:
    """Mean rank (1 is best, lower figures are better, ties share) of methods over sets that have all of them."""
    ranks = []
    for s in summary:
        if all(m in s["methods"] for m in methods):
            values = np.array([s["methods"][m][figure]["mean"] for m in methods])
            ranks.append([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])
    means = np.mean(ranks, axis=0) if ranks else []
    return {m: float(r) for m, r in zip(methods, means, strict=False)}
