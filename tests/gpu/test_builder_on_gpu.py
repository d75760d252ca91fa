"""The builder on a CUDA device (`make test-gpu`). Without one these fail, and so they are no part of `make test`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from builder.accelerator import Recorded, outputs_for_gradients
from builder.config import make_config
from builder.data import from_arrays, prepare
from builder.learning import learn
from builder.network import FunctionalNetwork, NetworkFactory
from builder.preparation import make_factory
from builder.progress import StageBars

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


@pytest.mark.parametrize("factory", [convolutions, None])
def test_a_build_is_as_good_as_on_the_cpu(factory: NetworkFactory | None) -> None:
    rng = np.random.default_rng(0)
    if factory is None:
        x = rng.normal(size=(300, 4))
        y = x[:, 0] * np.sin(x[:, 1]) + 0.1 * rng.normal(size=300)
    else:
        y = rng.integers(3, size=300)
        x = rng.normal(size=(300, 1, 8, 8)) + 0.3 * y[:, None, None, None]
    found = {}
    for device in ("cpu", "cuda"):
        config = make_config(
            {
                "name": "small",
                "device": device,
                "preset": "fast",
                "data": {
                    "task": "regression" if factory is None else "classification",
                    "test_fraction": 0.0,
                    "target": "y",
                },
                "map": {"steps": 400, "anchors": 4, "augment": [] if factory is None else ["crop"]},
                "fiber": {"trajectories": 4},
            }
        )
        dataset = prepare(from_arrays(x, y, config.data), config.data, True, config.seed)
        trained = learn(config, dataset, factory or make_factory(config, dataset), StageBars(quiet=True), {})
        assert trained.fibers.nodes.device.type == device
        found[device] = trained.calibrated
    assert found["cuda"].nll == pytest.approx(found["cpu"].nll, abs=0.1)
    assert found["cuda"].spread == pytest.approx(found["cpu"].spread, rel=0.25)
