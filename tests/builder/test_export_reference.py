"""The reference that exports are compared with: many weight vectors at once compute what one at a time computes.

Warnings are errors here, so this also fails where vmap would fall back to a slow loop over the samples.
"""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, vmap

from builder.network import FunctionalNetwork
from tests.networks import NETWORKS


@pytest.mark.parametrize("name", NETWORKS)
def test_batched_outputs_and_gradients_equal_those_of_single_weight_vectors(name: str) -> None:
    torch.manual_seed(5)
    factory, shape = NETWORKS[name]
    network = FunctionalNetwork(factory())
    thetas = network.current() + 0.1 * torch.randn(3, network.weights)
    x = torch.randn(4, *shape)

    with torch.no_grad():  # as in sampling, where torch would choose fused attention
        batched = network.batched(thetas, x)
        single = torch.stack([network(theta, x) for theta in thetas])
    assert batched.shape == single.shape
    assert (batched - single).abs().max() < 1e-5 * single.abs().max()

    def loss(theta: torch.Tensor) -> torch.Tensor:
        return network(theta, x).square().mean()

    gradients = vmap(grad(loss))(thetas)
    for theta, gradient in zip(thetas, gradients, strict=True):
        leaf = theta.clone().requires_grad_()
        [want] = torch.autograd.grad(loss(leaf), leaf)
        assert (gradient - want).abs().max() < 1e-4 * want.abs().max()
