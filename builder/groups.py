"""Whether what is promised over all rows holds in parts of them too, judged on rows that networks had not seen.

The noise of a regression is one level for all rows, or goes by the inputs as far as they tell, and its intervals lie
evenly about the mean. Where noise grows with what is predicted all the same, or is skewed, as that of prices and counts
is, as many intervals as promised hold their target, but others than should. Prediction sets leave out most rows of a
rare class where few rows are of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from builder.diagnostics import Finding
from builder.evaluation import LEVEL
from builder.out_of_fold import UnseenRows
from builder.predictive import conformal_quantile
from model_store.manifest import ClassificationTarget, RegressionTarget, Target

_FEWEST_ROWS, _FEWEST_OF_CLASS = 100, 10
LEAST_OF_THIRD, MOST_ON_A_SIDE, LEAST_OF_CLASS = 0.85, 0.8, 0.8
_ERRORS, _CHANCE = 3.5, 0.001
"""Standard errors that a third or a side is off by, and the probability of what is seen of any class: by chance alone,
one build in a thousand is told."""
_TAIL, _TIMES = 0.05, 3.0
"""Where a logarithm is advised, the largest twentieth of the targets is so many times as large as the least."""
_SHOWN = 10


def uneven(
    rows: UnseenRows | None, target: Target, *, given: bool = False, learned: bool | None = False
) -> list[Finding]:
    """Where promises of level 90 % hold over all rows, but not over parts of them: by more than chance, and enough to
    matter.

    A regression's rows are cut into thirds by the predicted mean. The third covered least is told of where it holds at
    most 85 % of its targets, and misses 3.5 standard errors more than its share of all misses (hypergeometric). A side
    is told of where at least 80 % of the misses are on it, and 3.5 standard errors more than half (binomial). Both
    count targets beyond the ends of intervals: skewness and the like are moments, which a few rows far out decide.

    A class of ten rows or more is told of where sets hold it in less than 80 % of them, so rarely that with 90 % it had
    a probability below a thousandth, shared among the classes (binomial).

    Args:
        given: whether the network's weights were; learned: whether the noise goes by the inputs; None where it cannot.
    """
    if rows is None:
        return []
    found = _classes(rows, target) if isinstance(target, ClassificationTarget) else _noise(rows, target, given, learned)
    return [] if found is None else [found]


@dataclass(frozen=True)
class _Unevenness:
    """How errors, in standard deviations and larger where targets are, lie about intervals of level 90 %.

    Attributes:
        reach: standard deviations that intervals reach to either side.
        covered: shares of targets within, by thirds of the predicted mean from the lowest.
        thirds: whether the worst third is covered too little for it to be chance.
        above, below: targets beyond either end; skewed: whether that is too uneven to be chance.
    """

    reach: float
    covered: list[float]
    thirds: bool
    above: int
    below: int
    skewed: bool

    @classmethod
    def of(cls, mean: Tensor, error: Tensor) -> _Unevenness:
        """From means and errors (n,)."""
        reach = conformal_quantile(error.abs().sort().values, LEVEL)
        missed = error.abs() > reach
        share = float(missed.double().mean())
        # Rows of one prediction must not be cut by where they stand in the data, which may be sorted by the target.
        shuffled = torch.randperm(len(mean), generator=torch.Generator().manual_seed(0))
        each = [missed[rows].double() for rows in shuffled[mean[shuffled].argsort()].tensor_split(3)]
        worst = max(each, key=lambda third: float(third.mean()))
        chance = _ERRORS * math.sqrt(share * (1 - share) * (1 / len(worst) - 1 / len(missed)))
        thirds = float(worst.mean()) >= 1 - LEAST_OF_THIRD and float(worst.mean()) - share >= chance
        above, below = int((error > reach).sum()), int((error < -reach).sum())
        many = max(above, below) >= MOST_ON_A_SIDE * (above + below)
        skewed = many and abs(above - below) >= _ERRORS * math.sqrt(above + below)
        return cls(reach, [1 - float(third.mean()) for third in each], thirds, above, below, skewed)

    @property
    def one_sided(self) -> float:
        """Share of the missed targets that lie on the side of most."""
        return max(self.above, self.below) / max(self.above + self.below, 1)


def _noise(rows: UnseenRows, target: RegressionTarget, given: bool, learned: bool | None) -> Finding | None:
    assert rows.mean is not None and rows.std is not None
    y, mean, std = (v.double().cpu() for v in (rows.y, rows.mean, rows.std))
    error = (y - mean) / std
    if len(y) < _FEWEST_ROWS or not bool(torch.isfinite(error).all()):
        return None
    found = _Unevenness.of(mean, error)
    if not found.thirds and not found.skewed:
        return None
    seen, harm = [], []
    if found.thirds:
        low, middle, high = (f"{share:.0%}" for share in found.covered)
        seen.append(
            f"the 90 % interval holds {low}, {middle} and {high} of the targets where predictions are lowest, "
            "middling and highest (thirds of the rows)"
        )
        harm.append("too narrow for some rows and too wide for others")
    if found.skewed:
        side = "above" if found.above > found.below else "below"
        seen.append(f"{found.one_sided:.0%} of the targets outside of intervals lie {side} them")
        harm.append("too short on one side and too long on the other")
    own, reach = (v * target.scale + target.mean for v in (y, mean - found.reach * std))
    positive = not target.log and float(own.min()) > 0
    share = float((reach < 0).double().mean())
    if positive and share >= 0.005:  # what is not 0%
        seen.append(f"{share:.0%} of intervals reach below zero, where no target is")
    of = "the target's logarithm" if target.log else "this target"
    if target.log:
        advice = "Try the target itself, without --log-target, or a root of it."
    elif not (positive and _grows(found, own)):
        advice = "Try a function of the target whose noise is more even, such as a root."
    elif given:
        advice = "Try a network that predicts the target's logarithm, and --log-target: its noise is more even."
    else:
        advice = "Try --log-target (data.log_target), which learns the target's logarithm: its noise is more even."
    if found.thirds and learned is False:
        advice = (
            f"Try --set calibration.noise=learned: the noise then goes by the inputs. {advice.replace('Try', 'Or', 1)}"
        )
    return Finding(
        "noise",
        f"{'Noise goes by the inputs' if learned else 'One noise level holds for all rows'}, and intervals lie evenly "
        f"about the mean, which {of} is not like: "
        f"of rows that networks had not seen, {'; '.join(seen)}. Intervals will be {' and '.join(harm)}.",
        advice,
    )


def _grows(found: _Unevenness, y: Tensor) -> bool:
    """Whether errors are larger or lie further above where targets y (n,) are larger, and these are of such different
    sizes that their logarithms are another scale."""
    larger = found.covered[-1] == min(found.covered) if found.thirds else found.above > found.below
    low, high = y.quantile(torch.tensor([_TAIL, 1 - _TAIL], dtype=y.dtype))
    return larger and float(high) >= _TIMES * float(low)


def _classes(rows: UnseenRows, target: ClassificationTarget) -> Finding | None:
    assert rows.covered is not None
    y, covered = rows.y.cpu(), rows.covered.double().cpu()
    found = []
    for c, name in enumerate(target.classes):
        held = covered[y == c]
        if len(held) < _FEWEST_OF_CLASS or float(held.mean()) >= LEAST_OF_CLASS:
            continue
        if _as_many(int((1 - held).sum()), len(held)) < _CHANCE / len(target.classes):
            found.append((float(held.mean()), f"{name!r} {held.mean():.0%} (of {len(held)} rows)"))
    if not found:
        return None
    told = [text for _, text in sorted(found)]
    shown = ", ".join(told[:_SHOWN]) + (", ..." if len(told) > _SHOWN else "")
    return Finding(
        "classes",
        "Prediction sets hold the class as often as promised over all rows, not class by class: of rows that networks "
        f"had not seen, sets of level 90 % hold {shown}.",
        "Where these classes matter go by their probabilities instead, or collect more of their rows.",
    )


def _as_many(misses: int, rows: int) -> float:
    """Probability of so many misses or more among rows that are each missed with 10 %."""
    k = torch.arange(misses, rows + 1, dtype=torch.float64)
    n = torch.tensor(float(rows), dtype=torch.float64)
    choose = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return float((choose + k * math.log(1 - LEVEL) + (n - k) * math.log(LEVEL)).exp().sum())
