"""The entropy of a Gaussian mixture, by quadrature."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

# All in units of the components' common standard deviation.
_STEP = 1 / 3
_REACH = 6.0
_APART = 2 * _REACH + 2 * _STEP

_BLOCK = 1024
"""Components worked on at once: what they need stays in the processor's cache."""


def mixture_entropy(means: Float64, std: float) -> Float64:
    """Differential entropy, in nats, of equally weighted Gaussians of one standard deviation.

    There is no closed form, so `-p log p` is integrated by the trapezoidal rule, which converges exponentially for
    such integrands: at this step and reach the error is below 1e-7 nats, also for means that agree, where the
    entropy is `log(2 pi e std^2) / 2`. The means are sorted first and gaps wider than the components' common reach
    are narrowed to it: the entropy of what does not overlap does not depend on the distance, and so the cost is
    linear in S however far the means lie apart.

    Args:
        means: (S, B), the means of B mixtures.
        std: standard deviation of every component.

    Returns:
        (B,).
    """
    rows = max(_BLOCK // len(means), 1)
    blocks = [means[:, i : i + rows] for i in range(0, means.shape[1], rows)]
    return np.concatenate([_block_entropy(block, std) for block in blocks])


def _block_entropy(means: Float64, std: float) -> Float64:
    samples, rows = means.shape
    ordered = np.sort(means.T, axis=1)
    gaps = np.minimum(np.diff(ordered, axis=1) / std, _APART)
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
    entropy: Float64 = -_STEP * np.sum(p * log_p, axis=1) + np.log(std)
    return entropy
