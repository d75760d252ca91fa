"""Figures on the test part, which no choice has seen: the served posterior beside the fiber samples and the MAP."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from builder.calibration import SampledPosterior
from builder.likelihood import gaussian_nll
from builder.predictive import (
    categorical_nll,
    conformal_quantile,
    contracted,
    expected_calibration_error,
    mixture_probabilities,
    sample_outputs,
)
from builder.trained import Trained
from model_store.logarithm import exponential, lognormal_moments
from model_store.manifest import Metrics, RegressionTarget, Target

LEVEL = 0.9


@dataclass(frozen=True)
class TestPredictions:
    """The served posterior's answers on the test part, in standardised target units.

    Attributes:
        y: (B,) targets.
        mean, std, epistemic_std: (B,) for regression.
        expected: (B,) of a target whose logarithm is learned, its own mean in its own units.
        probabilities: (B, C) for classification.
    """

    y: Tensor
    mean: Tensor | None = None
    std: Tensor | None = None
    epistemic_std: Tensor | None = None
    expected: NDArray[np.float64] | None = None
    probabilities: Tensor | None = None


def test_part(trained: Trained) -> tuple[Tensor, Tensor]:
    """Encoded inputs and targets of the test rows."""
    test = torch.from_numpy(trained.dataset.test)
    device = trained.x.device
    return torch.from_numpy(trained.dataset.x)[test].to(device), torch.from_numpy(trained.dataset.y)[test].to(device)


def predict_test(trained: Trained) -> TestPredictions:
    """What a server answers for the test rows by default (its number of samples, seed 0)."""
    x, y = test_part(trained)
    plan, calibrated = trained.plans["predict"], trained.calibrated
    outputs = sample_outputs(trained.network, trained.posterior.draw(plan, plan.samples)[0], x)
    return _answer(outputs, y, calibrated.noise_std(x), calibrated.dispersion, trained.dataset.target)


def learned_units(values: Tensor, target: RegressionTarget) -> NDArray[np.float64]:
    """Standardised values as what networks learn: in the target's own units, or of its logarithm."""
    own: NDArray[np.float64] = values.double().cpu().numpy() * target.scale + target.mean
    return own


def _answer(outputs: Tensor, y: Tensor, spread: Tensor, dispersion: float, target: Target) -> TestPredictions:
    """What samples with the outputs (S, B, O) answer together, `spread` as of `Calibrated.noise_std`."""
    if isinstance(target, RegressionTarget):
        f, expected = outputs[..., 0], None
        epistemic = f.var(0, unbiased=False) if len(y) else y  # torch warns of the variance of nothing
        if target.log:
            logs = learned_units(f, target)
            middle = logs.mean(axis=0)
            with np.errstate(over="ignore"):  # infinite figures tell of a row so far out
                expected = lognormal_moments(logs - middle, middle, spread.double().cpu().numpy() * target.scale)[0]
        return TestPredictions(y, f.mean(0), (epistemic + spread**2).sqrt(), epistemic.sqrt(), expected)
    return TestPredictions(y, probabilities=mixture_probabilities(contracted(outputs, dispersion), float(spread)))


def evaluate(trained: Trained, served: TestPredictions | None = None) -> list[Metrics]:
    """Test figures of the posterior, of the fiber samples themselves, and of the mean single MAP anchor.

    Also the out-of-fold NLL of posterior and MAP, on which calibration was chosen. Empty test part: only these.

    Args:
        served: what `predict_test` gives, where that is known already.
    """
    calibrated, target = trained.calibrated, trained.dataset.target
    shift = _shift(target, None if calibrated.unseen is None else calibrated.unseen.y)
    found = [
        Metrics(predictor=who, split="out_of_fold", rows=calibrated.points, values={"nll": value + shift})
        for who, value in (("posterior", calibrated.nll), ("map", calibrated.map_nll))
    ]
    x, y = test_part(trained)
    if not len(y):
        return found
    plan, (spread, dispersion) = trained.plans["predict"], (calibrated.noise_std(x), calibrated.dispersion)
    sampled = SampledPosterior.of(trained.network, trained.fibers, trained.reach.used)
    fiber = sample_outputs(trained.network, sampled.draw(plan, plan.samples)[0], x)
    anchors = sample_outputs(trained.network, trained.anchors, x)
    groups = {
        "posterior": [served or predict_test(trained)],
        "fiber": [_answer(fiber, y, spread, dispersion, target)],
        "map": [
            _answer(one[None], y, torch.tensor(calibrated.map_spread, dtype=torch.float64), 1.0, target)
            for one in anchors
        ],
    }
    for predictor, answers in groups.items():
        each = [_figures(answer, calibrated.conformity_scores, target) for answer in answers]
        values = {name: sum(v[name] for v in each) / len(each) for name in each[0]}
        if predictor == "map":
            values.pop("coverage_90", None), values.pop("width_90", None)
        found.append(Metrics(predictor=predictor, split="test", rows=len(y), values=values))
    return found


def _shift(target: Target, y: Tensor | None) -> float:
    """What the NLL of the target itself is above that of what networks predict, on average over rows y (n,) of that."""
    if not isinstance(target, RegressionTarget):
        return 0.0
    shift = math.log(target.scale)
    if target.log:
        assert y is not None
        shift += float(y.double().mean()) * target.scale + target.mean  # d log y / dy is 1 / y
    return shift


def _figures(answer: TestPredictions, scores: Tensor, target: Target) -> dict[str, float]:
    y = answer.y
    if answer.probabilities is not None:
        p = answer.probabilities
        return {
            "nll": float(categorical_nll(p, y).mean()),
            "accuracy": float((p.argmax(1) == y).float().mean()),
            "ece": expected_calibration_error(p, y),
        }
    assert answer.mean is not None and answer.std is not None and isinstance(target, RegressionTarget)
    half = conformal_quantile(scores, LEVEL) * answer.std
    y_own, mean, low, high = (
        learned_units(v, target) for v in (y, answer.mean, answer.mean - half, answer.mean + half)
    )
    if target.log:
        y_own, low, high = (exponential(v) for v in (y_own, low, high))
        assert answer.expected is not None
        mean = answer.expected
    return {
        "nll": float(gaussian_nll(answer.mean, y, answer.std).mean()) + _shift(target, y),
        "rmse": float(np.sqrt(np.square(mean - y_own).mean())),
        "coverage_90": float(((answer.mean - y).abs() <= half).float().mean()),
        "width_90": float((high - low).mean()),
    }
