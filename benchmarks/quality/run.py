"""All methods on one split of one set: what a worker process of the benchmark does."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.data import read_set
from benchmarks.quality.methods import dropout, ensemble, fiberwalk, laplace, swag
from benchmarks.quality.predictive import figures
from benchmarks.quality.problem import make_problem
from benchmarks.quality.tuning import tune

FAMILIES = (ensemble, laplace, swag, dropout, fiberwalk)

METHODS = {
    "map": "MAP, noise as it learned it",
    "map_tuned": "MAP, out-of-fold noise or temperature",
    "ensemble_5": "deep ensemble of 5",
    "ensemble_10": "deep ensemble of 10",
    "laplace_full": "linearised Laplace, full",
    "laplace_kron": "linearised Laplace, Kronecker",
    "laplace_last": "linearised Laplace, last layer",
    "laplace_full_tuned": "linearised Laplace, full, out-of-fold noise",
    "laplace_kron_tuned": "linearised Laplace, Kronecker, out-of-fold noise",
    "laplace_last_tuned": "linearised Laplace, last layer, out-of-fold noise",
    "swag": "SWAG",
    "mc_dropout": "MC dropout",
    "fiberwalk_anchors": "our anchors without fibers",
    "fiberwalk_fiber": "our fiber samples",
    "fiberwalk_many": "fiberwalk, 512 decoded samples",
    "fiberwalk": "fiberwalk, as served (32 decoded samples)",
}
"""What the methods are called in tables, in their order."""


def run_split(name: str, split: int, preset: str) -> dict[str, Any]:
    """Figures and cost of each method on a split's test rows, and what went wrong where one failed."""
    data = read_set(name)
    problem = make_problem(data, split, preset)
    tuned = tune(problem)
    found: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for family in FAMILIES:
        try:
            outcomes = family.run(problem, tuned)
        except (
            RuntimeError,
            ValueError,
            ArithmeticError,
        ) as e:  # a peer's library may fail numerically: shown, not hidden
            failed[family.__name__.rpartition(".")[2]] = f"{type(e).__name__}: {e}"
            continue
        for method, outcome in outcomes.items():
            found[method] = {
                "figures": figures(outcome.predictive, problem.y_test, problem.scale),
                "gradient_evaluations": outcome.cost.gradient_evaluations,
                "seconds": round(outcome.cost.seconds, 3),
            }
    return {
        "task": data.task,
        "rows": len(problem.x),
        "columns": problem.x.shape[1],
        "test_rows": len(problem.y_test),
        "methods": found,
        "failed": failed,
    }


def one_thread() -> None:
    """Settles a worker process: splits run side by side, one core each."""
    torch.set_num_threads(1)
