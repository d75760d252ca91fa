"""Predictions by anchors that have not seen a row, and what they say of all anchors together.

Anchors are cross-fitted: a row is unseen by one of them, or by two where there are two rounds of folds, while all of
them answer in service. From one and two follows what holds for all: the noise or temperature, the NLL, and by how much
anchors disagree on new rows. Where rows are so many that all anchors can lack the same ones, these show it.

Regression is judged by mean and variance instead (`builder.moments`).

Lengths: A anchors, S samples of an anchor, m rows, O outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from builder.network import FunctionalNetwork
from builder.predictive import (
    categorical_nll,
    contracted,
    gaussian_mixture_nll,
    mixture_probabilities,
    sample_outputs,
)

SEARCH_ROWS, FITTED_ROWS = 4096, 8192
"""The most rows that alternatives are judged on, and that a noise or temperature is fitted to."""
_LEAST_TOLD, _STEP, _MOST_STEPS = 0.0005, 1.01, 40
"""Nats that are given for likeliest classes that are right as often as they claim, and by how much a temperature is
moved at once, and in all: where nothing can be told of the rows, all high ones are alike."""
DISPERSIONS = (1.0, 0.5, 0.25)
"""Of a classifier's logits about their mean. What an average loses goes with the square, so less than a quarter is no
different from nothing, where samples would no longer show where they differ."""
_LEAST_GAIN, _LEAST_SHOWN = 0.001, 0.5
"""Nats for which samples are brought closer together, and the share of the anchors that must show it together."""
_LEAST_SHARE = 0.2
"""Noise or temperature beside all anchors is never less than this share of that beside one."""


@dataclass(frozen=True)
class UnseenRows:
    """What is answered to n rows that the answering anchors did not see.

    Attributes:
        y: (n,) standardised targets, or class indices.
        mean, std: (n,) of a regression, in standardised units.
        covered: (n,) whether the prediction set of level 90 % holds the class.
    """

    y: Tensor
    mean: Tensor | None = None
    std: Tensor | None = None
    covered: Tensor | None = None


@dataclass(frozen=True)
class OutOfFold:
    """Outputs of the samples of anchors on m rows that these anchors did not see.

    Attributes:
        members: k outputs (S, m, O), each of one anchor a row, which is another one in each of them.
        y: (m,); anchors: A, how many are served.
        dispersion: share of their distance from their mean at which logits are averaged.
    """

    members: list[Tensor]
    y: Tensor
    anchors: int
    dispersion: float = 1.0

    def fit(self, log_weight: Tensor | None = None) -> tuple[float, Tensor]:
        """The noise variance or temperature with the least NLL of the average over all A anchors' samples, and that
        NLL of each row (m,).

        Where so many did not see a row, it shows; of fewer, the best for all and for half of them are carried on to A.
        A temperature is then moved as `_Groups.consistent` says, of as many anchors as show it.
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

    def fit_dispersed(self) -> tuple[float, float, Tensor]:
        """The temperature as `fit` finds it, the dispersion that goes with it, and the NLL of each row (m,).

        The largest dispersion with which rows are predicted as well as with the best, to within two standard errors of
        their differences, or a thousandth of a nat. Unless rows tell, samples stay what they are: what they say of
        unfamiliar inputs no row here judges, and what a few of many anchors gain does not carry over to all.
        """
        if len(self.members) < _LEAST_SHOWN * self.anchors:
            temperature, rows = self.fit()
            return temperature, 1.0, rows
        found = {d: replace(self, dispersion=d).fit() for d in DISPERSIONS}
        least = min((rows for _, rows in found.values()), key=lambda rows: float(rows.mean()))

        def as_good(rows: Tensor) -> bool:
            worse = rows - least
            return bool(worse.mean() <= (2 * worse.std() / len(worse) ** 0.5).clamp(min=_LEAST_GAIN))

        dispersion = max((d for d, (_, rows) in found.items() if as_good(rows)), default=1.0)
        temperature, rows = found[dispersion]
        return temperature, dispersion, rows

    def _groups(self, count: int, log_weight: Tensor | None) -> _Groups:
        """As many groups of `count` anchors as there are."""
        each = None if log_weight is None else log_weight.repeat(count) - math.log(count)
        starts = range(0, len(self.members) - count + 1, count)
        together = (torch.cat(self.members[at : at + count]) for at in starts)
        return _Groups([contracted(f, self.dispersion, each) for f in together], self.y, each)


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
            grid = np.geomspace(0.4, 10.0, 29)
            temperature, _ = best_of(grid, lambda t: _mean(_with_one_more(p, y) for p in self._probabilities(t)))
            return temperature, _mean(categorical_nll(p, y) for p in self._probabilities(temperature))
        base = float(_mean((f[..., 0].mean(0) - y).square() for f in self.mixtures).mean().clamp(min=1e-10))
        grid = base * np.logspace(-2.0, 0.3, 24)
        return best_of(
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
        most = float(nll.mean()) + _LEAST_TOLD
        excess = self._claimed_too_much(self._probabilities(temperature))
        for _ in range(_MOST_STEPS):
            if abs(excess) <= 1:
                break
            further = temperature * _STEP ** math.copysign(1.0, excess)
            probabilities = self._probabilities(further)
            left = self._claimed_too_much(probabilities)
            there = _mean(categorical_nll(p, self.y) for p in probabilities)
            beyond = left * excess < 0 and abs(left) > abs(excess)  # of so many rows that a step is more than an error
            if beyond or not float(there.mean()) <= most:
                break
            temperature, nll, excess = further, there, left
        return temperature, nll

    def _claimed_too_much(self, probabilities: list[Tensor]) -> float:
        """By how many standard errors the likeliest class claims more than it is right, of each mixture's (m, C)."""
        likeliest = [p.max(1) for p in probabilities]
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


def outputs_on_unseen(
    network: FunctionalNetwork, weights: Iterable[Tensor] | Tensor, x: Tensor, unseen: Tensor
) -> list[Tensor]:
    """Outputs (S, m_a, O) of each anchor's samples (S, P) on those of the rows x (m, ...) that it lacks, of `unseen`
    (A, m)."""
    return [sample_outputs(network, w, x[lacks]) for w, lacks in zip(weights, unseen, strict=True)]


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


def best_of(grid: NDArray[np.float64], nll: Callable[[float], Tensor]) -> tuple[float, Tensor]:
    """The value with the least mean NLL, and the NLL of each row: of the grid, then between its neighbours there."""

    def best(values: NDArray[np.float64]) -> tuple[float, Tensor]:
        found = [(float(value), nll(float(value))) for value in values]
        return min(found, key=lambda f: float(torch.nan_to_num(f[1].mean(), nan=math.inf)))

    value, _ = best(grid)
    step = grid[1] / grid[0]
    return best(value * np.geomspace(step**-0.8, step**0.8, 9))
