"""Intervals and prediction sets by level, as a served model and as peers give them, and their figures.

Lengths: B rows, C classes. Regions of a level are intervals (B, 2), in standard deviations of the training targets, or
sets (B, C) of truth values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import coverage
from benchmarks.quality.problem import Problem
from model_store.manifest import RegressionTarget

Regions = Mapping[float, NDArray[Any]]


def answered(problem: Problem, answers: Mapping[float, dict[str, Any]]) -> Regions:
    """The regions of /predict's answers by level."""
    target = problem.dataset.target
    if isinstance(target, RegressionTarget):
        return {level: (np.array(a["interval"]) - target.mean) / target.scale for level, a in answers.items()}
    classes = target.classes
    return {
        level: np.array([[c in held for c in classes] for held in a["prediction_set"]]) for level, a in answers.items()
    }


def figures(regions: Regions, truth: NDArray[Any]) -> dict[str, float]:
    """By level how often the true value is in its region, `coverage_...`, and the mean width or number of classes,
    `size_...`, for standardised targets or indices of classes (B,)."""
    found: dict[str, float] = {}
    for level, region in regions.items():
        if region.dtype == np.bool_:
            covered, size = float(region[np.arange(len(truth)), truth].mean()), float(region.sum(1).mean())
        else:
            covered, size = coverage(region, truth), float(np.diff(region).mean())
        found |= {f"coverage_{level:g}": covered, f"size_{level:g}": size}
    return found
