"""What a build costs beside training one network, and what sampling costs beside a plain loop over particles.

    python -m benchmarks.speed [--sets NAME ...] [--preset default] [--output FILE.json]

For every set, on the first split's training rows and on the CPU, two ratios of wall times taken one after the other:

- A single-anchor build, all stages, export included, over the training of the MAP network alone: the same network by
  the same trainer on the same rows with the same steps, once, with one prior precision. The goal is a ratio of at
  most 3.
- The row gradients a second of fiber sampling, its whole stage, over those of a Python loop that takes one particle's
  module at a time, gets its loss on the same rows and calls torch's autograd. The goal is at least 10.

It can be stopped at any time: finished sets are in the output file and are not run again, unless the code, the preset,
the libraries or the machine changed.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console

import builder  # noqa: F401  settles threads and memory before torch is imported
from benchmarks.data import ROOT, check_available, read_set
from benchmarks.exit import exit_status
from benchmarks.quality.problem import Problem, make_problem
from benchmarks.results import Results, environment, refuse_changed
from benchmarks.served import PRESETS
from benchmarks.table import mark, render
from builder.config import MapConfig
from builder.evaluation import evaluate, predict_test
from builder.learning import learn
from builder.likelihood import CategoricalLikelihood, GaussianLikelihood, Likelihood
from builder.map import initial_weights, train_members
from builder.progress import StageBars
from builder.publication import publish
from builder.trained import Trained

SETS: Final = ["uci_protein", "uci_naval", "uci_kin8nm", "uci_power", "wide_regression", "wide_classification"]
MOST_MAP_TIMES: Final = 3.0
LEAST_LOOP_TIMES: Final = 10.0
STAGES: Final = ["map", "fiber", "autoencoder", "calibration", "export", "rest"]
_LOOP_SECONDS = 3.0


def measure(name: str, preset: str, loop_seconds: float = _LOOP_SECONDS, **stages: dict[str, Any]) -> dict[str, Any]:
    """Both ratios of a set, and the times behind them; `stages` are options of the build over the preset's."""
    stages["map"] = {**stages.get("map", {}), "anchors": 1}
    problem = make_problem(read_set(name), 0, preset, **stages)
    _warm_up(problem)
    build_seconds, seconds, trained = time_build(problem)
    map_seconds = time_map(problem, trained)
    sampled = trained.sampling_gradients / seconds["fiber"]
    looped = time_loop(trained, loop_seconds)
    return {
        "rows": len(problem.x),
        "columns": problem.x.shape[1],
        "weights": trained.network.weights,
        "particles": trained.fibers.nodes.shape[2],
        "build_seconds": round(build_seconds, 3),
        "stage_seconds": seconds,
        "map_seconds": round(map_seconds, 3),
        "build_over_map": round(build_seconds / map_seconds, 3),
        "sampled_gradients": trained.sampling_gradients,
        "sampled_per_second": round(sampled),
        "looped_per_second": round(looped),
        "sampling_over_loop": round(sampled / looped, 3),
    }


def time_build(problem: Problem) -> tuple[float, dict[str, float], Trained]:
    """Seconds of a whole build from encoded rows to the published bundle, those of its stages, and what it learned."""
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="fiberwalk-benchmark-") as store:
        config = problem.config.model_copy(update={"store": Path(store)})
        start = time.perf_counter()
        trained = learn(config, problem.dataset, problem.factory, StageBars(quiet=True), seconds)
        test = predict_test(trained)
        metrics = evaluate(trained, test)
        evaluated = time.perf_counter()
        publish(trained, metrics, [], dict(seconds), test)
        end = time.perf_counter()
    seconds["export"] = round(end - evaluated, 3)
    seconds["rest"] = round(end - start - sum(seconds.values()), 3)
    return end - start, seconds, trained


def time_map(problem: Problem, trained: Trained) -> float:
    """Seconds of training one network as the build trains its anchors."""
    start = time.perf_counter()
    weights = initial_weights(problem.factory, problem.network, [problem.seed * 1009])
    precision = torch.tensor([problem.config.map.prior_precision[0]])
    train_members(
        problem.network, weights, problem.x, problem.y, trained.member, precision, problem.config.map, problem.seed
    )
    return time.perf_counter() - start


def time_loop(trained: Trained, seconds: float) -> float:
    """Row gradients a second of a plain loop over the particles, one step each in turn, for at least so long.

    A particle's step: its module's loss on all rows that the sampler takes, with the prior, torch's autograd and a step
    of gradient descent.
    """
    particles = trained.fibers.nodes[1, 0]
    modules = [copy.deepcopy(trained.network.module) for _ in particles]
    for module, theta in zip(modules, particles, strict=True):
        torch.nn.utils.vector_to_parameters(theta, module.parameters())
    likelihood: Likelihood = GaussianLikelihood(trained.calibrated.spread)
    if not trained.y.is_floating_point():
        likelihood = CategoricalLikelihood(trained.dataset.outputs)
    member = trained.member[0].float()
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        module = modules[done % len(modules)]
        parameters = list(module.parameters())
        loss = (member * likelihood.nll(module(trained.x), trained.y)).sum()
        loss = loss + 0.5 * sum((p**2).sum() for p in parameters)
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.data.sub_(gradient, alpha=1e-9)
        done += 1
    return done * len(trained.x) / (time.perf_counter() - start)


def _warm_up(problem: Problem) -> None:
    """What torch does once a process is no part of any time."""
    start = initial_weights(problem.factory, problem.network, [0])
    member = torch.ones(1, len(problem.x), dtype=torch.bool)
    train_members(problem.network, start, problem.x, problem.y, member, torch.ones(1), MapConfig(steps=3))


def judge(found: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The two goals, over all sets: what they ask, how they stand, and the worst set."""
    slowest = max(found, key=lambda f: f["build_over_map"])
    closest = min(found, key=lambda f: f["sampling_over_loop"])
    stage = max(STAGES, key=lambda s: slowest["stage_seconds"][s])
    share = slowest["stage_seconds"][stage] / slowest["build_seconds"]
    return [
        [
            f"A single-anchor build takes at most {MOST_MAP_TIMES:g} times the MAP network's training",
            mark(slowest["build_over_map"] <= MOST_MAP_TIMES),
            f"{slowest['build_over_map']:.1f} times on {slowest['set']}, {share:.0%} of it the stage {stage}",
        ],
        [
            f"Sampling takes at least {LEAST_LOOP_TIMES:g} times the gradients a second of a loop over particles",
            mark(closest["sampling_over_loop"] >= LEAST_LOOP_TIMES),
            f"{closest['sampling_over_loop']:.1f} times on {closest['set']}",
        ],
    ]


def show(found: Sequence[dict[str, Any]]) -> None:
    """Prints the tables and the goals."""
    columns = ["set", "rows", "weights", "particles", "MAP s", "build s", *STAGES, "build/MAP", "goal"]
    rows = [
        [f["set"], f"{f['rows']:,}", f"{f['weights']:,}", str(f["particles"])]
        + [f"{s:.1f}" for s in (f["map_seconds"], f["build_seconds"], *(f["stage_seconds"][s] for s in STAGES))]
        + [f"{f['build_over_map']:.1f}", mark(f["build_over_map"] <= MOST_MAP_TIMES)]
        for f in found
    ]
    render("A single-anchor build beside training the MAP network alone", columns, rows)
    rows = [
        [
            f["set"],
            *(f"{f[kind]:,}" for kind in ("sampled_per_second", "looped_per_second")),
            f"{f['sampling_over_loop']:.1f}",
            mark(f["sampling_over_loop"] >= LEAST_LOOP_TIMES),
        ]
        for f in found
    ]
    render("Row gradients a second", ["set", "sampling", "loop over particles", "ratio", "goal"], rows)
    render("Goals", ["goal", "state", "found"], judge(found))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns the exit status: 2 where it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sets", nargs="+", default=SETS, metavar="NAME", help=f"default: {' '.join(SETS)}")
    parser.add_argument("--preset", choices=PRESETS, default="default")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "speed.json", metavar="FILE")
    options = parser.parse_args(arguments)
    log = Console(stderr=True, highlight=False)
    return exit_status(lambda: _run(options.sets, options.preset, options.output, log), log)


def _run(names: Sequence[str], preset: str, output: Path, log: Console) -> int:
    for name in names:
        check_available(name)
    here = environment(ROOT, preset)
    results = Results(output, "speed", here)
    for name in names:
        if not results.finished(name, 0):
            measured = measure(name, preset)
            refuse_changed(here, environment(ROOT, preset))
            results.add(name, 0, measured)
    found = [run for name in names for run in results.current(name)]
    results.save([{"goal": goal, "state": state, "found": said} for goal, state, said in judge(found)])
    show(found)
    log.print(f"Written to {output}.", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
