"""The points of every method's curve on one split of one set: the same method with less and with more work.

A point's cost is all that it would take alone, the shared tuning included; where points share work (the members of an
ensemble, the anchors of builds that differ in their fibers), each is charged with the whole of what it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from benchmarks.data import read_set
from benchmarks.quality.building import build
from benchmarks.quality.methods import dropout, ensemble, fiberwalk, laplace, swag
from benchmarks.quality.predictive import Outcome
from benchmarks.quality.problem import Problem, make_problem
from benchmarks.quality.run import METHODS, attempt, described, scored
from benchmarks.quality.tuning import Tuned, tune
from benchmarks.results import EARLIER, Run
from builder.map import training_steps
from builder.work import WorkFolder

SIZES: Final = (1, 2, 3, 5, 10, 20)
"""Members of the ensembles."""
SHARES: Final = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Of the steps of training, that SWAG collects from."""
BUDGETS: Final = (1 / 4, 1 / 2, 1.0, 2.0)
"""Of the steps of training, that dropout networks are trained for."""
FIBERS: Final = {1: (4, 32), 5: (3, 8, 32), 20: (1, 4, 8)}
"""Fibers an anchor, by the number of anchors that are served; the last is what a build takes by itself where work
allows. One is judged with a fifth of the rows, several by as many cross-fitted anchors as tune all peers."""

OURS: Final = "fiberwalk_5"
CURVES: Final = {
    "ensemble": "deep ensemble (members)",
    "laplace_full": METHODS["laplace_full"],
    "laplace_kron": METHODS["laplace_kron"],
    "laplace_last": METHODS["laplace_last"],
    "swag": "SWAG (steps collected from, in those of training)",
    "mc_dropout": "MC dropout (training steps, in those of the others)",
    **{f"fiberwalk_{a}": f"fiberwalk, {a} anchor{'s' if a > 1 else ''} (fibers an anchor)" for a in FIBERS},
}
"""What the curves are called, and what their points differ in."""

SHORT: Final = {5: 4}
"""By the number of anchors: the walks of the point with the fewest fibers take no more row gradients than the training
of so many networks. With as many fibers, but all the work that a walk takes by itself, five would cost more than an
ensemble of ten on sets of many rows."""

FAMILIES: Final = ("ensemble", "laplace", "swag", "mc_dropout", *(f"fiberwalk_{a}" for a in FIBERS))
"""Methods that are run one by one; each has a curve or several."""

Points = dict[str, Outcome]
"""Outcomes by the point's label; they are in the order of their cost."""


def run_points(name: str, split: int, preset: str, wanted: Sequence[str] = ()) -> dict[str, Any]:
    """Figures and cost of each point of each curve on a split's test rows, and what went wrong where one failed.

    Args:
        wanted: which of `FAMILIES`, by default all.
    """
    data = read_set(name)
    problem = make_problem(data, split, preset)
    tuned = tune(problem)
    families: dict[str, Callable[[Problem, Tuned], dict[str, Points]]] = {
        "ensemble": ensembles,
        "laplace": laplaces,
        "swag": swags,
        "mc_dropout": dropouts,
        **{f"fiberwalk_{a}": partial(ours, anchors=a) for a in FIBERS},
    }
    found, failed = attempt(
        {family: partial(run, problem, tuned) for family, run in families.items() if family in (wanted or families)}
    )
    curves = {curve: points for family in found.values() for curve, points in family.items()}
    return {
        **described(data, problem),
        "curves": {c: {label: scored(problem, o) for label, o in points.items()} for c, points in curves.items()},
        "failed": failed,
    }


def merged(before: Run | None, found: Run) -> Run:
    """What was found now, with the curves of an older run of the split that were not measured now, and of these the
    environment that they were measured in."""
    if before is None or "curves" not in before or "curves" not in found:
        return found
    kept = [c for c in before["curves"] if c not in found["curves"]]
    curves = {
        c: (found if c in found["curves"] else before)["curves"][c] for c in CURVES if c in kept or c in found["curves"]
    }
    earlier = {c: before.get(EARLIER, {}).get(c, before["environment"]) for c in kept}
    return {**found, "curves": curves, EARLIER: earlier}


def has_all(run: Run, wanted: Sequence[str]) -> bool:
    """Whether a run's own curves are those of all methods wanted, by default of all."""
    earlier = {curve for curve, environment in run.get(EARLIER, {}).items() if environment != run["environment"]}
    own = set(run["curves"]) - earlier
    return all(any(curve.startswith(family) for curve in own) for family in wanted or FAMILIES)


def ensembles(problem: Problem, tuned: Tuned) -> dict[str, Points]:
    """By number of members; one member is the MAP with out-of-fold noise or temperature."""
    outcomes = ensemble.run(problem, tuned, SIZES)
    return {"ensemble": {str(size): outcomes[f"ensemble_{size}"] for size in SIZES}}


def laplaces(problem: Problem, tuned: Tuned) -> dict[str, Points]:
    """One point each: its cost is that of the network it is made of."""
    outcomes = laplace.run(problem, tuned)
    return {name: {"": outcomes[name]} for name in laplace.VARIANTS}


def swags(problem: Problem, tuned: Tuned) -> dict[str, Points]:
    """By the steps that iterates are collected from, each with the learning rate that is best for so many."""
    return {"swag": {f"{share:g}": swag.run(problem, tuned, share)["swag"] for share in SHARES}}


def dropouts(problem: Problem, tuned: Tuned) -> dict[str, Points]:
    """By the steps of training; passes cost no gradient."""
    steps = training_steps(problem.config.map, problem.network, len(problem.x))
    return {
        "mc_dropout": {
            f"{share:g}": dropout.run(_with(problem, "map", steps=max(1, round(share * steps))), tuned)["mc_dropout"]
            for share in BUDGETS
        }
    }


def ours(problem: Problem, tuned: Tuned, anchors: int) -> dict[str, Points]:
    """By fibers an anchor: a build each, as served. Builds go on from the same anchors, whose time counts for each."""
    problem = _with(problem, "map", **({"anchors": 1} if anchors == 1 else {"served": anchors}))
    points: Points = {}
    with TemporaryDirectory(prefix="fiberwalk-curves-") as folder:
        for fibers in FIBERS[anchors]:
            part = _with(problem, "fiber", trajectories=fibers)
            if anchors in SHORT and fibers == min(FIBERS[anchors]):
                part = _with(part, "fiber", work=SHORT[anchors] * work_of_training(problem))
            learned = build(part, WorkFolder(Path(folder)))
            points[str(fibers)] = fiberwalk.answers(part, learned.trained, learned.cost)["fiberwalk"]
    return {f"fiberwalk_{anchors}": points}


def work_of_training(problem: Problem) -> float:
    """Floating point operations of training one network, as a walk counts them."""
    rows = min(problem.config.map.batch_rows, len(problem.x))
    steps = training_steps(problem.config.map, problem.network, len(problem.x))
    return 3.0 * problem.network.operations(problem.x[:1]) * steps * rows


def _with(problem: Problem, stage: str, **options: object) -> Problem:
    """The problem with other options of one stage of the build."""
    changed = getattr(problem.config, stage).model_copy(update=options)
    return replace(problem, config=problem.config.model_copy(update={stage: changed}))
