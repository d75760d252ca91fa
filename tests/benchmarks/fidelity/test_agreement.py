"""Our posterior beside Hamiltonian Monte Carlo's on a tiny network: near it, where the MAP and the ensemble are not.

The reference is numpyro's own sampler: compiled once, it takes two seconds for what plain numpy would take longer for.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.data import DataSet
from benchmarks.fidelity import hmc
from benchmarks.fidelity.distances import distances
from benchmarks.fidelity.ours import decode, walk
from benchmarks.fidelity.peers import sampled
from benchmarks.fidelity.target import Target, find_maps
from benchmarks.quality.predictive import Cost
from benchmarks.quality.problem import make_problem
from benchmarks.quality.tuning import Tuned
from builder.config import AutoencoderConfig, FiberConfig
from builder.fiber import Fibers
from model_store.manifest import LatentPlan

NOISE = 0.2


@pytest.fixture(scope="module")
def target() -> Target:
    """A wave of 20 rows with a gap, a network of 5 hidden units, and 41 points over and beyond the rows."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-2, -0.5, 10), rng.uniform(0.5, 2, 10), np.linspace(-3, 3, 41)])[:, None]
    y = np.sin(2 * x[:, 0]) + NOISE * rng.normal(size=len(x))
    train = np.arange(len(x))[None] < 20
    problem = make_problem(
        DataSet("wave", "regression", x, y, train, ~train),
        0,
        network={"hidden": [5], "activation": "tanh"},
        map={"steps": 800, "learning_rate": 0.03},
    )
    return Target(problem, Tuned(1.0, NOISE**2, NOISE**2, {}, {}, Cost()))


@pytest.fixture(scope="module")
def reference(target: Target) -> hmc.Draws:
    return hmc.sample(target, hmc.Settings(chains=2, warmup=300, draws=500, depth=7), seed=0)


@pytest.fixture(scope="module")
def anchors(target: Target) -> Tensor:
    return find_maps(target, 8, seed=0)[0]


@pytest.fixture(scope="module")
def fibers(target: Target, anchors: Tensor) -> Fibers:
    config = FiberConfig(drift_scale=1.0, steps=2, trajectories=40, refinement=20, moves=5, leapfrog=20)
    return walk(target, anchors, config, seed=0)


def tv(target: Target, weights: Tensor, reference: hmc.Draws) -> float:
    wanted = sampled(target, reference.weights.flatten(0, 1)).predictive
    return distances(sampled(target, weights).predictive, wanted, target.noise_std)["tv"]


def test_the_chains_agree(target: Target, reference: hmc.Draws) -> None:
    first, second = reference.weights
    values = torch.stack([target.problem.network.batched(w, target.problem.x_test)[..., 0] for w in reference.weights])
    found = hmc.convergence(values)
    assert found.converged and found.draws == 1000 and found.ess[0] > 100
    assert tv(target, first, hmc.Draws(second[None], 0, 0.0)) < 0.08


def test_chains_that_disagree_are_told() -> None:
    values = torch.randn(2, 200, 3, generator=torch.Generator().manual_seed(0))
    assert hmc.convergence(values).converged
    values[1, :, 2] += 3
    found = hmc.convergence(values)
    assert not found.converged and found.rhat[0] > 1.1 > found.rhat[1]


def test_our_samples_predict_as_the_reference_and_the_anchors_do_not(
    target: Target, anchors: Tensor, fibers: Fibers, reference: hmc.Draws
) -> None:
    ours = tv(target, fibers.nodes[-1].flatten(0, 1), reference)
    assert ours < 0.1
    assert tv(target, anchors[:1], reference) > 2 * ours
    assert tv(target, anchors, reference) > 1.5 * ours


def test_decoding_keeps_the_agreement(target: Target, fibers: Fibers, reference: hmc.Draws) -> None:
    posterior = decode(target, fibers, AutoencoderConfig(steps=50), seed=0)
    plan = LatentPlan(name="predict", samples=32, start=1.0, stop=1.0, drift_scale=1.0)
    decoded = tv(target, posterior.draw(plan, 320)[0], reference)
    assert decoded < tv(target, fibers.nodes[-1].flatten(0, 1), reference) + 0.03


def test_the_maps_are_minima_of_the_posterior(target: Target, anchors: Tensor) -> None:
    noise = torch.randn(anchors.shape, generator=torch.Generator().manual_seed(0))
    assert bool((target.potential(anchors + 0.1 * noise) > target.potential(anchors)).all())
