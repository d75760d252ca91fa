"""On a CPU nothing is recorded and nothing is rounded; the GPU's side is tested by `make test-gpu`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from builder.accelerator import Recorded, outputs_for_gradients
from builder.network import FunctionalNetwork


def test_a_function_is_called_each_time_with_what_it_is_given() -> None:
    given: list[Tensor] = []

    def double(x: Tensor) -> tuple[Tensor, ...]:
        given.append(x)
        return (2 * x,)

    recorded = Recorded(double)
    for x in (torch.ones(2), torch.zeros(3)):
        assert torch.equal(recorded(x)[0], 2 * x)
        assert given[-1] is x


def test_large_networks_keep_single_precision() -> None:
    network = FunctionalNetwork(nn.Linear(1024, 1024))
    x, theta = torch.randn(3, 1024), network.current()[None]
    assert torch.equal(outputs_for_gradients(network, theta, x), network.batched(theta, x))
