"""Fiber sampling: particles walk away from their anchor by drift, and refinement keeps them on the low-loss set.

Particle i of anchor a has a drift direction d_i, a draw from the Gaussian approximation of the posterior at the anchor
(`builder.curvature`). Step t moves it by `(c_t - c_{t-1}) d_i`, then M gradient steps refine it on the perturbed
objective whose minimum, for a linear network, is exactly `theta* + c_t d_i`:

    L_t(theta) = sum_i -log p(y_i | f_i) - c_t sum_i <e_i, f_i> + 1/2 norm(theta - c_t delta)^2_Lambda

so refinement neither pulls a particle back to the MAP nor lets it leave the fiber, however many steps are taken, and at
c = 1 the particles are exact posterior draws of a linear-Gaussian model. This is our reading of "drift and refinement"
in MetricBNN (arXiv 2512.01500), where the direction is isotropic and the objective is not perturbed: the plain choice
needs a drift scale of its own for every data set and collapses onto the MAP where M is large. Gradients are
preconditioned by the root of the anchor's curvature: its condition number is far beyond what plain descent can cross in
any M, and particles would stay where drift had put them along all but its steepest directions. The whole curvature
would be too much: directions that are flat at the anchor are stiff further out. The plain choices are options too
(`direction`, `objective`, `flattening`), so that they can be measured.

With the option `moves` a node is where Hamiltonian moves at temperature c_t^2 (`builder.hamiltonian`) bring particles
from there: where the posterior is narrow and curved, refinement does not bring them to its mass in any affordable M.

The drift scales c_1 < ... < c_T grow geometrically. A trajectory so passes through every scale from a hundredth of the
posterior's radius to beyond it, and which part of it is used is chosen afterwards, on out-of-fold predictions.

Lengths: A anchors, N particles an anchor, T drift steps, M refinement steps, P weights, n rows, O outputs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue

import torch
from torch import Tensor

from builder.accelerator import Recorded, outputs_for_gradients
from builder.augmentation import Augmentation, augmented
from builder.config import FiberConfig
from builder.curvature import Preconditioner, draw_posterior, enough_rows, largest_eigenvalue, make_preconditioner
from builder.distributed import from_first, gathered, share
from builder.fiber_plan import drift_scales, plan_work
from builder.hamiltonian import adapted, move
from builder.likelihood import Likelihood
from builder.network import FunctionalNetwork
from builder.predictive import sample_outputs
from builder.progress import StepReport, silent
from builder.runtime import concurrently, side_by_side, values_at_once
from model_store.errors import ConfigError

_GROWTH = 1.1
"""Of a particle's step, each time that its loss did not rise."""
_CHECKED, _CONVERGED = 10, 0.05
"""Refinement ends early where so many steps gain less than this many nats of log posterior a particle."""
_FARTHEST = 3.0
"""Times the drift, or what is usual where that is more, that a sound particle is away from its anchor."""


@dataclass(frozen=True)
class Fibers:
    """Trajectories through weight space.

    Attributes:
        nodes: (T+1, A, N, P), position 0 the anchors.
        scales: (T+1,) drift scale c_t of each node.
        loss: (T+1, A, N) unperturbed loss for each training row; of some, evenly chosen, where gradients are of a part.
        unseen: (A,) the same of each anchor for the rows that it was not trained on; infinite where there are none.
        drift_length: (A, N) length of the whole drift, without refinement.
        stranded: (A, N) bool, particles that diverged and stay at their last sound node.
        gradient_evaluations: row gradients taken.
    """

    nodes: Tensor
    scales: Tensor
    loss: Tensor
    unseen: Tensor
    drift_length: Tensor
    stranded: Tensor
    gradient_evaluations: int


def walk_fibers(
    network: FunctionalNetwork,
    anchors: Tensor,
    x: Tensor,
    y: Tensor,
    member: Tensor,
    likelihood: Likelihood,
    prior_precision: Tensor,
    config: FiberConfig,
    seed: int = 0,
    report: StepReport = silent,
    last: int | None = None,
    augment: Sequence[Augmentation] = (),
) -> Fibers:
    """Walks N particles away from each anchor; several processes walk a part of them each.

    Args:
        network: its random weights are those that drift.
        anchors: (A, P) MAP solutions.
        x: (n, ...) encoded inputs; y: (n,) targets.
        member: (A, n) bool, the rows of each anchor.
        prior_precision: (P,).
        last: node where the walk ends, at least 1; default T.
        augment: changes of the images that gradients are taken of, where these are of a part of the rows.
    """
    last = last or config.steps
    generator = torch.Generator().manual_seed(seed + 7919)
    walk = _Walk(network, anchors, x, y, member, likelihood, prior_precision, config, generator, augment)
    scales = drift_scales(config)[: last + 1]
    nodes, losses = [walk.position.clone()], [walk.plain_loss(walk.position)]
    for t in range(1, last + 1):
        walk.drift(float(scales[t] - scales[t - 1]))
        earlier, scale = math.inf, float(scales[t])
        with side_by_side(x.device.type == "cpu") as walk.threads:
            for step in range(walk.refinement):
                loss = walk.refine(scale)
                report((t - 1) * walk.refinement + step + 1, last * walk.refinement, loss / len(x))
                if step % _CHECKED == 0:
                    if from_first(walk.exact and earlier - loss < _CONVERGED):
                        break
                    earlier = loss
        loss_there = walk.strand_diverged(scale, nodes[0], nodes[-1], losses[-1])
        nodes.append(walk.settled(scale))
        losses.append(walk.plain_loss(nodes[-1]) if config.moves else loss_there)
    shape = (last + 1, anchors.shape[0], walk.particles)
    return Fibers(
        nodes=torch.stack([gathered(node, walk.count) for node in nodes]).reshape(*shape, -1),
        scales=scales.to(torch.float32),
        loss=torch.stack([gathered(loss, walk.count) for loss in losses]).reshape(shape),
        unseen=_unseen_loss(network, anchors, x, y, member, likelihood),
        drift_length=gathered((scales[-1] * walk.direction.norm(dim=1)).float(), walk.count).reshape(shape[1:]),
        stranded=gathered(walk.stranded, walk.count).reshape(shape[1:]),
        gradient_evaluations=walk.gradient_evaluations,
    )


def _unseen_loss(
    network: FunctionalNetwork, anchors: Tensor, x: Tensor, y: Tensor, member: Tensor, likelihood: Likelihood
) -> Tensor:
    found = torch.full((len(anchors),), math.inf, device=x.device)
    for a, (theta, seen) in enumerate(zip(anchors, member, strict=True)):
        rows = (~seen).nonzero().squeeze(1)
        if len(rows):
            found[a] = likelihood.nll(sample_outputs(network, theta[None], x[rows]), y[rows]).mean()
    return found


class _Walk:
    """State of the particles of all anchors, A*N weight vectors, as one batch; of this process's share of them."""

    def __init__(
        self,
        network: FunctionalNetwork,
        anchors: Tensor,
        x: Tensor,
        y: Tensor,
        member: Tensor,
        likelihood: Likelihood,
        prior_precision: Tensor,
        config: FiberConfig,
        generator: torch.Generator,
        augment: Sequence[Augmentation] = (),
    ) -> None:
        self.augment = augment
        self.network, self.x, self.y, self.likelihood = network, x, y, likelihood
        self.prior_precision, self.config, self.generator = prior_precision, config, generator
        plan = plan_work(network, x, len(anchors), config)
        self.particles, self.refinement, self.batch_rows = plan.trajectories, plan.refinement, plan.rows
        n, device = len(x), x.device
        self.exact = self.batch_rows == n
        # A node's loss is to cost no more than a third of the gradients that lead to it.
        judged = n if self.exact else min(n, self.batch_rows * max(1, self.refinement))
        self.judged = torch.arange(0, n, -(-n // judged), device=device)
        self.count = len(anchors) * self.particles
        own = share(self.count)
        self.position = anchors.repeat_interleave(self.particles, 0)[own].clone()
        if config.moves and len(self.position) < self.count:
            raise ConfigError("Hamiltonian moves need one process; leave torchrun out.", field="fiber.moves")
        self.member = member.repeat_interleave(self.particles, 0)[own].float()
        # Rows last in memory, as outputs have them (`FunctionalNetwork.batched`).
        self.scores = torch.zeros(len(self.position), likelihood.outputs, n, device=device).mT
        directions, priors, steps, moving_steps = (list[Tensor]() for _ in range(4))
        self.preconditioners: list[Preconditioner] = []
        enough = enough_rows(network, x)
        for a, (theta, seen) in enumerate(zip(anchors, member, strict=True)):
            rows = seen.nonzero().squeeze(1)
            before = a * self.particles
            here = slice(max(0, own.start - before), max(0, own.stop - before))
            draws = draw_posterior(
                network,
                theta,
                x,
                rows,
                likelihood,
                prior_precision,
                self.particles,
                config.curvature_rows,
                generator,
                here,
            )
            if not len(draws.direction):
                continue
            directions.append(draws.direction if config.direction == "posterior" else draws.prior)
            if config.objective == "perturbed":
                at = sum(len(found) for found in priors)
                self.scores[at : at + len(draws.prior), draws.rows] = draws.scores
                priors.append(draws.prior)
            else:
                priors.append(torch.zeros_like(draws.prior))
            some = rows[:: max(1, len(rows) // enough)]
            flatten = make_preconditioner(
                network, theta, x[rows], likelihood, prior_precision, len(rows), config.flattening
            )
            self.preconditioners.append(flatten)
            up = len(rows) / len(some)
            top = largest_eigenvalue(network, theta, x[some], likelihood, prior_precision, up, preconditioner=flatten)
            steps.append(torch.full((len(draws.direction), 1), 1.0 / top, device=device))
            if config.moves:
                units = Preconditioner(theta.new_zeros(len(theta), 0), theta.new_zeros(0), prior_precision.rsqrt())
                top = largest_eigenvalue(network, theta, x[some], likelihood, prior_precision, up, preconditioner=units)
                moving_steps.append(torch.full((len(draws.direction), 1), top**-0.5, device=device))
        self.of_anchor = [len(d) for d in directions]
        self.direction, self.prior = torch.cat(directions), torch.cat(priors)
        self.longest = torch.cat(steps)
        self.step = self.longest.clone()
        self.moving_step = torch.cat(moving_steps) if moving_steps else self.step
        self.stranded = torch.zeros(len(self.position), dtype=torch.bool, device=device)
        self.gradient_evaluations = 0
        self.threads = 1
        # A functional call puts its weights into the module for as long as it runs: each thread has a copy.
        self.gradients: SimpleQueue[Recorded] = SimpleQueue()
        on_cpu = device.type == "cpu"
        for _ in range(torch.get_num_threads() if on_cpu else 1):
            self.gradients.put(Recorded(partial(self._data_part, copy.deepcopy(network) if on_cpu else network)))
        # Particles and rows are split where the activations of one gradient would not fit.
        per_row = network.activations(x[:1])
        values = values_at_once(device.type)
        together = 64 if on_cpu else min(256, self.batch_rows)
        most = 1 if on_cpu and network.in_turn(device) else values // max(1, per_row * together)
        self.group = max(1, min(len(self.position), most))
        self.chunk = max(1, values // (self.group * per_row))
        zero = likelihood.nll(torch.zeros(1, len(self.judged), likelihood.outputs, device=device), y[self.judged])
        seen_rows = self.member[:, self.judged]
        self.worst = torch.maximum((seen_rows * zero).sum(1) / seen_rows.sum(1), self.plain_loss(self.position))
        self._forget()

    def _forget(self) -> None:
        self.velocity = torch.zeros_like(self.position)
        self.before: tuple[Tensor, Tensor, Tensor] | None = None

    def drift(self, increment: float) -> None:
        """Moves every particle that is not stranded along its direction."""
        moving = (~self.stranded).unsqueeze(1)
        self.position = torch.where(moving, self.position + increment * self.direction, self.position)
        self.step = torch.minimum(self.longest, 2 * self.step)
        self._forget()

    def refine(self, scale: float) -> float:
        """One gradient step with momentum on the perturbed objective; returns its mean over the particles, in nats.

        Gradients are preconditioned by a power of the anchor's curvature. Where a particle's loss rose, the last step
        is taken back, its momentum forgotten and its step halved (adaptive restart: O'Donoghue and Candes 2015), since
        the curvature away from the anchor can be larger; elsewhere steps grow slowly.
        """
        loss, gradient = self._objective(self.position, scale)
        if self.before is not None:
            position, last_loss, last_gradient = self.before
            worse = ~(loss <= last_loss + self._slack(last_loss))
            at = worse.unsqueeze(1)
            self.position = torch.where(at, position, self.position)
            gradient = torch.where(at, last_gradient, gradient)
            loss = torch.where(worse, last_loss, loss)
            self.velocity = torch.where(at, torch.zeros_like(self.velocity), self.velocity)
            self.step = torch.where(at, 0.5 * self.step, (_GROWTH if self.exact else 1.0) * self.step)
        self.before = (self.position, loss, gradient)
        momentum = self.config.momentum
        self.velocity = momentum * self.velocity + self._flattened(gradient)
        # The momentum sums up gradients, so the step is shortened by as much (times two: stable up to 2/lambda).
        length = self.step * (2 * (1 - momentum) if momentum > 0.5 else 1.0)
        moving = (~self.stranded).unsqueeze(1)
        self.position = torch.where(moving, self.position - length * self.velocity, self.position)
        loss = gathered(loss, self.count)
        return float(loss[torch.isfinite(loss)].mean())

    def _slack(self, loss: Tensor) -> Tensor:
        """By how much a loss may rise and still count as no rise: rounding, or what parts of the rows differ by."""
        return 1e-5 * loss.abs() + 1e-6 if self.exact else loss.abs() + len(self.x)

    def settled(self, scale: float) -> Tensor:
        """The particles after Hamiltonian moves at temperature scale^2; the walk itself goes on from where they were,
        for what a move does has nothing to do with a particle's direction and perturbations."""
        position = self.position.clone()
        with side_by_side(self.x.device.type == "cpu") as self.threads:
            for _ in range(self.config.moves):
                found, probability = move(
                    lambda at: self._objective(at, 0.0),
                    position,
                    self.prior_precision,
                    self.moving_step,
                    self.config.leapfrog,
                    scale**2,
                    self.generator,
                )
                self.moving_step = adapted(self.moving_step, probability, self.particles)
                position = torch.where(self.stranded.unsqueeze(1), position, found)
        return position

    def _flattened(self, gradient: Tensor) -> Tensor:
        """Gradients of the particles, each preconditioned by the curvature at its anchor."""
        parts = torch.split(gradient, self.of_anchor)
        return torch.cat([flatten(g) for flatten, g in zip(self.preconditioners, parts, strict=True)])

    def strand_diverged(self, scale: float, start: Tensor, last: Tensor, last_loss: Tensor) -> Tensor:
        """Leaves particles that diverged at their last node, for good; returns the plain loss of all.

        Diverged is what fits its own rows worse than outputs of nothing but zero (or than the anchor, where that is
        worse still) by ten times as much as posterior draws are worse than the anchor at most: half the scale squared
        for each output, in nats a row. And what is far from its anchor beside how far drift took it, and others are:
        where classes can be told apart without an error, the perturbed objective of a softmax has no least value.
        """
        loss = self.plain_loss(self.position)
        away = (self.position - start).norm(dim=1)
        usual = gathered(away.nan_to_num(nan=math.inf), self.count).median()
        sound = loss <= self.worst + 5 * scale**2 * self.likelihood.outputs
        sound &= away <= _FARTHEST * torch.maximum(scale * self.direction.norm(dim=1), usual)
        self.stranded |= ~sound
        self.position = torch.where(sound.unsqueeze(1), self.position, last)
        return torch.where(sound, loss, last_loss)

    def plain_loss(self, position: Tensor) -> Tensor:
        """(A*N,) mean -log p(y | f) over each particle's training rows, of those judged, at position (A*N, P)."""

        def of(part: slice, network: FunctionalNetwork) -> Tensor:
            found = []
            for theta, member in zip(
                torch.split(position[part], self.group), torch.split(self.member[part], self.group), strict=True
            ):
                total = torch.zeros(len(theta), device=self.x.device)
                for rows in torch.split(self.judged, self.chunk):
                    outputs = network.batched(theta, self.x[rows])
                    total += (member[:, rows] * self.likelihood.nll(outputs, self.y[rows])).sum(1)
                found.append(total / member[:, self.judged].sum(1))
            return torch.cat(found)

        return torch.cat(self.network.in_parts(len(position), self.x.device, of))

    def _groups(self) -> list[slice]:
        group = min(self.group, -(-len(self.position) // self.threads))
        return [slice(at, at + group) for at in range(0, len(self.position), group)]

    def _data_part(
        self,
        network: FunctionalNetwork,
        theta: Tensor,
        x: Tensor,
        y: Tensor,
        seen: Tensor,
        scores: Tensor,
        up: Tensor,
        scale: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Loss (g,) of weights theta (g, P) on rows x (b, ...), and its gradient (g, P)."""
        theta = theta.detach().requires_grad_()
        outputs = outputs_for_gradients(network, theta, x)
        nll = (seen * self.likelihood.nll(outputs, y)).sum(1)
        total = up * (nll - scale * (scores * outputs).sum((1, 2)))
        return total.detach(), torch.autograd.grad(total.sum(), theta)[0]

    def _objective(self, position: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Loss (A*N,) and gradient (A*N, P) of the perturbed objective, on all rows or a random part of them."""
        n, device = len(self.x), self.x.device
        up, tilt = torch.tensor(n / self.batch_rows, device=device), torch.tensor(scale, device=device)
        parts: Sequence[slice | Tensor]
        if self.exact:
            # A step is judged by its loss, which must not change with what is drawn. Slices copy nothing.
            x, parts = self.x, [slice(at, at + self.chunk) for at in range(0, n, self.chunk)]
        else:
            rows = torch.randperm(n, generator=self.generator)[: self.batch_rows].to(device)
            x, parts = augmented(self.x[rows], self.augment, self.generator), torch.split(rows, self.chunk)

        def of(group: slice) -> tuple[Tensor, Tensor]:
            data_part = self.gradients.get()
            theta = position[group].detach()
            apart = theta - scale * self.prior[group]
            gradient = self.prior_precision * apart
            loss = 0.5 * (gradient * apart).sum(1)
            for part, here in zip(parts, torch.split(x, self.chunk), strict=True):
                seen, scores = self.member[group, part], self.scores[group, part]
                of_rows, of_weights = data_part(theta, here, self.y[part], seen, scores, up, tilt)
                loss, gradient = loss + of_rows, gradient + of_weights
            self.gradients.put(data_part)
            return loss, gradient

        losses, gradients = zip(*concurrently(self.threads, of, self._groups()), strict=True)
        self.gradient_evaluations += self.batch_rows * self.count
        return torch.cat(losses), torch.cat(gradients)
