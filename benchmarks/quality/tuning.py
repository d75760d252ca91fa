"""The tuning that every method shares: cross-fitted MAP networks for each prior precision tried.

What is chosen on the rows that these networks have not seen goes to all methods alike: the prior precision, and the
noise or the temperature beside one network and beside several.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from benchmarks.quality.predictive import Cost
from benchmarks.quality.problem import Problem
from builder.map import train_anchors
from builder.out_of_fold import carry, gather, moments_of, rows_to_judge
from builder.predictive import sample_outputs
from builder.preparation import assign_members


@dataclass(frozen=True)
class Tuned:
    """What cross-fitting says.

    Attributes:
        precision: the prior precision with the best out-of-fold predictions.
        noise_beside: the noise variance beside so many networks, in standardised units, by the rule that our own comes
            from; 1 for classification.
        temperature_beside: the temperature of so many networks' average, by the same rule; 1 for regression.
        cost: of the tuning, to be added to each method's own.
    """

    precision: float
    noise_beside: Callable[[int], float]
    temperature_beside: Callable[[int], float]
    cost: Cost

    @property
    def noise_variance(self) -> float:
        """Beside one network."""
        return self.noise_beside(1)

    @property
    def temperature(self) -> float:
        """Of one network."""
        return self.temperature_beside(1)


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


def tune(problem: Problem) -> Tuned:
    """Cross-fits, as a build does with its anchors."""
    cost = Cost()
    with cost.clock():
        member = assign_members(problem.config, problem.network.module, problem.y)
        anchors = train_anchors(
            problem.network, problem.factory, problem.x, problem.y, member, problem.config.map, problem.seed
        )
        rows = rows_to_judge(member)
        unseen = ~member[:, rows]
        outputs = [
            sample_outputs(problem.network, w[None], problem.x[rows[u]])
            for w, u in zip(anchors.weights, unseen, strict=True)
        ]
        noise, temperature = _noise(outputs, unseen, problem.y[rows]), _temperature(outputs, unseen, problem.y[rows])
    cost.gradient_evaluations = anchors.gradient_evaluations
    return Tuned(anchors.prior_precision, noise, temperature, cost)


def _noise(outputs: list[Tensor], unseen: Tensor, y: Tensor) -> Callable[[int], float]:
    """The noise variance beside so many networks, from the outputs (1, m_a, 1) of each on the rows it did not see."""
    if not y.is_floating_point():
        return lambda members: 1.0
    return lambda members: moments_of(outputs, unseen, y, anchors=members).fit()[0]


def _temperature(outputs: list[Tensor], unseen: Tensor, y: Tensor) -> Callable[[int], float]:
    """The temperature of the average of so many networks, from the same outputs (1, m_a, classes)."""
    if y.is_floating_point():
        return lambda members: 1.0
    found = gather(outputs, unseen, y)
    one, two = (replace(found, anchors=many).fit()[0] for many in (1, 2))
    return lambda members: carry(one, two, members)
