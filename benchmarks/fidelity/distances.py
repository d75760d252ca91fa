"""How far a predictive distribution is from the reference's, row by row.

Lengths: S mixture components, G rows, Y grid points of the target.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.quality.predictive import Classes, Gaussians, Predictive

_GRID, _LEVELS = 512, 2000
_OUTSIDE = 1e-3
_REACH = 6.0
_ENTRIES = 2**24


def distances(found: Predictive, reference: Predictive, noise_std: float) -> dict[str, float]:
    """Means over the rows.

    Both: `tv`, the total variation between the predictive distributions. Regression: `w1` and `w2`, Wasserstein
    distances in units of the noise; `std_ratio`, the geometric mean of the epistemic standard deviation over the
    reference's, and `log_std`, the mean size of that ratio's logarithm (a method without spread: its floor of a
    thousandth of the noise). Classification: `agreement` of the likeliest class (Izmailov et al. 2021, "What are
    Bayesian neural network posteriors really like?").
    """
    if isinstance(found, Classes) or isinstance(reference, Classes):
        assert isinstance(found, Classes) and isinstance(reference, Classes)
        p, q = found.probabilities, reference.probabilities
        return {
            "tv": float(0.5 * (p - q).abs().sum(1).mean()),
            "agreement": float((p.argmax(1) == q.argmax(1)).double().mean()),
        }
    tv, w1, w2 = (float(d.mean()) for d in between(found, reference))
    ratio = (epistemic_std(found, noise_std) / epistemic_std(reference, noise_std)).log()
    return {
        "tv": tv,
        "w1": w1 / noise_std,
        "w2": w2 / noise_std,
        "std_ratio": float(ratio.mean().exp()),
        "log_std": float(ratio.abs().mean()),
    }


def between(found: Gaussians, reference: Gaussians) -> tuple[Tensor, Tensor, Tensor]:
    """Total variation and Wasserstein-1 and -2 distance (G,) of mixtures on each row, numerically on a grid.

    A thousandth of each mixture's components may lie outside the grid, so that a few that are far out do not spoil it.
    """
    tv, w1, w2 = [], [], []
    rows = max(1, _ENTRIES // (_GRID * max(len(found.mean), len(reference.mean))))
    for at in range(0, found.mean.shape[1], rows):
        parts = [
            Gaussians(g.mean[:, at : at + rows].double(), g.variance[:, at : at + rows]) for g in (found, reference)
        ]
        y = _grid(parts)
        step = y[:, 1] - y[:, 0]
        p, q = (density(g, y) for g in parts)
        tv.append(0.5 * (p - q).abs().sum(1) * step)
        below = [_cumulative(d, step) for d in (p, q)]
        w1.append((below[0] - below[1]).abs().sum(1) * step)
        apart = _quantiles(y, below[0]) - _quantiles(y, below[1])
        w2.append(apart.square().mean(1).sqrt())
    return torch.cat(tv), torch.cat(w1), torch.cat(w2)


def epistemic_std(predictive: Gaussians, noise_std: float) -> Tensor:
    """(G,) standard deviation of the predictive beside the noise, at least a thousandth of it."""
    mean = predictive.mean.double()
    variance = predictive.variance.double().mean(0) + mean.var(0, unbiased=False) - noise_std**2
    return variance.clamp(min=(1e-3 * noise_std) ** 2).sqrt()


def density(g: Gaussians, y: Tensor) -> Tensor:
    """Densities (G, Y) of the mixtures at y (G, Y)."""
    precision = 1 / g.variance.float()[..., None]
    # Single precision is enough for the kernels: their argument is small where they count.
    apart = y.float() - g.mean.float()[..., None]
    each = (-0.5 * precision * apart.square()).exp() * (precision / (2 * torch.pi)).sqrt()
    return each.mean(0).double()


def _grid(mixtures: list[Gaussians]) -> Tensor:
    low, high = [], []
    for g in mixtures:
        reach = _REACH * g.variance.max(0).values.sqrt()
        ends = torch.quantile(g.mean, torch.tensor([_OUTSIDE, 1 - _OUTSIDE], dtype=g.mean.dtype), dim=0)
        low.append(ends[0] - reach)
        high.append(ends[1] + reach)
    first, last = torch.stack(low).min(0).values, torch.stack(high).max(0).values
    return first[:, None] + (last - first)[:, None] * torch.linspace(0, 1, _GRID, dtype=torch.float64)


def _cumulative(density: Tensor, step: Tensor) -> Tensor:
    """Distribution functions (G, Y) by the trapezoid rule, ending at 1."""
    inside = torch.cumulative_trapezoid(density, dim=1) * step[:, None]
    whole = torch.cat([torch.zeros_like(inside[:, :1]), inside], dim=1)
    return whole / whole[:, -1:]


def _quantiles(y: Tensor, below: Tensor) -> Tensor:
    """(G, levels) quantiles at evenly spaced levels, by linear interpolation."""
    levels = (torch.arange(_LEVELS, dtype=torch.float64) + 0.5) / _LEVELS
    right = torch.searchsorted(below, levels.expand(len(below), -1).contiguous()).clamp(1, y.shape[1] - 1)
    low, high = below.gather(1, right - 1), below.gather(1, right)
    part = ((levels - low) / (high - low).clamp(min=1e-300)).clamp(0, 1)
    return torch.lerp(y.gather(1, right - 1), y.gather(1, right), part)
