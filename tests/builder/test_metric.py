"""Distances between weights by what the predictions feel of them."""

from __future__ import annotations

import torch
from torch import Tensor

from builder.likelihood import CategoricalLikelihood, GaussianLikelihood
from builder.metric import EuclideanMetric, PredictiveMetric
from builder.network import MLP, FunctionalNetwork


def linear(outputs: int = 1) -> tuple[FunctionalNetwork, Tensor]:
    """A linear network of 3 inputs, whose predictions are known in closed form, and 40 rows."""
    torch.manual_seed(0)
    return FunctionalNetwork(MLP(3, [], outputs, "tanh")), torch.randn(40, 3)


def test_inner_products_are_those_of_the_curvature() -> None:
    network, x = linear()
    member = torch.stack([torch.arange(40) % 2 == 0, torch.arange(40) % 2 == 1])
    precision = torch.tensor([1.0, 2.0, 3.0, 4.0])
    metric = PredictiveMetric(network, torch.zeros(2, 4), x, member, GaussianLikelihood(0.5), precision)
    vectors = torch.randn(5, 4)
    design = torch.cat([x, torch.ones(40, 1)], 1)
    for anchor in range(2):
        seen = design[member[anchor]]
        hessian = seen.T @ seen / 0.25 + torch.diag(precision)
        assert torch.allclose(metric.inner(anchor, vectors), vectors @ hessian @ vectors.T, rtol=1e-3, atol=1e-2)


def test_the_divergence_is_the_squared_difference_over_the_noise() -> None:
    network, x = linear()
    one = torch.ones(40, dtype=torch.bool)[None]
    metric = PredictiveMetric(network, torch.zeros(1, 4), x, one, GaussianLikelihood(0.5), torch.ones(4))
    u, v = torch.randn(300, 4), torch.randn(300, 4)
    design = torch.cat([x, torch.ones(40, 1)], 1)
    expected = ((u - v) @ design.T).square().mean(1) / 0.25
    assert torch.allclose(metric.divergence(u, v), expected, rtol=1e-3)
    assert not metric.divergence(u, u).any()


def test_the_divergence_of_classes_does_not_feel_a_shift_of_all_logits() -> None:
    network, x = linear(3)
    one = torch.ones(40, dtype=torch.bool)[None]
    metric = PredictiveMetric(network, torch.zeros(1, 12), x, one, CategoricalLikelihood(3), torch.ones(12))
    u = torch.randn(2, 12)
    shifted = u.clone()
    shifted[:, 9:] += 5.0  # the three biases
    assert float(metric.divergence(u, shifted).max()) < 1e-4
    assert bool((metric.divergence(u, torch.randn(2, 12)) > 0.1).all())


def test_predictions_that_are_lost_are_infinitely_far() -> None:
    network, x = linear()
    one = torch.ones(40, dtype=torch.bool)[None]
    metric = PredictiveMetric(network, torch.zeros(1, 4), x, one, GaussianLikelihood(0.5), torch.ones(4))
    assert bool(torch.isinf(metric.divergence(torch.full((1, 4), torch.nan), torch.zeros(1, 4))).all())


def test_the_euclidean_metric_counts_in_its_unit() -> None:
    u, v = torch.randn(6, 4), torch.randn(6, 4)
    assert torch.allclose(EuclideanMetric(2.0).divergence(u, v), (u - v).square().sum(1) / 2)
    assert torch.allclose(EuclideanMetric().inner(0, u), u @ u.T)
