"""The tuning that every method shares: cross-fitted MAP networks for each prior precision tried.

What is chosen on the rows that these networks have not seen goes to all methods alike: the prior precision, and the
noise or the temperature beside one network and beside several.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from torch import Tensor

from benchmarks.quality.building import Learned
from benchmarks.quality.predictive import Cost
from benchmarks.quality.problem import Problem
from builder.map import train_anchors
from builder.moments import LEAST_NOISE, moments_of
from builder.out_of_fold import FITTED_ROWS, carry, gather, outputs_on_unseen, rows_to_judge
from builder.preparation import assign_members

SIZES: Final = (5, 10, 20)
"""Of ensembles: the usual ones, and as many networks as a build of ours serves."""
_FOLDS: Final = 5
_LEAST_NOISE_SHARE: Final = 0.2


@dataclass(frozen=True)
class Tuned:
    """What cross-fitting says.

    Attributes:
        precision: the prior precision with the best out-of-fold predictions.
        noise_variance: (regression) beside one network, in standardised units, by the rule that our own comes from.
        pair_noise_variance: the same beside two.
        temperatures: (classification) with the least out-of-fold NLL of one network and of ensembles, by their size.
        dispersions: of the members' logits about their mean that go with them, by the rule that our own comes from.
        cost: of the tuning, to be added to each method's own.
    """

    precision: float
    noise_variance: float
    pair_noise_variance: float
    temperatures: dict[int, float]
    dispersions: dict[int, float]
    cost: Cost

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> Tuned:
        """From values that went through JSON."""
        by_size = {
            name: {int(size): value for size, value in values[name].items()} for name in ("temperatures", "dispersions")
        }
        return cls(**{**values, **by_size, "cost": Cost(**values["cost"])})

    def noise_beside(self, members: int) -> float:
        """The noise variance beside an ensemble."""
        return carry(self.noise_variance, self.pair_noise_variance, members, LEAST_NOISE)

    def noise_less(self, variance: float) -> float:
        """The noise variance beside samples of one network that vary by so much themselves: never less than a fifth of
        that without."""
        return max(self.noise_variance - variance, _LEAST_NOISE_SHARE * self.noise_variance)

    def temperature_beside(self, members: int) -> float:
        """The temperature of an ensemble's average, by the rule that our own comes from; 1 for regression."""
        return self.temperatures.get(members, 1.0)

    def dispersion_beside(self, members: int) -> float:
        """The dispersion that goes with it."""
        return self.dispersions.get(members, 1.0)


@dataclass(frozen=True)
class Choice:
    """What rows that a network has not seen say of a method's own rate, and of the spread beside it.

    Attributes:
        rate: learning rate of SWAG, share of units that dropout drops, or Laplace's prior precision.
        noise_variance: (regression) in standardised units.
        temperature, dispersion: (classification) of the samples.
    """

    rate: float
    noise_variance: float
    temperature: float
    dispersion: float = 1.0


def tune(problem: Problem, build: Learned | None = None) -> Tuned:
    """Cross-fits, as a build does with its anchors; those of a build of the problem need not be trained again."""
    cost = Cost(seconds=_seconds(build) if build else 0.0)
    with cost.clock():
        if build:
            member, anchors = build.trained.member, build.trained.judged
        else:
            member = assign_members(problem.config, problem.network.module, problem.y).to(problem.y.device)
            anchors = train_anchors(
                problem.network, problem.factory, problem.x, problem.y, member, problem.config.map, problem.seed
            )
        rows = rows_to_judge(member, FITTED_ROWS)
        unseen = ~member[:, rows]
        outputs = outputs_on_unseen(problem.network, anchors.weights[:, None], problem.x[rows], unseen)
        y = problem.y[rows]
        noise, beside = {1: 1.0, 2: 1.0}, {}
        if problem.regression:
            noise = {n: moments_of(outputs, unseen, y, anchors=n).fit()[0] for n in noise}
        else:
            together = gather(outputs, unseen, y)
            sizes = {1, *SIZES, *([len(build.trained.anchors)] if build else [])}
            beside = {n: replace(together, anchors=n).fit_dispersed() for n in sorted(sizes)}
    cost.gradient_evaluations = anchors.gradient_evaluations
    temperatures = {n: temperature for n, (temperature, _, _) in beside.items()}
    dispersions = {n: dispersion for n, (_, dispersion, _) in beside.items()}
    return Tuned(anchors.prior_precision, noise[1], noise[2], temperatures, dispersions, cost)


def own_folds(problem: Problem) -> Tensor:
    """(folds, n) bool: the rows that networks have by which a method chooses what is its own; every row is unseen by
    one. A build's two rounds of ten folds would be four times the work to no end."""
    folds = problem.config.map.model_copy(update={"anchors": _FOLDS, "folds": _FOLDS})
    config = problem.config.model_copy(update={"map": folds})
    return assign_members(config, problem.network.module, problem.y)


def _seconds(build: Learned) -> float:
    """Of a build's cross-fitting: what training on all rows took, which the same stage's time holds, is not tuning."""
    trained = build.trained
    return build.seconds["map"] * trained.judged.gradient_evaluations / trained.training_gradients
