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
from builder.plans import with_enough_samples, with_enough_samples_of_classes
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


def chosen(many: DecodedPosterior, regression: bool) -> int:
    """How many samples answer as well as many, to rows that a classifier's only anchor lacks."""
    if regression:
        return with_enough_samples(PLAN, many, rows(), lambda _: 1.0).samples
    lacked = torch.zeros(1, ROWS, dtype=torch.bool)
    return with_enough_samples_of_classes(PLAN, many, rows(), lacked, 1.0, 1.0).samples


@pytest.mark.parametrize("regression", [True, False])
def test_the_wider_the_posterior_the_more_samples(regression: bool) -> None:
    outputs = 1 if regression else 3
    found = [chosen(posterior(outputs, spread), regression) for spread in (0.0, 0.03, 1.0, 10.0)]
    assert found == sorted(found)
    assert found[:2] == [32, 32] and found[-1] == 256


@pytest.mark.parametrize(("lacked", "few"), [(0, True), (1, False)])
def test_classes_ask_for_as_many_as_rows_do_that_anchors_lack(lacked: int, few: bool) -> None:
    """All samples agree on the rows of the first input and differ on those of the second."""
    network = FunctionalNetwork(nn.Linear(2, 2, bias=False))
    ends = np.random.default_rng(0).normal(size=(2, 256, 1, network.weights)) * [0, 10, 0, 10]
    many = DecodedPosterior(network, Identity(), np.concatenate([0 * ends, ends], axis=2).astype(np.float32))
    x = torch.eye(2).repeat(ROWS, 1)
    member = (x[:, lacked] == 0).expand(2, -1)
    samples = with_enough_samples_of_classes(PLAN, many, x, member, 1.0, 1.0).samples
    assert (samples == 32) == few


@pytest.mark.parametrize(("regression", "spread", "tolerated"), [(True, 0.2, 0.0005), (False, 0.4, 0.001)])
def test_the_chosen_number_answers_as_well_as_many(regression: bool, spread: float, tolerated: float) -> None:
    """Half as many would not, as far as the one draw that was compared can tell."""
    many = posterior(1 if regression else 3, spread)
    samples = chosen(many, regression)
    assert 32 < samples < 256

    def answer(count: int, seed: int) -> Tensor:
        outputs = many.network.batched(many.draw(PLAN, count, seed)[0], rows())
        if regression:
            return torch.stack([outputs[..., 0].mean(0), outputs[..., 0].var(0, unbiased=False) + 1]).double()
        return outputs.softmax(-1).mean(0).double()

    p = answer(2048, 50)

    def cost(count: int) -> float:
        found = []
        for q in (answer(count, seed) for seed in range(2, 18)):
            if regression:
                found.append(0.5 * ((q[1] / p[1]).log() + (p[1] + (p[0] - q[0]) ** 2) / q[1] - 1).mean())
            else:
                found.append((p * (p / q).log()).sum(-1).mean())
        return float(torch.stack(found).mean())

    assert cost(samples) < 1.5 * tolerated and cost(samples // 2) > tolerated / 1.5


def test_large_networks_stay_at_few() -> None:
    wide = 2**21 // 64
    assert with_enough_samples(PLAN, posterior(1, 10.0, wide), rows(wide), lambda _: 1.0).samples == 32


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
