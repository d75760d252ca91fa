"""The latent space of real fibers: its geometry, its decoding, and what it costs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from builder.autoencoder import LatentModel, train_autoencoder
from builder.config import AutoencoderConfig
from builder.fiber import Fibers
from builder.likelihood import GaussianLikelihood
from builder.metric import EuclideanMetric, PredictiveMetric
from tests.builder.walked import NOISE, Walked

T = 6


def train(nodes: Tensor, scales: Tensor, seed: int = 0, metric: Any = None, **options: Any) -> LatentModel:
    config = AutoencoderConfig(**{"dimension": 16, "hidden": 32, "steps": 300, **options})
    return train_autoencoder(nodes, scales, config, seed, metric=metric)


@pytest.fixture(scope="module")
def fibers(walked: Walked) -> Fibers:
    return walked.fibers


@pytest.fixture(scope="module")
def latent(fibers: Fibers) -> LatentModel:
    return train(fibers.nodes, fibers.scales)


def decode(latent: LatentModel, z: Tensor) -> Tensor:
    """Weights (A, ..., P) of latents (A, ..., k)."""
    flat = z.reshape(-1, z.shape[-1])
    anchor = torch.arange(z.shape[0]).repeat_interleave(len(flat) // z.shape[0])
    weights: Tensor = latent.decoder(flat, anchor)[1]
    return weights.reshape(*z.shape[:-1], -1)


def away(fibers: Fibers) -> Tensor:
    """(A, N, T, P) the way from the anchor."""
    return (fibers.nodes[1:] - fibers.nodes[0]).permute(1, 2, 0, 3)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).square().sum() / expected.square().sum())


def predictive(walked: Walked) -> PredictiveMetric:
    anchors, likelihood = walked.anchors.weights, GaussianLikelihood(NOISE)
    ones = torch.ones(walked.network.weights)
    return PredictiveMetric(walked.network, anchors, walked.x, walked.member, likelihood, ones)


def test_real_fibers_are_reconstructed(fibers: Fibers, latent: LatentModel) -> None:
    assert latent.nodes.shape == (2, 10, T + 1, 16)
    found = decode(latent, latent.nodes[:, :, 1:]) - fibers.nodes[0, :, :, None]
    error = relative(found, away(fibers))
    assert error < 0.02
    assert latent.reconstruction_error == pytest.approx(error, rel=0.1, abs=1e-4)
    # In units of the drift scale small scales are as exact as large ones.
    near = relative(found[:, :, :2], away(fibers)[:, :, :2])
    assert near < 0.05


def test_decoded_nodes_predict_as_the_fibers(walked: Walked) -> None:
    network, fibers = walked.network, walked.fibers
    latent = train(fibers.nodes, fibers.scales, metric=predictive(walked), steps=100)
    with torch.no_grad():
        decoded = network.batched(decode(latent, latent.nodes).flatten(0, 2), walked.x)
        sampled = network.batched(fibers.nodes.permute(1, 2, 0, 3).flatten(0, 2), walked.x)
    error = (decoded - sampled).square().reshape(2, 10, T + 1, -1).mean((0, 1, 3)) / NOISE**2
    assert bool((error < 0.02).all())
    # The anchors themselves are decoded exactly.
    assert latent.reconstruction_error == pytest.approx(float(error[1:].mean()), rel=0.2)
    assert latent.basis_error <= 0.01


def test_as_many_columns_are_taken_as_the_predictions_need(walked: Walked) -> None:
    nodes, scales = walked.fibers.nodes, walked.fibers.scales
    chosen = train(nodes, scales, metric=predictive(walked), steps=1)
    fewer = train(nodes, scales, metric=predictive(walked), steps=1, rank=round(chosen.decoder.rank / 1.5) - 1)
    assert chosen.basis_error <= 0.01 < fewer.basis_error
    # Trajectories that are multiples of one direction need no more than the least that is tried.
    straight = nodes[:1] + (nodes[-1:, :, :1] - nodes[:1]) * scales[:, None, None, None] / scales[-1]
    assert train(straight, scales, metric=predictive(walked), steps=1).decoder.rank == 5


def test_the_anchor_lies_at_the_origin_and_decodes_to_itself(fibers: Fibers, latent: LatentModel) -> None:
    assert not latent.nodes[:, :, 0].any()
    assert torch.equal(decode(latent, latent.nodes[:, :1, 0]), fibers.nodes[0, :, :1])


def test_successive_nodes_lie_a_step_apart(latent: LatentModel) -> None:
    step = latent.nodes.diff(dim=2).norm(dim=-1)
    assert float(step.mean()) == pytest.approx(1 / T, rel=0.05)
    assert float(((step * T - 1) ** 2).mean().sqrt()) < 0.25
    assert float((step.sum(2) - 1).abs().max()) < 0.2


def test_other_nodes_lie_further_apart_than_neighbours(latent: LatentModel) -> None:
    ends = latent.nodes[:, :, -1]
    between = torch.cdist(ends, ends) + torch.eye(10) * 10
    assert float(between.min()) > 2 / T
    along = latent.nodes[:, :, 2:] - latent.nodes[:, :, :-2]
    assert float(along.norm(dim=-1).mean()) > 1.3 / T


def test_repulsion_keeps_trajectories_apart(fibers: Fibers, latent: LatentModel) -> None:
    def apart(model: LatentModel) -> float:
        ends = model.nodes[:, :, -1]
        return float(torch.stack([torch.pdist(e).mean() for e in ends]).mean())

    assert apart(train(fibers.nodes, fibers.scales, repulsion=1.0, steps=150)) > apart(latent)


def test_between_nodes_decoding_is_between_the_weights(fibers: Fibers, latent: LatentModel) -> None:
    growth = T * torch.tensor(1.5).log().item()
    way = away(fibers)
    scaled = way / fibers.scales[1:, None]
    before = torch.cat([scaled[:, :, :1], scaled[:, :, :-1]], 2)
    for part in (0.25, 0.5, 0.75):
        z = (1 - part) * latent.nodes[:, :, :-1] + part * latent.nodes[:, :, 1:]
        here = torch.expm1(growth * (torch.arange(T) + part) / T) / math.expm1(growth) * fibers.scales[-1]
        expected = (1 - part) * before + part * scaled
        found = (decode(latent, z) - fibers.nodes[0, :, :, None]) / here[:, None]
        assert relative(found, expected) < 0.05


def test_a_rank_too_low_shows_as_error(fibers: Fibers, latent: LatentModel) -> None:
    low, middle = (train(fibers.nodes, fibers.scales, rank=r, steps=150) for r in (2, 8))
    assert low.basis_error > middle.basis_error > latent.basis_error
    assert low.reconstruction_error > 0.3 > latent.reconstruction_error
    assert low.decoder.head.shape == (2 * 3, fibers.nodes.shape[-1])
    # No basis of rank 2 is better than that of the singular value decomposition.
    for a, samples in enumerate(away(fibers).flatten(1, 2)):
        kept = torch.linalg.svdvals(samples.double()).square()
        basis = low.decoder.head.reshape(2, 3, -1)[a, 1:].double()
        left = samples - samples.double() @ torch.linalg.pinv(basis) @ basis
        assert float(left.square().sum()) == pytest.approx(float(kept[2:].sum()), rel=1e-3)


def test_too_few_latent_dimensions_show_as_error(fibers: Fibers, latent: LatentModel) -> None:
    assert (
        train(fibers.nodes, fibers.scales, dimension=1, steps=150).reconstruction_error
        > 5 * latent.reconstruction_error
    )


def test_a_metric_decides_which_errors_count(fibers: Fibers) -> None:
    importance = torch.ones(fibers.nodes.shape[-1])
    importance[:5] = 1e4

    class Weighted(EuclideanMetric):
        def inner(self, anchor: int, vectors: Tensor) -> Tensor:
            return (vectors * importance) @ vectors.T

    def error(model: LatentModel) -> float:
        found = decode(model, model.nodes[:, :, 1:]) - fibers.nodes[0, :, :, None]
        return relative(found * importance.sqrt(), away(fibers) * importance.sqrt())

    plain, weighted = (train(fibers.nodes, fibers.scales, rank=5, metric=m, steps=100) for m in (None, Weighted()))
    assert error(weighted) < 0.5 * error(plain)


def test_cost_does_not_grow_with_the_number_of_weights(fibers: Fibers) -> None:
    """The same trajectories, turned into a space of ten times as many weights, give the same latents."""
    weights = fibers.nodes.shape[-1]
    turn = torch.linalg.qr(torch.randn(10 * weights, weights, generator=torch.Generator().manual_seed(0))).Q
    small = train(fibers.nodes, fibers.scales, steps=3)
    large = train(fibers.nodes @ turn.T, fibers.scales, steps=3)
    assert [p.shape for p in small.decoder.parameters()] == [p.shape for p in large.decoder.parameters()]
    assert large.decoder.head.shape == (small.decoder.head.shape[0], 10 * weights)
    assert large.basis_error == pytest.approx(small.basis_error, abs=1e-5)
    distance = [torch.stack([torch.cdist(e, e) for e in m.nodes[:, :, -1]]) for m in (small, large)]
    assert distance[0].shape == distance[1].shape


def test_training_follows_its_seed_bit_for_bit(fibers: Fibers) -> None:
    before = torch.random.get_rng_state()
    first, again, other = (train(fibers.nodes, fibers.scales, seed=s, steps=20) for s in (1, 1, 2))
    assert torch.equal(first.nodes, again.nodes)
    assert torch.equal(decode(first, first.nodes), decode(again, again.nodes))
    assert not torch.equal(first.nodes, other.nodes)
    assert torch.equal(before, torch.random.get_rng_state())


def test_trajectories_with_even_steps_are_learned_too() -> None:
    generator = torch.Generator().manual_seed(0)
    way = torch.randn(1, 1, 8, 30, generator=generator)
    position = torch.linspace(0, 1, 6)
    nodes = 1 + way * position[:, None, None, None]
    latent = train(nodes, position, steps=150)
    assert latent.decoder.growth == 0 and latent.reconstruction_error < 0.02


def test_particles_that_never_moved_do_no_harm(fibers: Fibers) -> None:
    nodes = fibers.nodes.clone()
    nodes[3:, 0, 4] = nodes[2, 0, 4]
    nodes[1:, 1, 0] = nodes[0, 1, 0]
    latent = train(nodes, fibers.scales, steps=100)
    assert torch.isfinite(latent.nodes).all() and torch.isfinite(decode(latent, latent.nodes)).all()


def test_no_movement_at_all_stays_finite() -> None:
    nodes = torch.randn(1, 2, 1, 9).expand(4, -1, 3, -1).contiguous()
    latent = train(nodes, torch.tensor([0.0, 1.0, 3.0, 7.0]), steps=10)
    assert torch.isfinite(latent.nodes).all()
    assert torch.allclose(decode(latent, latent.nodes)[:, :, -1], nodes[-1], atol=1e-4)


def test_one_trajectory_of_two_steps_is_enough() -> None:
    way = torch.randn(9, generator=torch.Generator().manual_seed(0))
    nodes = torch.stack([t * way for t in (0.0, 1.0, 3.0)])[:, None, None]
    latent = train(nodes, torch.tensor([0.0, 1.0, 3.0]), steps=150)
    assert latent.reconstruction_error < 0.01 and torch.isfinite(latent.nodes).all()


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_any_number_of_steps_is_a_schedule(fibers: Fibers, steps: int) -> None:
    assert torch.isfinite(train(fibers.nodes, fibers.scales, steps=steps).nodes).all()
