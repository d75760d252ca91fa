"""What a Gaussian mixture of a target's logarithm says of the target itself. Lengths: S samples, B rows."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

FURTHEST: Final = 300.0
"""Largest logarithm of a prediction, and least."""
MOST_NOISE: Final = 5.0
"""Largest standard deviation of a logarithm's noise: with it, moments of predictions that far are float64 numbers."""
_LARGEST: Final = math.log(np.finfo(np.float64).max)


def lognormal_moments(apart: Float64, mean: Float64, noise_std: float | Float64) -> tuple[Float64, Float64, Float64]:
    """Moments of `exp(mean + apart_s + noise)`, s any sample alike: the law of total variance for a lognormal mixture.

    Args:
        apart: (S, B) what each sample predicts of the logarithm, less their mean.
        mean: (B,) that mean.
        noise_std: of the Gaussian noise of the logarithm, one or (B,), at most `MOST_NOISE`.

    Returns:
        The mean, the variance over samples of the mean that each predicts (epistemic), and the mean over samples of the
        variance that each predicts (aleatoric), (B,) each; they sum to the variance.
    """
    # Moments of a lognormal: exp(m + s^2 / 2), and exp(2 m + s^2) (exp(s^2) - 1).
    largest = apart.max(axis=0)
    each = np.exp(apart - largest)
    middle = each.mean(axis=0)
    level = np.exp(mean + largest + np.square(noise_std) / 2)
    spread = np.square(each - middle).mean(axis=0)
    return level * middle, level**2 * spread, level**2 * np.expm1(np.square(noise_std)) * np.square(each).mean(axis=0)


def exponential(logarithm: Float64) -> Float64:
    """The numbers with these logarithms, the largest there is where one is larger."""
    found: Float64 = np.exp(np.minimum(logarithm, _LARGEST))
    return found
