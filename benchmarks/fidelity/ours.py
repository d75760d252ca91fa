"""Our own posterior of a given noise and prior: anchors on all rows, their fibers, and the decoder.

No fold is left out, since nothing is calibrated here. How far along a trajectory to draw is not chosen either: at drift
scale 1 the samples of a linear-Gaussian model are exact draws, and that node is what is judged.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.fidelity.peers import Found, sampled
from benchmarks.fidelity.target import Target
from builder.autoencoder import train_autoencoder
from builder.calibration import DecodedPosterior
from builder.config import AutoencoderConfig, FiberConfig
from builder.fiber import Fibers, walk_fibers
from builder.metric import PredictiveMetric
from model_store.manifest import LatentPlan

MANY, SERVED = 512, 32


def walk(target: Target, anchors: Tensor, config: FiberConfig, seed: int) -> Fibers:
    """Fibers of the posterior from anchors (A, P), all of which have seen all rows."""
    problem = target.problem
    member = torch.ones(len(anchors), len(problem.x), dtype=torch.bool)
    precision = torch.full((problem.network.weights,), target.precision)
    return walk_fibers(
        problem.network, anchors, problem.x, problem.y, member, target.likelihood, precision, config, seed
    )


def run(target: Target, anchors: Tensor) -> dict[str, Found]:
    """Fiber samples and decoded ones, at drift scale 1 and up to it."""
    config = target.problem.config
    fibers = walk(target, anchors, config.fiber, target.problem.seed)
    nodes, last = fibers.nodes, len(fibers.nodes) - 1
    posterior = decode(target, fibers, config.autoencoder, target.problem.seed)
    at_one, up_to_one = (
        LatentPlan(name="predict", samples=SERVED, start=start, stop=1.0, drift_scale=1.0) for start in (1.0, 0.0)
    )
    default = walk(target, anchors, FiberConfig(drift_scale=1.0), target.problem.seed)
    weights = {
        "fiberwalk_default": default.nodes[-1].flatten(0, 1),
        "fiberwalk_fiber": nodes[last].flatten(0, 1),
        "fiberwalk_before": nodes[last - 1].flatten(0, 1),
        "fiberwalk_fiber_all": nodes.flatten(0, 2),
        "fiberwalk": posterior.draw(at_one, MANY)[0],
        "fiberwalk_all": posterior.draw(up_to_one, MANY)[0],
        "fiberwalk_served": posterior.draw(up_to_one, SERVED)[0],
    }
    return {name: sampled(target, thetas) for name, thetas in weights.items()}


def decode(target: Target, fibers: Fibers, config: AutoencoderConfig, seed: int) -> DecodedPosterior:
    """The decoder of the fibers, trained as a build does."""
    problem, anchors = target.problem, fibers.nodes[0, :, 0]
    member = torch.ones(len(anchors), len(problem.x), dtype=torch.bool)
    precision = torch.full((problem.network.weights,), target.precision)
    metric = PredictiveMetric(problem.network, anchors, problem.x, member, target.likelihood, precision)
    latent = train_autoencoder(fibers.nodes, fibers.scales, config, seed, metric=metric)
    return DecodedPosterior(problem.network, latent.decoder, latent.nodes.numpy())
