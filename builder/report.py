"""What a bundle says about itself: its pictures here, its model card in `builder.card`.

Lengths: A anchors, N trajectories an anchor, T drift steps, k latent dimensions, S samples, G grid points, B rows of
the test part, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from builder import histograms
from builder import pictures as draw
from builder.card import make_card
from builder.evaluation import LEVEL
from builder.predictive import conformal_quantile
from builder.words import learned, with_unit
from model_store.detection import lowest_rate
from model_store.manifest import ClassificationTarget, Manifest, RegressionTarget, TableInput

__all__ = ["ReportData", "make_card", "make_pictures"]

Array = NDArray[Any]


@dataclass(frozen=True)
class ReportData:
    """All that the pictures show; predictions and curve are in the target's own units, or of its logarithm where that
    is what networks learn.

    Attributes:
        manifest: of the bundle.
        predictions: of the test part; regression `y`, `mean`, `std` (total), `epistemic_std` (B,), classification
            `y` (B,) class indices and `probabilities` (B, C).
        test_rows: (B,) their numbers in the data.
        ood_scores: (n,) sorted combined scores of rows that the detectors had not seen.
        stand_ins: (m,) scores of stand-ins for unfamiliar rows, by kind.
        conformity_scores: (n,) sorted out-of-fold scores; of a regression, |y - mean| / std.
        fiber_loss: (T+1, A, N), nats a training row.
        scales: (T+1,) drift scale of each node.
        reach: last node that predictions use.
        out_of_fold: NLL with the trajectories up to each node, of the standardised target.
        latents: (A, N, T+1, k).
        curve: where there is one numeric input column and a real target, else None: `grid` (G,), `map` (A, G),
            `samples` (S, G), `mean`, `std`, `epistemic_std`, `lower`, `upper` (G,), `x_train`, `y_train` (n,).
    """

    manifest: Manifest
    predictions: Mapping[str, Array]
    test_rows: Array
    ood_scores: Array
    stand_ins: Mapping[str, Array]
    conformity_scores: Array
    fiber_loss: Array
    scales: Array
    reach: int
    out_of_fold: list[float]
    latents: Array
    curve: Mapping[str, Array] | None = None


def make_pictures(data: ReportData) -> dict[str, bytes]:
    """PNG files by name; a picture that would show nothing (no test rows, no finite latent) is left out."""
    manifest, target = data.manifest, data.manifest.target
    found: dict[str, bytes | None] = {}
    if data.curve is not None and isinstance(manifest.inputs, TableInput):
        column = manifest.inputs.columns[0]
        found["posterior.png"] = draw.posterior(data.curve, with_unit(column.name, column.unit), learned(target), LEVEL)
    found["calibration.png"] = _calibration(data)
    found["sharpness.png"] = _sharpness(data)
    found["unfamiliar.png"] = _unfamiliar(data)
    standardized = isinstance(target, RegressionTarget)
    found["fibers.png"] = draw.fibers(
        data.fiber_loss, data.scales, data.reach, np.array(data.out_of_fold), standardized
    )
    found["latent.png"] = draw.latent(data.latents, manifest.latent.plans["predict"].stop)
    return {name: picture for name, picture in found.items() if picture is not None}


def _unfamiliar(data: ReportData) -> bytes | None:
    scores, rate = data.ood_scores, data.manifest.ood.false_alarm_rate
    threshold = None
    if rate >= lowest_rate(len(scores)):
        threshold = conformal_quantile(torch.from_numpy(scores), 1 - rate)
    return histograms.unfamiliar(scores, threshold, rate, data.stand_ins)


def _calibration(data: ReportData) -> bytes | None:
    shown = data.predictions
    if not len(shown.get("y", ())):
        return None
    if isinstance(data.manifest.target, ClassificationTarget):
        return draw.reliability(shown["y"], shown["probabilities"])
    scores = torch.from_numpy(np.asarray(data.conformity_scores, dtype=np.float64))

    def factor(level: float) -> float:
        return conformal_quantile(scores, level) if len(scores) else NormalDist().inv_cdf(0.5 + level / 2)

    return draw.coverage(shown["y"], shown["mean"], shown["std"], factor, learned(data.manifest.target), LEVEL)


def _sharpness(data: ReportData) -> bytes | None:
    shown, target = data.predictions, data.manifest.target
    if not len(shown.get("y", ())):
        return None
    if isinstance(target, ClassificationTarget):
        p = shown["probabilities"].astype(np.float64)
        entropy = -np.sum(p * np.log(np.maximum(p, np.finfo(p.dtype).tiny)), axis=1)
        return histograms.sharpness_of_classes(entropy, p.argmax(axis=1) == shown["y"], p.shape[1])
    return histograms.sharpness_of_numbers(shown["std"], shown["epistemic_std"], learned(target))
