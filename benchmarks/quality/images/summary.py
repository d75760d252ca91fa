"""Means over seeds of an image set's methods, the table of them, and the goals that are judged from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from benchmarks.figures import auroc_error, rate_error
from benchmarks.quality.goals import NOT_MEASURED, Goal
from benchmarks.quality.images.data import FOREIGN_IMAGES, SOURCES
from benchmarks.quality.images.doubts import SERVED
from benchmarks.quality.images.run import METHODS
from benchmarks.quality.published import FASHION_ENSEMBLE
from benchmarks.results import Run
from benchmarks.table import Estimate, estimate, mark, verdict

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
    """The goals of both sets, each met, not met, not decided or not measured, with what chance there is.

    Chance is that of so few images, where what is stored tells: figures of one run say nothing of other starts.
    """
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
    behind = {name: _behind(s, name, own[name], best[name]) for name in own}
    good = not enough or mean >= _LEAST_AUROC
    state = verdict(
        good and all(e.surely_below(0) for e in behind.values()), good and all(e.mean < 0 for e in behind.values())
    )
    each = ", ".join(f"{own[name]:.3f} against {best[name]:.3f} ({name}, {_lead(e)})" for name, e in behind.items())
    return Goal(text, state, f"{mean:.3f}: {each}" if len(own) > 1 else each)


def _behind(s: Summary, foreign: str, own: float, other: float) -> Estimate:
    """By how much our AUROC is below another on a foreign set, with the standard error of the difference of two that
    are independent: of the same images, as these are, it is less."""
    images = min(FOREIGN_IMAGES[SOURCES[s["set"]].foreign[foreign]], s["test_rows"])
    return Estimate(other - own, math.hypot(*(auroc_error(value, s["test_rows"], images) for value in (own, other))))


def _lead(behind: Estimate) -> str:
    return f"{-behind.mean:+.3f} ± {behind.standard_error or 0.0:.3f}"


def _alarms(name: str, s: Summary | None, ours: str) -> Goal:
    """Whether `/ood` flags as many test images as was asked for."""
    text = f"{name}: false alarms of /ood within {100 * _MOST_OFF:g} points of what was asked"
    rates = s["methods"].get(ours, {}).get("false_alarms", {}) if s is not None else {}
    if s is None or not rates:
        return Goal(text, NOT_MEASURED, "")
    met = all(abs(share - float(rate)) <= _MOST_OFF for rate, share in rates.items())
    told = [
        f"{share:.1%} at {float(rate):.0%} ± {rate_error(float(rate), s['test_rows']):.1%}"
        for rate, share in rates.items()
    ]
    return Goal(text, mark(met), ", ".join(told))


def _calibrated(name: str, s: Summary | None, ours: str) -> Goal:
    """Whether probabilities are as often right as they say."""
    text = f"{name}: ECE at most {_MOST_SUBSET_ECE:.1%}"
    if s is None or ours not in s["methods"]:
        return Goal(text, NOT_MEASURED, "")
    ece = s["methods"][ours]["figures"]["ece"]["mean"]
    return Goal(text, mark(ece <= _MOST_SUBSET_ECE), f"{ece:.1%} ({s['rows']:,} training rows){_by_chance(s, ours)}")


def _by_chance(s: Summary, *methods: str) -> str:
    """The ECE that probabilities of methods would show by chance, if they were right; nothing where it is not known."""
    found = [s["methods"][m]["figures"].get("ece_by_chance") for m in methods]
    if None in found:
        return ""
    return "; calibrated ones would show " + " and ".join(f"{f['mean']:.1%}" for f in found)


def _runs(s: Summary) -> str:
    return "; one run" if s["seeds"] == 1 else f"; {s['seeds']} runs"


def _better(text: str, s: Summary | None, ours: str, peer: str, figure: str) -> Goal:
    """Whether our figure is the better one: the lower, or of AUROC the higher by more than two standard errors."""
    if s is None or not {ours, peer} <= set(s["methods"]):
        return Goal(text, NOT_MEASURED, "")
    both = [Estimate(**s["methods"][m]["figures"][figure]) for m in (ours, peer)]
    own, other = (e.mean for e in both)
    state, chance = mark(own < other), _by_chance(s, ours, peer) if figure == "ece" else _runs(s)
    if figure.startswith("auroc_"):
        behind = _behind(s, figure.removeprefix("auroc_"), own, other)
        state, chance = verdict(behind.surely_below(0), behind.mean < 0), f"; {_lead(behind)}"
    found = " against ".join(e.text() for e in both)
    return Goal(text, state, f"{found} ({s['rows']:,} training rows){chance}")


def _reached(text: str, s: Summary | None, most: float) -> Goal:
    """Whether five anchors reach an NLL, and an ECE of a hundredth."""
    text += f": NLL at most {most:.3f}, ECE at most {_MOST_ECE:.0%}"
    if s is None or "fiberwalk_5" not in s["methods"]:
        return Goal(text, NOT_MEASURED, "")
    found = s["methods"]["fiberwalk_5"]["figures"]
    nll, ece = found["nll"]["mean"], found["ece"]["mean"]
    told = f"{nll:.3f}, {ece:.1%}{_runs(s)}{_by_chance(s, 'fiberwalk_5')}"
    return Goal(text, mark(nll <= most and ece <= _MOST_ECE), told)
