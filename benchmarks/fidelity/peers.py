"""The peers of the quality benchmark, with the posterior's own noise and prior in place of their choices.

What a peer still has to choose (SWAG's learning rate, the dropout rate) it chooses as there, on training rows.
Lengths: M MAP solutions, S samples, P weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jvp, vmap

from benchmarks.fidelity.target import Target
from benchmarks.quality.methods import dropout, laplace, swag
from benchmarks.quality.predictive import Predictive
from builder.predictive import sample_outputs

_SAMPLES = 500
_ENSEMBLES = (5, 10)


@dataclass(frozen=True)
class Found:
    """What a method says of the posterior.

    Attributes:
        predictive: at the points of comparison.
        weights: (S, P) its samples, where it has such; functions: (S, G, O) what they are worth at the points.
    """

    predictive: Predictive
    weights: Tensor | None = None
    functions: Tensor | None = None


def sampled(target: Target, weights: Tensor) -> Found:
    """What weight samples (S, P) predict together."""
    outputs = sample_outputs(target.problem.network, weights, target.problem.x_test)
    return Found(target.predictive(outputs), weights, outputs)


def run(target: Target, maps: Tensor) -> dict[str, Found]:
    """All peers, from MAP solutions (M, P) of the posterior."""
    found = {"map": sampled(target, maps[:1])} | {
        f"ensemble_{size}": sampled(target, maps[:size]) for size in _ENSEMBLES
    }
    return {**found, **_laplace(target, maps[0]), "swag": _swag(target, maps[0]), "mc_dropout": _dropout(target)}


def _laplace(target: Target, theta: Tensor) -> dict[str, Found]:
    found = {}
    for name, (subset, structure) in laplace.VARIANTS.items():
        posterior = laplace.fit(target.problem, theta, subset, structure)
        posterior.prior_precision = target.precision
        if target.problem.regression:
            posterior.sigma_noise = target.noise_std
        predictive = laplace.predict(target.problem, posterior, target.problem.x_test)
        weights, functions = None, None
        if subset == "all":
            generator = torch.Generator().manual_seed(target.problem.seed)
            weights = posterior.sample(_SAMPLES, generator=generator).float()
            functions = _linearised(target, theta, weights)
        found[name] = Found(predictive, weights, functions)
    return found


def _linearised(target: Target, theta: Tensor, weights: Tensor) -> Tensor:
    """Outputs (S, G, O) of the network's linearisation at theta (P,) for weights (S, P)."""

    def outputs(w: Tensor) -> Tensor:
        return target.problem.network(w, target.problem.x_test)

    with torch.no_grad():
        apart: Tensor = vmap(lambda v: jvp(outputs, (theta,), (v,))[1])(weights - theta)
        return apart + outputs(theta)


def _swag(target: Target, theta: Tensor) -> Found:
    """At the chosen rate, or the highest below it that does not diverge."""
    problem, chosen = target.problem, swag.choose(target.problem, target.tuned)[0].rate
    rates = torch.tensor([rate for rate in swag.RATES if rate <= chosen])
    noise = torch.full((len(rates),), target.noise_std)
    rows = torch.ones(len(problem.x), dtype=torch.bool)
    collected = swag.collect(problem, theta[None], noise, rates, target.tuned, rows)
    sound = (collected.mean.isfinite() & collected.variance.isfinite()).all(1).nonzero()
    weights = collected.draw(int(sound.max()), _SAMPLES, torch.Generator().manual_seed(problem.seed + 43))
    return sampled(target, weights)


def _dropout(target: Target) -> Found:
    problem = target.problem
    rate = dropout.choose(problem, target.tuned)[0].rate
    weights, _ = dropout.train(problem, target.tuned, (rate,), torch.ones(1, len(problem.x), dtype=torch.bool))
    outputs = dropout.passes(problem, weights[0], rate, problem.x_test, _SAMPLES)
    return Found(target.predictive(outputs), functions=outputs)
