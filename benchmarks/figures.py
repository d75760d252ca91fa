"""Figures of served predictions, in numpy and apart from the builder's, which they are a check of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

Float64 = NDArray[np.float64]
_LEAST_PROBABILITY = 1e-12
_DRAWS = 200


def gaussian_nll(mean: Float64, variance: Float64, y: Float64) -> float:
    """Mean of -log N(y; mean, variance), in nats, all (n,) and in the target's own units."""
    return float(np.mean(0.5 * np.log(2 * np.pi * variance) + 0.5 * (y - mean) ** 2 / variance))


def rmse(mean: Float64, y: Float64) -> float:
    """Root of the mean squared error of (n,) predictions, in the target's own units."""
    return float(np.sqrt(np.mean((y - mean) ** 2)))


def coverage(interval: Float64, y: Float64) -> float:
    """Share of targets (n,) inside their interval (n, 2), ends included."""
    return float(np.mean((interval[:, 0] <= y) & (y <= interval[:, 1])))


def categorical_nll(probabilities: Float64, truth: NDArray[np.int64]) -> float:
    """Mean of -log p of the true classes (n,), in nats, for probabilities (n, C)."""
    p = probabilities[np.arange(len(truth)), truth]
    return float(-np.mean(np.log(np.maximum(p, _LEAST_PROBABILITY))))


def calibration_error(probabilities: Float64, truth: NDArray[np.int64], bins: int = 15) -> float:
    """Expected calibration error of the top class over equal-width bins of confidence (Guo et al. 2017)."""
    confidence = probabilities.max(1)
    correct = (probabilities.argmax(1) == truth).astype(np.float64)
    gaps = np.bincount(_bins(confidence, bins), weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(truth))


def chance_error(probabilities: Float64, bins: int = 15) -> float:
    """Expected calibration error that probabilities (n, C) would show where they were right: so few rows leave it.

    The mean over targets that are drawn from the probabilities themselves (consistency resampling, Bröcker and Smith
    2007).
    """
    confidence = probabilities.max(1)
    inside = _bins(confidence, bins)[:, None] == np.arange(bins)
    correct = np.random.default_rng(0).random((_DRAWS, len(confidence))) < confidence
    return float(np.abs((correct - confidence) @ inside).sum(1).mean() / len(confidence))


def _bins(confidence: Float64, bins: int) -> NDArray[np.int64]:
    """(n,) in which of so many bins of equal width each confidence (n,) is."""
    return np.minimum((confidence * bins).astype(np.int64), bins - 1)


def auroc(familiar: NDArray[Any], unfamiliar: NDArray[Any]) -> float:
    """How often an unfamiliar row scores higher than a familiar one; ties count half."""
    truth = np.repeat([0, 1], [len(familiar), len(unfamiliar)])
    return float(roc_auc_score(truth, np.concatenate([familiar, unfamiliar]).astype(np.float64)))


def auroc_error(value: float, familiar: int, unfamiliar: int) -> float:
    """Standard error of an AUROC found with so many rows of each kind (Hanley and McNeil 1982)."""
    two_unfamiliar, two_familiar = value / (2 - value), 2 * value**2 / (1 + value)
    spread = value * (1 - value)
    spread += (unfamiliar - 1) * (two_unfamiliar - value**2) + (familiar - 1) * (two_familiar - value**2)
    return math.sqrt(spread / (familiar * unfamiliar))


def rate_error(rate: float, rows: int) -> float:
    """Standard error of the share found among so many rows, where the true one is the rate (binomial)."""
    return math.sqrt(rate * (1 - rate) / rows)


def of_regression(answers: dict[float, dict[str, Any]], y: NDArray[Any]) -> dict[str, float]:
    """NLL, RMSE, coverage and mean width of the intervals of /predict's answers by level, for targets (n,)."""
    first = next(iter(answers.values()))
    mean, variance = _numbers(first["mean"]), _numbers(first["variance"])
    intervals = {f"{level:g}": _numbers(a["interval"]) for level, a in answers.items()}
    covered = {f"coverage_{level}": coverage(interval, y) for level, interval in intervals.items()}
    widths = {f"width_{level}": float(np.mean(np.diff(interval))) for level, interval in intervals.items()}
    return {"nll": gaussian_nll(mean, variance, y), "rmse": rmse(mean, y), **covered, **widths}


def of_classification(answers: dict[float, dict[str, Any]], classes: list[Any], y: NDArray[Any]) -> dict[str, float]:
    """NLL, accuracy and ECE of /predict's answers, whose probabilities are in the order of `classes`, and, by level,
    how often the prediction set holds the true class and how many it holds."""
    answer = next(iter(answers.values()))
    sets = {f"{level:g}": a["prediction_set"] for level, a in answers.items()}
    covered = {
        f"coverage_{level}": float(np.mean([c in held for held, c in zip(each, y.tolist(), strict=True)]))
        for level, each in sets.items()
    }
    sizes = {f"set_size_{level}": float(np.mean([len(held) for held in each])) for level, each in sets.items()}
    truth = np.array([classes.index(c) for c in y.tolist()])
    probabilities = _numbers(answer["mean"])
    hits = [label == c for label, c in zip(answer["label"], y.tolist(), strict=True)]
    return {
        "nll": categorical_nll(probabilities, truth),
        "accuracy": float(np.mean(hits)),
        "ece": calibration_error(probabilities, truth),
        **covered,
        **sizes,
    }


def _numbers(values: list[Any]) -> Float64:
    """An answer's array; what is not finite comes as null and becomes NaN."""
    return np.array(values, dtype=np.float64)
