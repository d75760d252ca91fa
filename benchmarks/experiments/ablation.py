"""Ablation of the drift scale and of M, the refinement steps after each drift: test NLL of the fiber samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.data import read_set
from benchmarks.experiments.experiment import Experiment, Report, Table, by_set, heading
from benchmarks.experiments.pictures import heat_maps
from benchmarks.experiments.stages import outputs_of_nodes, train, walk
from benchmarks.quality.problem import Problem, make_problem
from benchmarks.results import Run
from benchmarks.table import Estimate, estimate

SETS = ("uci_yacht", "uci_boston")
SPLITS = 3
REFINEMENT = (0, 2, 5, 10, 30)


def run(name: str, split: int, preset: str) -> dict[str, Any]:
    """Test NLL of the fiber samples, for each M up to each drift scale."""
    return ablate(make_problem(read_set(name), split, preset), REFINEMENT)


def ablate(problem: Problem, refinement: Sequence[int]) -> dict[str, Any]:
    """For each M one walk: its nodes pass through every drift scale.

    `nll` is one row an M, one entry a drift scale, None where a particle diverged so far that no noise can be fitted.
    """
    start = train(problem)
    found: list[list[float | None]] = []
    for m in refinement:
        fibers = walk(start, problem.config.fiber.model_copy(update={"refinement": m}))
        nodes, particles = len(fibers.nodes), fibers.nodes.shape[2]
        outputs = outputs_of_nodes(start, fibers.nodes)
        nll = [outputs.first(t * particles).figures()["nll"] for t in range(1, nodes + 1)]
        found.append([v if math.isfinite(v) else None for v in nll])
    return {"refinement": list(refinement), "scales": fibers.scales.tolist(), "nll": found}


def report(runs: Sequence[Run]) -> Report:
    """A heat map and a table for each set, and where the best cell is."""
    tables, maps, findings = [], {}, []
    for name, those in by_set(runs).items():
        nll = np.array([r["nll"] for r in those], dtype=np.float64)
        scales, refinement = those[0]["scales"], those[0]["refinement"]
        cells = [[estimate(list(nll[:, i, j])) for j in range(len(scales))] for i in range(len(refinement))]
        tables.append(
            Table(
                f"Test NLL, {heading(name, those)}",
                ["drift scale up to", *(f"M = {m}" for m in refinement)],
                [[f"{c:.3g}", *(_text(row[j]) for row in cells)] for j, c in enumerate(scales)],
            )
        )
        mean = nll.mean(0)
        maps[heading(name, those)] = mean
        findings.append(_finding(name, mean, cells, scales, refinement))
    labels = [f"{m}" for m in refinement], [f"{c:.2g}" for c in scales]
    return Report(
        tables, {"ablation.png": heat_maps(maps, *labels, "refinements M", "drift scale up to", "test NLL")}, findings
    )


def _text(cell: Estimate) -> str:
    return cell.text() if math.isfinite(cell.mean) else "diverged"


def _finding(
    name: str,
    mean: np.ndarray[Any, Any],
    cells: list[list[Estimate]],
    scales: Sequence[float],
    refinement: Sequence[int],
) -> str:
    i, j = (int(v) for v in np.unravel_index(np.nanargmin(mean), mean.shape))
    drift, last = refinement.index(min(refinement)), refinement.index(max(refinement))

    def best(m: int) -> str:
        return f"{scales[int(np.nanargmin(mean[m]))]:.2g} for M = {refinement[m]} (NLL {np.nanmin(mean[m]):.3f})"

    return (
        f"{name}: anchors alone {cells[0][0].text()}; best {cells[i][j].text()} at M = {refinement[i]} and drift scale "
        f"{scales[j]:.2g}. The best drift scale is {best(drift)} and {best(last)}."
    )


EXPERIMENT = Experiment(
    title="Ablation: drift scale and refinement",
    about=(
        "Test NLL of the fiber samples of all anchors: all nodes up to a drift scale (in radii of the posterior), each "
        "after at most M refinement steps. Drift scale 0 is the anchors alone, M = 0 is drift alone: draws from the "
        "Gaussian at each anchor. The noise of every cell is chosen on rows that the anchors did not see."
    ),
    cases=[(name, split) for split in range(SPLITS) for name in SETS],
    run=run,
    report=report,
)
