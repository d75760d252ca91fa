"""The stages of a build, apart from each other: anchors trained once, walks and samples of many kinds from them.

Lengths: A anchors, N trajectories, T steps, S samples of an anchor, P weights, n rows, m_a rows unseen by anchor a,
B test rows, O outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.quality.methods.ensemble import predict
from benchmarks.quality.predictive import answered, figures
from benchmarks.quality.problem import Problem
from builder.config import FiberConfig, NetworkConfig
from builder.fiber import Fibers, walk_fibers
from builder.likelihood import Likelihood, likelihood_of
from builder.map import train_anchors
from builder.metric import PredictiveMetric
from builder.moments import moments_of
from builder.network import FunctionalNetwork
from builder.out_of_fold import gather, outputs_on_unseen, rows_to_judge
from builder.predictive import sample_outputs
from builder.preparation import assign_members, make_factory


@dataclass(frozen=True)
class Start:
    """The anchors of a problem, from which fibers start.

    Attributes:
        anchors: (A, P); member: (A, n) bool, the rows of each.
        precision: (P,) of the prior.
    """

    problem: Problem
    anchors: Tensor
    member: Tensor
    likelihood: Likelihood
    precision: Tensor

    def first(self, anchors: int) -> Start:
        """The same with the first anchors alone."""
        return replace(self, anchors=self.anchors[:anchors], member=self.member[:anchors])

    @property
    def metric(self) -> PredictiveMetric:
        """Distances between weights as the predictions feel them."""
        problem = self.problem
        return PredictiveMetric(problem.network, self.anchors, problem.x, self.member, self.likelihood, self.precision)


def with_network(problem: Problem, hidden: list[int], activation: str = "relu") -> Problem:
    """The problem with a fully connected network of these hidden layers."""
    chosen = NetworkConfig(hidden=hidden, activation=activation)
    config = problem.config.model_copy(update={"network": chosen})
    factory = make_factory(config, problem.dataset)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return replace(problem, config=config, factory=factory, network=FunctionalNetwork(factory()))


def train(problem: Problem) -> Start:
    """Trains the anchors as a build does."""
    member = assign_members(problem.config, problem.network.module, problem.y)
    found = train_anchors(
        problem.network, problem.factory, problem.x, problem.y, member, problem.config.map, problem.seed
    )
    likelihood = likelihood_of(found.noise_std, problem.y, problem.dataset.outputs)
    precision = torch.full((problem.network.weights,), found.prior_precision)
    return Start(problem, found.weights, member, likelihood, precision)


def walk(start: Start, config: FiberConfig) -> Fibers:
    """Walks the fibers of all anchors."""
    p = start.problem
    return walk_fibers(
        p.network, start.anchors, p.x, p.y, start.member, start.likelihood, start.precision, config, p.seed
    )


@dataclass(frozen=True)
class Outputs:
    """What samples of each anchor say.

    Attributes:
        unseen: for each anchor, (S, m_a, O) on the rows that it did not see.
        test: (A, S, B, O) on the test rows.
    """

    problem: Problem
    member: Tensor
    unseen: list[Tensor]
    test: Tensor

    def first(self, samples: int) -> Outputs:
        """The same of the first samples of each anchor."""
        return replace(self, unseen=[f[:samples] for f in self.unseen], test=self.test[:, :samples])

    def figures(self, dispersion: float | None = None) -> dict[str, float]:
        """Test figures of what would be answered, with the noise or temperature that unseen rows want, and for classes
        with the dispersion that they want or the one that is given.

        Also `out_of_fold`, the NLL on unseen rows, `spread`, the noise variance or temperature, and `dispersion`.
        """
        problem, rows = self.problem, rows_to_judge(self.member)
        unseen, y = ~self.member[:, rows], problem.y[rows]
        if problem.regression:
            (spread, nll), dispersion = moments_of(self.unseen, unseen, y).fit(), 1.0
        elif dispersion is None:
            spread, dispersion, nll = gather(self.unseen, unseen, y).fit_dispersed()
        else:
            spread, nll = replace(gather(self.unseen, unseen, y), dispersion=dispersion).fit()
        answer = answered(predict(problem, self.test.flatten(0, 1), spread, spread, dispersion))
        found = figures(answer, problem.y_test, problem.scale)
        loss = float(nll.mean()) + math.log(problem.scale)
        return {**found, "out_of_fold": loss, "spread": spread, "dispersion": dispersion}


def outputs_of(start: Start, weights: Tensor) -> Outputs:
    """Outputs of samples (A, S, P)."""
    problem, rows = start.problem, rows_to_judge(start.member)
    network, x = problem.network, problem.x
    unseen = outputs_on_unseen(network, weights, x[rows], ~start.member[:, rows])
    test = torch.stack([sample_outputs(network, w, problem.x_test) for w in weights])
    return Outputs(problem, start.member, unseen, test)


def outputs_of_nodes(start: Start, nodes: Tensor) -> Outputs:
    """Outputs of nodes (T, A, N, P): the first t N samples of an anchor are those of the first t nodes."""
    return outputs_of(start, nodes.transpose(0, 1).flatten(1, 2))
