"""What anchors that have not seen a row say of the mean and the variance that all of them would answer.

Regression is judged by what is answered, as deep ensembles are (Lakshminarayanan et al. 2017), and not by the mixture
of samples: a few rows far out, or a few samples, decide a mixture's NLL, and what two anchors' mixture says of it does
not carry over to all.

Lengths: A anchors, S samples of an anchor, m rows, O outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from builder.out_of_fold import SEARCH_ROWS, best_of

LEAST_NOISE = 10**-2.5
"""Least noise variance that is considered, in squared residuals."""
_LEAST_RESIDUAL = 0.25
"""Share of the squared residual that stays, however much anchors disagree."""
_NO_SPREAD = 1e-6
"""Variance within anchors, in shares of the squared residual, that says nothing of where they differ."""
_PARTS = 5
"""Of the rows, by the size of their noise."""
_PRIOR_FREEDOM = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0, 128.0)
"""Degrees of freedom that are tried for an expected variance."""


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
        relative: (m,) variance of the noise in shares of its level, where that differs from row to row.
    """

    residual: Tensor
    gain: Tensor
    within: Tensor
    between: Tensor
    expected: Tensor
    anchors: int
    relative: Tensor | float = 1.0

    def fit(self) -> tuple[float, Tensor]:
        """The level of the noise variance with the least NLL of the Gaussian of this mean and variance, and that NLL of
        each row."""
        if not all(bool(torch.isfinite(v).all()) for v in (self.residual, self.gain, self.within, self.between)):
            return 1.0, torch.full_like(self.residual, math.inf)
        base = float(self.squared.mean().clamp(min=1e-10))
        return best_of(base * np.geomspace(LEAST_NOISE, 2.0, 33), self.nll)

    def nll(self, noise: float) -> Tensor:
        """(m,) with this level of the noise variance."""
        variance = noise * self.relative + self.within + self.between
        return 0.5 * self.squared / variance + 0.5 * torch.log(2 * math.pi * variance)

    @cached_property
    def squared(self) -> Tensor:
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
            (v / (noise * self.relative + self.within + scatter * between)).double()
            for v, between in ((self.residual.square(), self.between), (self.gain, self.expected))
        )
        alike = [torch.arange(len(squared))]
        if isinstance(self.relative, Tensor):
            # The gain counts most where there is least noise, and must not be taken off the scores of other rows.
            alike = list(self.relative.argsort().tensor_split(_PARTS))
        return torch.cat([_less(squared[rows], gain[rows]) for rows in alike]).sqrt().sort().values


def _less(squared: Tensor, gain: Tensor) -> Tensor:
    """Squared scores less what they gain, in distribution: sorted both."""
    squared, gain = squared.sort().values, gain.sort().values
    # Not less at a row than at one with a smaller score: the difference of two sorted samples is not quite sorted.
    return torch.maximum(squared - gain, _LEAST_RESIDUAL * squared).cummax(0).values


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
