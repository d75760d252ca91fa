"""The tuning that every method shares: cross-fitted MAP networks for each prior precision tried.

What is chosen on the rows that these networks have not seen goes to all methods alike: the prior precision, and the
noise or the temperature beside one network and beside several.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from benchmarks.quality.building import Learned
from benchmarks.quality.predictive import Cost
from benchmarks.quality.problem import Problem
from builder.map import train_anchors
from builder.out_of_fold import LEAST_NOISE, carry, gather, moments_of, rows_to_judge
from builder.predictive import sample_outputs
from builder.preparation import assign_members


@dataclass(frozen=True)
class Tuned:
    """What cross-fitting says.

    Attributes:
        precision: the prior precision with the best out-of-fold predictions.
        noise_variance: (regression) beside one network, in standardised units, by the rule that our own comes from.
        pair_noise_variance: the same beside two.
        temperature: (classification) with the least out-of-fold NLL of one network.
        pair_temperature: the same of the average of two.
        cost: of the tuning, to be added to each method's own.
    """

    precision: float
    noise_variance: float
    pair_noise_variance: float
    temperature: float
    pair_temperature: float
    cost: Cost

    def noise_beside(self, members: int) -> float:
        """The noise variance beside an ensemble."""
        return carry(self.noise_variance, self.pair_noise_variance, members, LEAST_NOISE)

    def temperature_beside(self, members: int) -> float:
        """The temperature of an ensemble's average, by the rule that our own comes from."""
        return carry(self.temperature, self.pair_temperature, members)


@dataclass(frozen=True)
class Choice:
    """What rows that a network has not seen say of a method's own rate, and of the spread beside it.

    Attributes:
        rate: learning rate of SWAG, or share of units that dropout drops.
        noise_variance: (regression) in standardised units.
        temperature: (classification) of each sample.
    """

    rate: float
    noise_variance: float
    temperature: float


def tune(problem: Problem, build: Learned | None = None) -> Tuned:
    """Cross-fits, as a build does with its anchors; those of a build of the problem are the same, and need not be
    trained again."""
    cost = Cost(seconds=_seconds(build) if build else 0.0)
    with cost.clock():
        member = assign_members(problem.config, problem.network.module, problem.y).to(problem.y.device)
        anchors = (
            build.trained.judged
            if build
            else train_anchors(
                problem.network, problem.factory, problem.x, problem.y, member, problem.config.map, problem.seed
            )
        )
        rows = rows_to_judge(member)
        unseen = ~member[:, rows]
        outputs = [
            sample_outputs(problem.network, w[None], problem.x[rows[u]])
            for w, u in zip(anchors.weights, unseen, strict=True)
        ]
        one, two = (_spread(outputs, unseen, problem.y[rows], members) for members in (1, 2))
    cost.gradient_evaluations = anchors.gradient_evaluations
    noise, temperature = ((one, two), (1.0, 1.0)) if problem.regression else ((1.0, 1.0), (one, two))
    return Tuned(anchors.prior_precision, *noise, *temperature, cost)


def _seconds(build: Learned) -> float:
    """Of a build's cross-fitting: what training on all rows took, which the same stage's time holds, is not tuning."""
    trained = build.trained
    return build.seconds["map"] * trained.judged.gradient_evaluations / trained.training_gradients


def _spread(outputs: list[Tensor], unseen: Tensor, y: Tensor, members: int) -> float:
    """Noise variance or temperature beside so many, from the outputs (1, m_a, O) of each on the rows it did not see."""
    if y.is_floating_point():
        return moments_of(outputs, unseen, y, anchors=members).fit()[0]
    return replace(gather(outputs, unseen, y), anchors=members).fit()[0]
