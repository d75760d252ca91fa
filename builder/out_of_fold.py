"""Predictions by anchors that have not seen a row, and what they say of all anchors together.

Anchors are cross-fitted: a row is unseen by one of them, or by two where there are two rounds of folds, while all of
them answer in service. From one and two follows what holds for all: the noise or temperature, the NLL, and by how much
anchors disagree on new rows. Where rows are so many that all anchors can lack the same ones, these show it.

Regression is judged by what is answered, the mean and the variance (`Moments`), as deep ensembles are (Lakshminarayanan
et al. 2017), and not by the mixture of samples: a few rows far out, or a few samples, decide a mixture's NLL, and what
two anchors' mixture says of it does not carry over to all.

Lengths: A anchors, S samples of an anchor, m rows, O outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from builder.predictive import categorical_nll, gaussian_mixture_nll, mixture_probabilities

SEARCH_ROWS, FITTED_ROWS = 4096, 8192
"""The most rows that alternatives are judged on, and that a noise or temperature is fitted to."""
LEAST_NOISE = 10**-2.5
"""Least noise variance that is considered, in squared residuals."""
_LEAST_RESIDUAL = 0.25
"""Share of the squared residual that stays, however much anchors disagree."""
_NO_SPREAD = 1e-6
"""Variance within anchors, in shares of the squared residual, that says nothing of where they differ."""
_PRIOR_FREEDOM = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0, 128.0)
"""Degrees of freedom that are tried for an expected variance."""
_LEAST_TOLD, _STEP, _MOST_STEPS = 0.001, 1.01, 40
"""Nats that are given for likeliest classes that are right as often as they claim, and by how much a temperature is
moved at once, and in all: where nothing can be told of the rows, all high ones are alike."""
_LEAST_SHARE = 0.2
"""Noise or temperature beside all anchors is never less than this share of that beside one."""


@dataclass(frozen=True)
class OutOfFold:
    """Outputs of the samples of anchors on m rows that these anchors did not see.

    Attributes:
        members: k outputs (S, m, O), each of one anchor a row, which is another one in each of them.
        y: (m,); anchors: A, how many are served.
    """

    members: list[Tensor]
    y: Tensor
    anchors: int

    def fit(self, log_weight: Tensor | None = None) -> tuple[float, Tensor]:
        """The noise variance or temperature with the least NLL of the average over all A anchors' samples, and that
        NLL of each row (m,).

        Where so many did not see a row, it shows; of fewer, the best for all and for half of them are carried on to A.
        Temperatures are moved as far as `_consistent` says of as many anchors as show it.
        """
        most = min(len(self.members), self.anchors)
        groups = self._groups(most, log_weight)
        more, rows = groups.fit()
        right, rows = groups.consistent(more, rows)
        if self.anchors == most or most == 1:
            return right, rows
        few = most // 2
        fewer, rows_of_fewer = self._groups(few, log_weight).fit()
        spread = carry(fewer, more, self.anchors, sizes=(few, most)) * right / more
        return spread, rows_of_fewer + _further(self.anchors, (few, most)) * (rows - rows_of_fewer)

    def _groups(self, count: int, log_weight: Tensor | None) -> _Groups:
        """As many groups of `count` anchors as there are."""
        starts = range(0, len(self.members) - count + 1, count)
        each = None if log_weight is None else log_weight.repeat(count) - math.log(count)
        return _Groups([torch.cat(self.members[at : at + count]) for at in starts], self.y, each)


@dataclass(frozen=True)
class _Groups:
    """Mixtures (S, m, O) of which each predicts the rows alone, their targets y (m,) and the samples' weights (S,)."""

    mixtures: list[Tensor]
    y: Tensor
    log_weight: Tensor | None

    def fit(self) -> tuple[float, Tensor]:
        """The spread with the least NLL, and their mean NLL of each row."""
        if not all(bool(torch.isfinite(f).all()) for f in self.mixtures):
            return 1.0, torch.full(self.y.shape, math.inf, device=self.y.device)
        y = self.y
        if not y.is_floating_point():
            grid = np.geomspace(0.4, 4.0, 21)
            temperature, _ = _best_of(grid, lambda t: _mean(_with_one_more(p, y) for p in self._probabilities(t)))
            return temperature, _mean(categorical_nll(p, y) for p in self._probabilities(temperature))
        base = float(_mean((f[..., 0].mean(0) - y).square() for f in self.mixtures).mean().clamp(min=1e-10))
        grid = base * np.logspace(-2.0, 0.3, 24)
        return _best_of(
            grid, lambda v: _mean(gaussian_mixture_nll(f[..., 0], y, v, self.log_weight) for f in self.mixtures)
        )

    def consistent(self, temperature: float, nll: Tensor) -> tuple[float, Tensor]:
        """The temperature nearest to that of the least NLL (m,) at which the likeliest class is right as often as it
        claims, to within what chance makes of so many rows (a standard error), and the NLL there.

        A few rows with surprising classes make all others less sure than they should be, which the NLL hardly tells; so
        no more than `_LEAST_TOLD` of it is given for it. (Expectation consistency, Clarte et al. 2023, as far as rows
        decide.) A noise variance stays what it is.
        """
        if self.y.is_floating_point() or not bool(torch.isfinite(nll).all()):
            return temperature, nll
        most, excess = float(nll.mean()) + _LEAST_TOLD, self._claimed_too_much(temperature)
        for _ in range(_MOST_STEPS):
            if abs(excess) <= 1:
                break
            further = temperature * _STEP ** math.copysign(1.0, excess)
            left = self._claimed_too_much(further)
            there = _mean(categorical_nll(p, self.y) for p in self._probabilities(further))
            beyond = left * excess < 0 and abs(left) > abs(excess)  # of so many rows that a step is more than an error
            if beyond or not float(there.mean()) <= most:
                break
            temperature, nll, excess = further, there, left
        return temperature, nll

    def _claimed_too_much(self, temperature: float) -> float:
        """By how many standard errors."""
        likeliest = [p.max(1) for p in self._probabilities(temperature)]
        claimed = _mean(p for p, _ in likeliest)
        right = _mean((label == self.y).to(p) for p, label in likeliest)
        return float((claimed - right).sum() / (claimed * (1 - claimed)).sum().clamp(min=1e-12).sqrt())

    def _probabilities(self, temperature: float) -> list[Tensor]:
        return [mixture_probabilities(f, temperature, self.log_weight) for f in self.mixtures]


def _with_one_more(p: Tensor, y: Tensor) -> Tensor:
    """-log p_y (n,) for probabilities (n, C), were there one row more, as likely any of the n, and of any class.

    Where the likeliest class is always right, or nearly so, the sharpest probabilities look best, and the first row
    that is different costs more than all others gain. That n rows showed none does not make it rarer than 1 / (n + 1)
    (Laplace's rule of succession).
    """
    every = p.clamp(min=1e-12).log().mean(1)
    return (len(y) * categorical_nll(p, y) - every) / (len(y) + 1)


def carry(
    fewer: float, more: float, anchors: int, least: float = _LEAST_SHARE, sizes: tuple[int, int] = (1, 2)
) -> float:
    """The noise variance or temperature beside A anchors, from those beside fewer and beside more, as `sizes` says.

    What averaging gains is, to first order, the anchors' variance, and that goes with 1 - 1/n in their number n. Not
    all that is found beside few can be the anchors' own: a share always stays.
    """
    return max(fewer + _further(anchors, sizes) * (more - fewer), least * fewer)


def _further(anchors: int, sizes: tuple[int, int]) -> float:
    few, more = sizes
    return (1 / few - 1 / anchors) / (1 / few - 1 / more)


def _mean(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean(0)


def rows_to_judge(member: Tensor, most: int = SEARCH_ROWS) -> Tensor:
    """Indices of rows that no fewer anchors than others did not see, evenly chosen where there are too many."""
    unseen = (~member).sum(0)
    rows = (unseen >= min(2, int(unseen.max()))).nonzero().squeeze(1)
    return rows[:: -(-len(rows) // most)]


def gather(outputs: list[Tensor], unseen: Tensor, y: Tensor, anchors: int | None = None) -> OutOfFold:
    """From the outputs (S, m_a, O) of each anchor on the rows, out of m, that it did not see; `anchors` answer, by
    default as many as there are."""
    order = unseen.int().argsort(stable=True, dim=0, descending=True)
    picked: list[Tensor] = []
    for place in range(int(unseen.sum(0).min())):
        shape = outputs[0].shape
        whole = torch.empty(shape[0], len(y), shape[2], device=y.device)
        for a, f in enumerate(outputs):
            here = order[place] == a
            whole[:, here] = f[:, here[unseen[a]]]
        picked.append(whole)
    return OutOfFold(picked, y, anchors or len(outputs))


def _best_of(grid: NDArray[np.float64], nll: Callable[[float], Tensor]) -> tuple[float, Tensor]:
    """The value with the least mean NLL, and the NLL of each row: of the grid, then between its neighbours there."""

    def best(values: NDArray[np.float64]) -> tuple[float, Tensor]:
        found = [(float(value), nll(float(value))) for value in values]
        return min(found, key=lambda f: float(torch.nan_to_num(f[1].mean(), nan=math.inf)))

    value, _ = best(grid)
    step = grid[1] / grid[0]
    return best(value * np.geomspace(step**-0.8, step**0.8, 9))


def mean_of(values: Tensor, chosen: Tensor) -> Tensor:
    """(m,) mean of values (A, m) over the anchors chosen (A, m), at least one a row."""
    return torch.where(chosen, values, torch.zeros_like(values)).sum(0) / chosen.sum(0)


def who_disagree(unseen: Tensor) -> Tensor:
    """(A, m): the anchors that `disagreement` compares on each row."""
    return unseen if bool((unseen.sum(0) > 1).any()) else ~unseen


def disagreement(means: Tensor, unseen: Tensor) -> float:
    """Variance between the anchors' predictions of a new row, from means (A, m) on rows that `unseen` (A, m) lack.

    Rows that two or more anchors did not see show it. Where there are none, anchors that did see a row stand in: they
    differ less there, so too little is found rather than too much. The anchor that did not see a row must not be
    compared with those that did, which know its target with its noise.
    """
    who = who_disagree(unseen)
    some = who.sum(0) > 1
    return float(_variance_between(means[:, some], who[:, some]).mean()) if bool(some.any()) else 0.0


def _variance_between(means: Tensor, who: Tensor) -> Tensor:
    """(m,) unbiased variance of means (A, m) over the anchors of `who` (A, m), at least two a row."""
    count = who.sum(0)
    return mean_of((means - mean_of(means, who)).square(), who) * count / (count - 1)


@dataclass(frozen=True)
class Moments:
    """What all A anchors together would answer on m rows, had they seen none of them.

    Attributes:
        residual: (m,) size of `y - mean`, of the anchors that did not see the row.
        gain: (m,) by how much smaller the squared residuals of all are, in distribution and not row by row.
        within, between: (m,) variance within anchors and between them.
        expected: (m,) the variance between them without what the row's own unseen anchors say of it.
        anchors: A.
    """

    residual: Tensor
    gain: Tensor
    within: Tensor
    between: Tensor
    expected: Tensor
    anchors: int

    def fit(self) -> tuple[float, Tensor]:
        """The noise variance with the least NLL of the Gaussian of this mean and variance, and that NLL of each row."""
        if not all(bool(torch.isfinite(v).all()) for v in (self.residual, self.gain, self.within, self.between)):
            return 1.0, torch.full_like(self.residual, math.inf)
        base = float(self._squared.mean().clamp(min=1e-10))
        return _best_of(base * np.geomspace(LEAST_NOISE, 2.0, 33), self.nll)

    def nll(self, noise: float) -> Tensor:
        """(m,) with this noise variance."""
        variance = noise + self.within + self.between
        return 0.5 * self._squared / variance + 0.5 * torch.log(2 * math.pi * variance)

    @cached_property
    def _squared(self) -> Tensor:
        """(m,) squared residuals, all less by the same share."""
        squared = self.residual.square()
        total = float(squared.sum().clamp(min=1e-30))
        return squared * max(1 - float(self.gain.sum()) / total, _LEAST_RESIDUAL)

    def scores(self, noise: float) -> Tensor:
        """(m,) sorted `residual / std`, float64: the conformity scores behind intervals.

        The variance between A anchors that is served scatters about the expected one, and so it does here: intervals
        would cover too little otherwise.
        """
        scatter = torch.ones_like(self.between)
        if self.anchors > 1:
            generator = torch.Generator().manual_seed(self.anchors)
            normal = torch.randn(self.anchors - 1, len(scatter), generator=generator)
            scatter = normal.square().mean(0).to(scatter)
        # What a row's anchors gain must not be measured by their own disagreement.
        squared, gain = (
            (v / (noise + self.within + scatter * between)).double().sort().values
            for v, between in ((self.residual.square(), self.between), (self.gain, self.expected))
        )
        # Not less at a row than at one with a smaller score: the difference of two sorted samples is not quite sorted.
        return torch.maximum(squared - gain, _LEAST_RESIDUAL * squared).cummax(0).values.sqrt()


def moments(
    means: Tensor,
    within: Tensor,
    unseen: Tensor,
    y: Tensor,
    between: float,
    anchors: int | None = None,
    wider: Tensor | None = None,
) -> Moments:
    """What all anchors would answer, from those that did not see the rows.

    Args:
        means, within: (A, m) mean and variance of each anchor's samples.
        unseen: (A, m), where they count.
        between: variance between anchors on new rows.
        anchors: how many answer; default A.
        wider: (A, m) variance of samples that go as far as shows where anchors differ, if these do not.

    A row is predicted by the one or two anchors that did not see it, and by the mean of all A in service, whose
    squared error is smaller by `between (1/n - 1/A)` (the ambiguity decomposition, Krogh and Vedelsby 1995). Small
    errors gain more by it than large ones, which anchors often share: the gain is kept as the distribution that two
    unseen anchors show, and is the same share of every squared residual where there is but one.

    How the anchors' disagreement differs from row to row must not be taken from those that saw the rows: they know the
    targets, and so the residuals. It is expected to go with the variance within the others, which is a mean over new
    rows, and then moderated by what two unseen anchors differ by at the row itself (`_moderated`), which is independent
    of the residual of their mean.
    """
    anchors = anchors or len(means)
    count = unseen.sum(0)
    residual = (mean_of(means, unseen) - y).abs()
    squared = residual.square()
    mean_squared = float(squared.mean().clamp(min=1e-30))
    further = 1 / count - 1 / anchors
    gain = between * further * squared / mean_squared
    own = mean_of(within, unseen)
    shown = own if wider is None else mean_of(wider, unseen)
    size = float(shown.mean())
    pattern = shown / size if size > _NO_SPREAD * mean_squared else torch.ones_like(shown)
    expected = between * pattern
    found = expected.clone()
    several = count > 1
    if bool(several.any()):
        apart = _variance_between(means[:, several], unseen[:, several])
        gain[several] = further[several] * apart
        found[several] = _moderated(apart, count[several] - 1, expected[several])
    share = 1 - 1 / anchors
    return Moments(residual, gain, own, share * found, share * expected, anchors)


def _moderated(variance: Tensor, freedom: Tensor, expected: Tensor) -> Tensor:
    """(m,) variances found with few degrees of freedom (m,), drawn towards the expected ones.

    The expected ones count as many degrees of freedom as is likeliest for how far those found scatter about them
    (Smyth 2004, "Linear models and empirical Bayes methods", section 6: their ratio then has an F distribution).
    """
    if not bool((torch.isfinite(variance) & (expected > 0)).all()):
        return expected
    step = -(-len(variance) // SEARCH_ROWS)
    v, d, e = (values[::step].double() for values in (variance, freedom, expected))
    # One axis for the degrees of freedom of the expected, one for its scale, one for the rows.
    prior = torch.tensor(_PRIOR_FREEDOM, dtype=torch.float64, device=v.device)[:, None, None]
    scale = torch.logspace(-2, 0.3, 24, dtype=torch.float64, device=v.device)[:, None]
    log = torch.lgamma((d + prior) / 2) - torch.lgamma(prior / 2) - d / 2 * (prior * scale).log()
    log = (log - (d + prior) / 2 * torch.log1p(d * v / (prior * e * scale))).sum(-1)
    best = prior.flatten()[log.amax(1).argmax()].to(variance)
    return (best * expected + freedom * variance) / (best + freedom)


def moments_of(
    outputs: list[Tensor],
    unseen: Tensor,
    y: Tensor,
    weight: Tensor | None = None,
    anchors: int | None = None,
    wider: Tensor | None = None,
) -> Moments:
    """The same from the outputs (S, m_a, 1) of each anchor's samples on the rows, out of m, that it did not see.

    Args:
        weight: (S,) of the samples; default equal.
        anchors: how many answer; default as many as there are.
        wider: see `moments`.
    """
    means, within = moments_within(outputs, unseen, weight)
    # Where rows are unseen by one anchor only, none of these outputs show how anchors differ.
    between = disagreement(means, unseen) if int(unseen.sum(0).min()) > 1 else 0.0
    return moments(means, within, unseen, y, between, anchors, wider)


def moments_within(outputs: list[Tensor], unseen: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(A, m) mean and variance of each anchor's samples, where it did not see the row; arguments as of `moments_of`."""
    means, within = (torch.zeros(unseen.shape, device=unseen.device) for _ in range(2))
    if weight is None:
        weight = torch.full((len(outputs[0]),), 1 / len(outputs[0]), device=unseen.device)
    for a, f in enumerate(outputs):
        mean = weight @ f[..., 0]
        means[a, unseen[a]] = mean
        within[a, unseen[a]] = weight @ (f[..., 0] - mean).square()
    return means, within
