"""The contrastive autoencoder over weight space.

Trajectories become curves in a latent space of k dimensions, from the anchor at the origin to length 1:

    L+ = mean((T norm(z_t - z_{t+1}) - 1)^2)                 successive nodes lie 1/T apart
    L- = mean(-log norm(z_i - z_j))                           other nodes of the anchor are pushed apart
    Ld = mean(norm(D(z) - theta)^2) / mean(norm(theta)^2)     decoding gives the weights back

(MetricBNN, arXiv 2512.01500; its exact formulas are not public, these are our reading.) Three things are ours. The
autoencoder lives in the span of the samples, on `rank` coordinates, so its cost does not grow with P. Distances are
measured in the metric of the posterior's curvature, `norm(v)^2 = v^T H v`: an error that the predictions feel counts,
and one that they do not feel hardly does, which plain distances in weight space get wrong. As drift scales grow
geometrically, weights are measured in units of the drift scale at their place: without that the small scales, where
most of the posterior mass lies, would be lost in the error of the large ones. And Ld is also taken between the nodes,
at the positions from which the server will draw.

Lengths: A anchors, N trajectories, T steps, P weights, k latent dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from builder.config import AutoencoderConfig
from builder.decoder import WeightDecoder
from builder.progress import StepReport, silent

Metric = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class LatentModel:
    """A trained decoder and the latents of all nodes.

    Attributes:
        decoder: latents to weights.
        nodes: (A, N, T+1, k) latents.
        reconstruction_error: relative squared error of the decoded nodes, in units of their drift scale.
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
    metric: Metric | None = None,
) -> LatentModel:
    """Trains one autoencoder an anchor, all as one batch.

    Args:
        nodes: (T+1, A, N, P) trajectories, node 0 the anchor.
        scales: (T+1,) their drift scales, 0 first, growing.
        metric: gives the inner products (m, m) of vectors (m, P) at anchor a; by default the Euclidean ones.
    """
    steps, anchors, trajectories, weights = nodes.shape[0] - 1, *nodes.shape[1:]
    device = nodes.device
    unit = (scales / scales[-1]).to(device)
    means = nodes[0, :, 0]
    away = (nodes[1:] - means[:, None]).permute(1, 2, 0, 3)
    scaled = (away / unit[1:, None]).reshape(anchors, trajectories * steps, weights)
    rank = min(config.rank or 2 * trajectories, trajectories * steps, weights)
    inner = metric or (lambda _, vectors: vectors @ vectors.T)
    grams = torch.stack([inner(a, vectors) for a, vectors in enumerate(scaled)])
    basis, coordinates, basis_error = _span(scaled, grams, rank)
    spread = coordinates.square().mean().sqrt().clamp(min=1e-12)
    coordinates = coordinates / spread

    generator = torch.Generator().manual_seed(seed + 104729)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 104729)
        growth = _growth(unit)
        encoder = _Encoder(anchors, rank, config.hidden, config.dimension).to(device)
        decoder = WeightDecoder(anchors, config.dimension, config.hidden, rank, weights, growth=growth, knots=steps).to(
            device
        )
    decoder.set_head(means, basis * spread)
    target = coordinates.reshape(anchors, trajectories, steps, rank)

    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=config.learning_rate)
    # torch divides by zero where the share of the steps that rise is exactly one step; of 0.11 it never is.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, config.learning_rate, total_steps=config.steps, pct_start=0.11, anneal_strategy="cos"
    )
    size = target.square().mean().clamp(min=1e-12)
    for step in range(config.steps):
        z = encoder.nodes(target)
        apart = (z[:, :, 1:] - z[:, :, :-1]).norm(dim=-1)
        attraction = (steps * apart - 1).square().mean()
        pairs = _far_pairs(z, generator)
        # One short trajectory may have no far pair among those drawn.
        repulsion = -(pairs + 1e-6).log().mean() if pairs.numel() else torch.zeros((), device=device)
        between = torch.rand(z.shape[:3], generator=generator).to(device)[:, :, 1:]
        reconstruction = 0.5 * (
            _error(decoder, z[:, :, 1:], unit[1:], target) + _error_between(decoder, z, unit, target, between)
        )
        loss = reconstruction / size + config.attraction * attraction + config.repulsion * repulsion
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
        if step % 20 == 0 or step == config.steps - 1:
            report(step + 1, config.steps, float(reconstruction.detach() / size))

    with torch.no_grad():
        latents = encoder.nodes(target)
        _solve_table(decoder, latents, unit, target)
        error = float(_error(decoder, latents[:, :, 1:], unit[1:], target) / size)
    return LatentModel(
        decoder=decoder.requires_grad_(False),
        nodes=latents,
        reconstruction_error=1 - (1 - error) * (1 - basis_error),
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
        # Scaled coordinates are of one length along a trajectory: the position on it is put back here.
        z = z * (torch.arange(1, t + 1, device=z.device) / t)[:, None] / math.sqrt(z.shape[-1])
        return torch.cat([torch.zeros_like(z[:, :, :1]), z], dim=2)


def _span(scaled: Tensor, grams: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Basis (A, rank, P) of the samples (A, m, P), their coordinates (A, m, rank), and the relative squared error.

    The best of that rank in the metric of the grams (A, m, m), in which the basis is orthonormal.
    """
    values, vectors = torch.linalg.eigh(grams.double())
    top = vectors[..., -rank:].flip(-1).to(scaled.dtype)
    norms = values[..., -rank:].flip(-1).clamp(min=0).sqrt().to(scaled.dtype)
    basis = (top.mT @ scaled) / norms.clamp(min=1e-12).unsqueeze(-1)
    kept = float(values[..., -rank:].clamp(min=0).sum() / values.clamp(min=0).sum().clamp(min=1e-30))
    return basis, top * norms.unsqueeze(-2), 1 - kept


def _growth(unit: Tensor) -> float:
    """log(growth) * T of `unit_t = (g^t - 1) / (g^T - 1)`; 0 for even steps."""
    steps = len(unit) - 1
    if steps < 2:
        return 0.0
    # unit_1 / (unit_2 - unit_1) = 1 / g
    g = float((unit[2] - unit[1]) / unit[1])
    return steps * math.log(g) if g > 1 + 1e-6 else 0.0


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


def _error(decoder: WeightDecoder, z: Tensor, unit: Tensor, target: Tensor) -> Tensor:
    a, n, t, k = z.shape
    out = decoder.coordinates(z.reshape(a, n * t, k)).reshape(a, n, t, -1)
    return (out / unit[:, None] - target).square().mean()


def _error_between(decoder: WeightDecoder, z: Tensor, unit: Tensor, target: Tensor, part: Tensor) -> Tensor:
    """Error at random positions between the nodes, where weights are interpolated linearly in the drift scale."""
    zs = z[:, :, :-1] + part[..., None] * (z[:, :, 1:] - z[:, :, :-1])
    a, n, t, k = zs.shape
    weights = torch.cat([torch.zeros_like(target[:, :, :1]), target * unit[1:, None]], dim=2)
    steps = t
    start = torch.arange(steps, device=z.device)
    here = scale_at((start + part) / steps, _growth(unit))
    share = (here - unit[:-1]) / (unit[1:] - unit[:-1])
    true = weights[:, :, :-1] + share[..., None] * (weights[:, :, 1:] - weights[:, :, :-1])
    out = decoder.coordinates(zs.reshape(a, n * t, k)).reshape(a, n, t, -1)
    # Close to the origin the scale goes to zero: the first half of the first step counts by its middle.
    floor = scale_at(torch.full_like(here, 0.5 / steps), _growth(unit))
    return ((out - true) / torch.maximum(here, floor)[..., None]).square().mean()


_BETWEEN = 4
_RIDGE = 1e-6


def _solve_table(decoder: WeightDecoder, z: Tensor, unit: Tensor, target: Tensor) -> None:
    """Sets the decoder's table to the least-squares solution for what its network leaves over.

    The latents are fixed by then, and the table is linear, so no gradient step could do better.
    """
    count = z.shape[2] - 1
    wanted = torch.cat([torch.zeros_like(target[:, :, :1]), target * unit[1:, None]], dim=2)
    features, left = [], []
    for part in torch.arange(1, _BETWEEN + 1, device=z.device) / _BETWEEN:
        at = z[:, :, :-1] + part * (z[:, :, 1:] - z[:, :, :-1])
        here = scale_at((torch.arange(count, device=z.device) + part) / count, _growth(unit))
        share = ((here - unit[:-1]) / (unit[1:] - unit[:-1]))[:, None]
        goal = (wanted[:, :, :-1] + share * (wanted[:, :, 1:] - wanted[:, :, :-1])) / here[:, None]
        flat = at.flatten(1, 2)
        decoder.table.zero_()
        length = flat.square().sum(-1, keepdim=True).add(1e-12).sqrt()
        own = scale_at(length.clamp(max=1.5), _growth(unit)) / here.repeat(z.shape[1])[:, None]
        rest = goal.flatten(1, 2) - decoder.coordinates(flat) / here.repeat(z.shape[1])[:, None]
        features.append(decoder.table_features(flat) * own)
        left.append(rest)
    a, b = torch.cat(features, 1).double(), torch.cat(left, 1).double()
    gram = a.mT @ a
    gram.diagonal(dim1=-2, dim2=-1).add_(_RIDGE * a.shape[1] / a.shape[2])
    # One anchor at a time: batched factorisations have failed in threaded MKL.
    for anchor, (matrix, right) in enumerate(zip(gram, a.mT @ b, strict=True)):
        decoder.table[anchor] = torch.cholesky_solve(right, torch.linalg.cholesky(matrix)).to(z.dtype)


def scale_at(position: Tensor, growth: float) -> Tensor:
    """The drift scale, as a share of the last, at a position in [0, 1]."""
    if growth == 0.0:
        return position
    return torch.expm1(growth * position) / math.expm1(growth)
