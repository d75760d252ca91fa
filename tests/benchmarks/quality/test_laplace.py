"""Laplace by the library, against the closed form of a linear network, where it is exact."""

from __future__ import annotations

import math

import pytest
import torch
from laplace import ParametricLaplace
from torch import Tensor

from benchmarks.data import Task
from benchmarks.quality.methods import laplace
from benchmarks.quality.predictive import Classes, Gaussians, figures
from benchmarks.quality.problem import Problem
from tests.benchmarks.quality.problems import TUNED, linear, tiny_problem

PRECISION, NOISE = 0.7, 0.4


@pytest.fixture(scope="module")
def problem() -> Problem:
    """Regression by one linear layer."""
    return linear(tiny_problem("regression"))


def features(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones(len(x), 1)], 1).double()


def precision_matrix(problem: Problem, precision: float, noise: float) -> Tensor:
    f = features(problem.x)
    return f.T @ f / noise**2 + precision * torch.eye(f.shape[1], dtype=torch.float64)


def ridge(problem: Problem) -> Tensor:
    right = features(problem.x).T @ problem.y.double() / NOISE**2
    return torch.linalg.solve(precision_matrix(problem, PRECISION, NOISE), right)


def evidence(posterior: ParametricLaplace, precision: float, noise: float) -> float:
    values = torch.tensor([precision, noise], dtype=torch.float64)
    return float(laplace.log_evidence(posterior, laplace.spectrum(posterior), values[0], values[1]))


def test_full_is_bayesian_linear_regression(problem: Problem) -> None:
    theta = ridge(problem)
    posterior = laplace.fit(problem, theta, "all", "full")
    laplace.maximise_evidence(posterior, TUNED.precision, 0.5)
    precision, noise = float(posterior.prior_precision), float(posterior.sigma_noise)
    found = laplace.predict(problem, posterior, problem.x_test)
    assert isinstance(found, Gaussians)
    f = features(problem.x_test)
    covariance = torch.linalg.inv(precision_matrix(problem, precision, noise))
    expected = ((f @ covariance) * f).sum(1) + noise**2
    assert found.mean.shape == found.variance.shape == (1, len(f))
    torch.testing.assert_close(found.mean[0], (f @ theta).float())
    torch.testing.assert_close(found.variance[0], expected.float())


def test_last_is_bayesian_linear_regression_on_the_hidden_units() -> None:
    problem = tiny_problem("regression")
    theta = problem.network.current()
    posterior = laplace.fit(problem, theta, "last_layer", "full")
    evidence(posterior, PRECISION, NOISE)
    found = laplace.predict(problem, posterior, problem.x_test)
    assert isinstance(found, Gaussians)
    hidden = torch.nn.Sequential(*list(problem.network.module)[:-1])
    with torch.no_grad():
        f, f_test = features(hidden(problem.x)), features(hidden(problem.x_test))
    precision = f.T @ f / NOISE**2 + PRECISION * torch.eye(f.shape[1], dtype=torch.float64)
    expected = ((f_test @ torch.linalg.inv(precision)) * f_test).sum(1) + NOISE**2
    torch.testing.assert_close(found.variance[0], expected.float())
    torch.testing.assert_close(found.mean[0], problem.network(theta, problem.x_test)[:, 0])


def test_the_evidence_is_the_density_of_the_targets(problem: Problem) -> None:
    posterior = laplace.fit(problem, ridge(problem), "all", "full")
    f, n = features(problem.x), len(problem.x)
    covariance = NOISE**2 * torch.eye(n, dtype=torch.float64) + f @ f.T / PRECISION
    expected = torch.distributions.MultivariateNormal(torch.zeros(n, dtype=torch.float64), covariance)
    assert evidence(posterior, PRECISION, NOISE) == pytest.approx(float(expected.log_prob(problem.y.double())))


@pytest.mark.parametrize(("subset", "structure"), laplace.VARIANTS.values())
def test_the_evidence_is_the_librarys(subset: str, structure: str) -> None:
    problem = tiny_problem("regression")
    posterior = laplace.fit(problem, problem.network.current(), subset, structure)
    found = evidence(posterior, PRECISION, NOISE)
    assert found == pytest.approx(float(posterior.log_marginal_likelihood()))


@pytest.mark.parametrize(("subset", "structure"), laplace.VARIANTS.values())
def test_precision_and_noise_are_where_the_evidence_is_greatest(subset: str, structure: str) -> None:
    problem = tiny_problem("regression")
    posterior = laplace.fit(problem, problem.network.current(), subset, structure)
    laplace.maximise_evidence(posterior, 1.0, 1.0)
    precision, noise = float(posterior.prior_precision), float(posterior.sigma_noise)
    best = evidence(posterior, precision, noise)
    for factor in (0.9, 1.1):
        assert evidence(posterior, precision * factor, noise) < best
        assert evidence(posterior, precision, noise * factor) < best


def test_what_was_given_stays_where_the_evidence_is_not_finite(problem: Problem) -> None:
    posterior = laplace.fit(problem, ridge(problem), "all", "full")
    posterior.loss = math.nan
    laplace.maximise_evidence(posterior, 3.0, 0.25)
    assert float(posterior.prior_precision) == pytest.approx(3.0)
    assert float(posterior.sigma_noise) == pytest.approx(0.25)


def test_predictions_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = tiny_problem("classification")
    posterior = laplace.fit(problem, problem.network.current(), "all", "full")
    whole = laplace.predict(problem, posterior, problem.x_test)
    monkeypatch.setattr(laplace, "_JACOBIAN_ENTRIES", 7 * 3 * problem.network.weights)
    assert isinstance(whole, Classes)
    again = laplace.predict(problem, laplace.fit(problem, problem.network.current(), "all", "full"), problem.x_test)
    assert isinstance(again, Classes)
    torch.testing.assert_close(again.probabilities, whole.probabilities)


def test_class_probabilities_are_those_of_weights_drawn_from_the_posterior() -> None:
    """Of a linear network, whose linearisation it is. Outputs that all shift at once are no doubt."""
    problem = linear(tiny_problem("classification"))
    theta = problem.network.current()
    posterior = laplace.fit(problem, theta, "all", "full")
    posterior.prior_precision = 0.01
    found = laplace.predict(problem, posterior, problem.x_test, temperature=1.5)
    assert isinstance(found, Classes) and found.information is not None
    weights = posterior.sample(20_000, generator=torch.Generator().manual_seed(0)).float()
    outputs = torch.einsum("bi,soi->sbo", problem.x_test, weights[:, :6].reshape(-1, 3, 2)) + weights[:, None, 6:]
    expected = (outputs / 1.5).softmax(-1).mean(0)
    torch.testing.assert_close(found.probabilities, expected, atol=0.08, rtol=0)
    _, covariance = laplace.moments(problem, posterior, problem.x_test)
    # The shift holds but the prior back: a link of each output's own variance would see little else.
    shift = covariance.sum((1, 2)) / 9
    assert (shift > 0.5 * covariance.diagonal(dim1=1, dim2=2).mean(1)).all()


def test_the_precision_is_that_which_unseen_rows_want(monkeypatch: pytest.MonkeyPatch) -> None:
    for task in ("regression", "classification"):
        problem = tiny_problem(task)
        folds = laplace._train_folds(problem, TUNED)
        assert (folds.member.sum(0) == len(folds.member) - 1).all()
        monkeypatch.setattr(laplace, "PRECISIONS", (1e-4, 3.0))
        choice = laplace.choose(problem, TUNED, folds, "all", "full")
        assert choice.rate == 3.0 * TUNED.precision and choice.temperature in (1.0, 1.2)
        # The variance of the posterior takes the place of a part of the noise.
        assert 0.2 * TUNED.noise_variance <= choice.noise_variance <= TUNED.noise_variance


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_all_variants_answer(task: Task) -> None:
    problem = tiny_problem(task)
    found = laplace.run(problem, TUNED)
    assert set(found) == {name + end for name in laplace.VARIANTS for end in ("", "_tuned")}
    outputs = 1 if problem.regression else 3
    for name, outcome in found.items():
        scores = figures(outcome.predictive, problem.y_test)
        assert all(math.isfinite(score) for score in scores.values())
        assert scores["rmse"] < 0.8 if problem.regression else scores["accuracy"] > 0.5
        # 200 steps of 60 rows, the curvature, and the tuning; to choose, five times as much on 48 of the rows.
        expected = 200 * 60 + 60 * outputs + 1000
        if name.endswith("_tuned"):
            expected += 5 * (200 * 60 + 48 * outputs)
        assert outcome.cost.gradient_evaluations == expected
        assert outcome.cost.seconds > TUNED.cost.seconds
