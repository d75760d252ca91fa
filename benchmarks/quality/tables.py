"""The benchmark's tables on the screen."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.quality.goals import Goal
from benchmarks.quality.published import ENSEMBLE, MC_DROPOUT
from benchmarks.quality.run import METHODS
from benchmarks.quality.summary import OURS, PEERS, Summary, rank_ours
from benchmarks.table import Estimate, mark, render

FIGURES = {"regression": ("nll", "rmse"), "classification": ("nll", "accuracy", "ece")}


def table(summary: Sequence[Summary], figure: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows: one row a method with its figure on each set and its mean rank, as goals have it: of a peer
    among the others and ours as served, of a variant of ours as if it were in the place of that."""
    methods = [m for m in METHODS if any(m in s["methods"] for s in summary)]
    ranks: dict[str, float] = {}
    if figure != "accuracy":
        ranks = rank_ours(summary, figure).means
        variants = [m for m in methods if m not in PEERS and m != OURS]
        ranks |= {m: r for v in variants for m, r in rank_ours(summary, figure, v).means.items() if m == v}
    rows = []
    for method in methods:
        rows.append(
            [
                METHODS[method],
                *(_cell(s, method, figure) for s in summary),
                f"{ranks[method]:.2f}" if method in ranks else "",
            ]
        )
    return ["method", *(f"{s['set']} ({s['splits']})" for s in summary), "mean rank"], rows


def _cell(s: Summary, method: str, figure: str) -> str:
    return Estimate(**s["methods"][method][figure]).text() if method in s["methods"] else "–"


def published_table(summary: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: for each regression set the NLL of peers as published and as measured, and ours.

    A peer reaches its figure where it is no more than two standard errors above it.
    """
    peers = {"mc_dropout": MC_DROPOUT, "ensemble_10": ENSEMBLE}
    header = ["set", *(text for m in peers for text in (f"{METHODS[m]}, published", "measured", "reached"))]
    rows = []
    for s in summary:
        cells: list[str] = []
        for method, figures in peers.items():
            own, wanted = s["methods"].get(method), figures.get(s["set"])
            if own is None or wanted is None:
                cells += ["–", "–", "–"]
                continue
            found = Estimate(**own["nll"])
            reached = found.mean <= wanted + 2 * (found.standard_error or 0.0)
            cells += [f"{wanted:.2f}", _cell(s, method, "nll"), mark(reached)]
        rows.append([f"{s['set']} ({s['splits']})", *cells, _cell(s, OURS, "nll")])
    return [*header, METHODS[OURS]], rows


def cost_table(summary: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: millions of row gradients and seconds of each method on each set, tuning included."""
    rows = []
    for method in [m for m in METHODS if any(m in s["methods"] for s in summary)]:
        own = [s["methods"].get(method) for s in summary]
        rows.append(
            [
                METHODS[method],
                *(f"{o['gradient_evaluations'] / 1e6:.0f} M, {o['seconds']:.0f} s" if o else "–" for o in own),
            ]
        )
    return ["method", *(s["set"] for s in summary)], rows


def render_summary(summary: Sequence[Summary]) -> None:
    """Prints every table."""
    for task, figures in FIGURES.items():
        sets = [s for s in summary if s["task"] == task]
        if not sets:
            continue
        for figure in figures:
            render(f"{task}, test {figure}: mean ± standard error (splits)", *table(sets, figure))
        render(f"{task}, cost a split", *cost_table(sets))
        if task == "regression":
            render("Peers beside their published NLL", *published_table(sets))
    for s in summary:
        for family, text in s["failed"].items():
            print(f"{s['set']}: {family} failed: {text}")


def render_goals(goals: Sequence[Goal]) -> None:
    """Prints the list of goals."""
    render("Goals", ["goal", "state", "found"], [[g.text, g.state, g.found] for g in goals])
