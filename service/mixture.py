"""The entropy of a Gaussian mixture, by quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

# All in units of the components' common standard deviation.
_STEP = 1 / 3
_REACH = 6.0
_APART = 2 * _REACH + 2 * _STEP
_NEAR = 12.0
"""Means so close to zero share one grid, on which no exponent is too large for a float64."""
_FINE = 8

_BLOCK = 2048
"""Components worked on at once: what they need stays in the processor's cache."""
_FEW = 512
"""Components up to which an exponential of each factor takes less time than products of powers."""


def mixture_entropy(means: Float64, std: float | Float64) -> Float64:
    """Differential entropy, in nats, of equally weighted Gaussians of one standard deviation.

    There is no closed form, so `-p log p` is integrated by the trapezoidal rule, which converges exponentially for
    such integrands: at this step and reach the error is below 1e-7 nats, also for means that agree, where the
    entropy is `log(2 pi e std^2) / 2`. Mixtures near zero, as deviations from their mean are, take the fewest
    operations.

    Args:
        means: (S, B), the means of B mixtures.
        std: standard deviation of every component, one or (B,).

    Returns:
        (B,).
    """
    at = (means / std).T
    distance = np.abs(at)
    if (reach := float(np.maximum.reduce(distance, axis=None))) <= _NEAR:
        return _in_blocks(partial(_near_entropy, reach=reach), at) + np.log(std)
    near = np.maximum.reduce(distance, axis=1) <= _NEAR
    found = np.empty(len(at))
    found[~near] = _in_blocks(_far_entropy, at[~near])
    if near.any():
        found[near] = _in_blocks(partial(_near_entropy, reach=_NEAR), at[near])
    return found + np.log(std)


def _in_blocks(entropy: Callable[[Float64], Float64], at: Float64) -> Float64:
    rows = max(_BLOCK // at.shape[1], 1)
    if len(at) <= rows:
        return entropy(at)
    return np.concatenate([entropy(at[i : i + rows]) for i in range(0, len(at), rows)])


def _near_entropy(at: Float64, reach: float) -> Float64:
    """From means (B, S) within a reach of zero, on one grid: `exp(-(g - m)^2 / 2)` at g = c + f is a product of three
    factors, of which none depends on m, on c and on f, so that the sum over the components is a product of matrices.
    """
    half = (reach + _REACH) / _STEP
    coarse, fine, outer = _grid(math.ceil((2 * half + 1) / _FINE))
    left, right = (_factors if at.size <= _FEW else _powers)(at, coarse, fine)
    p = (left @ right).reshape(len(at), -1) * (outer / at.shape[1])
    p *= np.log(p)
    total: Float64 = np.add.reduce(p, axis=1)
    return -_STEP * total


def _factors(at: Float64, coarse: Float64, fine: Float64) -> tuple[Float64, Float64]:
    """`exp(m c - m^2 / 2)` (B, c, S) and `exp(m f)` (B, S, f)."""
    left = np.exp(at[:, None, :] * coarse[:, None] - 0.5 * np.square(at)[:, None, :])
    return left, np.exp(at[:, :, None] * fine)


def _powers(at: Float64, coarse: Float64, fine: Float64) -> tuple[Float64, Float64]:
    """The same, as both grids are even: each point's factor is that of the point before times one power."""
    left = np.empty((len(at), len(coarse), at.shape[1]))
    right = np.empty((len(at), len(fine), at.shape[1]))
    for found, first, step in (
        (right, at * fine[0], np.exp(at * _STEP)),
        (left, at * coarse[0] - 0.5 * np.square(at), np.exp(at * (_FINE * _STEP))),
    ):
        np.exp(first, out=found[:, 0])
        for i in range(1, found.shape[1]):
            np.multiply(found[:, i - 1], step, out=found[:, i])
    return left, right.swapaxes(1, 2)


@cache
def _grid(count: int) -> tuple[Float64, Float64, Float64]:
    """Points c (count,) and f (8,), and the normal density at all c + f (count * 8,), which lie around zero."""
    coarse = (np.arange(count, dtype=np.float64) - (count - 1 / _FINE) / 2) * (_FINE * _STEP)
    fine = np.arange(_FINE, dtype=np.float64) * _STEP
    points = (coarse[:, None] + fine).ravel()
    return coarse, fine, np.exp(-0.5 * points**2) / math.sqrt(2 * math.pi)


def _far_entropy(at: Float64) -> Float64:
    """From means (B, S) anywhere: they are sorted, and gaps wider than the components' common reach are narrowed to
    it. The entropy of what does not overlap does not depend on the distance, so that the cost is linear in S however
    far the means lie apart."""
    rows, samples = at.shape
    gaps = np.minimum(np.diff(np.sort(at, axis=1), axis=1), _APART)
    at = np.concatenate([np.zeros((rows, 1)), np.cumsum(gaps, axis=1)], axis=1)

    half = round(_REACH / _STEP)
    window = np.arange(2 * half + 1)
    left = np.floor(at / _STEP).astype(np.int64)
    width = int(left.max()) + len(window)
    distance = (left[..., None] + (window - half)) * _STEP - at[..., None]
    density = np.exp(-0.5 * distance**2) / (samples * np.sqrt(2 * np.pi))
    cell = np.arange(rows)[:, None, None] * width + left[..., None] + window
    p = np.bincount(cell.ravel(), weights=density.ravel(), minlength=rows * width).reshape(rows, width)
    log_p = np.log(p, out=np.zeros_like(p), where=p > 0)
    entropy: Float64 = -_STEP * np.sum(p * log_p, axis=1)
    return entropy
