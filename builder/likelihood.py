"""The two likelihoods, each with what the walk needs of it: the loss and its curvature in the network's outputs.

Shapes: N weight vectors, B rows, O outputs. Targets are (B,): standardised numbers or class indices.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

_FEW_CLASSES = 32
"""Up to which a softmax takes less time along rows than along classes: of two or three a fifth."""


class Likelihood(Protocol):
    """log p(y | f) for network outputs f."""

    outputs: int

    def nll(self, f: Tensor, y: Tensor) -> Tensor:
        """-log p(y | f), (..., B), for outputs f (..., B, O) and targets y (B,)."""
        ...

    def root_curvature(self, f: Tensor) -> Tensor:
        """A with A A^T = -d2/df2 log p(y | f) (the Fisher form, free of y), (..., O, O) for f (..., O)."""
        ...

    def divergence(self, f: Tensor, g: Tensor) -> Tensor:
        """Twice the KL divergence of p(y | g) from p(y | f), (..., B) in nats, for outputs (..., B, O)."""
        ...


class GaussianLikelihood:
    """y ~ N(f, noise_std^2) in standardised target units."""

    outputs = 1

    def __init__(self, noise_std: float) -> None:
        self.noise_std = noise_std

    def nll(self, f: Tensor, y: Tensor) -> Tensor:
        return gaussian_nll(f[..., 0], y, torch.as_tensor(self.noise_std, dtype=f.dtype, device=f.device))

    def root_curvature(self, f: Tensor) -> Tensor:
        return torch.full_like(f, 1.0 / self.noise_std).unsqueeze(-1)

    def divergence(self, f: Tensor, g: Tensor) -> Tensor:
        return ((f - g)[..., 0] / self.noise_std).square()


class CategoricalLikelihood:
    """y ~ Categorical(softmax(f))."""

    def __init__(self, classes: int) -> None:
        self.outputs = classes

    def nll(self, f: Tensor, y: Tensor) -> Tensor:
        return -log_probabilities(f).gather(-1, y.expand(f.shape[:-1]).unsqueeze(-1)).squeeze(-1)

    def root_curvature(self, f: Tensor) -> Tensor:
        # diag(p) - p p^T = A A^T with A = diag(sqrt p) - p sqrt(p)^T.
        p = f.softmax(-1)
        root = p.sqrt()
        return torch.diag_embed(root) - p.unsqueeze(-1) * root.unsqueeze(-2)

    def divergence(self, f: Tensor, g: Tensor) -> Tensor:
        log_p = log_probabilities(f)
        return 2 * (log_p.exp() * (log_p - log_probabilities(g))).sum(-1)


def probabilities(logits: Tensor) -> Tensor:
    """Class probabilities of logits (..., B, C), in the same shape."""
    return logits.mT.softmax(-2).mT if logits.shape[-1] <= _FEW_CLASSES else logits.softmax(-1)


def log_probabilities(logits: Tensor) -> Tensor:
    """Their logarithms, in the same shape."""
    return logits.mT.log_softmax(-2).mT if logits.shape[-1] <= _FEW_CLASSES else logits.log_softmax(-1)


def likelihood_of(noise_std: Tensor, y: Tensor, outputs: int) -> Likelihood:
    """That of targets y (n,): Gaussian with the geometric mean of the anchors' noise (A,), or of so many classes."""
    if y.is_floating_point():
        return GaussianLikelihood(float(noise_std.log().mean().exp()))
    return CategoricalLikelihood(outputs)


def gaussian_nll(mean: Tensor, y: Tensor, std: Tensor) -> Tensor:
    """-log N(y; mean, std^2), elementwise."""
    return 0.5 * ((y - mean) / std) ** 2 + std.log() + 0.5 * math.log(2 * math.pi)
