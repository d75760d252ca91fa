"""What a method predicts for the test rows, what it cost, and the figures of it.

Lengths: S mixture components, B rows, C classes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.figures import chance_error
from builder.predictive import categorical_nll, expected_calibration_error

LEVEL = 0.9


@dataclass
class Cost:
    """What a method took, from the training rows to its test predictions, its share of the tuning apart.

    Attributes:
        gradient_evaluations: gradients of one row's loss in one weight vector.
        seconds: wall time.
    """

    gradient_evaluations: int = 0
    seconds: float = 0.0

    @contextmanager
    def clock(self) -> Iterator[None]:
        """Adds the wall time of the block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.gradient_evaluations + other.gradient_evaluations, self.seconds + other.seconds)


@dataclass(frozen=True)
class Gaussians:
    """Equally weighted mixtures of Gaussians, in standardised target units: means and variances (S, B)."""

    mean: Tensor
    variance: Tensor


@dataclass(frozen=True)
class Classes:
    """Class probabilities (B, C), and the mutual information (B,) of class and sample where samples stand behind."""

    probabilities: Tensor
    information: Tensor | None = None


Predictive = Gaussians | Classes


@dataclass(frozen=True)
class Outcome:
    """A method's predictions, its cost, what else is to be told of it, other scores (B,) of rows' unfamiliarity, and
    what samples would answer that go to other drift scales."""

    predictive: Predictive
    cost: Cost = field(default_factory=Cost)
    notes: dict[str, Any] = field(default_factory=dict)
    doubts: dict[str, Tensor] = field(default_factory=dict)
    reaches: list[tuple[float, Predictive]] = field(default_factory=list)


def of_samples(p: Tensor) -> Classes:
    """The average of class probabilities (S, B, C), and by how much less doubt each sample has than it."""
    mean = p.mean(0)
    return Classes(mean, (entropy(mean) - entropy(p).mean(0)).clamp(min=0) if len(p) > 1 else None)


def entropy(p: Tensor) -> Tensor:
    """Entropy (..., B) in nats of class probabilities (..., B, C)."""
    return -torch.xlogy(p, p).sum(-1)


def answered(predictive: Predictive) -> Predictive:
    """As a server puts it: the Gaussian of the mixture's mean and variance, or class probabilities."""
    if isinstance(predictive, Classes):
        return predictive
    variance = predictive.variance.mean(0, keepdim=True) + predictive.mean.var(0, unbiased=False, keepdim=True)
    return Gaussians(predictive.mean.mean(0, keepdim=True), variance)


def figures(predictive: Predictive, y: Tensor, scale: float = 1.0) -> dict[str, float]:
    """Test figures: NLL of the averaged predictive distribution, never of single samples.

    Regression, in the target's own units of `scale` standardised ones: `nll` (of the mixture), `gaussian_nll` (of the
    Gaussian with the mixture's mean and variance), `rmse`, `coverage` and `width` of that Gaussian's central 90 %
    interval. Classification: `nll`, `accuracy`, `ece` (15 bins), and `ece_by_chance`: what so few
    rows would show of the same probabilities, were they calibrated.
    """
    if isinstance(predictive, Classes):
        p = predictive.probabilities.double()
        return {
            "nll": float(categorical_nll(p, y).mean()),
            "accuracy": float((p.argmax(1) == y).double().mean()),
            "ece": expected_calibration_error(p, y),
            "ece_by_chance": chance_error(p.cpu().numpy()),
        }
    mean, variance, y = predictive.mean.double(), predictive.variance.double(), y.double()
    log = -0.5 * (y - mean) ** 2 / variance - 0.5 * torch.log(2 * math.pi * variance)
    nll = math.log(len(mean)) - torch.logsumexp(log, 0)
    middle = mean.mean(0)
    total = variance.mean(0) + mean.var(0, unbiased=False)
    gaussian = 0.5 * (y - middle) ** 2 / total + 0.5 * torch.log(2 * math.pi * total)
    half = float(torch.special.ndtri(torch.tensor(0.5 + LEVEL / 2, dtype=torch.float64))) * total.sqrt()
    return {
        "nll": float(nll.mean()) + math.log(scale),
        "gaussian_nll": float(gaussian.mean()) + math.log(scale),
        "rmse": float((y - middle).square().mean().sqrt()) * scale,
        "coverage": float(((y - middle).abs() <= half).double().mean()),
        "width": float(2 * half.mean()) * scale,
    }
