"""A small regression and its fibers, as the stages after sampling find them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from builder.autoencoder import train_autoencoder
from builder.calibration import DecodedPosterior
from builder.config import AutoencoderConfig, FiberConfig, MapConfig
from builder.fiber import Fibers, walk_fibers
from builder.likelihood import GaussianLikelihood
from builder.map import Anchors, train_anchors
from builder.network import MLP, FunctionalNetwork

NOISE = 0.3


@dataclass(frozen=True)
class Walked:
    """Rows with a gap in x, two cross-fitted anchors, and 10 fibers of 6 steps from each."""

    network: FunctionalNetwork
    x: Tensor
    y: Tensor
    member: Tensor
    anchors: Anchors
    fibers: Fibers


def wave(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """A noisy wave, x in [-2, -0.5] or [0.5, 2]."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.5 + 1.5 * torch.rand(rows, 1, generator=generator)
    x = torch.where(torch.rand(rows, 1, generator=generator) < 0.5, x, -x)
    return x, torch.sin(2 * x[:, 0]) + NOISE * torch.randn(rows, generator=generator)


def network() -> nn.Module:
    return MLP(1, [16], 1, "tanh")


def walk_wave() -> Walked:
    x, y = wave(240, seed=0)
    member = torch.arange(240)[None] % 2 != torch.arange(2)[:, None]
    functional = FunctionalNetwork(network())
    anchors = train_anchors(
        functional, network, x, y, member, MapConfig(steps=800, learning_rate=0.03, prior_precision=[1.0])
    )
    config = FiberConfig(trajectories=10, steps=6, refinement=15)
    fibers = walk_fibers(
        functional,
        anchors.weights,
        x,
        y,
        member,
        GaussianLikelihood(float(anchors.noise_std.mean())),
        torch.ones(functional.weights),
        config,
    )
    return Walked(functional, x, y, member, anchors, fibers)


def two_rounds(rows: int, anchors: int) -> Tensor:
    """(A, n): the rows of each anchor."""
    folds = anchors // 2
    place = torch.randperm(rows, generator=torch.Generator().manual_seed(2)) % folds
    rounds = [torch.arange(rows) % folds, place]
    return torch.stack([rounds[a // folds] != a % folds for a in range(anchors)])


def decoded(walked: Walked) -> DecodedPosterior:
    """What a server draws from: the fibers up to their fifth node, through a decoder."""
    used = slice(0, 5)
    options = AutoencoderConfig(steps=300, hidden=32)
    latent = train_autoencoder(walked.fibers.nodes[used], walked.fibers.scales[used], options)
    return DecodedPosterior(walked.network, latent.decoder, latent.nodes.numpy())
