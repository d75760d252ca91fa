"""Means over seeds of an image set's methods, the table of them, and the goals that are judged from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from benchmarks.quality.goals import NOT_MEASURED, Goal
from benchmarks.quality.images.data import SOURCES
from benchmarks.quality.images.doubts import SERVED
from benchmarks.quality.images.run import METHODS
from benchmarks.quality.published import FASHION_ENSEMBLE
from benchmarks.results import Run
from benchmarks.table import Estimate, estimate, mark

Summary = dict[str, Any]

WHOLE: Final = 60_000
"""Training images of the whole of FashionMNIST."""
_MOST_ECE: Final = 0.01
_MOST_SUBSET_ECE: Final = 0.015
_MOST_CIFAR_NLL: Final = 0.16
_LEAST_AUROC: Final = 0.97
_MOST_OFF: Final = 0.005
_CALLED: Final = {
    "doubt": "mutual information, or entropy",
    "nearest_neighbours": "50th nearest neighbour in features",
    "nearest_neighbours_5": "5th nearest neighbour in features",
    "nearest_neighbours_1": "nearest neighbour in features",
    "mahalanobis": "Mahalanobis distance in features",
    "max_probability": "maximum probability",
    "mutual_information": "mutual information",
}
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
            "doubts": _means([e.get("doubts", {}) for e in each]),
            "false_alarms": _mean([e.get("false_alarms", {}) for e in each]),
            "reach": [e["reach"] for e in each if "reach" in e],
            "reaches": [_mean(nodes) for nodes in zip(*[e.get("reaches", []) for e in each], strict=True)],
        }
    (size,) = {(r["rows"], r["test_rows"]) for r in runs}
    seeds = max(len(each) for each in found.values())
    return {"set": name, "rows": size[0], "test_rows": size[1], "seeds": seeds, "failed": failed, "methods": methods}


def table(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Header and rows: one row a method, with its figures and its cost."""
    shown = _shown(summary)
    rows = []
    for method, found in summary["methods"].items():
        cells = [Estimate(**found["figures"][figure]).text() for figure in shown]
        rows.append([METHODS[method], *cells, f"{found['gradient_evaluations'] / 1e6:.2f} M, {found['seconds']:.0f} s"])
    return ["method", *shown.values(), "row gradients, time"], rows


def reach_table(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the figures of one anchor's samples by how far they go; no rows where they are not known."""
    shown = _shown(summary)
    found = summary["methods"].get("fiberwalk_1", {"reaches": [], "reach": []})
    rows = [
        [f"{each['scale']:.2f}", *[f"{each[figure]:.3f}" for figure in shown], _served(node, found["reach"])]
        for node, each in enumerate(found["reaches"], 1)
    ]
    return ["drift scale", *shown.values(), "served"], rows


def doubt_table(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Header and rows: AUROC of every score of how unfamiliar images are, by foreign set and on average."""
    rows = []
    for method, found in summary["methods"].items():
        for score, each in _scores(found).items():
            values = [*each.values(), sum(each.values()) / len(each)]
            rows.append([METHODS[method], _CALLED.get(score, score), *[f"{v:.3f}" for v in values]])
    return ["method", "score", *SOURCES[summary["set"]].foreign, "mean"], rows


def alarm_table(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the share of test images that `/ood` flags, by the rate asked; no rows where it is not known."""
    told = {m: found["false_alarms"] for m, found in summary["methods"].items() if found["false_alarms"]}
    rates: dict[str, float] = next(iter(told.values()), {})
    rows = [[METHODS[m], *[f"{share:.1%}" for share in each.values()]] for m, each in told.items()]
    return ["method", *[f"{float(rate):.0%} asked" for rate in rates]], rows


def beyond_reach(summary: Summary) -> list[str]:
    """A line for each of our methods that serves fibers although the rows its anchors lack were in favour of none."""
    return [
        f"{METHODS[method]}: rows that its anchors lack preferred these alone, without fibers. The first node is "
        "served all the same: fibers of one point would have no spread."
        for method, found in summary["methods"].items()
        if 0 in found["reach"]
    ]


def _served(node: int, reach: Sequence[int]) -> str:
    """By how many seeds' builds, of which each serves one node at the least; nothing for none."""
    count = sum(max(1, r) == node for r in reach)
    return "" if not count else "yes" if len(reach) == 1 else f"by {count} of {len(reach)}"


def _shown(summary: Summary) -> dict[str, str]:
    """What the figures of a table are called."""
    return {**_SHOWN, **{f"auroc_{f}": f"AUROC {f}" for f in SOURCES[summary["set"]].foreign}}


def _means(each: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Of the same groups of numbers of several seeds."""
    return {k: _mean([e[k] for e in each]) for k in each[0]}


def _mean(each: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of the same numbers of several seeds."""
    return {k: sum(e[k] for e in each) / len(each) for k in each[0]}


def _scores(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    """AUROC of a method's scores by foreign set: of what it was asked for more, or of its doubt."""
    doubt = {k.removeprefix("auroc_"): v["mean"] for k, v in found["figures"].items() if k.startswith("auroc_")}
    return found["doubts"] or {"doubt": doubt}


def title(summary: Summary) -> str:
    """What is measured on what."""
    seeds = f", {summary['seeds']} seeds" if summary["seeds"] > 1 else ""
    return (
        f"{SOURCES[summary['set']].title}: {summary['rows']:,} training and {summary['test_rows']:,} test rows{seeds}"
    )


def judge(summary: Sequence[Summary]) -> list[Goal]:
    """The goals of both sets, each met, not met or not measured."""
    sets = {s["set"]: s for s in summary}
    fashion, cifar, whole = (sets.get(name) for name in ("fashion_mnist", "cifar10", "fashion_mnist_whole"))
    if whole is not None and whole["rows"] < WHOLE:
        whole = None
    one, five, cifar_five = "FashionMNIST, one anchor", "FashionMNIST, five anchors", "CIFAR-10 subset, five anchors"
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
        _better(f"{cifar_five}: NLL below the ensemble of 5", cifar, "fiberwalk_5", "ensemble_5", "nll"),
        _reached("CIFAR-10, five anchors, whole set", sets.get("cifar10_whole"), _MOST_CIFAR_NLL),
        _knows(
            f"{one}: AUROC of /ood at least {_LEAST_AUROC}, and above every peer's score on each",
            fashion,
            "fiberwalk_1",
            True,
        ),
        _knows(f"{cifar_five}: AUROC of /ood above every peer's score", cifar, "fiberwalk_5", False),
        _alarms(one, fashion, "fiberwalk_1"),
        _alarms(cifar_five, cifar, "fiberwalk_5"),
        *(
            _calibrated(name, s, ours)
            for name, s, ours in (
                (one, fashion, "fiberwalk_1"),
                (five, fashion, "fiberwalk_5"),
                (cifar_five, cifar, "fiberwalk_5"),
            )
        ),
    ]


def _knows(text: str, s: Summary | None, ours: str, enough: bool) -> Goal:
    """Whether `/ood` knows foreign images better than any score of a peer, and well enough where that is asked."""
    if s is None or not {ours, "map", "ensemble_5"} <= set(s["methods"]):
        return Goal(text, NOT_MEASURED, "")
    own = s["methods"][ours]["doubts"].get(SERVED)
    if own is None:
        return Goal(text, NOT_MEASURED, "")
    peers = [each for m, f in s["methods"].items() if not m.startswith("fiberwalk") for each in _scores(f).values()]
    best = {name: max(peer[name] for peer in peers) for name in own}
    mean = sum(own.values()) / len(own)
    met = all(own[name] > best[name] for name in own) and (not enough or mean >= _LEAST_AUROC)
    each = ", ".join(f"{own[name]:.3f} against {best[name]:.3f} ({name})" for name in own)
    return Goal(text, mark(met), f"{mean:.3f}: {each}" if len(own) > 1 else each)


def _alarms(name: str, s: Summary | None, ours: str) -> Goal:
    """Whether `/ood` flags as many test images as was asked for."""
    text = f"{name}: false alarms of /ood within {100 * _MOST_OFF:g} points of what was asked"
    rates = s["methods"].get(ours, {}).get("false_alarms", {}) if s is not None else {}
    if not rates:
        return Goal(text, NOT_MEASURED, "")
    met = all(abs(share - float(rate)) <= _MOST_OFF for rate, share in rates.items())
    return Goal(text, mark(met), ", ".join(f"{share:.1%} at {float(rate):.0%}" for rate, share in rates.items()))


def _calibrated(name: str, s: Summary | None, ours: str) -> Goal:
    """Whether probabilities are as often right as they say."""
    text = f"{name}: ECE at most {_MOST_SUBSET_ECE:.1%}"
    if s is None or ours not in s["methods"]:
        return Goal(text, NOT_MEASURED, "")
    found = s["methods"][ours]["figures"]
    ece, chance = found["ece"]["mean"], found.get("ece_by_chance")
    alone = "" if chance is None else f"; calibrated ones would show {chance['mean']:.1%}"
    return Goal(text, mark(ece <= _MOST_SUBSET_ECE), f"{ece:.1%} ({s['rows']:,} training rows){alone}")


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
