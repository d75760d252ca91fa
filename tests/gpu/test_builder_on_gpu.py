"""The builder's gradients on a CUDA device (`make test-gpu`): without one these fail; `make test` leaves them out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from builder.accelerator import Recorded, outputs_for_gradients
from builder.network import FunctionalNetwork, NetworkFactory

CUDA = torch.device("cuda")


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 3)
    )


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 3))


@pytest.mark.parametrize("factory", [convolutions, mlp])
def test_recorded_gradients_are_those_of_the_cpu(factory: NetworkFactory) -> None:
    torch.manual_seed(0)
    network = FunctionalNetwork(factory())
    x, thetas = torch.randn(40, 1, 8, 8), network.current() + 0.1 * torch.randn(20, network.weights)

    def gradient(theta: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        theta = theta.detach().requires_grad_()
        loss = outputs_for_gradients(network, theta, rows).square().mean((1, 2))
        return loss.detach(), torch.autograd.grad(loss.sum(), theta)[0]

    expected = [gradient(thetas * k, x) for k in (1, 2)]
    network.to(CUDA)
    recorded = Recorded(gradient)
    for k, (loss, slope) in zip((1, 2), expected, strict=True):
        found = recorded(thetas.to(CUDA) * k, x.to(CUDA))
        torch.testing.assert_close(found[0].cpu(), loss, rtol=5e-3, atol=1e-4)
        torch.testing.assert_close(found[1].cpu(), slope, rtol=2e-2, atol=2e-3)


def test_large_networks_have_gradients_in_half_precision_near_those_in_single() -> None:
    torch.manual_seed(0)
    network = FunctionalNetwork(nn.Sequential(nn.Linear(64, 4096), nn.ReLU(), nn.Linear(4096, 256))).to(CUDA)
    x, theta = torch.randn(32, 64, device=CUDA), network.current()[None]
    found, exact = outputs_for_gradients(network, theta, x), network.batched(theta, x)
    assert found.dtype == torch.float32 and not torch.equal(found, exact)
    assert float((found - exact).norm() / exact.norm()) < 0.02
