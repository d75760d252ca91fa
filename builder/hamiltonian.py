"""Hamiltonian moves: they leave the posterior as it is, and bring particles that are not draws of it nearer to it.

A move gives every particle a random momentum, follows Hamilton's equations for L leapfrog steps and accepts the end
with the probability of Metropolis and Hastings (Duane et al. 1987; Neal 2011, "MCMC using Hamiltonian dynamics").
Masses are the prior's precisions, so that directions which no row knows of have one time scale. At temperature T the
law that a move leaves as it is has the density `exp(-U / T)`; for a linear-Gaussian model and `T = c^2` that is the
posterior shrunk by c about its mode, the law of the particles at drift scale c.

Lengths: S particles, P weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]
"""-log posterior (S,) and its gradient (S, P) at positions (S, P)."""

_ACCEPTANCE = 0.8
_JITTER = 0.1
"""Steps are longer or shorter by up to this share, so that no trajectory closes on itself."""


def move(
    objective: Objective,
    position: Tensor,
    mass: Tensor,
    step: Tensor,
    leapfrog: int,
    temperature: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """One move of all particles.

    Args:
        position: (S, P).
        mass: (P,).
        step: (S, 1) length of a leapfrog step; `leapfrog`: how many.
        temperature: T.
        generator: a CPU generator, so that a build does not depend on the device.

    Returns:
        positions (S, P), and the probability (S,) with which each move was accepted.
    """
    device = position.device
    momentum = (temperature * mass).sqrt() * torch.randn(position.shape, generator=generator).to(device)
    jitter = 1 + _JITTER * (2 * torch.rand(step.shape, generator=generator) - 1).to(device)
    level = torch.rand(len(position), generator=generator).to(device)
    length = jitter * step

    loss, gradient = objective(position)
    before = loss + 0.5 * (momentum.square() / mass).sum(1)
    there = position
    for _ in range(leapfrog):
        momentum = momentum - 0.5 * length * gradient
        there = there + length * momentum / mass
        loss, gradient = objective(there)
        momentum = momentum - 0.5 * length * gradient
    after = loss + 0.5 * (momentum.square() / mass).sum(1)
    # What has left all bounds is not accepted.
    probability = torch.nan_to_num(((before - after) / temperature).clamp(max=0).exp(), nan=0.0)
    return torch.where((level < probability)[:, None], there, position), probability


def adapted(step: Tensor, probability: Tensor, group: int) -> Tensor:
    """Steps (S, 1) for the next move: longer where more moves were accepted than is best, shorter where fewer were, for
    each `group` of successive particles alike."""
    mean = probability.reshape(-1, group).mean(1).repeat_interleave(group)
    return step * (mean - _ACCEPTANCE).exp()[:, None]
