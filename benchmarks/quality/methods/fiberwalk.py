"""Our own posterior, as a build makes it and a server draws from it."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.quality.methods.ensemble import predict
from benchmarks.quality.predictive import Cost, Outcome, Predictive, answered
from benchmarks.quality.problem import Problem
from benchmarks.quality.tuning import Tuned
from builder.calibration import SampledPosterior
from builder.predictive import contracted, sample_outputs
from builder.trained import Trained

MANY = 512


def answers(problem: Problem, trained: Trained, cost: Cost) -> dict[str, Outcome]:
    """What a build learned, drawn from in three ways, each answered as a server does: for regression the Gaussian of
    mean and variance, which is what calibration chose the noise for.

    `fiberwalk`: what a server answers by default; `fiberwalk_many`: from 512 decoded samples; `fiberwalk_fiber`: from
    the fibers' own weights at the same places, so that what is between the two is the decoder's error alone.
    """
    plan = trained.plans["predict"]
    fibers = SampledPosterior.of(trained.network, trained.fibers, trained.reach.used)
    weights = {
        "fiberwalk": trained.posterior.draw(plan, plan.samples)[0],
        "fiberwalk_many": trained.posterior.draw(plan, MANY)[0],
        "fiberwalk_fiber": fibers.draw(plan, MANY)[0],
    }
    return {name: Outcome(answered(_predict(problem, trained, thetas)), cost) for name, thetas in weights.items()}


def ablated(problem: Problem, trained: Trained, cost: Cost, tuned: Tuned) -> dict[str, Outcome]:
    """`answers`, and `fiberwalk_anchors`: the anchors without fibers, an ensemble, with the noise or temperature that
    suits so many networks: what suits fibers would be too little."""
    count, outputs = len(trained.anchors), _outputs(problem, trained.anchors)
    beside = tuned.noise_beside(count), tuned.temperature_beside(count), tuned.dispersion_beside(count)
    alone = Outcome(answered(predict(problem, outputs, *beside)), cost)
    return {**answers(problem, trained, cost), "fiberwalk_anchors": alone}


def served(problem: Problem, trained: Trained, cost: Cost) -> Outcome:
    """What a server answers for the test rows of a classification: probabilities and mutual information."""
    plan = trained.plans["predict"]
    return Outcome(_predict(problem, trained, trained.posterior.draw(plan, plan.samples)[0]), cost)


def by_reach(problem: Problem, trained: Trained) -> list[tuple[float, Predictive]]:
    """What fiber samples would answer that go as far as each node behind the anchors, with what was calibrated for the
    served reach; and the node's drift scale. They are those that the reach was chosen on: the others end there."""
    nodes = trained.cross_fitted.nodes
    outputs = torch.stack([_outputs(problem, thetas.flatten(0, 1)) for thetas in nodes])
    found = []
    for node in range(1, len(nodes)):
        samples = _evenly(outputs[: node + 1]).flatten(0, 1)
        scale = float(trained.cross_fitted.scales[node])
        found.append((scale, answered(_calibrated(problem, trained, samples))))
    return found


def _evenly(nodes: Tensor) -> Tensor:
    """Something of every node (T+1, ...), as positions are drawn: evenly along trajectories, so that a node between two
    others stands for twice the way of an end."""
    return torch.cat([nodes, nodes[1:-1]])


def _predict(problem: Problem, trained: Trained, thetas: Tensor) -> Predictive:
    """The predictive of weights (S, P) with the build's own noise or temperature."""
    return _calibrated(problem, trained, _outputs(problem, thetas))


def _calibrated(problem: Problem, trained: Trained, outputs: Tensor) -> Predictive:
    """The predictive of outputs (S, B, O). Mutual information is what is answered: of samples so far apart."""
    spread = trained.calibrated.noise_std(problem.x_test)
    temperature = trained.calibrated.spread
    return predict(problem, contracted(outputs, trained.calibrated.dispersion), spread**2, temperature)


def _outputs(problem: Problem, thetas: Tensor) -> Tensor:
    """Of weights (S, P) for all rows to answer: (S, B, O)."""
    return torch.cat([sample_outputs(problem.network, thetas, x) for x in torch.split(problem.x_test, 4096)], 1)
