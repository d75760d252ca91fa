"""Means over seeds of an image set's methods, the table of them, and the goals that are judged from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from benchmarks.quality.goals import NOT_MEASURED, Goal
from benchmarks.quality.images.data import SOURCES
from benchmarks.quality.images.run import METHODS
from benchmarks.quality.published import FASHION_ENSEMBLE
from benchmarks.results import Run
from benchmarks.table import Estimate, estimate, mark

Summary = dict[str, Any]

WHOLE: Final = 60_000
"""Training images of the whole of FashionMNIST."""
_MOST_ECE: Final = 0.01
_MOST_CIFAR_NLL: Final = 0.16
_SHOWN: Final = {"nll": "NLL", "accuracy": "accuracy", "ece": "ECE"}


def summarize(name: str, runs: Sequence[Run]) -> Summary | None:
    """A set's figures by method, over its seeds; None where none is measured. Runs are of one family and seed each."""
    found: dict[str, list[dict[str, Any]]] = {}
    failed: dict[str, str] = {}
    for run in runs:
        failed |= run.get("failed", {})
        for method, values in run.get("methods", {}).items():
            found.setdefault(method, []).append(values)
    if not found:
        return None
    methods = {}
    for method in [m for m in METHODS if m in found]:
        each = found[method]
        means = {k: estimate([e["figures"][k] for e in each]) for k in each[0]["figures"]}
        methods[method] = {
            "figures": {k: {"mean": e.mean, "standard_error": e.standard_error} for k, e in means.items()},
            "gradient_evaluations": sum(e["gradient_evaluations"] for e in each) / len(each),
            "seconds": sum(e["seconds"] for e in each) / len(each),
        }
    (size,) = {(r["rows"], r["test_rows"]) for r in runs}
    seeds = max(len(each) for each in found.values())
    return {"set": name, "rows": size[0], "test_rows": size[1], "seeds": seeds, "failed": failed, "methods": methods}


def table(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Header and rows: one row a method, with its figures and its cost."""
    foreign = SOURCES[summary["set"]].foreign
    shown = {**_SHOWN, **{f"auroc_{f}": f"AUROC {f}" for f in foreign}}
    rows = []
    for method, found in summary["methods"].items():
        cells = [Estimate(**found["figures"][figure]).text() for figure in shown]
        rows.append([METHODS[method], *cells, f"{found['gradient_evaluations'] / 1e6:.2f} M, {found['seconds']:.0f} s"])
    return ["method", *shown.values(), "row gradients, time"], rows


def title(summary: Summary) -> str:
    """What is measured on what."""
    seeds = f", {summary['seeds']} seeds" if summary["seeds"] > 1 else ""
    return (
        f"{SOURCES[summary['set']].title}: {summary['rows']:,} training and {summary['test_rows']:,} test rows{seeds}"
    )


def judge(summary: Sequence[Summary]) -> list[Goal]:
    """The goals of both sets, each met, not met or not measured."""
    sets = {s["set"]: s for s in summary}
    fashion, cifar = sets.get("fashion_mnist"), sets.get("cifar10")
    whole = fashion if fashion is not None and fashion["rows"] == WHOLE else None
    one, five = "FashionMNIST, one anchor", "FashionMNIST, five anchors"
    foreign = SOURCES["fashion_mnist"].foreign
    return [
        _better(f"{one}: ECE below the ensemble of 5", fashion, "fiberwalk_1", "ensemble_5", "ece"),
        *(
            _better(f"{one}: AUROC {f} above the ensemble of 5", fashion, "fiberwalk_1", "ensemble_5", f"auroc_{f}")
            for f in foreign
        ),
        _better(f"{one}: NLL below the tempered MAP", fashion, "fiberwalk_1", "map_tuned", "nll"),
        _better(f"{five}: NLL below the ensemble of 10", fashion, "fiberwalk_5", "ensemble_10", "nll"),
        _reached(f"{five}, whole set", whole, FASHION_ENSEMBLE),
        _better(
            "CIFAR-10 subset, five anchors: NLL below the ensemble of 5", cifar, "fiberwalk_5", "ensemble_5", "nll"
        ),
        _reached("CIFAR-10, five anchors, whole set", sets.get("cifar10_whole"), _MOST_CIFAR_NLL),
    ]


def _better(text: str, s: Summary | None, ours: str, peer: str, figure: str) -> Goal:
    """Whether our figure is the better one: the lower, or of AUROC the higher."""
    if s is None or not {ours, peer} <= set(s["methods"]):
        return Goal(text, NOT_MEASURED, "")
    own, other = (s["methods"][m]["figures"][figure]["mean"] for m in (ours, peer))
    better = own > other if figure.startswith("auroc") else own < other
    return Goal(text, mark(better), f"{own:.3f} against {other:.3f} ({s['rows']:,} training rows)")


def _reached(text: str, s: Summary | None, most: float) -> Goal:
    """Whether five anchors reach an NLL, and an ECE of a hundredth."""
    text += f": NLL at most {most:.3f}, ECE at most {_MOST_ECE:.0%}"
    if s is None or "fiberwalk_5" not in s["methods"]:
        return Goal(text, NOT_MEASURED, "")
    found = s["methods"]["fiberwalk_5"]["figures"]
    nll, ece = found["nll"]["mean"], found["ece"]["mean"]
    return Goal(text, mark(nll <= most and ece <= _MOST_ECE), f"{nll:.3f}, {ece:.1%}")
