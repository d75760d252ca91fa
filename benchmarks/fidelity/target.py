"""The posterior that all methods approximate: one network, one noise, one prior, all training rows.

    -log p(theta | D) = sum_i -log p(y_i | f_theta(x_i)) + precision / 2 norm(theta)^2 + const

Noise and precision are fixed, so that there is one right answer. They come from cross-fitted MAP networks, on training
rows alone. Lengths: S weight vectors, P weights, n training rows, G points of comparison, O outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.quality.predictive import Classes, Gaussians, Predictive
from benchmarks.quality.problem import Problem
from benchmarks.quality.tuning import Tuned, tune
from builder.likelihood import CategoricalLikelihood, GaussianLikelihood, Likelihood
from builder.map import initial_weights, learning_rate, training_steps


@dataclass(frozen=True)
class Target:
    """A posterior.

    Attributes:
        problem: the network and the training rows; `x_test` holds the points at which predictions are compared.
        tuned: `noise_variance` and `precision` are the posterior's own.
    """

    problem: Problem
    tuned: Tuned

    @property
    def noise_std(self) -> float:
        """The fixed noise, in standardised target units; of no meaning for classification."""
        return math.sqrt(self.tuned.noise_variance)

    @property
    def precision(self) -> float:
        """The fixed precision of the prior of every weight."""
        return self.tuned.precision

    @property
    def likelihood(self) -> Likelihood:
        """log p(y | f)."""
        if self.problem.regression:
            return GaussianLikelihood(self.noise_std)
        return CategoricalLikelihood(self.problem.dataset.outputs)

    def potential(self, thetas: Tensor) -> Tensor:
        """(S,) -log p(theta | D) up to a constant, for weights (S, P)."""
        nll = self.likelihood.nll(self.problem.network.batched(thetas, self.problem.x), self.problem.y)
        return nll.sum(1) + 0.5 * self.precision * thetas.square().sum(1)

    def predictive(self, outputs: Tensor) -> Predictive:
        """The averaged predictive of outputs (S, G, O)."""
        if self.problem.regression:
            mean = outputs[..., 0]
            return Gaussians(mean, torch.full_like(mean, self.noise_std**2))
        return Classes(outputs.softmax(-1).mean(0))


def make_target(problem: Problem) -> Target:
    """The posterior with the noise and the prior that rows which a network has not seen want."""
    return Target(problem, tune(problem))


def find_maps(target: Target, count: int, seed: int) -> tuple[Tensor, int]:
    """MAP solutions (count, P) of the posterior from different starts, and the row gradients that they took.

    As the builder trains, but for the noise, which is fixed here.
    """
    problem, budget = target.problem, target.problem.config.map
    seeds = [seed * 1009 + 700 + m for m in range(count)]
    theta = initial_weights(problem.factory, problem.network, seeds).requires_grad_()
    rate = learning_rate(budget, problem.network)
    steps = training_steps(budget, problem.network, len(problem.x))
    optimiser = torch.optim.Adam([theta], lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rate, total_steps=steps, pct_start=0.11, anneal_strategy="cos"
    )
    for _ in range(steps):
        optimiser.zero_grad()
        torch.autograd.backward(target.potential(theta).sum() / len(problem.x))
        optimiser.step()
        schedule.step()
    return theta.detach(), steps * len(problem.x) * count
