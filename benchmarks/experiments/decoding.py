"""Fibers as the decoders under test get them, and what their decoded samples are worth.

Lengths: A anchors, N trajectories, T steps in use, k latent dimensions, S samples of an anchor, P weights, m vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from benchmarks.experiments.stages import Outputs, Start, outputs_of, walk
from builder.calibration import DecodedPosterior, choose_reach
from builder.metric import PredictiveMetric
from model_store.manifest import LatentPlan


@dataclass(frozen=True)
class Remembering:
    """A metric that computes the inner products of an anchor's vectors once, however many decoders ask for them."""

    metric: PredictiveMetric
    known: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def inner(self, anchor: int, vectors: Tensor) -> Tensor:
        """As of the metric."""
        found = self.known.get(anchor)
        if found is None or not torch.equal(found[0], vectors):
            found = vectors, self.metric.inner(anchor, vectors)
            self.known[anchor] = found
        return found[1]

    def divergence(self, weights: Tensor, others: Tensor) -> Tensor:
        """As of the metric."""
        return self.metric.divergence(weights, others)


class Itself(nn.Module):
    """The decoder of latents that are the weights themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("where", torch.zeros(()))

    def forward(self, latents: Tensor, _anchors: Tensor) -> tuple[Tensor, Tensor]:
        return latents, latents


@dataclass(frozen=True)
class Sampled:
    """The part of the fibers that is decoded.

    Attributes:
        nodes: (T+1, A, N, P), node 0 the anchors.
        scales: (T+1,) their drift scales.
    """

    start: Start
    nodes: Tensor
    scales: Tensor
    metric: Remembering

    @property
    def paths(self) -> Tensor:
        """The trajectories (A, N, T+1, P): with the decoder `Itself`, what a decoder without any error decodes to."""
        return self.nodes.permute(1, 2, 0, 3).contiguous()

    def reconstruction_error(self, decoder: nn.Module, latents: Tensor) -> float:
        """Mean divergence of decoded nodes from the sampled ones, for latents (A, N, T+1, k); one that is lost
        counts as 1, which is as much as the noise."""
        found = []
        for a, of_anchor in enumerate(latents[:, :, 1:]):
            z = of_anchor.flatten(0, 1)
            with torch.no_grad():
                decoded = decoder(z, torch.full((len(z),), a))[1]
            goal = self.nodes[1:, a].transpose(0, 1).flatten(0, 1)
            found.append(self.metric.divergence(decoded, goal))
        return float(torch.cat(found).clamp(max=1.0).mean())

    def decode(self, decoder: nn.Module, latents: Tensor, samples: int) -> Outputs:
        """Outputs of S decoded samples an anchor, drawn as a server draws, over the whole of the trajectories.

        Args:
            decoder: (latents (m, k), anchors (m,)) -> (anything, weights (m, P)), with a buffer.
            latents: (A, N, T+1, k) of the nodes.
        """
        anchors = len(latents)
        posterior = DecodedPosterior(self.start.problem.network, decoder, latents.numpy())
        plan = LatentPlan(name="predict", samples=samples * anchors, stop=1.0, drift_scale=float(self.scales[-1]))
        weights, anchor = posterior.draw(plan, samples * anchors)
        ordered = weights[anchor.argsort(stable=True)]
        return outputs_of(self.start, ordered.reshape(anchors, samples, -1))


def sample(start: Start) -> Sampled:
    """Walks, and keeps the part of the fibers that a build would decode."""
    problem = start.problem
    fibers = walk(start, problem.config.fiber)
    reach = choose_reach(problem.network, fibers, problem.x, problem.y, start.member)
    used = slice(0, reach.used + 1)
    return Sampled(start, fibers.nodes[used], fibers.scales[used], Remembering(start.metric))
