"""Figures against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks import figures


def test_gaussian_nll_and_rmse() -> None:
    mean, variance, y = np.array([0.0, 1.0]), np.array([1.0, 4.0]), np.array([1.0, 1.0])
    expected = (0.5 * math.log(2 * math.pi) + 0.5 + 0.5 * math.log(8 * math.pi)) / 2
    assert figures.gaussian_nll(mean, variance, y) == pytest.approx(expected)
    assert figures.rmse(mean, y) == pytest.approx(math.sqrt(0.5))


def test_coverage_counts_the_ends() -> None:
    interval = np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    assert figures.coverage(interval, np.array([0.0, 1.0, 1.1, -0.1])) == 0.5


def test_regression_answers() -> None:
    narrow = {"mean": [0.0, 0.0], "variance": [1.0, 1.0], "interval": [[-1.0, 1.0], [-1.0, 1.0]]}
    wide = narrow | {"interval": [[-3.0, 3.0], [-3.0, 3.0]]}
    found = figures.of_regression({0.8: narrow, 0.95: wide}, np.array([0.0, 2.0]))
    assert list(found) == ["nll", "rmse", "coverage_0.8", "coverage_0.95", "width_0.8", "width_0.95"]
    assert (found["coverage_0.8"], found["coverage_0.95"]) == (0.5, 1.0)
    assert (found["width_0.8"], found["width_0.95"]) == (2.0, 6.0)
    assert found["nll"] == pytest.approx(0.5 * math.log(2 * math.pi) + 1)


def test_a_null_in_an_answer_shows_in_the_figures() -> None:
    answer = {"mean": [None, 0.0], "variance": [1.0, 1.0], "interval": [[None, None], [-1.0, 1.0]]}
    found = figures.of_regression({0.9: answer}, np.array([0.0, 0.0]))
    assert math.isnan(found["nll"])
    assert found["coverage_0.9"] == 0.5


def test_classification_goes_by_the_models_order_of_classes() -> None:
    answer = {"mean": [[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]], "label": [7, 3, 3]}
    small, large = answer | {"prediction_set": [[7], [3], [3]]}, answer | {"prediction_set": [[7], [3, 7], [3, 7]]}
    found = figures.of_classification({0.8: small, 0.95: large}, [7, 3], np.array([7, 7, 3]))
    assert (found["coverage_0.8"], found["coverage_0.95"]) == (pytest.approx(2 / 3), 1.0)
    assert (found["set_size_0.8"], found["set_size_0.95"]) == (1.0, pytest.approx(5 / 3))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["nll"] == pytest.approx(-(math.log(0.9) + math.log(0.4) + math.log(0.8)) / 3)


def test_calibration_error_by_bins() -> None:
    # Two bins: at 0.95 both right (gap 0.05), at 0.65 one of two right (gap 0.15).
    p = np.array([[0.95, 0.05], [0.05, 0.95], [0.65, 0.35], [0.65, 0.35]])
    assert figures.calibration_error(p, np.array([0, 1, 0, 1])) == pytest.approx((2 * 0.05 + 2 * 0.15) / 4)


def test_calibrated_probabilities_show_an_error_by_chance() -> None:
    # Of n rows that are right half of the time, the mean deviation of a binomial's share.
    p = np.full((400, 2), 0.5)
    assert figures.chance_error(p) == pytest.approx(0.5 * math.sqrt(2 / math.pi / 400), rel=0.2)
    assert figures.chance_error(np.eye(3)) == 0


def test_a_probability_of_nought_costs_much_but_not_everything() -> None:
    assert 20 < figures.categorical_nll(np.array([[1.0, 0.0]]), np.array([1])) < 30


def test_auroc_counts_how_often_the_unfamiliar_row_scores_higher() -> None:
    assert figures.auroc(np.array([0.1, 0.2]), np.array([0.3, 0.15])) == 0.75


def test_errors_of_rates_and_of_auroc() -> None:
    assert figures.rate_error(0.1, 900) == pytest.approx(0.01)
    # Of scores that say nothing it is the rank-sum test's; the paper has .032 for .893 of 58 and 51.
    assert figures.auroc_error(0.5, 20, 30) == pytest.approx(math.sqrt(51 / (12 * 20 * 30)))
    assert figures.auroc_error(0.893, 58, 51) == pytest.approx(0.032, abs=1e-3)
    assert figures.auroc_error(1.0, 58, 51) == 0
