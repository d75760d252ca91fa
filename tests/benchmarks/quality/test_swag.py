"""SWAG: its Gaussian, where SGD goes, and the choice of the learning rate."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from benchmarks.data import Task
from benchmarks.quality.methods import swag
from benchmarks.quality.methods.ensemble import train_full
from benchmarks.quality.predictive import Classes, Gaussians, figures
from benchmarks.quality.problem import Problem
from benchmarks.quality.tuning import Choice
from tests.benchmarks.quality.problems import TUNED, linear, tiny_problem


def collect(problem: Problem, *rates: float) -> swag.Collected:
    """From the MAP network, on all rows."""
    trained = train_full(problem, TUNED, 1)
    many, rows = len(rates), torch.ones(len(problem.x), dtype=torch.bool)
    return swag.collect(
        problem, trained.weights.repeat(many, 1), trained.noise_std.repeat(many), torch.tensor(rates), TUNED, rows
    )


def test_draws_have_the_covariance_of_the_paper() -> None:
    variance, deviations = torch.tensor([[1.0, 0.5, 0.0]]), torch.tensor([[[1.0, 1.0, 2.0], [0.0, -1.0, 1.0]]])
    collected = swag.Collected(torch.tensor([[1.0, 2.0, 3.0]]), variance, deviations, 0)
    draws = collected.draw(0, 40_000, torch.Generator().manual_seed(0))
    # Eq. 1 with K = 2: half the diagonal, and D D^T over 2 (K - 1).
    expected = 0.5 * torch.diag(variance[0]) + 0.5 * deviations[0].T @ deviations[0]
    torch.testing.assert_close(draws.T.cov(), expected, atol=0.06, rtol=0)
    torch.testing.assert_close(draws.mean(0), collected.mean[0], atol=0.04, rtol=0)


def test_a_linear_models_iterates_spread_about_the_map() -> None:
    problem = linear(tiny_problem("regression", rows=200))
    theta = train_full(problem, TUNED, 1).weights[0]
    collected = collect(problem, 3e-3, 3e-2)
    assert (collected.variance > 0).all()
    # The rate sets the spread of SGD's stationary distribution.
    assert (collected.variance[1] > collected.variance[0]).all()
    assert float((collected.mean[0] - theta).abs().max()) < 0.1
    draws = collected.draw(0, 200, torch.Generator().manual_seed(0))
    assert (draws.std(0) > 0).all()
    assert float((draws.mean(0) - theta).abs().max()) < 0.1


def test_moments_and_deviations_are_those_of_the_iterates() -> None:
    problem = tiny_problem("classification")
    collected = collect(problem, 1e-2)
    # 50 steps, each one collected: the last deviation is from the mean of all.
    assert collected.deviations.shape == (1, swag.RANK, problem.network.weights)
    assert collected.gradient_evaluations == 50 * 6
    spread = collected.deviations[0, -1].abs()
    assert float(spread.max()) > 0
    assert (spread <= 50**0.5 * collected.variance[0].sqrt() + 1e-6).all()


def test_a_rate_that_diverges_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swag, "RATES", (1e-3, 1e6))
    for task in ("regression", "classification"):
        choice, _ = swag.choose(tiny_problem(task), TUNED)
        assert choice.rate == 1e-3


def test_where_sgd_diverges_on_all_rows_the_next_lower_rate_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swag, "RATES", (1e-3, 1e6))
    monkeypatch.setattr(swag, "choose", lambda *_: (Choice(1e6, 0.2, 1.0), 0))
    problem = tiny_problem("regression")
    found = swag.run(problem, TUNED)["swag"]
    assert math.isfinite(figures(found.predictive, problem.y_test)["nll"])
    # Training, and 50 steps of 6 rows at each of two rates.
    assert found.cost.gradient_evaluations == 200 * 60 + 2 * 50 * 6 + 1000


def test_the_noise_is_the_tuned_one_less_what_the_samples_spread() -> None:
    problem = tiny_problem("regression")
    choice, _ = swag.choose(problem, TUNED)
    assert 0.2 * TUNED.noise_variance <= choice.noise_variance < TUNED.noise_variance


def test_the_temperature_is_the_tuned_one_or_one() -> None:
    problem = tiny_problem("classification")
    temperatures = {t: swag.choose(problem, replace(TUNED, temperatures={1: t}))[0].temperature for t in (100.0, 1.1)}
    assert temperatures[100.0] == 1.0
    assert temperatures[1.1] in {1.0, 1.1}


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_it_answers(task: Task) -> None:
    problem = tiny_problem(task)
    found = swag.run(problem, TUNED)["swag"]
    if isinstance(found.predictive, Classes):
        assert found.predictive.probabilities.shape == (20, 3)
    else:
        assert isinstance(found.predictive, Gaussians)
        assert found.predictive.mean.shape == (swag.SAMPLES, 20)
    scores = figures(found.predictive, problem.y_test)
    assert all(math.isfinite(score) for score in scores.values())
    assert scores["rmse"] < 0.8 if problem.regression else scores["accuracy"] > 0.5
    # Two trainings, 50 steps of SGD at all rates on 48 rows, and at one rate or more on all 60.
    least = 2 * 200 * 60 + 50 * (4 * len(swag.RATES) + 6) + 1000
    assert found.cost.gradient_evaluations >= least
    again = swag.run(problem, TUNED)["swag"].predictive
    assert figures(again, problem.y_test) == scores
