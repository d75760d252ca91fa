"""Draws from the Gaussian approximation against closed forms, in weights and in rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from builder import curvature
from builder.curvature import (
    PosteriorDraws,
    draw_posterior,
    enough_rows,
    largest_eigenvalue,
    linear_response,
    make_preconditioner,
    scaled_jacobian,
)
from builder.likelihood import CategoricalLikelihood, GaussianLikelihood
from builder.network import MLP, FunctionalNetwork
from tests.builder.linear import LinearModel, assert_draws_from, linear_classifier, linear_gaussian


def draw(
    model: LinearModel, theta: Tensor, rows: Tensor, count: int, most: int = 10**6, seed: int = 3
) -> PosteriorDraws:
    generator = torch.Generator().manual_seed(seed)
    return draw_posterior(
        model.network, theta, model.x, rows, model.likelihood, model.precision, count, most, generator
    )


def assert_perturbed_optimum(model: LinearModel, draws: PosteriorDraws, hessian: Tensor) -> None:
    """Every direction solves `H d = J^T e + Lambda delta` for its own perturbations."""
    pull = torch.einsum("mop,nmo->np", model.jacobian(draws.rows), draws.scores.double())
    right = pull + model.precision.double() * draws.prior.double()
    left = draws.direction.double() @ hessian
    assert float((left - right).norm() / right.norm()) < 1e-4


# Few inputs are solved in weights, more weights than rows in rows.
SIZES = [pytest.param(60, 3, id="in weights"), pytest.param(25, 40, id="in rows")]


@pytest.mark.parametrize(("rows", "inputs"), SIZES)
def test_draws_of_a_linear_gaussian_model_are_its_posterior(rows: int, inputs: int) -> None:
    model = linear_gaussian(rows, inputs)
    seen = torch.arange(rows)[torch.arange(rows) % 4 != 1]
    theta = model.solution(seen)
    hessian = model.hessian(theta, seen)

    draws = draw(model, theta, seen, 6000)

    assert torch.equal(draws.rows, seen) and draws.scores.shape == (6000, len(seen), 1)
    assert_perturbed_optimum(model, draws, hessian)
    assert_draws_from(draws.direction, torch.zeros_like(theta), hessian)
    # The rows left out matter: with them the posterior is another one.
    with pytest.raises(AssertionError):
        assert_draws_from(draws.direction, torch.zeros_like(theta), model.hessian(theta))


def test_correlations_are_those_of_the_posterior() -> None:
    model = linear_gaussian()
    theta = model.solution()
    draws = draw(model, theta, torch.arange(60), 6000)
    covariance = torch.linalg.inv(model.hessian(theta))
    std = covariance.diagonal().sqrt()
    expected = covariance / std[:, None] / std
    found = torch.corrcoef(draws.direction.double().T)
    assert float((expected - torch.eye(4)).abs().max()) > 0.5
    # A correlation's standard error is (1 - r^2) / sqrt(N).
    assert bool(((found - expected).abs() <= 5 * (1 - expected**2) / 6000**0.5 + 1e-9).all())


@pytest.mark.parametrize(("rows", "inputs", "classes"), [(80, 2, 3), (6, 12, 3)])
def test_draws_of_logistic_regression_have_the_laplace_covariance(rows: int, inputs: int, classes: int) -> None:
    model = linear_classifier(rows, inputs, classes)
    theta = 0.5 * torch.randn(model.network.weights, generator=torch.Generator().manual_seed(1))
    draws = draw(model, theta, torch.arange(rows), 6000)
    hessian = model.hessian(theta)
    assert_perturbed_optimum(model, draws, hessian)
    assert_draws_from(draws.direction, torch.zeros_like(theta), hessian)


@pytest.mark.parametrize(("inputs", "most"), [(3, 20), (40, 20)])
def test_a_random_part_of_many_rows_stands_for_all(inputs: int, most: int) -> None:
    model = linear_gaussian(200, inputs)
    seen = torch.arange(0, 200, 2)
    theta = model.solution(seen)
    draws = draw(model, theta, seen, 4000, most)
    assert len(draws.rows) == most and set(draws.rows.tolist()) <= set(seen.tolist())
    hessian = model.hessian(theta, draws.rows, up=len(seen) / most)
    assert_perturbed_optimum(model, draws, hessian)
    assert_draws_from(draws.direction, torch.zeros_like(theta), hessian)


def test_prior_precisions_may_differ_between_weights() -> None:
    model = linear_gaussian(8, 3)
    model.precision[:] = torch.tensor([0.1, 1.0, 10.0, 100.0])
    theta = model.solution()
    draws = draw(model, theta, torch.arange(8), 6000)
    assert_draws_from(draws.prior, torch.zeros_like(theta), torch.diag(model.precision.double()))
    assert_draws_from(draws.direction, torch.zeros_like(theta), model.hessian(theta))


@pytest.mark.parametrize(("rows", "inputs"), SIZES)
def test_scores_have_the_curvature_of_the_likelihood(rows: int, inputs: int) -> None:
    model = linear_gaussian(rows, inputs, noise_std=0.2)
    scores = draw(model, model.solution(), torch.arange(rows), 4000).scores
    assert float(scores.var()) == pytest.approx(1 / 0.2**2, rel=5 * (2 / scores.numel()) ** 0.5)


def test_a_jacobian_in_pieces_gives_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    model = linear_gaussian(200, 3)
    theta = model.solution()
    whole = draw(model, theta, torch.arange(200), 50)
    monkeypatch.setattr(curvature, "_JACOBIAN_ENTRIES", 4 * 7)
    pieces = draw(model, theta, torch.arange(200), 50)
    assert torch.allclose(whole.direction, pieces.direction, rtol=1e-4, atol=1e-6)


def test_draws_follow_the_seed() -> None:
    model = linear_gaussian()
    theta = model.solution()
    first, again, other = (draw(model, theta, torch.arange(60), 5, seed=s).direction for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("inputs", [3, 150])
def test_draws_stay_exact_where_rows_repeat_and_the_noise_is_tiny(inputs: int) -> None:
    model = linear_gaussian(120, inputs, noise_std=1e-3, precision=0.1)
    model.x[60:] = model.x[:60]
    theta = model.solution()
    draws = draw(model, theta, torch.arange(120), 200)
    response = torch.einsum("mop,np->nmo", model.jacobian(), draws.direction.double())
    exact = torch.linalg.solve(
        model.hessian(theta),
        torch.einsum("mop,nmo->pn", model.jacobian(), draws.scores.double())
        + (model.precision * draws.prior).double().T,
    ).T
    error = response - torch.einsum("mop,np->nmo", model.jacobian(), exact)
    assert float(error.norm() / response.norm()) < 0.01


@pytest.mark.parametrize("inputs", [3, 150])
def test_noise_beyond_float64_is_survived(inputs: int) -> None:
    model = linear_gaussian(120, inputs, noise_std=1e-7, precision=0.01)
    draws = draw(model, torch.zeros(inputs + 1), torch.arange(120), 20)
    assert torch.isfinite(draws.direction).all()


# ---- without matrices


def nonlinear(outputs: int) -> tuple[FunctionalNetwork, Tensor, Tensor]:
    torch.manual_seed(2)
    network = FunctionalNetwork(MLP(4, [9], outputs, "tanh"))
    return network, network.current(), torch.randn(30, 4)


@pytest.mark.parametrize("likelihood", [GaussianLikelihood(0.3), CategoricalLikelihood(3)])
def test_the_scaled_jacobian_is_that_of_finite_differences(
    likelihood: GaussianLikelihood | CategoricalLikelihood,
) -> None:
    network, theta, x = nonlinear(likelihood.outputs)
    network.module.double()
    theta, x = theta.double(), x.double()
    jacobian = scaled_jacobian(network, theta, x, likelihood)
    root = likelihood.root_curvature(network(theta, x))
    v = torch.randn_like(theta)
    change = (network(theta + 1e-6 * v, x) - network(theta - 1e-6 * v, x)) / 2e-6
    assert torch.allclose(jacobian @ v, (root.mT @ change.unsqueeze(-1)).flatten(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("likelihood", [GaussianLikelihood(0.3), CategoricalLikelihood(3)])
def test_the_response_is_the_scaled_jacobian_applied(
    likelihood: GaussianLikelihood | CategoricalLikelihood, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, theta, x = nonlinear(likelihood.outputs)
    directions = torch.randn(11, len(theta))
    expected = 2 * directions @ scaled_jacobian(network, theta, x, likelihood).T
    found = linear_response(network, theta, x, likelihood, directions, scale=4.0)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(curvature, "_JACOBIAN_ENTRIES", 1)
    assert torch.allclose(
        linear_response(network, theta, x, likelihood, directions, scale=4.0), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("likelihood", [GaussianLikelihood(0.3), CategoricalLikelihood(3)])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_largest_eigenvalue_of_a_network(
    likelihood: GaussianLikelihood | CategoricalLikelihood, scale: float
) -> None:
    network, theta, x = nonlinear(likelihood.outputs)
    precision = torch.rand(len(theta)) + 0.5
    jacobian = scaled_jacobian(network, theta, x, likelihood).double()
    exact = float(torch.linalg.eigvalsh(scale * jacobian.T @ jacobian + torch.diag(precision)).max())
    found = largest_eigenvalue(network, theta, x, likelihood, precision, scale)
    assert 0.95 * exact < found <= exact * (1 + 1e-4)


@pytest.mark.parametrize("precision", [1.0, 30.0])
def test_the_largest_eigenvalue_of_logistic_regression(precision: float) -> None:
    # All logits shifted alike change nothing: a start in that direction would see the prior alone.
    model = linear_classifier(precision=precision)
    theta = torch.zeros(model.network.weights)
    exact = float(torch.linalg.eigvalsh(model.hessian(theta)).max())
    found = largest_eigenvalue(model.network, theta, model.x, model.likelihood, model.precision, 1.0)
    assert found == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("rows", "inputs"), SIZES)
def test_the_preconditioner_takes_off_a_power_of_the_curvature(rows: int, inputs: int, power: float) -> None:
    model = linear_gaussian(rows, inputs)
    precision = torch.linspace(0.5, 3.0, inputs + 1)
    model = replace(model, precision=precision)
    theta = torch.zeros(inputs + 1)
    found = make_preconditioner(model.network, theta, model.x, model.likelihood, precision, rows, power)
    hessian = model.hessian(theta)
    width = precision.double().rsqrt()
    in_units_of_the_prior = torch.linalg.eigvalsh(width[:, None] * hessian * width)
    left = torch.linalg.eigvals(found(hessian.float()).double()).real.sort().values
    assert torch.allclose(left, in_units_of_the_prior ** (1 - power), rtol=2e-3)
    top = largest_eigenvalue(
        model.network, theta, model.x, model.likelihood, precision, 1.0, iterations=200, preconditioner=found
    )
    assert top == pytest.approx(float(left.max()), rel=0.02)


def test_a_preconditioner_of_few_directions_takes_the_steepest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curvature, "_STEEP", 5)
    model = linear_gaussian(60, 20)
    found = make_preconditioner(
        model.network, torch.zeros(21), model.x, model.likelihood, model.precision, rows=60, power=1.0
    )
    assert found.basis.shape == (21, 5) and bool((found.shrink < 0).all())
    assert torch.allclose(found.basis.T @ found.basis, torch.eye(5), atol=1e-4)
    hessian = model.hessian(torch.zeros(21)).float()
    curvatures = torch.einsum("pr,pq,qr->r", found.basis, hessian, found.basis)
    assert float(curvatures.max()) > 0.7 * float(torch.linalg.eigvalsh(hessian).max())
    # What is no steep direction stays as it is, in units of the prior.
    aside = torch.randn(21, generator=torch.Generator().manual_seed(0))
    aside = aside - found.basis @ (found.basis.T @ aside)
    assert torch.allclose(found(aside), aside / model.precision, atol=1e-4)


@pytest.mark.parametrize(
    ("hidden", "expected"),
    [([50], 2048), ([1024, 512], 2**29 // (2 * (8 * 1024 + 1024 * 512 + 512))), ([4096] * 2, 256)],
)
def test_networks_that_cost_much_a_row_take_their_largest_eigenvalue_from_fewer(
    hidden: list[int], expected: int
) -> None:
    assert enough_rows(FunctionalNetwork(MLP(8, hidden, 1)), torch.zeros(5, 8)) == expected


def test_products_with_the_curvature_draw_as_a_factorisation_does(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    network = FunctionalNetwork(nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 3)))
    x, precision = torch.randn(10, 4), torch.full((network.weights,), 2.0)

    def drawn(wanted: slice = slice(None)) -> PosteriorDraws:
        generator = torch.Generator().manual_seed(0)
        return curvature.draw_posterior(
            network,
            network.current(),
            x,
            torch.arange(10),
            CategoricalLikelihood(3),
            precision,
            5,
            99,
            generator,
            wanted,
        )

    exact = drawn().direction
    monkeypatch.setattr(curvature, "_FEW_JACOBIANS", 10**9)
    monkeypatch.setattr(curvature, "_JACOBIAN_ENTRIES", 1)
    monkeypatch.setattr(curvature, "_PRODUCTS", 40)
    torch.testing.assert_close(drawn().direction, exact, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(drawn(slice(2, 4)).direction, exact[2:4], rtol=1e-3, atol=1e-3)
