"""The goals of the method, each judged from a summary as met, not met or not measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.quality.published import MC_DROPOUT, SUBSPACE
from benchmarks.quality.summary import OURS, PEERS, Summary, mean_ranks
from benchmarks.table import MET, NOT_MET

NOT_MEASURED = "not measured"
REGRESSION_SETS = len(MC_DROPOUT)
CLASSIFICATION_SETS = 10
_DECODING_LOSS = 0.01


@dataclass(frozen=True)
class Goal:
    """One goal: what it asks, how it stands, and the figures behind that."""

    text: str
    state: str
    found: str


def judge(summary: Sequence[Summary]) -> list[Goal]:
    """All goals. A goal over all sets is judged on those in the summary, and the text says how many these are."""
    regression = [s for s in summary if s["task"] == "regression"]
    classification = [s for s in summary if s["task"] == "classification"]
    return [
        _best_rank(regression, "nll", "Regression: best mean rank in test NLL", REGRESSION_SETS),
        _no_set_much_worse(regression),
        _against(regression, "ensemble_10", 8),
        _published(regression),
        _best_rank(classification, "nll", "Classification: best mean rank in test NLL", CLASSIFICATION_SETS),
        _best_rank(classification, "ece", "Classification: best mean rank in ECE", CLASSIFICATION_SETS),
        _decoding(summary),
    ]


def make_goal(text: str, sets: Sequence[Summary], of: int | None, met: Callable[[], tuple[bool, str]]) -> Goal:
    """A goal over these sets: whether it is met, and the figures, with the count of sets where some are missing.

    Args:
        of: how many sets there are; None does not matter.
        met: asked only where there are sets.
    """
    if not sets:
        return Goal(text, NOT_MEASURED, "")
    good, found = met()
    counted = f" ({len(sets)} of {of} sets)" if of is not None and len(sets) < of else ""
    return Goal(text, MET if good else NOT_MET, found + counted)


def _best_rank(sets: Sequence[Summary], figure: str, text: str, of: int) -> Goal:
    def met() -> tuple[bool, str]:
        peers = [m for m in PEERS if all(m in s["methods"] for s in sets)]
        ranks = mean_ranks(sets, figure, [*peers, OURS])
        peer = min(peers, key=lambda m: ranks[m])
        return ranks[OURS] < ranks[peer], f"{ranks[OURS]:.2f}; best peer {peer} {ranks[peer]:.2f}"

    return make_goal(text, sets, of, met)


def _no_set_much_worse(sets: Sequence[Summary]) -> Goal:
    def met() -> tuple[bool, str]:
        worse = []
        for s in sets:
            peer = min((m for m in PEERS if m in s["methods"]), key=lambda m: s["methods"][m]["nll"]["mean"])
            apart = s["behind"][peer]
            if apart["mean"] > 2 * (apart["standard_error"] or 0.0):
                worse.append(f"{s['set']} by {apart['mean']:.3f} ({peer})")
        return not worse, "worse: " + ", ".join(worse) if worse else "on none"

    return make_goal(
        "Regression: on no set worse than the best peer by two standard errors", sets, REGRESSION_SETS, met
    )


def _against(sets: Sequence[Summary], peer: str, wanted: int) -> Goal:
    def met() -> tuple[bool, str]:
        better = sum(s["methods"][OURS]["nll"]["mean"] < s["methods"][peer]["nll"]["mean"] for s in sets)
        return better >= wanted, f"better on {better}"

    text = f"Regression: NLL better than the ensemble of ten on {wanted} of {REGRESSION_SETS} sets, at any cost"
    return make_goal(text, sets, REGRESSION_SETS, met)


def _published(sets: Sequence[Summary]) -> Goal:
    def met() -> tuple[bool, str]:
        better = []
        for s in sets:
            figures = [table[s["set"]] for table in (MC_DROPOUT, SUBSPACE) if s["set"] in table]
            if figures and s["methods"][OURS]["nll"]["mean"] < min(figures):
                better.append(s["set"].removeprefix("uci_"))
        return len(better) >= 7, f"better on {len(better)}: " + ", ".join(better)

    text = "Regression: better than MC dropout's and the subspace method's published NLL on 7 of 9 sets"
    return make_goal(text, sets, REGRESSION_SETS, met)


def _decoding(sets: Sequence[Summary]) -> Goal:
    def met() -> tuple[bool, str]:
        loss = {
            s["set"]: s["methods"]["fiberwalk_many"]["nll"]["mean"] - s["methods"]["fiberwalk_fiber"]["nll"]["mean"]
            for s in sets
        }
        worst = max(loss, key=lambda name: loss[name])
        return loss[worst] <= _DECODING_LOSS, f"at most {loss[worst]:+.3f} ({worst})"

    return make_goal("NLL of decoded samples within 0.01 of the fiber samples on every set", sets, None, met)
