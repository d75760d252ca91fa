"""Layers whose own operators lack a derivative that a build takes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import jvp
from torch.nn.utils.parametrizations import weight_norm

from builder.export import export_network
from builder.network import FunctionalNetwork


def normalised(dim: int | None) -> FunctionalNetwork:
    torch.manual_seed(0)
    return FunctionalNetwork(nn.Sequential(weight_norm(nn.Linear(3, 4), dim=dim), nn.Tanh(), nn.Linear(4, 2)))


@pytest.mark.parametrize("dim", [0, 1, None])
def test_weight_normalisation_has_derivatives_of_both_modes(dim: int | None) -> None:
    network, x = normalised(dim), torch.randn(5, 3)
    theta, direction = network.current().requires_grad_(), torch.randn(network.weights)
    torch.testing.assert_close(network(theta, x), network.module(x))
    (gradient,) = torch.autograd.grad(network(theta, x).square().sum(), theta)
    along = jvp(lambda t: network(t, x).square().sum(), (theta.detach(),), (direction,))[1]
    torch.testing.assert_close(along, gradient @ direction)


def test_weight_normalisation_is_exported() -> None:
    exported = export_network(normalised(0), torch.randn(5, 3))  # which compares it with torch
    assert exported.spec.form == "batched"
