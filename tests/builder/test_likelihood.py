"""The likelihoods against torch's distributions and their own derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.func import hessian, vmap

from builder.likelihood import (
    CategoricalLikelihood,
    GaussianLikelihood,
    gaussian_nll,
    log_probabilities,
    probabilities,
)


def outputs(*shape: int) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_gaussian_nll_is_the_density() -> None:
    f, y = outputs(3, 5, 1), outputs(5)
    expected = -torch.distributions.Normal(f[..., 0], 0.3).log_prob(y)
    assert torch.allclose(GaussianLikelihood(0.3).nll(f, y), expected, rtol=1e-5)


def test_gaussian_nll_takes_a_noise_for_each_weight_vector() -> None:
    f, y, noise = outputs(3, 5), outputs(5), torch.tensor([[0.1], [1.0], [4.0]])
    expected = torch.stack([-torch.distributions.Normal(f[i], noise[i]).log_prob(y) for i in range(3)])
    assert torch.allclose(gaussian_nll(f, y, noise), expected, rtol=1e-5)


@pytest.mark.parametrize("classes", [4, 100])
def test_categorical_nll_is_the_mass(classes: int) -> None:
    f, y = outputs(3, 5, classes), torch.tensor([0, 3, 2, 1, 1])
    expected = -torch.distributions.Categorical(logits=f).log_prob(y)
    likelihood = CategoricalLikelihood(classes)
    assert torch.allclose(likelihood.nll(f, y), expected, rtol=1e-5)
    assert torch.allclose(likelihood.nll(f[0], y), expected[0], rtol=1e-5)
    assert torch.allclose(likelihood.nll(f.mT.contiguous().mT, y), expected, rtol=1e-5)


@pytest.mark.parametrize("classes", [2, 4, 100])
def test_probabilities_are_the_softmax_over_classes(classes: int) -> None:
    f = outputs(3, 5, classes)
    expected = f.exp() / f.exp().sum(-1, keepdim=True)
    assert torch.allclose(probabilities(f), expected, rtol=1e-5)
    assert torch.allclose(log_probabilities(f[0]), expected[0].log(), rtol=1e-4)


def test_categorical_nll_of_extreme_logits_is_finite() -> None:
    f = torch.tensor([[1e4, -1e4, 0.0]])
    assert CategoricalLikelihood(3).nll(f, torch.tensor([1])) == pytest.approx(2e4)


@pytest.mark.parametrize("likelihood", [GaussianLikelihood(0.25), CategoricalLikelihood(2), CategoricalLikelihood(6)])
def test_the_root_of_the_curvature_squares_to_the_second_derivative(
    likelihood: GaussianLikelihood | CategoricalLikelihood,
) -> None:
    f = outputs(7, likelihood.outputs)
    y = torch.zeros(1) if isinstance(likelihood, GaussianLikelihood) else torch.zeros(1, dtype=torch.int64)

    def loss(row: Tensor) -> Tensor:
        return likelihood.nll(row[None], y)[0]

    root = likelihood.root_curvature(f)
    assert root.shape == (7, likelihood.outputs, likelihood.outputs)
    assert torch.allclose(root @ root.mT, vmap(hessian(loss))(f), rtol=1e-4, atol=1e-6)


def test_the_categorical_root_squares_to_diag_p_minus_p_p() -> None:
    f = outputs(2, 3, 5)
    p = f.softmax(-1)
    root = CategoricalLikelihood(5).root_curvature(f)
    assert torch.allclose(root @ root.mT, torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2), atol=1e-6)


def test_the_root_of_a_certain_prediction_is_finite() -> None:
    root = CategoricalLikelihood(3).root_curvature(torch.tensor([[1e4, 0.0, -1e4]]))
    assert torch.isfinite(root).all() and math.isclose(float((root @ root.mT).abs().max()), 0.0, abs_tol=1e-6)


def test_divergences_are_twice_the_kl_divergence() -> None:
    f, g = outputs(2, 4, 6, 3)
    p, q = (torch.distributions.Categorical(logits=h) for h in (f, g))
    expected = 2 * torch.distributions.kl_divergence(p, q)
    assert torch.allclose(CategoricalLikelihood(3).divergence(f, g), expected, rtol=1e-4, atol=1e-6)
    a, b = (torch.distributions.Normal(h[..., 0], 0.3) for h in (f, g))
    expected = 2 * torch.distributions.kl_divergence(a, b)
    assert torch.allclose(GaussianLikelihood(0.3).divergence(f[..., :1], g[..., :1]), expected, rtol=1e-4)
