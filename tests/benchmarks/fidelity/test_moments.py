"""Moments of weights: a Gaussian's are known, and symmetries of the network do not change them."""

from __future__ import annotations

import pytest
import torch

from benchmarks.fidelity.moments import function_correlations, weight_moments
from builder.network import MLP, FunctionalNetwork

NETWORK = FunctionalNetwork(MLP(3, [6], 1, "tanh"))


def draws(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, NETWORK.weights, generator=torch.Generator().manual_seed(seed))


def test_draws_from_the_prior() -> None:
    found = weight_moments(NETWORK, draws(20000) / 2, precision=4.0)
    assert found["norm"] == pytest.approx(1, abs=0.02) and found["norm_std"] == pytest.approx(62**-0.5, rel=0.05)
    for name in ("0.weight", "0.bias", "2.weight", "2.bias"):
        assert found[f"second.{name}"] == pytest.approx(1, abs=0.05)
        assert found[f"kurtosis.{name}"] == pytest.approx(3, abs=0.2)
    assert found["in_out"] == pytest.approx(0, abs=0.02)


def test_units_may_swap_places_and_signs() -> None:
    thetas = draws(50) * torch.linspace(0.5, 2, NETWORK.weights)
    named = NETWORK.unflatten(thetas)
    order, sign = torch.tensor([3, 0, 5, 1, 2, 4]), torch.tensor([1.0, -1, 1, 1, -1, -1])
    swapped = torch.cat(
        [
            (named["0.weight"][:, order] * sign[:, None]).flatten(1),
            named["0.bias"][:, order] * sign,
            (named["2.weight"][:, :, order] * sign).flatten(1),
            named["2.bias"],
        ],
        dim=1,
    )
    x = draws(1)[0, :9].reshape(3, 3)
    assert torch.allclose(NETWORK.batched(swapped, x), NETWORK.batched(thetas, x), atol=1e-5)
    assert weight_moments(NETWORK, swapped, 1.0) == pytest.approx(weight_moments(NETWORK, thetas, 1.0))


def test_units_whose_weights_go_together() -> None:
    size = draws(500).abs()[:, :6]
    thetas = torch.cat([size.repeat_interleave(3, 1), size, size, size[:, :1]], dim=1)
    assert weight_moments(NETWORK, thetas, 1.0)["in_out"] == pytest.approx(1)


def test_correlations_of_functions() -> None:
    line = draws(4000)[:, :1] * torch.tensor([1.0, 2.0, -1.0])
    assert function_correlations(line, line) == pytest.approx({"correlation": 0, "covariance": 0}, abs=1e-6)
    apart = function_correlations(draws(4000, 1)[:, :3], line)
    assert apart["correlation"] == pytest.approx(1, abs=0.05) and apart["covariance"] > 0.5
