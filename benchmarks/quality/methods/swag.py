"""SWAG: a Gaussian fitted to the iterates of SGD at a constant rate (Maddox et al. 2019, "A simple baseline for
Bayesian uncertainty in deep learning", Algorithm 1).

Lengths: M weight vectors side by side, n rows, P weights, K columns of the low-rank part, S samples, O outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from benchmarks.quality.methods.ensemble import predict, train_full, train_on
from benchmarks.quality.predictive import Cost, Outcome, figures
from benchmarks.quality.problem import Problem
from benchmarks.quality.tuning import Choice, Tuned, own_folds
from builder.likelihood import CategoricalLikelihood
from builder.map import Members, training_steps
from builder.out_of_fold import DISPERSIONS
from builder.predictive import sample_outputs

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
"""Learning rates tried, the same for all sets: from too small to leave the MAP network to where SGD often diverges."""

RANK, SAMPLES = 20, 30
SHARE = 0.25
"""Of the steps of training, that SGD takes while it is collected from."""
_MOMENTUM = 0.9
_COLLECTIONS = 100
_LEAST_BATCHES = 10


@dataclass(frozen=True)
class Collected:
    """What SWAG keeps of M trajectories.

    Attributes:
        mean, variance: (M, P) of the iterates, weight by weight.
        deviations: (M, K, P) the last K iterates less the running mean of their time.
        gradient_evaluations: row gradients taken.
    """

    mean: Tensor
    variance: Tensor
    deviations: Tensor
    gradient_evaluations: int

    def draw(self, member: int, samples: int, generator: torch.Generator) -> Tensor:
        """(S, P) from N(mean, variance / 2 + D D^T / (2 (K - 1))) of one trajectory (Eq. 1)."""
        deviations = self.deviations[member]
        diagonal = torch.randn(samples, self.mean.shape[1], generator=generator) * self.variance[member].sqrt()
        low_rank = torch.randn(samples, len(deviations), generator=generator) @ deviations
        return self.mean[member] + (diagonal + low_rank / math.sqrt(max(len(deviations) - 1, 1))) / math.sqrt(2)


def run(problem: Problem, tuned: Tuned, share: float = SHARE) -> dict[str, Outcome]:
    """`swag`: from the MAP network, at the learning rate that serves unseen training rows best."""
    cost = Cost()
    with cost.clock():
        choice, tried = choose(problem, tuned, share)
        trained = train_full(problem, tuned, 1)
        collected, taken = _settled(problem, tuned, trained, choice.rate, share)
        weights = collected.draw(0, SAMPLES, torch.Generator().manual_seed(problem.seed + 43))
        outputs = sample_outputs(problem.network, weights, problem.x_test)
    cost.gradient_evaluations = tried + trained.gradient_evaluations + taken
    predictive = predict(problem, outputs, choice.noise_variance, choice.temperature, choice.dispersion)
    return {"swag": Outcome(predictive, cost + tuned.cost)}


def choose(problem: Problem, tuned: Tuned, share: float = SHARE) -> tuple[Choice, int]:
    """The rate, and the noise or temperature, with the least NLL of the mixture on unseen rows, for networks trained on
    the others, fold by fold; and the gradients that it took.

    The noise is one network's less the samples' variance, never less than a fifth of it; the temperature
    is one network's or 1, for what the samples spread already softens the classes, with the dispersion that suits it.
    """
    member = own_folds(problem)
    trained = train_on(problem, tuned, member, 400, 2)
    taken, drawn = trained.gradient_evaluations, []
    for seen, theta, noise_std in zip(member, trained.weights, trained.noise_std, strict=True):
        collected = collect(problem, theta[None], noise_std[None], torch.tensor(RATES), tuned, seen, share)
        taken += collected.gradient_evaluations
        generators = [torch.Generator().manual_seed(problem.seed + 41) for _ in RATES]
        weights = [collected.draw(place, SAMPLES, generator) for place, generator in enumerate(generators)]
        drawn.append([sample_outputs(problem.network, w, problem.x[~seen]) for w in weights])
    y = torch.cat([problem.y[~seen] for seen in member])
    found = []
    for rate, parts in zip(RATES, zip(*drawn, strict=True), strict=True):
        outputs = torch.cat(parts, dim=1)
        noise = tuned.noise_variance
        if problem.regression:
            noise = tuned.noise_less(float(outputs[..., 0].var(0).mean()))
        softer = product({tuned.temperature_beside(1), 1.0}, (1.0,) if problem.regression else DISPERSIONS)
        for temperature, dispersion in softer:
            # A rate that SGD diverges at is the worst, not an error.
            nll = math.inf
            if bool(outputs.isfinite().all()):
                nll = figures(predict(problem, outputs, noise, temperature, dispersion), y)["nll"]
            found.append((nll, rate, noise, temperature, dispersion))
    return Choice(*min(found)[1:]), taken


def collect(
    problem: Problem,
    start: Tensor,
    noise_std: Tensor,
    rates: Tensor,
    tuned: Tuned,
    rows: Tensor,
    share: float = SHARE,
) -> Collected:
    """Runs SGD from start (M, P), or (1, P) for all, at constant rates (M,) on the rows (n,) that are marked, for a
    share of the steps of training, and collects 100 times.

    The loss is the MAP loss, for regression times the MAP noise (M,) squared: half the squared error, so that one rate
    means the same at any noise. Batches are at most a tenth of the rows: SGD on all rows at once has no gradient noise
    that a Gaussian could be fitted to.
    """
    start, noise_std = start.expand(len(rates), -1), noise_std.expand(len(rates))
    x, y = problem.x[rows], problem.y[rows]
    batch = min(problem.config.map.batch_rows, max(1, len(x) // _LEAST_BATCHES))
    steps = max(2, round(share * training_steps(problem.config.map, problem.network, len(problem.x))))
    every = max(1, steps // _COLLECTIONS)
    decay = 0.5 * tuned.precision / len(x) * (noise_std**2 if problem.regression else torch.ones(len(start)))
    generator = torch.Generator().manual_seed(problem.seed + 3)
    theta, velocity = start.clone(), torch.zeros_like(start)
    # Moments about the start: the square's mean less the mean's square would lose a small variance in single precision.
    total, square, count = torch.zeros_like(start), torch.zeros_like(start), 0
    deviations: list[Tensor] = []
    for step in range(steps):
        chosen = torch.randint(len(x), (batch,), generator=generator)
        theta.requires_grad_()
        outputs = problem.network.batched(theta, x[chosen])
        if problem.regression:
            each = 0.5 * (outputs[..., 0] - y[chosen]) ** 2
        else:
            each = CategoricalLikelihood(outputs.shape[-1]).nll(outputs, y[chosen])
        loss = each.mean(1) + decay * (theta**2).sum(1)
        (gradient,) = torch.autograd.grad(loss.sum(), theta)
        velocity = _MOMENTUM * velocity + gradient
        theta = theta.detach() - rates[:, None] * velocity
        if (step + 1) % every == 0:
            moved = theta - start
            total, square, count = total + moved, square + moved**2, count + 1
            deviations = [*deviations, moved - total / count][-RANK:]
    mean = total / count
    variance = (square / count - mean**2).clamp(min=0)
    return Collected(start + mean, variance, torch.stack(deviations, dim=1), steps * batch * len(start))


def _settled(problem: Problem, tuned: Tuned, trained: Members, rate: float, share: float) -> tuple[Collected, int]:
    """What SGD on all rows collects at the chosen rate, or at the next lower one where it diverges; and the gradients
    of all attempts."""
    rows = torch.ones(len(problem.x), dtype=torch.bool)
    taken = 0
    for tried in sorted((r for r in RATES if r <= rate), reverse=True):
        collected = collect(problem, trained.weights, trained.noise_std, torch.tensor([tried]), tuned, rows, share)
        taken += collected.gradient_evaluations
        if bool(collected.mean.isfinite().all() and collected.variance.isfinite().all()):
            break
    return collected, taken
