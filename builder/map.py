"""MAP training: several anchors, each on its own part of the rows, as one batch of weight vectors.

An anchor minimises `sum_i -log p(y_i | f_theta(x_i)) + prior_precision/2 * norm(theta)^2` over its rows. With a
Gaussian likelihood the noise is learned along with the weights, one for each anchor.

Lengths: A anchors, n rows, P weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from builder.accelerator import Recorded, outputs_for_gradients
from builder.augmentation import augmented
from builder.config import MapConfig
from builder.distributed import from_first, gathered, share
from builder.likelihood import CategoricalLikelihood, gaussian_nll
from builder.network import FunctionalNetwork, NetworkFactory
from builder.predictive import sample_outputs
from builder.progress import StepReport, silent
from builder.runtime import concurrently, side_by_side

_SMALL_NETWORK = 10_000
"""Weights up to which the larger rate is better out of fold, most where noise is small."""
_PASSES, _STEPS = 400, (4_000, 16_000)
"""Of training by default: over the rows, and the fewest and most."""
_ENOUGH = 5
"""Anchors that choose a prior precision where all leave out the same rows."""
_WORK = 1e10
"""Weights x rows x steps beyond which there are no more than the fewest: of a table of 60 columns the most would take a
build longer than five minutes on two cores."""


@dataclass(frozen=True)
class Anchors:
    """MAP solutions.

    Attributes:
        weights: (A, P).
        noise_std: (A,) learned noise in standardised target units; ones for classification.
        prior_precision: of the Gaussian prior.
        out_of_fold: mean out-of-fold loss for each prior precision tried.
        loss: mean training loss at the end.
        gradient_evaluations: row gradients taken.
    """

    weights: Tensor
    noise_std: Tensor
    prior_precision: float
    out_of_fold: dict[str, float]
    loss: float
    gradient_evaluations: int


def initial_weights(factory: NetworkFactory, network: FunctionalNetwork, seeds: Sequence[int]) -> Tensor:
    """(A, P): one freshly initialised network for each seed."""
    found = []
    for seed in seeds:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found.append(network.flatten(dict(factory().named_parameters())))
    return torch.stack(found)


def training_steps(config: MapConfig, network: FunctionalNetwork, rows: int) -> int:
    """Optimiser steps of training on so many rows: small networks take more where there are many, as they are far from
    converged otherwise, above all where there is little noise."""
    if config.steps is not None:
        return config.steps
    least, most = _STEPS
    batch = min(config.batch_rows, rows)
    wanted = min(_PASSES * rows // batch, most, int(_WORK / (network.weights * batch)))
    return max(least, wanted) if network.weights <= _SMALL_NETWORK else least


def learning_rate(config: MapConfig, network: FunctionalNetwork) -> float:
    """The highest rate of the schedule."""
    if config.learning_rate is not None:
        return config.learning_rate
    return 0.02 if network.weights <= _SMALL_NETWORK else 0.01


@dataclass(frozen=True)
class Members:
    """Weight vectors trained side by side.

    Attributes:
        weights: (M, P).
        noise_std: (M,) learned noise in standardised target units; of no meaning for classification.
        loss: (M,) training loss a row at the end.
        gradient_evaluations: row gradients taken.
    """

    weights: Tensor
    noise_std: Tensor
    loss: Tensor
    gradient_evaluations: int


def train_members(
    network: FunctionalNetwork,
    start: Tensor,
    x: Tensor,
    y: Tensor,
    member: Tensor,
    precision: Tensor,
    config: MapConfig,
    seed: int = 0,
    report: StepReport = silent,
) -> Members:
    """Trains M weight vectors as one batch, each on its own rows; several processes train a part of them each.

    Args:
        network: all weights random.
        start: (M, P) first weights.
        x: (n, ...) encoded inputs.
        y: (n,) standardised targets (float) or class indices (int64).
        member: (M, n) bool, the rows that each is trained on.
        precision: (M,) prior precision of each.
    """
    count, own = len(start), share(len(start))
    theta = start[own].clone().requires_grad_()
    log_noise = torch.full((len(theta),), -1.0, device=x.device).requires_grad_()
    weight, precision = member[own].float(), precision[own]
    regression = y.is_floating_point()

    rate, steps = learning_rate(config, network), training_steps(config, network, len(x))
    learned = [theta, log_noise] if regression else [theta]
    optimiser = _optimiser(config, learned, rate)
    # torch divides by zero where the share of the steps that rise is exactly one step; of 0.11 it never is.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rate, total_steps=steps, pct_start=0.11, anneal_strategy="cos"
    )
    generator = torch.Generator().manual_seed(seed)
    rows = weight.sum(1)
    batch = min(config.batch_rows, len(x))

    def gradients(
        own: FunctionalNetwork, weights: Tensor, noise: Tensor, decay: Tensor, xb: Tensor, yb: Tensor, wb: Tensor
    ) -> tuple[Tensor, ...]:
        weights, noise = weights.detach().requires_grad_(), noise.detach().requires_grad_()
        each = _nll(outputs_for_gradients(own, weights, xb), yb, noise.exp()[:, None], regression)
        loss = (wb * each).sum(1)
        slope, *rest = torch.autograd.grad(loss.sum(), [weights, noise] if regression else [weights])
        weights = weights.detach()
        pull = decay[:, None] * weights
        return loss.detach() + 0.5 * (pull * weights).sum(1), slope + pull, *rest

    loss, decay = torch.zeros(len(theta)), precision / rows
    with side_by_side(network.faster_apart(len(theta), x.device)) as threads:
        groups = [(g, Recorded(partial(gradients, own))) for g, own in network.divided(len(theta), threads)]

        def of_all(xb: Tensor, yb: Tensor, wb: Tensor) -> list[Tensor]:
            def of_group(group: tuple[slice, Recorded]) -> tuple[Tensor, ...]:
                g, recorded = group
                return recorded(theta.detach()[g], log_noise.detach()[g], decay[g], xb, yb, wb[g])

            return [torch.cat(parts) for parts in zip(*concurrently(threads, of_group, groups), strict=True)]

        for step in range(steps):
            if batch < len(x):
                chosen = torch.randint(len(x), (batch,), generator=generator).to(x.device)
                xb, yb, wb = x[chosen], y[chosen], weight.index_select(1, chosen)
                wb = wb / wb.sum(1, keepdim=True).clamp(min=1)
            else:
                xb, yb, wb = x, y, weight / rows[:, None]
            loss, *found = of_all(augmented(xb, config.augment, generator), yb, wb)
            for value, gradient in zip(learned, found, strict=True):
                value.grad = gradient
            optimiser.step()
            schedule.step()
            if step % 20 == 0 or step == steps - 1:
                report(step + 1, steps, float(loss.mean()))
    weights, noise, loss = (gathered(part.detach(), count) for part in (theta, log_noise.exp(), loss))
    return Members(weights, noise, loss, steps * batch * count)


def _optimiser(config: MapConfig, learned: list[Tensor], rate: float) -> torch.optim.Optimizer:
    if config.optimiser == "sgd":
        # The schedule cycles it, against the rate: from .95 to .85 and back.
        return torch.optim.SGD(learned, lr=rate, momentum=0.95, nesterov=True)
    # Fused it takes half the time, but rounds a weight by its place among all, which is another with more processes.
    return torch.optim.Adam(learned, lr=rate)


def train_anchors(
    network: FunctionalNetwork,
    factory: NetworkFactory,
    x: Tensor,
    y: Tensor,
    member: Tensor,
    config: MapConfig,
    seed: int = 0,
    report: StepReport = silent,
) -> Anchors:
    """Trains one anchor for each row of `member` (A, n), and picks the prior precision by the rows each did not see.

    All prior precisions of the config are trained side by side, each with the anchors of the first round of folds; the
    other anchors follow with the one that was picked. The loss that decides between them is, for regression, the
    out-of-fold NLL at the out-of-fold noise, for classification the out-of-fold NLL. Arguments as of `train_members`.
    """
    precisions, anchors = config.prior_precision, member.shape[0]
    first = anchors if len(precisions) == 1 else _first_round(member)
    start = _starts(factory, network, anchors, seed).to(x.device)
    once = training_steps(config, network, len(x))
    steps = once * (1 if first == anchors else 2)

    def train(part: slice, tried: list[float], done: int) -> Members:
        def shifted(step: int, _steps: int, loss: float) -> None:
            report(done + step, steps, loss)

        weights, rows = start[part], member[part]
        precision = torch.tensor(tried, device=x.device).repeat_interleave(len(weights))
        many = len(tried)
        return train_members(
            network, weights.repeat(many, 1), x, y, rows.repeat(many, 1), precision, config, seed + done, shifted
        )

    trained = train(slice(first), precisions, 0)
    regression = y.is_floating_point()
    scores = {
        p: _out_of_fold(network, trained.weights[i * first : (i + 1) * first], x, y, member[:first], regression)
        for i, p in enumerate(precisions)
    }
    best = from_first(min(scores, key=lambda p: scores[p]))
    chosen = slice(precisions.index(best) * first, (precisions.index(best) + 1) * first)
    weights, noise, loss = trained.weights[chosen], trained.noise_std[chosen], trained.loss[chosen]
    evaluations = trained.gradient_evaluations
    if first < anchors:
        others = train(slice(first, anchors), [best], once)
        weights = torch.cat([weights, others.weights])
        noise, loss = torch.cat([noise, others.noise_std]), torch.cat([loss, others.loss])
        evaluations += others.gradient_evaluations
    return Anchors(
        weights=weights.contiguous(),
        noise_std=noise.contiguous() if regression else torch.ones(anchors, device=x.device),
        prior_precision=best,
        out_of_fold={str(p): score for p, score in scores.items()},
        loss=float(loss.mean()),
        gradient_evaluations=evaluations,
    )


def _first_round(member: Tensor) -> int:
    """How many of the anchors of member (A, n) choose: a round of folds, which ends where every row has been left out.

    With one part that all leave out there is none, and a few anchors are enough."""
    left_out = (~member).cumsum(0).bool().all(1)
    return int(left_out.int().argmax()) + 1 if bool(left_out.any()) else min(len(member), _ENOUGH)


def refit_anchors(
    network: FunctionalNetwork,
    factory: NetworkFactory,
    anchors: Anchors,
    x: Tensor,
    y: Tensor,
    config: MapConfig,
    seed: int = 0,
    report: StepReport = silent,
) -> Anchors:
    """The anchors, or the first `config.served` of them, trained anew, each from its own start in the same way, but on
    all rows.

    They are what is served, once everything has been chosen on rows that the first ones left out. To go on from these
    would be cheaper, but serve networks that are trained for longer than those that were judged.
    `gradient_evaluations` are those of this alone. Arguments as of `train_members`.
    """
    count = config.served or len(anchors.weights)
    start = _starts(factory, network, count, seed).to(x.device)
    every = torch.ones(count, len(x), dtype=torch.bool, device=x.device)
    precision = torch.full((count,), anchors.prior_precision, device=x.device)
    found = train_members(network, start, x, y, every, precision, config, seed, report)
    return replace(
        anchors,
        weights=found.weights,
        noise_std=found.noise_std if y.is_floating_point() else anchors.noise_std[:count],
        loss=float(found.loss.mean()),
        gradient_evaluations=found.gradient_evaluations,
    )


def _starts(factory: NetworkFactory, network: FunctionalNetwork, anchors: int, seed: int) -> Tensor:
    """(A, P) first weights of a build's anchors."""
    return initial_weights(factory, network, [seed * 1009 + a for a in range(anchors)])


def given_anchor(network: FunctionalNetwork, x: Tensor, y: Tensor, member: Tensor, config: MapConfig) -> Anchors:
    """The user's own trained weights as the one anchor; the noise is that of its residuals.

    The prior precision cannot be chosen by training here: it is the middle one of the config's.
    """
    weights = network.current()[None]
    noise, loss = torch.ones(1, device=x.device), 0.0
    outputs = sample_outputs(network, weights, x[member[0]])[0]
    if y.is_floating_point():
        noise = (outputs[:, 0] - y[member[0]]).square().mean().sqrt().clamp(min=1e-6).reshape(1)
    loss = float(_nll(outputs, y[member[0]], noise, y.is_floating_point()).mean())
    precision = sorted(config.prior_precision)[len(config.prior_precision) // 2]
    return Anchors(weights, noise, precision, {}, loss, 0)


def own_fold_outputs(network: FunctionalNetwork, weights: Tensor, x: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs of each anchor on the rows it did not see: (m, O), and the indices (m,) of these rows."""
    outputs, rows = [], []
    for theta, seen in zip(weights, member, strict=True):
        held = (~seen).nonzero().squeeze(1)
        if held.numel():
            outputs.append(sample_outputs(network, theta[None], x[held])[0])
            rows.append(held)
    return torch.cat(outputs), torch.cat(rows)


def _out_of_fold(
    network: FunctionalNetwork, weights: Tensor, x: Tensor, y: Tensor, member: Tensor, regression: bool
) -> float:
    outputs, rows = own_fold_outputs(network, weights, x, member)
    noise = (outputs[:, 0] - y[rows]).square().mean().sqrt().clamp(min=1e-6) if regression else torch.ones(())
    value = float(_nll(outputs, y[rows], noise, regression).mean())
    return value if value == value else float("inf")


def _nll(outputs: Tensor, y: Tensor, noise: Tensor, regression: bool) -> Tensor:
    if regression:
        return gaussian_nll(outputs[..., 0], y, noise)
    return CategoricalLikelihood(outputs.shape[-1]).nll(outputs, y)
