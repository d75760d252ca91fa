"""MAP and deep ensembles (Lakshminarayanan et al. 2017): members from different starts, each on all rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.quality.predictive import Cost, Gaussians, Outcome, Predictive, of_samples
from benchmarks.quality.problem import Problem
from benchmarks.quality.tuning import SIZES, Tuned
from builder.map import Members, initial_weights, train_members
from builder.predictive import contracted, mixture_probabilities, sample_outputs
from builder.work import WorkFolder, keep, make_key, on_device, resume

Doubts = Callable[[Problem, Tensor, Tensor], dict[str, Tensor]]
"""Scores (B,) of how unfamiliar the test rows are, from a network's weights (P,) and its outputs (B, O) on them."""


def train_full(problem: Problem, tuned: Tuned, members: int, work: WorkFolder | None = None) -> Members:
    """Networks trained on all rows with the tuned prior precision, or found in `work`, which keeps them."""
    config = problem.config
    key = make_key(
        problem.dataset.fingerprint,
        config.map.model_dump(),
        repr(problem.network.module),
        config.device,
        problem.seed,
        tuned.precision,
        members,
    )
    found = resume(work, "ensemble", key, Members)
    if found is not None:
        return on_device(found, problem.x.device)
    trained = _train(problem, tuned, members)
    keep(work, "ensemble", key, trained)
    return trained


def _train(problem: Problem, tuned: Tuned, members: int) -> Members:
    seen = torch.ones(members, len(problem.x), dtype=torch.bool)
    return train_on(problem, tuned, seen, 500, 1)


def train_on(problem: Problem, tuned: Tuned, member: Tensor, starts: int, batches: int) -> Members:
    """Networks trained on the rows that each has of member (M, n) with the tuned prior precision.

    Args:
        starts, batches: what sets this method's starts, and its batches, apart from those of others.
    """
    count, device = len(member), problem.x.device
    seeds = [problem.seed * 1009 + starts + m for m in range(count)]
    start = initial_weights(problem.factory, problem.network, seeds).to(device)
    precision = torch.full((count,), tuned.precision, device=device)
    config, seed = problem.config.map, problem.seed + batches
    return train_members(problem.network, start, problem.x, problem.y, member.to(device), precision, config, seed)


def run(
    problem: Problem,
    tuned: Tuned,
    sizes: Sequence[int] = SIZES,
    doubts: Doubts = lambda *_: {},
    work: WorkFolder | None = None,
) -> dict[str, Outcome]:
    """`map` with the noise it learned itself or temperature 1, `map_tuned` and the ensembles of these sizes with the
    noise or temperature that out-of-fold rows want beside so many networks.

    `doubts` are those of `map`; `work` keeps the trained networks, for a run that is stopped and goes on.
    """
    cost, members = Cost(), max(sizes)
    with cost.clock():
        trained = train_full(problem, tuned, members, work)
    cost.seconds += work.spared if work else 0.0
    outputs = sample_outputs(problem.network, trained.weights, problem.x_test)
    each = Cost(trained.gradient_evaluations // members, cost.seconds / members)
    own = float(trained.noise_std[0] ** 2)
    tempered = predict(problem, outputs[:1], tuned.noise_variance, tuned.temperature_beside(1))
    found = {
        "map": Outcome(
            predict(problem, outputs[:1], own, 1.0), each, doubts=doubts(problem, trained.weights[0], outputs[0])
        ),
        "map_tuned": Outcome(tempered, each + tuned.cost),
    }
    for size in sizes:
        share = Cost(each.gradient_evaluations * size, each.seconds * size)
        beside = tuned.noise_beside(size), tuned.temperature_beside(size), tuned.dispersion_beside(size)
        answer = predict(problem, outputs[:size], *beside)
        found[f"ensemble_{size}"] = Outcome(answer, share + tuned.cost)
    return found


def predict(
    problem: Problem, outputs: Tensor, noise_variance: float | Tensor, temperature: float, dispersion: float = 1.0
) -> Predictive:
    """The averaged predictive of outputs (S, B, O): of Gaussians with this noise, one or (B,), or of tempered softmaxes
    of logits of this dispersion. Mutual information is of the samples as drawn, which know unfamiliar rows better."""
    if problem.regression:
        variance = torch.as_tensor(noise_variance, dtype=outputs.dtype, device=outputs.device).expand_as(
            outputs[..., 0]
        )
        return Gaussians(outputs[..., 0], variance)
    drawn = of_samples((outputs / temperature).softmax(-1))
    if dispersion == 1:
        return drawn
    return replace(drawn, probabilities=mixture_probabilities(contracted(outputs, dispersion), temperature))
