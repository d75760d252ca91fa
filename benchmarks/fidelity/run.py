"""All methods on one posterior, from one seed's anchors."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.data import read_set
from benchmarks.fidelity import hmc, ours, peers
from benchmarks.fidelity.distances import distances
from benchmarks.fidelity.moments import function_correlations, weight_moments
from benchmarks.fidelity.peers import Found
from benchmarks.fidelity.target import Target, find_maps, make_target
from benchmarks.quality.predictive import Classes, Gaussians, Predictive
from benchmarks.quality.problem import make_problem
from builder.predictive import sample_outputs
from builder.work import WorkFolder, make_key

ANCHORS = 10
DRAWN = ("fiberwalk", "laplace_full", "ensemble_10")
FIBER = {"drift_scale": 1.0, "steps": 2, "trajectories": 24, "refinement": 100, "moves": 40, "leapfrog": 120}
"""Ends at scale 1 after few drift steps, each with Hamiltonian moves, which by default a build does without."""


@dataclass(frozen=True)
class Case:
    """One posterior to be found.

    Attributes:
        data: name of the set, of which the first split is taken; rows: of its training rows the first so many.
        hidden: tanh units of the one hidden layer.
        settings: of the reference.
        stages: further options of a build, by stage.
    """

    data: str
    hidden: int
    settings: hmc.Settings
    rows: int | None = None
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """A posterior with its reference.

    Attributes:
        target: `problem.x_test` holds all points of comparison.
        points: which of them are what: the test rows, and for one column of input a grid.
        draws: the reference's; outputs: (C, D, G, O) at the points.
    """

    target: Target
    points: dict[str, slice]
    draws: hmc.Draws
    outputs: Tensor


def prepare(case: Case, work: WorkFolder | None = None) -> Comparison:
    """Chooses noise and prior and runs the reference, or finds it in the work folder."""
    data = read_set(case.data)
    if case.rows is not None:
        kept = data.train & (data.train.cumsum(1) <= case.rows)
        data = replace(data, train=kept)
    options: dict[str, dict[str, Any]] = {
        "fiber": FIBER,
        **case.stages,
        "network": {"hidden": [case.hidden], "activation": "tanh"},
    }
    target = make_target(make_problem(data, 0, "default", **options))
    problem = target.problem
    points = {"test": slice(0, len(problem.x_test))}
    if problem.x.shape[1] == 1:
        grid = grid_of(problem.x)
        points["grid"] = slice(len(problem.x_test), len(problem.x_test) + len(grid))
        problem = replace(problem, x_test=torch.cat([problem.x_test, grid]))
    target = replace(target, problem=problem)
    draws = _reference(target, case, work)
    outputs = sample_outputs(problem.network, draws.weights.flatten(0, 1), problem.x_test)
    return Comparison(target, points, draws, outputs.reshape(*draws.weights.shape[:2], *outputs.shape[1:]))


def grid_of(x: Tensor) -> Tensor:
    """Points (101, 1) over the range of x (n, 1) and half of it beyond on either side."""
    low, high = float(x.min()), float(x.max())
    return torch.linspace(low - 0.5 * (high - low), high + 0.5 * (high - low), 101)[:, None]


def _reference(target: Target, case: Case, work: WorkFolder | None) -> hmc.Draws:
    problem = target.problem
    key = make_key(
        repr(case), target.noise_std, target.precision, float(problem.x.double().sum()), float(problem.y.double().sum())
    )
    known = work.load("hmc", key) if work else None
    if known is not None:
        return hmc.Draws(known[0]["weights"], **known[1])
    draws = hmc.sample(target, case.settings, seed=0)
    if work:
        work.save("hmc", key, {"weights": draws.weights}, {"divergences": draws.divergences, "steps": draws.steps})
    return draws


def run_seed(comparison: Comparison, seed: int) -> dict[str, Any]:
    """Distances and moments of every method whose anchors and draws come from this seed."""
    target = comparison.target
    problem = replace(target.problem, config=target.problem.config.model_copy(update={"seed": seed}))
    target = replace(target, problem=problem)
    maps, _ = find_maps(target, ANCHORS, seed)
    found = peers.run(target, maps) | ours.run(target, maps)
    draws = comparison.draws.weights.flatten(0, 1)
    outputs = comparison.outputs.flatten(0, 1)
    half = len(draws) // 2
    one = Found(target.predictive(outputs[:half]), draws[:half], outputs[:half])
    methods = {"hmc": compare(comparison, one, outputs[half:])}
    methods |= {name: compare(comparison, f, outputs) for name, f in found.items()}
    seen = hmc.convergence(comparison.outputs[:, :, comparison.points["test"], 0])
    return {
        "task": "regression" if problem.regression else "classification",
        "rows": len(problem.x),
        "columns": problem.x.shape[1],
        "weights": problem.network.weights,
        "noise_std": target.noise_std,
        "precision": target.precision,
        "reference": {
            "converged": seen.converged,
            "rhat": seen.rhat,
            "ess": seen.ess,
            "draws": seen.draws,
            "divergences": comparison.draws.divergences,
            "leapfrog_steps": comparison.draws.steps,
            "moments": weight_moments(problem.network, draws, target.precision),
        },
        "methods": methods,
        **_curve(comparison, found),
    }


def _curve(comparison: Comparison, found: dict[str, Found]) -> dict[str, Any]:
    """What the picture shows where there is a grid, in standardised units: the training rows, and the ends and the
    middle of the function values' central nine tenths."""
    rows, problem = comparison.points.get("grid"), comparison.target.problem
    if rows is None:
        return {}
    functions = {"hmc": comparison.outputs.flatten(0, 1)} | {m: found[m].functions for m in DRAWN}
    levels = torch.tensor([0.05, 0.5, 0.95])
    bands = {m: f[:, rows, 0].quantile(levels, dim=0).tolist() for m, f in functions.items() if f is not None}
    grid = problem.x_test[rows, 0].tolist()
    return {"curve": {"grid": grid, "x": problem.x[:, 0].tolist(), "y": problem.y.tolist(), "bands": bands}}


def compare(comparison: Comparison, found: Found, reference: Tensor) -> dict[str, dict[str, float]]:
    """Distances at each kind of points from the reference's outputs (S, G, O), and what the samples' moments are."""
    target = comparison.target
    wanted = target.predictive(reference)
    figures = {
        kind: distances(_at(found.predictive, rows), _at(wanted, rows), target.noise_std)
        for kind, rows in comparison.points.items()
    }
    if found.functions is not None and len(found.functions) > 1:
        test = comparison.points["test"]
        figures["functions"] = function_correlations(found.functions[:, test, 0], reference[:, test, 0])
    if found.weights is not None:
        figures["weights"] = weight_moments(target.problem.network, found.weights, target.precision)
    return figures


def _at(predictive: Predictive, rows: slice) -> Predictive:
    if isinstance(predictive, Classes):
        return Classes(predictive.probabilities[rows])
    return Gaussians(predictive.mean[:, rows], predictive.variance[:, rows])
