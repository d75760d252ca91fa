"""All methods on one split of one set: what a worker process of the benchmark does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch

from benchmarks.data import DataSet, read_set
from benchmarks.quality.building import build
from benchmarks.quality.methods import dropout, ensemble, fiberwalk, laplace, swag
from benchmarks.quality.predictive import Outcome, figures
from benchmarks.quality.problem import Problem, make_problem
from benchmarks.quality.tuning import tune

Found = TypeVar("Found")

FAMILIES = (ensemble, laplace, swag, dropout)
"""The peers."""

_OURS = "fiberwalk"

METHODS = {
    "map": "MAP, noise as it learned it",
    "map_tuned": "MAP, out-of-fold noise or temperature",
    "ensemble_5": "deep ensemble of 5",
    "ensemble_10": "deep ensemble of 10",
    "ensemble_20": "deep ensemble of 20",
    "laplace_full": "linearised Laplace, full",
    "laplace_kron": "linearised Laplace, Kronecker",
    "laplace_last": "linearised Laplace, last layer",
    "laplace_full_tuned": "linearised Laplace, full, chosen out of fold",
    "laplace_kron_tuned": "linearised Laplace, Kronecker, chosen out of fold",
    "laplace_last_tuned": "linearised Laplace, last layer, chosen out of fold",
    "swag": "SWAG",
    "mc_dropout": "MC dropout",
    "fiberwalk_anchors": "our anchors without fibers",
    "fiberwalk_fiber": "our fiber samples",
    "fiberwalk_many": "fiberwalk, 512 decoded samples",
    "fiberwalk": "fiberwalk, as served",
}
"""What the methods are called in tables, in their order."""


def run_split(name: str, split: int, preset: str) -> dict[str, Any]:
    """Figures and cost of each method on a split's test rows, and what went wrong where one failed."""
    data = read_set(name)
    problem = make_problem(data, split, preset)
    built, failed = attempt({_OURS: partial(build, problem)})
    ours = built.get(_OURS)
    tuned = tune(problem, ours)
    outcomes, peers_failed = attempt(
        {family.__name__.rpartition(".")[2]: partial(family.run, problem, tuned) for family in FAMILIES}
    )
    if ours is not None:
        outcomes[_OURS] = fiberwalk.ablated(problem, ours.trained, ours.cost, tuned)
    return {
        **described(data, problem),
        "methods": {
            method: scored(problem, outcome) for found in outcomes.values() for method, outcome in found.items()
        },
        "failed": {**failed, **peers_failed},
    }


def attempt(families: Mapping[str, Callable[[], Found]]) -> tuple[dict[str, Found], dict[str, str]]:
    """What each family found, and what went wrong with those that failed."""
    found: dict[str, Found] = {}
    failed: dict[str, str] = {}
    for name, run in families.items():
        try:
            found[name] = run()
        except (RuntimeError, ValueError, ArithmeticError) as e:  # a peer's library may fail numerically: shown
            failed[name] = f"{type(e).__name__}: {e}"
    return found, failed


def described(data: DataSet, problem: Problem) -> dict[str, Any]:
    """What a set's run says of the set."""
    rows, columns = problem.x.shape
    return {"task": data.task, "rows": rows, "columns": columns, "test_rows": len(problem.y_test)}


def scored(problem: Problem, outcome: Outcome) -> dict[str, Any]:
    """A method's figures on the test rows, and its cost."""
    return {
        "figures": figures(outcome.predictive, problem.y_test, problem.scale),
        "gradient_evaluations": outcome.cost.gradient_evaluations,
        "seconds": round(outcome.cost.seconds, 3),
    }


def one_thread() -> None:
    """Settles a worker process: splits run side by side, one core each."""
    torch.set_num_threads(1)
