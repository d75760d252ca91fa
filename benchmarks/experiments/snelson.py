"""Snelson's 1-D set without the rows in a gap: MAP, samples, mean and band, and how sure the model is where."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.data import read_set
from benchmarks.experiments.experiment import Experiment, Report, Table
from benchmarks.experiments.stages import with_network
from benchmarks.quality.building import build
from benchmarks.quality.methods.fiberwalk import ablated
from benchmarks.quality.predictive import figures
from benchmarks.quality.problem import Problem, make_problem
from benchmarks.quality.tuning import tune
from benchmarks.results import Run
from builder.evaluation import LEVEL
from builder.pictures import posterior
from builder.publication import posterior_curve
from model_store.errors import DataError

_POINTS, _SAMPLES = 101, 24
_DIGITS = 4
_FAR = 0.05
"""Of the data's range: so far from any training row a place is in the gap or outside, no longer between the data."""


def run(name: str, split: int, preset: str) -> dict[str, Any]:
    """Builds with the network of the demo, one hidden layer of 50 tanh units."""
    return look(with_network(make_problem(read_set(name), split, preset), [50], "tanh"))


def look(problem: Problem) -> dict[str, Any]:
    """The curve of a problem of one column, the standard deviation in its regions, figures on the test rows.

    Raises:
        DataError: it has another number of columns, or classes.
    """
    learned = build(problem)
    trained = learned.trained
    curve = posterior_curve(trained)
    if curve is None:
        raise DataError("A curve needs one numeric column and a real target.", field="--sets")
    where = regions(curve["grid"], curve["x_train"])
    noise = float(np.sqrt(np.median(curve["std"] ** 2 - curve["epistemic_std"] ** 2)))
    outcomes = ablated(problem, trained, learned.cost, tune(problem, learned))
    test = {method: figures(outcome.predictive, problem.y_test, problem.scale) for method, outcome in outcomes.items()}
    thin = np.linspace(0, len(curve["grid"]) - 1, _POINTS).round().astype(int)
    shown = {
        k: v if k.endswith("_train") else v[..., thin] if k != "samples" else v[:_SAMPLES, thin]
        for k, v in curve.items()
    }
    return {
        "noise_std": noise,
        "epistemic_std": {
            region: {"mean": float(curve["epistemic_std"][at].mean()), "most": float(curve["epistemic_std"][at].max())}
            for region, at in where.items()
        },
        "test": test,
        "curve": {k: np.round(v, _DIGITS).tolist() for k, v in shown.items()},
    }


def regions(grid: NDArray[Any], x_train: NDArray[Any]) -> dict[str, NDArray[np.bool_]]:
    """Which points of a grid (G,) lie inside the data, in a gap of them, and outside; a region without any is left out.

    A gap is where the nearest rows on both sides are further than a twentieth of the data's range.
    """
    rows = np.sort(x_train)
    reach = _FAR * (rows[-1] - rows[0])
    outside = (grid < rows[0]) | (grid > rows[-1])
    right = np.clip(np.searchsorted(rows, grid), 1, len(rows) - 1)
    gap = ~outside & (rows[right] - rows[right - 1] > 2 * reach)
    found = {"inside": ~outside & ~gap, "gap": gap, "outside": outside}
    return {name: at for name, at in found.items() if at.any()}


def report(runs: Sequence[Run]) -> Report:
    """The picture, the standard deviation by region, and the figures in the gap."""
    found = runs[0]
    curve = {k: np.array(v) for k, v in found["curve"].items()}
    noise = found["noise_std"]
    names = {"inside": "between the data", "gap": "in the gap", "outside": "outside the data"}
    regions = [
        [names[k], f"{v['mean']:.3f}", f"{v['most']:.3f}", f"{v['mean'] / noise:.2f}"]
        for k, v in found["epistemic_std"].items()
    ]
    methods = {
        "fiberwalk": "as served (32 decoded samples)",
        "fiberwalk_many": "512 decoded samples",
        "fiberwalk_fiber": "fiber samples",
        "fiberwalk_anchors": "anchors alone",
    }
    test = [[text, *(f"{found['test'][m][k]:.3f}" for k in ("nll", "rmse", "coverage"))] for m, text in methods.items()]
    ratio = [
        found["epistemic_std"][k]["mean"] / found["epistemic_std"]["inside"]["mean"]
        for k in ("gap", "outside")
        if k in found["epistemic_std"]
    ]
    finding = "The epistemic standard deviation is " + " and ".join(
        f"{r:.1f} times as large {names[k]}" for r, k in zip(ratio, ("gap", "outside"), strict=False)
    )
    return Report(
        [
            Table(
                f"Epistemic standard deviation of the mean; noise {noise:.3f}",
                ["region", "mean", "most", "mean / noise"],
                regions,
            ),
            Table(
                "Test rows, which are those in the gap",
                ["samples", "test NLL", "RMSE", f"coverage of {LEVEL:.0%}"],
                test,
            ),
        ],
        {"snelson.png": posterior(curve, "x", "y", LEVEL)},
        [finding + " as between the data."] if ratio and all(map(math.isfinite, ratio)) else [],
    )


EXPERIMENT = Experiment(
    title="Snelson 1-D",
    about=(
        "The 200 rows of Snelson and Ghahramani without those between 1.5 and 3, which are the test rows; one hidden "
        "layer of 50 tanh units. Everything as a build does it; the picture is the one that lies in a bundle."
    ),
    cases=[("snelson1d", 0)],
    run=run,
    report=report,
)
