"""Monte Carlo dropout (Gal and Ghahramani 2016, "Dropout as a Bayesian approximation"), dropout before every layer.

Lengths: M weight vectors side by side, each with masks of its own, n rows, P weights, B rows, S passes, O outputs.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.func import vmap

from benchmarks.quality.methods.ensemble import predict
from benchmarks.quality.predictive import Cost, Outcome
from benchmarks.quality.problem import Problem
from benchmarks.quality.tuning import Choice, Tuned, own_folds
from builder.map import initial_weights, train_members
from builder.network import FunctionalNetwork
from builder.out_of_fold import OutOfFold

RATES = (0.005, 0.01, 0.05, 0.1)
"""Dropout rates tried: those of Gal's experiments on the same sets."""

PASSES = 100
_ACTIVATION_ENTRIES = 2**24


class DropoutNetwork(FunctionalNetwork):
    """A network with dropout on what goes into each of its linear and convolutional layers, the inputs among it."""

    def __init__(self, module: nn.Module, rates: Tensor, seed: int) -> None:
        """Args:
        module: the network without dropout; it is copied.
        rates: (M,) each weight vector's share of dropped units, or (1,) for all.
        seed: of the masks.
        """
        super().__init__(copy.deepcopy(module))
        self._without = module
        self.rates = rates
        self.generator = torch.Generator().manual_seed(seed)
        self._keep = 1 - rates[0]
        for layer in self.module.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.register_forward_pre_hook(self._drop)

    def batched(self, thetas: Tensor, x: Tensor) -> Tensor:
        """Outputs (M, B, O) for weight vectors (M, P), with masks drawn for each weight vector, row and unit."""

        def one(theta: Tensor, rate: Tensor) -> Tensor:
            self._keep = 1 - rate
            return self(theta, x)

        return vmap(one, randomness="different")(thetas, self.rates.expand(len(thetas)))

    def divided(self, count: int, threads: int) -> list[tuple[slice, FunctionalNetwork]]:
        """Each part with its own weight vectors' rates, and masks of its own."""
        found: list[tuple[slice, FunctionalNetwork]] = []
        for i, (part, _) in enumerate(super().divided(count, threads)):
            rates = self.rates.expand(count)[part]
            found.append((part, DropoutNetwork(self._without, rates, self.generator.initial_seed() + i)))
        return found

    def _drop(self, _layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        """What is kept is scaled up, so that the mean of what a layer gets is as without dropout (Srivastava et al.
        2014)."""
        mask = torch.rand(inputs[0].shape, generator=self.generator) < self._keep
        return (inputs[0] * mask / self._keep,)


def run(problem: Problem, tuned: Tuned) -> dict[str, Outcome]:
    """`mc_dropout`: trained on all rows at the rate chosen on cross-fitted ones."""
    cost = Cost()
    with cost.clock():
        choice, tried = choose(problem, tuned)
        seen = torch.ones(1, len(problem.x), dtype=torch.bool)
        weights, taken = train(problem, tuned, (choice.rate,), seen)
        outputs = passes(problem, weights[0], choice.rate, problem.x_test)
    cost.gradient_evaluations = tried + taken
    predictive = predict(problem, outputs, choice.noise_variance, choice.temperature, choice.dispersion)
    return {"mc_dropout": Outcome(predictive, cost + tuned.cost)}


def choose(problem: Problem, tuned: Tuned) -> tuple[Choice, int]:
    """The rate with the least NLL of the averaged passes on out-of-fold rows, each rate with its own best noise or
    temperature; and the gradients that it took."""
    member = own_folds(problem)
    weights, taken = train(problem, tuned, RATES, member)
    y = torch.cat([problem.y[~seen] for seen in member])
    found = []
    for rate, thetas in zip(RATES, weights.reshape(len(RATES), len(member), -1), strict=True):
        outputs = torch.cat(
            [passes(problem, theta, rate, problem.x[~seen]) for theta, seen in zip(thetas, member, strict=True)], dim=1
        )
        unseen = OutOfFold([outputs], y, 1)
        if problem.regression:
            noise, nll = unseen.fit()
            choice = Choice(rate, noise, 1.0)
        else:
            temperature, dispersion, nll = unseen.fit_dispersed()
            choice = Choice(rate, 1.0, temperature, dispersion)
        found.append((float(torch.nan_to_num(nll.mean(), nan=torch.inf)), choice))
    return min(found, key=lambda tried: tried[0])[1], taken


def train(problem: Problem, tuned: Tuned, rates: tuple[float, ...], member: Tensor) -> tuple[Tensor, int]:
    """Weights (rates * folds, P), each rate on all folds of member (folds, n), and the gradients that it took.

    Trained as every other method's networks are, but for the masks: the loss of one pass a step is an unbiased estimate
    of the variational objective (Gal and Ghahramani 2016, section 3).
    """
    folds, many = len(member), len(rates)
    start = initial_weights(problem.factory, problem.network, [problem.seed * 1009 + 600 + a for a in range(folds)])
    network = DropoutNetwork(
        problem.network.module, torch.tensor(rates).repeat_interleave(folds), problem.seed * 1009 + 601
    )
    trained = train_members(
        network,
        start.repeat(many, 1),
        problem.x,
        problem.y,
        member.repeat(many, 1),
        torch.full((many * folds,), tuned.precision),
        problem.config.map,
        problem.seed + 4,
    )
    return trained.weights, trained.gradient_evaluations


def passes(problem: Problem, theta: Tensor, rate: float, x: Tensor, count: int = PASSES) -> Tensor:
    """Outputs (S, B, O) of stochastic passes with one weight vector theta (P,) for x (B, d)."""
    network = DropoutNetwork(problem.network.module, torch.tensor([rate]), problem.seed * 1009 + 602)
    rows = max(1, _ACTIVATION_ENTRIES // (count * problem.network.activations(x[:1])))
    found = []
    with torch.no_grad():
        for part in torch.split(x, rows):
            # One weight vector and each row many times: masks differ from row to row as well.
            outputs = network.batched(theta[None], part.repeat(count, *[1] * (x.ndim - 1)))[0]
            found.append(outputs.reshape(count, len(part), -1))
    return torch.cat(found, dim=1)
