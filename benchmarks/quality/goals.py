"""The goals of the method, each judged from a summary as met, not met, not decided or not measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from benchmarks.data import PUBLISHED
from benchmarks.quality.published import MC_DROPOUT, SUBSPACE
from benchmarks.quality.summary import OURS, PEERS, RESAMPLES, Summary, rank_ours
from benchmarks.table import Estimate, mark, verdict

NOT_MEASURED = "not measured"
REGRESSION_SETS = len(MC_DROPOUT)
CLASSIFICATION_SETS = sum(name.startswith("cls_") for name in PUBLISHED)
_MOST_SETS, _PUBLISHED_SETS = 8, 7
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
        _against(regression, "ensemble_10", "the ensemble of ten", ", at any cost"),
        _against(regression, "ensemble_20", "an ensemble of as many networks as are served, 20,"),
        _published(regression),
        _best_rank(classification, "nll", "Classification: best mean rank in test NLL", CLASSIFICATION_SETS),
        _best_rank(classification, "ece", "Classification: best mean rank in ECE", CLASSIFICATION_SETS),
        _decoding(summary),
    ]


def make_goal(text: str, sets: Sequence[Summary], of: int | None, met: Callable[[], tuple[bool | str, str]]) -> Goal:
    """A goal over these sets: whether it is met, and the figures, with the count of sets where some are missing.

    Args:
        of: how many sets there are; None does not matter.
        met: whether it is, or its state, and what was found; asked only where there are sets.
    """
    if not sets:
        return Goal(text, NOT_MEASURED, "")
    good, found = met()
    counted = f" ({len(sets)} of {of} sets)" if of is not None and len(sets) < of else ""
    return Goal(text, good if isinstance(good, str) else mark(good), found + counted)


def _best_rank(sets: Sequence[Summary], figure: str, text: str, of: int) -> Goal:
    """Whether ours ranks best in the mean, over the sets that have every method which most of them have, and in what
    share of resamples of these sets it would."""
    ranks = rank_ours(sets, figure)

    def met() -> tuple[bool, str]:
        means = ranks.means
        own = means.pop(OURS)
        peer = min(means, key=lambda m: means[m])
        share = f"best in {ranks.best_share(OURS):.0%} of {RESAMPLES:,} resamples of the sets"
        found = f"{own:.2f}; best peer {peer} {means[peer]:.2f}; {share}"
        return own < means[peer], found + (_beside_chance(ranks.sets, [OURS, peer]) if figure == "ece" else "")

    comparable = OURS in ranks.methods and len(ranks.methods) > 1
    return make_goal(text, ranks.sets if comparable else [], max(of, len(sets)), met)


def _beside_chance(sets: Sequence[Summary], methods: Sequence[str]) -> str:
    """The mean ECE of methods, beside that of probabilities as theirs that are calibrated: of few rows chance alone
    ranks what is no more than that."""
    told = []
    for method in methods:
        found, by_chance = (fmean(s["methods"][method][f]["mean"] for s in sets) for f in ("ece", "ece_by_chance"))
        told.append(f"{method} has {found:.4f} in the mean, where calibrated probabilities would show {by_chance:.4f}")
    return "; " + ", ".join(told)


def _no_set_much_worse(sets: Sequence[Summary]) -> Goal:
    def met() -> tuple[str, str]:
        worse, open_ = [], []
        for s in sets:
            peer = min((m for m in PEERS if m in s["methods"]), key=lambda m: s["methods"][m]["nll"]["mean"])
            apart = Estimate(**s["behind"][peer])
            behind = f"{s['set']} by {apart.mean:.4f} ({peer})"
            if apart.surely_above(0):
                worse.append(behind)
            elif apart.standard_error is None and apart.mean > 0:  # of one split, which decides nothing
                open_.append(behind)
        found = "worse: " + ", ".join(worse) if worse else "on none"
        if open_:
            found += f"; behind on one split, which has no error: {', '.join(open_)}"
        return verdict(not (worse or open_), not worse), found

    return make_goal(
        "Regression: on no set worse than the best peer by two standard errors", sets, REGRESSION_SETS, met
    )


def _against(sets: Sequence[Summary], peer: str, name: str, more: str = "") -> Goal:
    """Whether the mean NLL is the better one on nearly all sets, of those that have the peer; and on how many by more
    than two standard errors of the paired difference."""
    having = [s for s in sets if peer in s["behind"]]

    def met() -> tuple[bool, str]:
        behind = [Estimate(**s["behind"][peer]) for s in having]
        better, surely = sum(e.mean < 0 for e in behind), sum(e.surely_below(0) for e in behind)
        return better >= _MOST_SETS, f"better on {better}, on {surely} by more than two standard errors"

    text = f"Regression: NLL better than {name} on {_MOST_SETS} of {REGRESSION_SETS} sets{more}"
    return make_goal(text, having, REGRESSION_SETS, met)


def _published(sets: Sequence[Summary]) -> Goal:
    """Whether our NLL is below what was published, by more than two standard errors on nearly all sets.

    Published figures are means over all standard splits, ours over as many as were run: a mean that is below by less,
    or is of a single split, decides nothing.
    """

    def met() -> tuple[str, str]:
        surely: list[str] = []
        barely: list[str] = []
        for s in sets:
            figures = [table[s["set"]] for table in (MC_DROPOUT, SUBSPACE) if s["set"] in table]
            own, name = Estimate(**s["methods"][OURS]["nll"]), s["set"].removeprefix("uci_")
            if figures and own.mean < min(figures):
                (surely if own.surely_below(min(figures)) else barely).append(name)
        found = f"better by more than two standard errors on {_listed(surely)}"
        if barely:
            found += f"; not decided: {', '.join(barely)}"
        return verdict(len(surely) >= _PUBLISHED_SETS, len(surely) + len(barely) >= _PUBLISHED_SETS), found

    text = (
        "Regression: better than MC dropout's and the subspace method's published NLL on "
        f"{_PUBLISHED_SETS} of {REGRESSION_SETS} sets"
    )
    return make_goal(text, sets, REGRESSION_SETS, met)


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)}: {', '.join(names)}" if names else "none"


def _decoding(sets: Sequence[Summary]) -> Goal:
    def met() -> tuple[bool, str]:
        loss = {
            s["set"]: s["methods"]["fiberwalk_many"]["nll"]["mean"] - s["methods"]["fiberwalk_fiber"]["nll"]["mean"]
            for s in sets
        }
        worst = max(loss, key=lambda name: loss[name])
        return loss[worst] <= _DECODING_LOSS, f"at most {loss[worst]:+.3f} ({worst})"

    return make_goal("NLL of decoded samples within 0.01 of the fiber samples on every set", sets, None, met)
