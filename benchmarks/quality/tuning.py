"""The tuning that every method shares: five cross-fitted MAP networks for each prior precision tried.

What is chosen on the rows that these networks have not seen goes to all methods alike: the prior precision, the noise
or the temperature, and by how much the networks disagree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality.predictive import Cost
from benchmarks.quality.problem import Problem
from builder.map import own_fold_outputs, train_anchors
from builder.predictive import categorical_nll
from builder.preparation import assign_members

_LEAST_NOISE_SHARE = 0.2
_TEMPERATURES = np.geomspace(0.4, 4.0, 41)


@dataclass(frozen=True)
class Tuned:
    """What cross-fitting says.

    Attributes:
        precision: the prior precision with the best out-of-fold predictions.
        noise_variance: (regression) out-of-fold mean squared error of one network, standardised units.
        disagreement: (regression) variance between the networks, a part of that error that averaging takes away.
        temperature: (classification) with the least out-of-fold NLL of one network.
        cost: of the tuning, to be added to each method's own.
    """

    precision: float
    noise_variance: float
    disagreement: float
    temperature: float
    cost: Cost

    @property
    def ensemble_noise_variance(self) -> float:
        """The noise beside an ensemble: its mean's squared error is smaller by the members' disagreement
        (the ambiguity decomposition, Krogh and Vedelsby 1995)."""
        return max(self.noise_variance - self.disagreement, _LEAST_NOISE_SHARE * self.noise_variance)


def tune(problem: Problem) -> Tuned:
    """Cross-fits, as a build does with its anchors."""
    cost = Cost()
    with cost.clock():
        member = assign_members(problem.config, problem.network.module, problem.y)
        anchors = train_anchors(
            problem.network, problem.factory, problem.x, problem.y, member, problem.config.map, problem.seed
        )
        outputs, rows = own_fold_outputs(problem.network, anchors.weights, problem.x, member)
        noise, disagreement, temperature = 1.0, 0.0, 1.0
        if problem.regression:
            noise = float((outputs[:, 0] - problem.y[rows]).square().mean())
            with torch.no_grad():
                disagreement = float(problem.network.batched(anchors.weights, problem.x)[..., 0].var(0).mean())
        else:
            temperature = best_temperature(outputs[None], problem.y[rows])
    cost.gradient_evaluations = anchors.gradient_evaluations
    return Tuned(anchors.prior_precision, noise, disagreement, temperature, cost)


def best_temperature(logits: Tensor, y: Tensor) -> float:
    """The temperature with the least NLL of the averaged probabilities of logits (S, B, C)."""
    found = [(float(categorical_nll((logits / t).softmax(-1).mean(0), y).mean()), float(t)) for t in _TEMPERATURES]
    return min(found)[1]
