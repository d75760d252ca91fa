"""A build of a problem, up to what is exported."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.quality.predictive import Cost
from benchmarks.quality.problem import Problem
from builder.learning import learn
from builder.progress import StageBars
from builder.trained import Trained
from builder.work import WorkFolder


@dataclass(frozen=True)
class Learned:
    """What a build learned, its cost, and the seconds of each stage."""

    trained: Trained
    cost: Cost
    seconds: dict[str, float]


def build(problem: Problem, work: WorkFolder | None = None) -> Learned:
    """Builds: everything is chosen by the build itself, and its cost holds that.

    `work`: where stages are kept; what those took that are found there counts.
    """
    cost, seconds = Cost(), dict[str, float]()
    with cost.clock():
        trained = learn(problem.config, problem.dataset, problem.factory, StageBars(quiet=True), seconds, work)
    cost.seconds += work.spared if work else 0.0
    cost.gradient_evaluations = trained.gradient_evaluations
    return Learned(trained, cost, seconds)
