"""Means over a set's splits, paired differences and mean ranks over sets, from the runs of the benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.run import METHODS
from benchmarks.results import Run
from benchmarks.table import estimate

Summary = dict[str, Any]

OURS = "fiberwalk"
PEERS = [m for m in METHODS if not m.startswith(OURS)]
RESAMPLES = 10_000


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


@dataclass(frozen=True)
class Ranks:
    """How methods rank among each other: 1 is best, lower figures are better, ties share.

    Attributes:
        methods: those that more than half of the sets have.
        sets: those that have all of these; a set that lacks one does not count.
        each: (sets, methods) ranks.
    """

    methods: list[str]
    sets: list[Summary]
    each: NDArray[np.float64]

    @property
    def means(self) -> dict[str, float]:
        """By method, over the sets; none without sets."""
        return dict(zip(self.methods, self.each.mean(0).tolist(), strict=True)) if self.sets else {}

    def best_share(self, method: str) -> float:
        """In what share of resamples of at least one set (bootstrap, always the same) a method's mean rank is below
        all others'."""
        n = len(self.sets)
        drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
        sums = drawn @ self.each
        own = self.methods.index(method)
        # Sums of ranks are multiples of a half, so that ties are exact.
        return float((sums[:, [own]] < np.delete(sums, own, axis=1)).all(1).mean())


def rank(summary: Sequence[Summary], figure: str, methods: Sequence[str]) -> Ranks:
    """Ranks of those of the methods that most sets have, over the sets that have all of these.

    So a peer that only few sets have is no peer yet, and a set where one failed that all others have is left out: a
    peer is never dropped for one set that lacks it.
    """
    common = [m for m in methods if 2 * sum(m in s["methods"] for s in summary) > len(summary)]
    sets = [s for s in summary if all(m in s["methods"] for m in common)]
    values = np.array([[s["methods"][m][figure]["mean"] for m in common] for s in sets]).reshape(
        len(sets), len(common), 1
    )
    others = values.transpose(0, 2, 1)
    each = (others < values).sum(2) + ((others == values).sum(2) + 1) / 2
    return Ranks(common, sets, each)


def rank_ours(summary: Sequence[Summary], figure: str, ours: str = OURS) -> Ranks:
    """Ranks of ours, or of a variant in its place, among the peers."""
    return rank(summary, figure, [*PEERS, ours])
