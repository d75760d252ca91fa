"""How many samples a bundle's plan names: as few as answer as well as many."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from builder.calibration import DecodedPosterior, SampledPosterior
from builder.config import FiberConfig
from builder.fiber_plan import drift_scales
from builder.network import FunctionalNetwork
from builder.plans import with_enough_samples
from model_store.manifest import LatentPlan
from tests.builder.decoders import Identity

ROWS = 40
PLAN = LatentPlan(name="predict", samples=32, drift_scale=1.0)


def posterior(outputs: int, spread: float, inputs: int = 2) -> DecodedPosterior:
    """Linear networks whose weights scatter normally, from no scatter at all to this much at their fibers' ends."""
    network = FunctionalNetwork(nn.Linear(inputs, outputs))
    ends = np.random.default_rng(0).normal(size=(1, 512, 1, network.weights))
    nodes = (spread * np.concatenate([0 * ends, ends], axis=2)).astype(np.float32)
    return DecodedPosterior(network, Identity(), nodes)


def rows(inputs: int = 2) -> Tensor:
    return torch.randn(ROWS, inputs, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("regression", [True, False])
def test_the_wider_the_posterior_the_more_samples(regression: bool) -> None:
    outputs = 1 if regression else 3
    found = [
        with_enough_samples(PLAN, posterior(outputs, spread), rows(), lambda _: 1.0, regression).samples
        for spread in (0.0, 0.03, 1.0, 10.0)
    ]
    assert found == sorted(found)
    assert found[:2] == [32, 32] and found[-1] == 256


@pytest.mark.parametrize(("regression", "spread"), [(True, 0.2), (False, 0.25)])
def test_the_chosen_number_answers_as_well_as_many(regression: bool, spread: float) -> None:
    """Half as many would not, as far as other draws than those that were compared can tell."""
    many = posterior(1 if regression else 3, spread)
    samples = with_enough_samples(PLAN, many, rows(), lambda _: 1.0, regression).samples
    assert 32 < samples < 256

    def answer(count: int, seed: int) -> Tensor:
        outputs = many.network.batched(many.draw(PLAN, count, seed)[0], rows())
        if regression:
            return torch.stack([outputs[..., 0].mean(0), outputs[..., 0].var(0, unbiased=False) + 1])
        return outputs.softmax(-1).mean(0)

    def cost(count: int) -> float:
        p, q = answer(2048, 5).double(), answer(count, 0).double()
        if not regression:
            return float((p * (p / q).log()).sum(-1).mean())
        return float(0.5 * ((q[1] / p[1]).log() + (p[1] + (p[0] - q[0]) ** 2) / q[1] - 1).mean())

    assert cost(samples) < 0.0006 and cost(samples // 2) > 0.0004


def test_large_networks_stay_at_few() -> None:
    wide = 2**21 // 64
    assert with_enough_samples(PLAN, posterior(1, 10.0, wide), rows(wide), lambda _: 1.0, True).samples == 32


@pytest.mark.parametrize("growth", [1.0, 1.7])
def test_sampled_posteriors_draw_what_an_exact_decoder_would(growth: float) -> None:
    """Trajectories that are straight in units of the drift scale: a draw is as far along as the scale at its place."""
    scales = drift_scales(FiberConfig(steps=4, growth=growth)).float()
    rays = torch.tensor([[[1.0, 3.0]], [[-2.0, 0.5]]])
    anchors = torch.tensor([[5.0, 6.0], [-7.0, 0.0]])
    nodes = anchors[:, None, None] + scales[:, None] * rays[:, :, None]
    network = FunctionalNetwork(nn.Linear(1, 1))
    weights, which = SampledPosterior(network, nodes, scales).draw(PLAN, 40)
    place = np.sort([float((w - anchors[a]).norm() / rays[a].norm()) for w, a in zip(weights, which, strict=True)])
    for w, a in zip(weights, which, strict=True):
        assert abs(float(torch.linalg.det(torch.stack([w - anchors[a], rays[a, 0]])))) < 1e-4
    assert which.bincount().tolist() == [20, 20]
    # Positions are stratified: one in each fortieth of the way.
    edges = torch.linspace(0, 1, 41)
    grown = torch.expm1(4 * math.log(growth) * edges) / math.expm1(4 * math.log(growth)) if growth > 1 else edges
    bounds = (scales[-1] * grown).numpy()
    assert (bounds[:-1] - 1e-5 <= place).all() and (place <= bounds[1:] + 1e-5).all()
