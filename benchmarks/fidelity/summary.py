"""Means over seeds, the goal, and the tables that both the screen and the page show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.quality.goals import NOT_MEASURED, Goal
from benchmarks.results import Run
from benchmarks.table import MET, NOT_MET, Estimate, Table, estimate

Summary = dict[str, Any]

METHODS = {
    "hmc": "HMC, one half of the chains against the other",
    "map": "MAP",
    "ensemble_5": "deep ensemble of 5",
    "ensemble_10": "deep ensemble of 10",
    "laplace_full": "linearised Laplace, full",
    "laplace_kron": "linearised Laplace, Kronecker",
    "laplace_last": "linearised Laplace, last layer",
    "swag": "SWAG",
    "mc_dropout": "MC dropout",
    "fiberwalk_default": "fiber samples at scale 1, a build's default walk",
    "fiberwalk_before": "fiber samples with moves, at scale 0.4",
    "fiberwalk_fiber_all": "fiber samples with moves, all scales up to 1",
    "fiberwalk_fiber": "fiber samples with moves, at scale 1",
    "fiberwalk_all": "decoded with moves, all scales up to 1",
    "fiberwalk_served": "the same, 32 samples",
    "fiberwalk": "fiberwalk: decoded with moves, at scale 1",
}
"""What the methods are called in tables, in their order."""

OURS, REFERENCE = "fiberwalk", "hmc"
PEERS = [m for m in METHODS if not m.startswith(OURS) and m != REFERENCE]
GOAL_SETS = ("snelson1d", "uci_yacht", "uci_boston")
_SHARE = 0.5

FIGURES = {
    ("test", "tv"): "Total variation from HMC's predictive, test rows",
    ("grid", "tv"): "Total variation from HMC's predictive, grid over the data, the gap and outside",
    ("test", "w1"): "Wasserstein-1 distance from HMC's predictive in units of the noise, test rows",
    ("grid", "w1"): "The same on the grid",
    ("test", "w2"): "Wasserstein-2 distance in units of the noise, test rows",
    ("test", "std_ratio"): "Epistemic standard deviation over HMC's, geometric mean, test rows (1 is right)",
    ("grid", "std_ratio"): "The same on the grid (1 is right)",
    ("test", "log_std"): "Mean |log| of that ratio, test rows",
    ("test", "agreement"): "Agreement with HMC in the likeliest class, test rows (1 is right)",
    ("functions", "correlation"): "Mean difference in the correlation of function values, pairs of test rows",
    ("functions", "covariance"): "Difference in the covariance of function values over HMC's own (Frobenius)",
}


def summarize(name: str, runs: Sequence[Run]) -> Summary | None:
    """A set's figures by method, kind and name, over the seeds that are done; None where none is."""
    done = [r for r in runs if "error" not in r]
    if not done:
        return None
    methods: dict[str, Any] = {}
    for method, kinds in done[0]["methods"].items():
        methods[method] = {
            kind: {figure: vars(estimate([r["methods"][method][kind][figure] for r in done])) for figure in figures}
            for kind, figures in kinds.items()
        }
    known = {k: done[0][k] for k in ("task", "rows", "columns", "weights", "noise_std", "precision", "reference")}
    return {"set": name, "seeds": len(done), **known, "methods": methods}


def judge(summary: Sequence[Summary]) -> list[Goal]:
    """Whether our total variation is at most half of the best peer's, for each of the sets that the goal names: with
    Hamiltonian moves, and with the walk that a build does by default."""
    found = {s["set"]: s for s in summary}
    ways = {OURS: "with Hamiltonian moves", "fiberwalk_default": "a build's default walk"}
    return [_goal(f"{name}, {way}", found.get(name), ours) for ours, way in ways.items() for name in GOAL_SETS]


def _goal(text: str, summary: Summary | None, ours: str) -> Goal:
    text = f"Distance to HMC's predictive at most half of the best peer's: {text}"
    if summary is None:
        return Goal(text, NOT_MEASURED, "")
    tv = {m: f["test"]["tv"]["mean"] for m, f in summary["methods"].items()}
    peer = min(PEERS, key=lambda m: tv[m])
    state = MET if tv[ours] <= _SHARE * tv[peer] else NOT_MET
    sure = "" if summary["reference"]["converged"] else "; HMC has not converged"
    return Goal(text, state, f"{tv[ours]:.3f}; {peer} {tv[peer]:.3f}; HMC's halves {tv[REFERENCE]:.3f}{sure}")


def tables(summary: Sequence[Summary]) -> Iterator[Table]:
    """All tables: the references, each figure over all sets, and the moments of the weights set by set."""
    yield _references(summary)
    for (kind, figure), title in FIGURES.items():
        sets = [s for s in summary if figure in s["methods"]["map"].get(kind, {}) or _has(s, kind, figure)]
        if sets:
            rows = [
                [METHODS[m], *(_cell(s["methods"][m], kind, figure) for s in sets)]
                for m in METHODS
                if any(_cell(s["methods"].get(m, {}), kind, figure) != "–" for s in sets)
            ]
            yield Table(title, ["method", *(f"{s['set']} ({s['seeds']})" for s in sets)], rows)
    for s in summary:
        yield _moments(s)


def _has(summary: Summary, kind: str, figure: str) -> bool:
    return figure in summary["methods"][REFERENCE].get(kind, {})


def _cell(method: dict[str, Any], kind: str, figure: str) -> str:
    value = method.get(kind, {}).get(figure)
    return "–" if value is None else Estimate(**value).text()


def _references(summary: Sequence[Summary]) -> Table:
    rows = []
    for s in summary:
        r = s["reference"]
        rows.append(
            [
                f"{s['set']}: {s['rows']} rows, {s['columns']} columns",
                str(s["weights"]),
                f"{s['noise_std']:.3f}" if s["task"] == "regression" else "–",
                f"{s['precision']:g}",
                str(r["draws"]),
                f"{r['rhat'][0]:.3f} ({r['rhat'][1]:.3f})",
                f"{r['ess'][0]:.0f} ({r['ess'][1]:.0f})",
                str(r["divergences"]),
                "yes" if r["converged"] else "NO",
            ]
        )
    header = ["posterior", "weights", "noise", "prior precision", "draws"]
    header += ["worst r-hat (median)", "least ESS (median)", "divergences", "converged"]
    return Table("HMC, judged by function values at the test rows", header, rows)


def _moments(s: Summary) -> Table:
    names = list(s["reference"]["moments"])
    rows = [["HMC", *(f"{v:.3f}" for v in s["reference"]["moments"].values())]]
    for method, label in METHODS.items():
        if "weights" in s["methods"].get(method, {}):
            rows.append([label, *(_cell(s["methods"][method], "weights", n) for n in names)])
    return Table(f"Moments of the weights: {s['set']}", ["method", *names], rows)
