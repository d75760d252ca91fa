"""Statistics of the predictive distribution over posterior samples, in the target's own units.

Lengths: S samples, B rows, O outputs, C classes. Everything is computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model_store.detection import LEAST_INFORMATION, LEAST_RATIO
from model_store.logarithm import FURTHEST, exponential, lognormal_moments
from model_store.manifest import (
    ClassificationCalibration,
    ClassificationTarget,
    RegressionCalibration,
    RegressionTarget,
)
from service.mixture import mixture_entropy

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Columns = dict[str, NDArray[Any]]

_LEAST_POSITIVE: Final = float(np.finfo(np.float64).tiny)
"""Least number whose logarithm is taken."""
_BLOCK: Final = 2**15
"""Probabilities worked on at once."""


def regression(
    outputs: Float32,
    target: RegressionTarget,
    calibration: RegressionCalibration,
    level: float,
    scores: Float64,
    members: AnchorSamples | None = None,
    noise_std: float | Float64 | None = None,
) -> Columns:
    """The predictive `y = mean + scale * f + noise` of a regression, or that of its exponential for a `log` target.

    Args:
        outputs: (S, B, 1) network outputs f.
        target: gives mean and scale.
        calibration: gives the noise's standard deviation, where `noise_std` does not: one, or (B,).
        level: probability mass of the interval, within (0, 1).
        scores: (n,) sorted out-of-fold scores `|y - mean| / std`.
        members: where the OOD score is wanted too, which samples are whose.

    Returns:
        `mean`, `variance` (their sum: law of total variance), `epistemic_variance` (of the mean, over samples),
        `aleatoric_variance` (of the noise), `entropy` (of the mixture, nats), all (B,), and `interval` (B, 2). Of a
        `log` target also the `median` and, of the logarithm, `log_mean`, `log_variance` and `log_epistemic_variance`
        (B,); its interval's ends are those of the logarithm's. With `members` also `epistemic_score` (B,), see
        `epistemic_to_noise`.
    """
    y = outputs[..., 0].astype(np.float64)
    y *= target.scale
    apart, mean = _centred(y)
    squared = np.square(apart)
    mean += target.mean
    epistemic = np.add.reduce(squared, axis=0) / len(y)
    std = calibration.noise_std if noise_std is None else noise_std
    aleatoric = np.full_like(epistemic, np.square(std))
    variance = epistemic + aleatoric
    half = interval_factor(level, scores) * np.sqrt(variance)
    interval = np.empty((len(mean), 2))
    np.subtract(mean, half, out=interval[:, 0])
    np.add(mean, half, out=interval[:, 1])
    more = {}
    if members is not None:
        more["epistemic_score"] = _ratio(apart, squared, members, calibration)
    entropy_of = mixture_entropy(apart, std)
    if target.log:
        more |= {"median": exponential(mean), "log_mean": mean, "log_variance": variance}
        more["log_epistemic_variance"] = epistemic
        # Densities change by the factor y, whose logarithm has this mean.
        entropy_of += mean
        interval = exponential(interval)
        mean, epistemic, aleatoric = lognormal_moments(apart, mean, std)
        variance = epistemic + aleatoric
    return more | {
        "mean": mean,
        "variance": variance,
        "epistemic_variance": epistemic,
        "aleatoric_variance": aleatoric,
        "entropy": entropy_of,
        "interval": interval,
    }


def in_range(outputs: Float32, target: RegressionTarget | ClassificationTarget) -> NDArray[np.bool_]:
    """Which outputs (S, B, O) a predictive can be made of: finite numbers and, of a `log` target, exponentials."""
    if not (isinstance(target, RegressionTarget) and target.log):
        return np.isfinite(outputs)
    # What is not a number is not less either.
    found: NDArray[np.bool_] = np.abs(outputs.astype(np.float64) * target.scale + target.mean) <= FURTHEST
    return found


def draws(outputs: Float32, target: RegressionTarget, noise_std: float | Float64) -> Float64:
    """(B, S) the mean of the target that every sample predicts, from outputs (S, B, 1) and the noise, one or (B,)."""
    found: Float64 = target.mean + target.scale * outputs[..., 0].astype(np.float64)
    return exponential(found + np.square(noise_std) / 2).T if target.log else found.T


def interval_factor(level: float, scores: Float64) -> float:
    """How many predictive standard deviations an interval of this level reaches to either side.

    The finite-sample conformal quantile. A level that n scores cannot vouch for gets the larger of the largest score
    and the Gaussian quantile.
    """
    return _reach(1.0 - level, scores)


def _reach(outside: float, scores: Float64) -> float:
    """The same for what is left outside, which may be too small to be told from none by its level."""
    found = conformal_quantile(1.0 - outside, scores)
    if found is not None:
        return found
    gaussian = -NormalDist().inv_cdf(outside / 2)
    return max(gaussian, float(scores[-1]) if len(scores) else 0.0)


def conformal_quantile(level: float, scores: Float64) -> float | None:
    """The ceil((n+1)*level)-th smallest of n sorted scores (Vovk et al. 2005); None where there are too few."""
    n = len(scores)
    # Rounding in the product must not move the index to the next score.
    index = max(math.ceil((n + 1) * level - 1e-9), 1)
    return float(scores[index - 1]) if index <= n else None


def highest_level(points: int) -> float:
    """The highest level that so many scores can vouch for."""
    return points / (points + 1)


def calibrated_quantiles(found: Columns, probabilities: Sequence[float], scores: Float64) -> Float64:
    """(B, Q) quantiles of the target, the ends of its intervals: that of 0.95 is the upper end of the level 0.9.

    Args:
        found: what `regression` gives.
    """
    log = "log_mean" in found
    mean, variance = (found["log_mean"], found["log_variance"]) if log else (found["mean"], found["variance"])
    # Twice what lies beyond a quantile lies outside the interval that ends there.
    reach = [0.0 if q == 0.5 else math.copysign(_reach(2 * min(q, 1 - q), scores), q - 0.5) for q in probabilities]
    ends: Float64 = mean[:, None] + np.sqrt(variance)[:, None] * np.array(reach)
    return exponential(ends) if log else ends


def prediction_sets(p: Float64, level: float, scores: Float64, empty: bool = False) -> NDArray[np.bool_]:
    """(B, C) bool: the classes of a set that holds the true one with this probability (Sadinle et al. 2019).

    Args:
        p: (B, C) averaged class probabilities.
        scores: (n,) sorted, one less the probability of the true class of out-of-fold rows.
        empty: whether a set may be empty. If not, the likeliest class is always in it: where that one alone is right
            more often than the level asks, sets hold the true class more often too.

    All classes are in it where n scores cannot vouch for the level.
    """
    highest = conformal_quantile(level, scores)
    if highest is None:
        return np.ones(p.shape, dtype=np.bool_)
    held: NDArray[np.bool_] = 1 - p <= highest + 1e-12
    if not empty:
        held |= p == p.max(axis=1, keepdims=True)
    return held


def probabilities(outputs: Float32, calibration: ClassificationCalibration) -> Float64:
    """Class probabilities (S, B, C) of every sample from logits (S, B, C)."""
    return _softmax(outputs, calibration.temperature, calibration.dispersion)[0].transpose(1, 2, 0)


def _softmax(outputs: Float32, temperature: float, dispersion: float = 1.0) -> tuple[Float64, Float64]:
    """The same as (C, S, B), and their entropies (S, B) in nats, `log(sum(exp(l))) - sum(p * l)`: no class takes a
    logarithm. Classes come first, as sums over so short an axis take several times as long where it is the last."""
    logits = outputs.transpose(2, 0, 1).astype(np.float64, order="C")
    if dispersion < 1:
        mean = np.add.reduce(logits, axis=1, keepdims=True)
        mean *= (1 - dispersion) / logits.shape[1]
        logits *= dispersion
        logits += mean
    logits /= temperature
    logits -= np.maximum.reduce(logits, axis=0)
    p = np.exp(logits)
    total = np.add.reduce(p, axis=0)
    p /= total
    logits *= p
    each: Float64 = np.log(total, out=total)
    each -= np.add.reduce(logits, axis=0)
    # Only rounding can make it negative.
    return p, np.maximum(each, 0.0, out=each)


def entropy(p: Float64) -> Float64:
    """Entropy, in nats, of distributions along the first axis."""
    log_p = np.log(np.maximum(p, _LEAST_POSITIVE))
    log_p *= p
    h: Float64 = np.add.reduce(log_p, axis=0)
    return np.negative(h, out=h)


def classification(
    outputs: Float32,
    calibration: ClassificationCalibration,
    level: float,
    scores: Float64,
    members: AnchorSamples | None = None,
    empty_sets: bool = False,
) -> Columns:
    """The predictive of a classification, from logits (S, B, C), with prediction sets of a level.

    Args:
        members: where the OOD score is wanted too, which samples are whose.
        empty_sets: whether a prediction set may be empty.

    Returns:
        `mean` and `variance` over samples of the probabilities, (B, C); `label`, index of the likeliest class;
        `entropy` of the mean (total), `expected_entropy` (aleatoric part) and their difference
        `mutual_information` (epistemic part), in nats, (B,); `prediction_set` (B, C) bool. With `members` also
        `epistemic_score` (B,), see `mutual_information`.
    """
    found = joined([_moments(block, calibration, members) for block in _blocks(outputs)], axis=-1)
    mean = found["mean"] = np.ascontiguousarray(found["mean"].T)
    found["variance"] = np.ascontiguousarray(found["variance"].T)
    found["label"] = mean.argmax(axis=1)
    # Jensen's inequality: only rounding can make it negative.
    found["mutual_information"] = np.maximum(found["entropy"] - found["expected_entropy"], 0.0)
    found["prediction_set"] = prediction_sets(mean, level, scores, empty_sets)
    return found


def _moments(outputs: Float32, calibration: ClassificationCalibration, members: AnchorSamples | None) -> Columns:
    """What `classification` takes of the samples' probabilities, rows last."""
    p, each = _softmax(outputs, calibration.temperature, calibration.dispersion)
    share = np.full(len(outputs), 1 / len(outputs))
    mean = share @ p
    more = {}
    if members is not None:
        drawn = (p, each) if calibration.dispersion == 1 else _softmax(outputs, calibration.temperature)
        more["epistemic_score"] = _information(*drawn, members)
    p -= mean[:, None]
    return more | {
        "mean": mean,
        "variance": share @ np.square(p, out=p),
        "entropy": entropy(mean),
        "expected_entropy": share @ each,
    }


def _blocks(outputs: Float32) -> list[Float32]:
    """Outputs (S, B, C) by rows, few enough for the processor's cache."""
    samples, rows, classes = outputs.shape
    size = max(_BLOCK // (samples * classes), 1)
    return [outputs[:, i : i + size] for i in range(0, rows, size)]


def joined(parts: Sequence[Columns], axis: int = 0) -> Columns:
    """The columns of consecutive rows as one; `axis` is that of the rows."""
    return parts[0] if len(parts) == 1 else {n: np.concatenate([p[n] for p in parts], axis) for n in parts[0]}


@dataclass(frozen=True)
class AnchorSamples:
    """Which samples are of which anchor, of those anchors that have at least two.

    Attributes:
        mean: (A, S), takes the mean over each anchor's samples.
        freedom: (A,) n / (n - 1) for anchors of n samples: what a variance over them has to be multiplied by.
        whole: (S,) and parts: (A, S), by which the mean unbiased variance of y (S,) is `whole @ y**2` less the sum of
            `(parts @ y)**2`.
    """

    mean: Float64
    freedom: Float64
    whole: Float64
    parts: Float64

    @classmethod
    def of(cls, anchors: NDArray[np.int64]) -> AnchorSamples:
        """From the anchor of every sample (S,). Where none has two samples, all count as one anchor's."""
        own = anchors == np.unique(anchors)[:, None]
        own = own[own.sum(axis=1) > 1]
        if not len(own) and len(anchors) > 1:
            own = np.ones((1, len(anchors)), dtype=np.bool_)
        count = own.sum(axis=1)
        mean, freedom = own / count[:, None], count / (count - 1.0)
        share = freedom / max(len(own), 1)
        return cls(mean, freedom, share @ mean, np.sqrt(share)[:, None] * mean)


def epistemic_to_noise(
    outputs: Float32, members: AnchorSamples, target: RegressionTarget, calibration: RegressionCalibration
) -> Float64:
    """log(epistemic variance / `noise_std` squared) (B,), the epistemic variance within anchors.

    The unbiased variance over each anchor's samples is averaged over the anchors that have at least two.
    """
    y = outputs[..., 0].astype(np.float64)
    y *= target.scale
    apart, _ = _centred(y)
    return _ratio(apart, np.square(apart), members, calibration)


def _centred(y: Float64) -> tuple[Float64, Float64]:
    """y (S, B), in place, less its mean over samples, and that mean (B,)."""
    mean: Float64 = np.add.reduce(y, axis=0) / len(y)
    y -= mean
    return y, mean


def _ratio(y: Float64, squared: Float64, members: AnchorSamples, calibration: RegressionCalibration) -> Float64:
    """The same from y (S, B) in the target's units less its mean over samples, so small that squares lose nothing."""
    variance = members.whole @ squared - np.square(members.parts @ y).sum(axis=0)
    score: Float64 = np.log(np.maximum(variance / calibration.noise_std**2, LEAST_RATIO))
    return score


def mutual_information(outputs: Float32, members: AnchorSamples, calibration: ClassificationCalibration) -> Float64:
    """log of the mutual information (B,) of label and weights within each anchor's samples, averaged over the anchors.

    As for a variance, which it is to first order, an anchor's mean takes one degree of freedom of its samples. Samples
    are taken as they are drawn, whatever the dispersion of what is answered.
    """
    found = [_information(*_softmax(block, calibration.temperature), members) for block in _blocks(outputs)]
    return found[0] if len(found) == 1 else np.concatenate(found)


def _information(p: Float64, each: Float64, members: AnchorSamples) -> Float64:
    """The same from probabilities (C, S, B) and their entropies (S, B)."""
    if not len(members.mean):
        return np.full(p.shape[2], math.log(LEAST_INFORMATION))
    within = np.maximum(entropy(members.mean @ p) - members.mean @ each, 0.0)
    information = members.freedom @ within / len(within)
    score: Float64 = np.log(np.maximum(information, LEAST_INFORMATION))
    return score
