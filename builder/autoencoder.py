"""The contrastive autoencoder over weight space.

Trajectories become curves in a latent space of k dimensions, from the anchor at the origin to length 1:

    L+ = mean((T norm(z_t - z_{t+1}) - 1)^2)                 successive nodes lie 1/T apart
    L- = mean(-log norm(z_i - z_j))                           other nodes of the anchor are pushed apart
    Ld = mean(norm(D(z) - theta)^2) / mean(norm(theta)^2)     decoding gives the weights back

(MetricBNN, arXiv 2512.01500; its exact formulas are not public, these are our reading.) Four things are ours. The
autoencoder lives in the span of the samples, on `rank` coordinates, so its cost does not grow with P; the basis is the
best one in the metric of the posterior's curvature, and just as many columns are taken as the predictions need. Node t
lies at length t/T by construction, so a latent's length is its position, and L+ makes trajectories straight rays. As
drift scales grow geometrically, weights are measured in units of the drift scale at their place: without that the
small scales would be lost in the error of the large ones. And the decoder's table, linear once the latents are known,
is solved for after training: as far as the features tell trajectories apart, nodes then decode to the sampled weights
themselves, and what lies between two nodes to weights between theirs.

Lengths: A anchors, N trajectories, T steps, P weights, k latent dimensions, F features of the decoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from builder.config import AutoencoderConfig
from builder.decoder import WeightDecoder, growth_of
from builder.metric import EuclideanMetric, WeightMetric
from builder.progress import StepReport, silent

_TOLERATED_DIVERGENCE = 0.01
_HEAD_ENTRIES = 2**25
"""Most entries of a head whose rank is chosen automatically (128 MB)."""
_NODE_WEIGHT = 3.0
_RIDGE = 1e-8


@dataclass(frozen=True)
class LatentModel:
    """A trained decoder and the latents of all nodes.

    Attributes:
        decoder: latents to weights; its first layer may have been narrowed since (`builder.narrowing`).
        nodes: (A, N, T+1, k) latents.
        reconstruction_error: mean divergence of the decoded nodes from the sampled ones; 1 is as much as the noise.
        basis_error: the part of it that the rank of the head alone causes.
    """

    decoder: WeightDecoder
    nodes: Tensor
    reconstruction_error: float
    basis_error: float


def train_autoencoder(
    nodes: Tensor,
    scales: Tensor,
    config: AutoencoderConfig,
    seed: int = 0,
    report: StepReport = silent,
    metric: WeightMetric | None = None,
) -> LatentModel:
    """Trains one autoencoder an anchor, all as one batch.

    Args:
        nodes: (T+1, A, N, P) trajectories, node 0 the anchor.
        scales: (T+1,) their drift scales, 0 first, growing.
        metric: of weight space; by default the Euclidean one, in units of the mean square of the way to the anchor.
    """
    steps, anchors, trajectories, weights = nodes.shape[0] - 1, *nodes.shape[1:]
    device = nodes.device
    unit = (scales / scales[-1]).to(device)
    means = nodes[0, :, 0]
    away = (nodes[1:] - means[:, None]).permute(1, 2, 0, 3).flatten(1, 2)
    metric = metric or EuclideanMetric(max(float(away.square().sum(-1).mean()), 1e-30))
    basis, coordinates, basis_error = _span(means, away, config.rank, trajectories, metric)
    rank = basis.shape[1]
    target = coordinates.reshape(anchors, trajectories, steps, rank) / unit[1:, None]
    spread = target.square().mean().sqrt().clamp(min=1e-12)
    target = target / spread

    generator = torch.Generator().manual_seed(seed + 104729)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 104729)
        growth = growth_of(unit)
        encoder = _Encoder(anchors, rank, config.hidden, config.dimension).to(device)
        decoder = WeightDecoder(anchors, config.dimension, config.hidden, rank, weights, growth=growth, knots=steps).to(
            device
        )
        last = nn.Parameter(torch.zeros(anchors, config.dimension + config.hidden, rank, device=device))
    decoder.set_head(means, basis * spread)

    hidden = [*decoder.matrices, *decoder.biases]
    optimiser = torch.optim.Adam([*encoder.parameters(), *hidden, last], lr=config.learning_rate)
    # torch divides by zero where the share of the steps that rise is exactly one step; of 0.11 it never is.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, config.learning_rate, total_steps=config.steps, pct_start=0.11, anneal_strategy="cos"
    )
    wanted = target.flatten(1, 2)
    size = wanted.square().mean().clamp(min=1e-12)
    for step in range(config.steps):
        z = encoder.nodes(target)
        apart = (z[:, :, 1:] - z[:, :, :-1]).norm(dim=-1)
        attraction = (steps * apart - 1).square().mean()
        pairs = _far_pairs(z, generator)
        # One short trajectory may have no far pair among those drawn.
        repulsion = -(pairs + 1e-6).log().mean() if pairs.numel() else torch.zeros((), device=device)
        reconstruction = (decoder.features(z[:, :, 1:].flatten(1, 2)) @ last - wanted).square().mean() / size
        loss = reconstruction + config.attraction * attraction + config.repulsion * repulsion
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
        if step % 20 == 0 or step == config.steps - 1:
            report(step + 1, config.steps, float(reconstruction.detach()))

    with torch.no_grad():
        latents = encoder.nodes(target)
        _solve_table(decoder, latents, target)
        decoded = decoder.coordinates(latents[:, :, 1:].flatten(1, 2)) @ (basis * spread)
    return LatentModel(
        decoder=decoder.requires_grad_(False),
        nodes=latents,
        reconstruction_error=_divergence(means, decoded, away, metric),
        basis_error=basis_error,
    )


class _Encoder(nn.Module):
    """Coordinates to latents, one small network an anchor; the anchor itself lies at the origin."""

    def __init__(self, anchors: int, rank: int, hidden: int, dimension: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(anchors, rank, hidden) / math.sqrt(rank))
        self.last = nn.Parameter(torch.randn(anchors, hidden, dimension) / math.sqrt(hidden))
        self.shortcut = nn.Parameter(torch.randn(anchors, rank, dimension) / math.sqrt(rank))

    def nodes(self, scaled: Tensor) -> Tensor:
        """(A, N, T+1, k) from the scaled coordinates (A, N, T, rank) of the nodes after the anchor."""
        a, n, t, r = scaled.shape
        q = scaled.reshape(a, n * t, r)
        z = (torch.tanh(q @ self.first) @ self.last + q @ self.shortcut).reshape(a, n, t, -1)
        # The network gives the direction; the length is the position on the trajectory.
        z = z / z.square().sum(-1, keepdim=True).clamp(min=1e-12).sqrt()
        z = z * (torch.arange(1, t + 1, device=z.device) / t)[:, None]
        return torch.cat([torch.zeros_like(z[:, :, :1]), z], dim=2)


def _span(
    means: Tensor, away: Tensor, rank: int | None, trajectories: int, metric: WeightMetric
) -> tuple[Tensor, Tensor, float]:
    """Basis (A, rank, P) of the samples' ways from the means, away (A, m, P), and their coordinates (A, m, rank).

    The best basis of its rank in the metric, in which it is orthonormal. Without a rank, the smallest that keeps the
    mean divergence of the samples within a hundredth of the noise. Third, that divergence.
    """
    grams = torch.stack([metric.inner(a, vectors) for a, vectors in enumerate(away)])
    values, vectors = torch.linalg.eigh(grams.double())
    norms = values.clamp(min=0).sqrt()
    most = min(away.shape[1:])
    if rank is None:
        most = max(1, min(most, _HEAD_ENTRIES // (away.shape[0] * away.shape[2])))
    ranks = [min(rank, most)] if rank is not None else _ranks(trajectories, most)
    for r in ranks:
        top = vectors[..., -r:].flip(-1)
        norm = norms[..., -r:].flip(-1)
        basis = ((top.mT @ away.double()) / norm.clamp(min=1e-12).unsqueeze(-1)).to(away.dtype)
        coordinates = (top * norm.unsqueeze(-2)).to(away.dtype)
        error = _divergence(means, coordinates @ basis, away, metric)
        if error <= _TOLERATED_DIVERGENCE:
            break
    return basis, coordinates, error


def _ranks(trajectories: int, most: int) -> list[int]:
    """Ranks to try: from half a column a trajectory on, each half as large again as the one before."""
    rank, found = max(1, trajectories // 2), []
    while rank < most:
        found.append(rank)
        rank = math.ceil(1.5 * rank)
    return [*found, most]


def _divergence(means: Tensor, found: Tensor, away: Tensor, metric: WeightMetric) -> float:
    """Mean divergence of the weights means + found from means + away, all (A, m, P); one that is lost counts as 1."""
    each = [metric.divergence(mean + f, mean + v) for mean, f, v in zip(means, found, away, strict=True)]
    return float(torch.cat(each).clamp(max=1.0).mean())


def _far_pairs(z: Tensor, generator: torch.Generator) -> Tensor:
    """Distances of random pairs of an anchor's nodes that are not neighbours on one trajectory."""
    a, n, t, k = z.shape
    flat = z.reshape(a, n * t, k)
    count = 4 * n * t
    i = torch.randint(n * t, (count,), generator=generator)
    j = torch.randint(n * t, (count,), generator=generator)
    neighbours = (i // t == j // t) & ((i - j).abs() <= 1)
    # The origin is one point, shared by all trajectories of an anchor, and next to the first node of each.
    first, second = torch.minimum(i % t, j % t), torch.maximum(i % t, j % t)
    far = ~(neighbours | ((first == 0) & (second <= 1)))
    i, j = i[far].to(z.device), j[far].to(z.device)
    distances: Tensor = (flat[:, i] - flat[:, j]).norm(dim=-1)
    return distances


def _solve_table(decoder: WeightDecoder, z: Tensor, target: Tensor) -> None:
    """Solves for the table with which nodes z (A, N, T+1, k) decode to the scaled coordinates (A, N, T, rank).

    By least squares, with the middle between successive nodes, where scaled coordinates are interpolated linearly,
    counting less than the nodes.
    """
    goal = torch.cat([target, 0.5 * (torch.cat([target[:, :, :1], target[:, :, :-1]], 2) + target)], 1).flatten(1, 2)
    at = torch.cat([z[:, :, 1:], 0.5 * (z[:, :, :-1] + z[:, :, 1:])], 1).flatten(1, 2)
    features = decoder.table_features(at)
    weight = torch.ones(at.shape[1], 1, dtype=torch.float64, device=z.device)
    weight[: at.shape[1] // 2] = _NODE_WEIGHT
    # One anchor at a time: batched factorisations have failed in threaded MKL.
    for anchor in range(len(z)):
        left, right = weight * features[anchor].double(), weight * goal[anchor].double()
        gram = left.T @ left
        gram.diagonal().add_(_RIDGE * max(float(gram.diagonal().mean()), 1e-30))
        decoder.table[anchor] = torch.cholesky_solve(left.T @ right, torch.linalg.cholesky(gram)).to(z.dtype)
