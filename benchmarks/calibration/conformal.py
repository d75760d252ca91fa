"""Conformal peers, by MAPIE: intervals and prediction sets whose size is set on rows that were kept from training.

Each peer gets the training rows of the split and puts a fifth of them, drawn at random, aside for conformalisation; its
networks train on the others, in the way of all methods. The prior precision and the noise or temperature come from the
tuning that all share, which has seen all training rows.

Lengths: m rows for conformalisation, B test rows, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from mapie.classification import SplitConformalClassifier
from mapie.conformity_scores import ResidualNormalisedScore
from mapie.regression import ConformalizedQuantileRegressor, SplitConformalRegressor
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.metrics import make_scorer, mean_pinball_loss
from sklearn.model_selection import GridSearchCV

from benchmarks.calibration.regions import Regions
from benchmarks.quality.methods import ensemble, laplace
from benchmarks.quality.predictive import Classes, Cost, Gaussians, Outcome, Predictive, answered
from benchmarks.quality.problem import Problem
from benchmarks.quality.tuning import Tuned
from benchmarks.served import LEVELS

SHARE: Final = 0.2
"""Of the training rows, kept for conformalisation."""
GRID: Final = {"max_iter": [50, 200], "min_samples_leaf": [5, 20]}
"""What is tried for each quantile of gradient boosting, by cross-validation in three folds."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Answer:
    """A peer's regions for the test rows, and what it took."""

    regions: Regions
    cost: Cost


@dataclass(frozen=True)
class Parted:
    """A split's training rows in two.

    Attributes:
        proper: the problem with the rows to train on; what it predicts are those kept, then the test rows.
        kept: m, how many are kept.
        y: (m,) their targets, as `proper` encodes them.
    """

    proper: Problem
    kept: int
    y: NDArray[Any]


def part(problem: Problem) -> Parted:
    """Puts a share of the training rows aside."""
    n = len(problem.x)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(problem.seed + 61))
    kept, others = order[: round(SHARE * n)], order[round(SHARE * n) :]
    proper = replace(
        problem,
        x=problem.x[others],
        y=problem.y[others],
        x_test=torch.cat([problem.x[kept], problem.x_test]),
        y_test=torch.cat([problem.y[kept], problem.y_test]),
    )
    return Parted(proper, len(kept), problem.y[kept].numpy())


def regression(problem: Problem, tuned: Tuned) -> dict[str, Answer]:
    """Split conformal intervals in proportion to the standard deviation (Lei et al. 2018, "Distribution-free predictive
    inference for regression", section 5.2) of a deep ensemble of 5 and of linearised Laplace on the last layer, both
    with the out-of-fold noise; and conformalised quantile regression."""
    parted = part(problem)
    of_ensemble = ensemble.run(parted.proper, tuned, (5,))["ensemble_5"]
    of_laplace = laplace.run(parted.proper, tuned, ("laplace_last",))["laplace_last_tuned"]
    return {
        "conformal_ensemble": _normalised(parted, of_ensemble),
        "conformal_laplace": _normalised(parted, of_laplace),
        "conformal_quantiles": _quantiles(parted),
    }


def classification(problem: Problem, tuned: Tuned) -> dict[str, Answer]:
    """Prediction sets of the tempered MAP and of a deep ensemble of 5: classes whose probability is high enough (LAC,
    Sadinle et al. 2019), and the likeliest ones up to a share of the probability (APS, Romano et al. 2020)."""
    parted = part(problem)
    found = ensemble.run(parted.proper, tuned, (5,))
    names = {"map": "map_tuned", "ensemble": "ensemble_5"}
    # The library has no APS for two classes.
    scores = ("lac", "aps") if problem.dataset.outputs > 2 else ("lac",)
    return {
        f"{score}_{name}": _sets(parted, found[method], score) for name, method in names.items() for score in scores
    }


def _normalised(parted: Parted, outcome: Outcome) -> Answer:
    cost = Cost()
    with cost.clock():
        gaussian = answered(outcome.predictive)
        assert isinstance(gaussian, Gaussians)
        mean, std = _numbers(gaussian.mean[0]), _numbers(gaussian.variance[0].sqrt())
        score = ResidualNormalisedScore(residual_estimator=_KnownNumbers(std), prefit=True)
        peer = SplitConformalRegressor(
            _KnownNumbers(mean), confidence_level=LEVELS, conformity_score=score, prefit=True
        )
        kept, test = _rows(parted)
        _, intervals = peer.conformalize(kept, parted.y).predict_interval(test)
    return Answer({level: intervals[..., i] for i, level in enumerate(LEVELS)}, outcome.cost + cost)


def _sets(parted: Parted, outcome: Outcome, score: str) -> Answer:
    cost = Cost()
    with cost.clock():
        known = _KnownProbabilities(_probabilities(outcome.predictive))
        peer = SplitConformalClassifier(
            known,
            confidence_level=LEVELS,
            conformity_score=score,
            prefit=True,
            random_state=np.random.RandomState(parted.proper.seed),
        )
        kept, test = _rows(parted)
        # The library's scores of APS are randomised, as in the paper; sets that are not would cover too much.
        options = {"include_last_label": "randomized"} if score == "aps" else None
        _, sets = peer.conformalize(kept, parted.y).predict_set(test, conformity_score_params=options)
    return Answer({level: sets[..., i] for i, level in enumerate(LEVELS)}, outcome.cost + cost)


def _quantiles(parted: Parted) -> Answer:
    """Conformalised quantile regression (Romano, Patterson and Candes 2019) on gradient boosting; it has no part in the
    tuning of networks, and its cost no share of that."""
    cost = Cost()
    with cost.clock():
        x, y = parted.proper.x.numpy(), parted.proper.y.numpy()
        x_kept, x_test = np.split(parted.proper.x_test.numpy(), [parted.kept])
        median, regions = _quantile(x, y, 0.5, parted.proper.seed), {}
        for level in LEVELS:
            ends = [_quantile(x, y, q, parted.proper.seed) for q in ((1 - level) / 2, (1 + level) / 2)]
            peer = ConformalizedQuantileRegressor([*ends, median], confidence_level=level, prefit=True)
            # One correction for both ends, as in the paper: two need more rows for the same level.
            _, intervals = peer.conformalize(x_kept, parted.y).predict_interval(x_test, symmetric_correction=True)
            regions[level] = intervals[..., 0]
    return Answer(regions, cost)


def _quantile(x: NDArray[Any], y: NDArray[Any], quantile: float, seed: int) -> Any:
    """Gradient boosting of one quantile, with the best of the settings tried."""
    boosting = HistGradientBoostingRegressor(loss="quantile", quantile=quantile, random_state=seed)
    return GridSearchCV(boosting, GRID, cv=3, scoring=_pinball(quantile)).fit(x, y).best_estimator_


def _pinball(quantile: float) -> Any:
    return make_scorer(mean_pinball_loss, greater_is_better=False, alpha=quantile)


def _rows(parted: Parted) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(m, 1) and (B, 1) the places of the rows kept and of the test rows, which stand for the rows themselves."""
    kept, test = np.split(np.arange(len(parted.proper.x_test))[:, None], [parted.kept])
    return kept, test


def _numbers(values: torch.Tensor) -> Numbers:
    return values.double().numpy()


def _probabilities(predictive: Predictive) -> Numbers:
    """(m + B, C) that sum to one in double precision."""
    assert isinstance(predictive, Classes)
    p = _numbers(predictive.probabilities)
    p /= p.sum(1, keepdims=True)
    return p


class _KnownNumbers(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """A regressor in the library's eyes, whose predictions are there already: (m + B,), asked for by place."""

    fitted_ = True  # what MAPIE looks for

    def __init__(self, values: Numbers) -> None:
        self.values = values

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, x: NDArray[Any], y: NDArray[Any]) -> _KnownNumbers:
        return self

    def predict(self, x: NDArray[np.int64]) -> Numbers:
        return self.values[x[:, 0]]


class _KnownProbabilities(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier of the same kind: probabilities (m + B, C)."""

    def __init__(self, values: Numbers) -> None:
        self.values = values
        self.classes_ = np.arange(values.shape[1])

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, x: NDArray[Any], y: NDArray[Any]) -> _KnownProbabilities:
        return self

    def predict(self, x: NDArray[np.int64]) -> NDArray[np.int64]:
        found: NDArray[np.int64] = self.values[x[:, 0]].argmax(1)
        return found

    def predict_proba(self, x: NDArray[np.int64]) -> Numbers:
        return self.values[x[:, 0]]
