"""Peers of the contrastive autoencoder, in the same span of the samples: textbook autoencoders, and none at all.

An encoder and a decoder, each with hidden layers of tanh units, over the coordinates q of the samples in the span:

    plain:        r/2 log mean((D(E(q)) - q)^2)
    variational:  r/2 log mean((D(z) - q)^2) + KL(N(E(q), s(q)^2) | N(0, 1)),  z ~ N(E(q), s(q)^2)

The logarithm is the Gaussian likelihood at its best variance, so that nothing has to be chosen between the two terms
(Rybkin et al. 2021, "Simple and effective VAE training with calibrated decoders"). Neither knows which node comes after
which.

Lengths: A anchors, m vectors of an anchor, S samples, r columns of the span, k latent dimensions, P weights.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

STEPS = 1000
"""Five times those of the contrastive autoencoder, whose table is solved for after training."""
_LEARNING_RATE = 3e-3


class Layers(nn.Module):
    """A fully connected network for each anchor, tanh between its layers: (A, m, sizes[0]) -> (A, m, sizes[-1])."""

    def __init__(self, anchors: int, sizes: list[int]) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(sizes))
        self.matrices = nn.ParameterList([torch.randn(anchors, i, o) / math.sqrt(i) for i, o in pairs])
        self.biases = nn.ParameterList([torch.zeros(anchors, 1, o) for _, o in pairs])

    def forward(self, h: Tensor) -> Tensor:
        for i, (w, b) in enumerate(zip(self.matrices, self.biases, strict=True)):
            h = torch.baddbmm(b, torch.tanh(h) if i else h, w)
        return h


class SpanDecoder(nn.Module):
    """Latents to weights `mean_a + basis_a @ coordinates(z)`, in the form of `builder.decoder.WeightDecoder`.

    Args:
        head: (A, 1 + r, P), the mean and the basis of each anchor.
        layers: latents to coordinates in units of `unit`; none: the latents are the coordinates themselves.
    """

    head: Tensor

    def __init__(self, head: Tensor, layers: Layers | None = None, unit: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("head", head)
        self.layers, self.unit = layers, unit

    def forward(self, latents: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates (S, r) and weights (S, P) of latents (S, k) of the anchors (S,)."""
        q = latents
        if self.layers is not None:
            every = self.layers(latents.expand(len(self.head), -1, -1))
            q = every[anchors, torch.arange(len(latents))] * self.unit
        head = self.head[anchors]
        return q, head[:, 0] + torch.einsum("sr,srp->sp", q, head[:, 1:])


def train_textbook(
    coordinates: Tensor, dimension: int, hidden: int, variational: bool, seed: int, steps: int = STEPS
) -> tuple[Layers, Tensor]:
    """Trains one autoencoder an anchor on coordinates (A, m, r); returns the decoders and the latents (A, m, k)."""
    anchors, _, rank = coordinates.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 15485863)
        encoder = Layers(anchors, [rank, hidden, 2 * dimension])
        decoder = Layers(anchors, [dimension, hidden, hidden, rank])
        parameters = [*encoder.parameters(), *decoder.parameters()]
        optimiser = torch.optim.Adam(parameters, lr=_LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _LEARNING_RATE, total_steps=steps, pct_start=0.11)
        for _ in range(steps):
            mean, log_variance = encoder(coordinates).chunk(2, dim=-1)
            z, kl = mean, torch.zeros(anchors)
            if variational:
                z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
                kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(-1).mean(1)
            error = (decoder(z) - coordinates).square().mean((1, 2)).clamp(min=1e-12)
            optimiser.zero_grad()
            torch.autograd.backward((0.5 * rank * error.log() + kl).sum())
            optimiser.step()
            schedule.step()
        with torch.no_grad():
            latents = encoder(coordinates)[..., :dimension]
    return decoder.requires_grad_(False), latents
