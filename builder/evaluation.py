"""Figures on the test part, which no choice has seen: the served posterior beside the fiber samples and the MAP."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from builder.predictive import (
    categorical_nll,
    conformal_quantile,
    contracted,
    expected_calibration_error,
    gaussian_mixture_nll,
    mixture_probabilities,
    sample_outputs,
)
from builder.trained import Trained
from model_store.manifest import Metrics, RegressionTarget

LEVEL = 0.9


@dataclass(frozen=True)
class TestPredictions:
    """The served posterior's answers on the test part, in standardised target units.

    Attributes:
        y: (B,) targets.
        mean, std, epistemic_std: (B,) for regression.
        probabilities: (B, C) for classification.
    """

    y: Tensor
    mean: Tensor | None = None
    std: Tensor | None = None
    epistemic_std: Tensor | None = None
    probabilities: Tensor | None = None


def test_part(trained: Trained) -> tuple[Tensor, Tensor]:
    """Encoded inputs and targets of the test rows."""
    test = torch.from_numpy(trained.dataset.test)
    device = trained.x.device
    return torch.from_numpy(trained.dataset.x)[test].to(device), torch.from_numpy(trained.dataset.y)[test].to(device)


def predict_test(trained: Trained) -> TestPredictions:
    """What a server answers for the test rows by default (its number of samples, seed 0)."""
    x, y = test_part(trained)
    outputs = sample_outputs(trained.network, _served_weights(trained), x)
    spread = trained.calibrated.spread
    if y.is_floating_point():
        f = outputs[..., 0]
        epistemic = f.var(0, unbiased=False) if len(y) else y  # torch warns of the variance of nothing
        return TestPredictions(y, f.mean(0), (epistemic + spread**2).sqrt(), epistemic.sqrt())
    together = contracted(outputs, trained.calibrated.dispersion)
    return TestPredictions(y, probabilities=mixture_probabilities(together, spread))


def evaluate(trained: Trained) -> list[Metrics]:
    """Test figures of the posterior, of the fiber samples themselves, and of the mean single MAP anchor.

    Also the out-of-fold NLL of posterior and MAP, on which calibration was chosen. Empty test part: only these.
    """
    calibrated, scale = trained.calibrated, 1.0
    if isinstance(trained.dataset.target, RegressionTarget):
        scale = trained.dataset.target.scale
    shift = math.log(scale)
    found = [
        Metrics(predictor=who, split="out_of_fold", rows=calibrated.points, values={"nll": value + shift})
        for who, value in (("posterior", calibrated.nll), ("map", calibrated.map_nll))
    ]
    x, y = test_part(trained)
    if not len(y):
        return found
    fiber = trained.fibers.nodes[: trained.reach.node + 1].flatten(0, 2)
    groups = {
        "posterior": [sample_outputs(trained.network, _served_weights(trained), x)],
        "fiber": [sample_outputs(trained.network, fiber, x)],
        "map": [sample_outputs(trained.network, anchor[None], x) for anchor in trained.anchors],
    }
    for predictor, members in groups.items():
        spread = calibrated.map_spread if predictor == "map" else calibrated.spread
        members = [contracted(outputs, calibrated.dispersion) for outputs in members]  # one MAP stays what it is
        each = [_figures(outputs, y, spread, calibrated.conformity_scores, scale) for outputs in members]
        values = {name: sum(v[name] for v in each) / len(each) for name in each[0]}
        if predictor == "map":
            values.pop("coverage_90", None), values.pop("width_90", None)
        found.append(Metrics(predictor=predictor, split="test", rows=len(y), values=values))
    return found


def _served_weights(trained: Trained) -> Tensor:
    plan = trained.plans["predict"]
    return trained.posterior.draw(plan, plan.samples)[0]


def _figures(outputs: Tensor, y: Tensor, spread: float, scores: Tensor, scale: float) -> dict[str, float]:
    if not y.is_floating_point():
        p = mixture_probabilities(outputs, spread)
        return {
            "nll": float(categorical_nll(p, y).mean()),
            "accuracy": float((p.argmax(1) == y).float().mean()),
            "ece": expected_calibration_error(p, y),
        }
    f = outputs[..., 0]
    half = conformal_quantile(scores, LEVEL) * (f.var(0, unbiased=False) + spread**2).sqrt()
    error = (f.mean(0) - y).abs()
    return {
        "nll": float(gaussian_mixture_nll(f, y, spread**2).mean()) + math.log(scale),
        "rmse": float(error.square().mean().sqrt()) * scale,
        "coverage_90": float((error <= half).float().mean()),
        "width_90": float(2 * half.mean()) * scale,
    }
