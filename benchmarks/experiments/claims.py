"""Ablations of what the method claims: its preconditioner, its drift, its objective and its second round of folds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.data import read_set
from benchmarks.experiments.experiment import Experiment, Report, Table, apart, by_set, heading
from benchmarks.experiments.stages import Start, outputs_of, outputs_of_nodes, train, walk
from benchmarks.quality.problem import Problem, make_problem
from benchmarks.results import Run
from benchmarks.table import estimate
from builder.calibration import choose_reach
from builder.predictive import sample_outputs

SETS = ("uci_yacht", "uci_boston")
SPLITS = 3
BUILT = "as built"
VARIANTS: dict[str, dict[str, object]] = {
    BUILT: {},
    "preconditioner power 0": {"flattening": 0.0},
    "preconditioner power 0.25": {"flattening": 0.25},
    "preconditioner power 1": {"flattening": 1.0},
    "isotropic drift, perturbed objective": {"direction": "prior"},
    "posterior-shaped drift, plain objective": {"objective": "plain"},
    "isotropic drift, plain objective": {"direction": "prior", "objective": "plain"},
}
"""Options of the walk by which a variant differs from what is built."""
WEIGHTED = "trajectories weighted"
ONE_ROUND, ONE_ROUND_ANCHORS = "one round of folds", "one round of folds, no fibers"
ANCHORS = "no fibers"


def run(name: str, split: int, preset: str) -> dict[str, Any]:
    """Test figures of the fiber samples of each variant, all from the same anchors."""
    return compare(make_problem(read_set(name), split, preset))


def compare(problem: Problem) -> dict[str, Any]:
    """Figures of each variant: those of `Outputs.figures`, with `reach` the drift scale up to which nodes are used and
    `gradient_evaluations` of the walk. One round of folds is the first half of the anchors, with twice the fibers."""
    start = train(problem)
    built = _walk(start, {})
    found = {v: built.figures() if v == BUILT else _walk(start, options).figures() for v, options in VARIANTS.items()}
    found[WEIGHTED] = replace(built, nodes=_resampled(start, built.nodes)).figures()
    found[ANCHORS] = outputs_of(start, start.anchors[:, None]).figures()
    once = start.first(len(start.anchors) // 2)
    found[ONE_ROUND] = _walk(once, {}).figures()
    found[ONE_ROUND_ANCHORS] = outputs_of(once, once.anchors[:, None]).figures()
    return {"variants": found}


@dataclass(frozen=True)
class _Walked:
    """Nodes (T, A, N, P) up to the reach, that drift scale, and what the walk cost."""

    start: Start
    nodes: Tensor
    reach: float
    gradient_evaluations: int

    def figures(self) -> dict[str, float]:
        return {
            **outputs_of_nodes(self.start, self.nodes).figures(),
            "reach": self.reach,
            "gradient_evaluations": self.gradient_evaluations,
        }


def _walk(start: Start, options: dict[str, object]) -> _Walked:
    problem = start.problem
    fibers = walk(start, problem.config.fiber.model_copy(update=options))
    reach = choose_reach(problem.network, fibers, problem.x, problem.y, start.member)
    scale = float(fibers.scales[reach.node])
    return _Walked(start, fibers.nodes[: reach.node + 1], scale, fibers.gradient_evaluations)


def _resampled(start: Start, nodes: Tensor) -> Tensor:
    """Nodes (T, A, N, P) in which each trajectory stands as often as the rows that its anchor did not see make it
    likely beside the anchor's others, by the geometric mean of their likelihood over its nodes."""
    problem = start.problem
    found = []
    for a, unseen in enumerate(~start.member):
        outputs = sample_outputs(problem.network, nodes[:, a].flatten(0, 1), problem.x[unseen])
        nll = start.likelihood.nll(outputs, problem.y[unseen]).sum(1).reshape(nodes.shape[0], -1)
        weight = (-nll.mean(0)).softmax(0)
        place = (torch.arange(len(weight)) + 0.5) / len(weight)
        chosen = torch.searchsorted(weight.cumsum(0), place).clamp(max=len(weight) - 1)
        found.append(nodes[:, a, chosen])
    return torch.stack(found, 1)


def report(runs: Sequence[Run]) -> Report:
    """A table a set: each variant's test NLL, its difference to what is built, its reach and its cost."""
    tables = []
    for name, those in by_set(runs).items():
        built = [r["variants"][BUILT]["nll"] for r in those]
        rows = []
        for variant in those[0]["variants"]:
            each = [r["variants"][variant] for r in those]
            nll = [v["nll"] for v in each]
            walked = "reach" in each[0]
            rows.append(
                [
                    variant,
                    estimate(nll).text(),
                    "" if variant == BUILT else apart(nll, built),
                    estimate([v["out_of_fold"] for v in each]).text(),
                    f"{estimate([v['reach'] for v in each]).mean:.2g}" if walked else "",
                    f"{estimate([v['gradient_evaluations'] for v in each]).mean / 1e6:.0f} M" if walked else "",
                ]
            )
        header = ["variant", "test NLL", "worse than built by", "out-of-fold NLL", "reach", "row gradients of the walk"]
        tables.append(Table(heading(name, those), header, rows))
    return Report(tables, findings=_findings(runs))


def _findings(runs: Sequence[Run]) -> list[str]:
    """Over all sets and splits: in how many each variant is worse than what is built."""
    found = []
    for variant in runs[0]["variants"]:
        if variant != BUILT:
            worse = sum(r["variants"][variant]["nll"] > r["variants"][BUILT]["nll"] for r in runs)
            found.append(f"{variant}: worse than built on {worse} of {len(runs)} splits.")
    return found


EXPERIMENT = Experiment(
    title="Ablations of the method",
    about=(
        "Test NLL of the fiber samples where one choice of the method is replaced by another. What is built: gradients "
        "preconditioned by the anchor's curvature to the power 0.5, drift along draws from the posterior's Gaussian, "
        "refinement on the perturbed objective, two rounds of folds. For every variant the reach and the noise are "
        "chosen anew on rows that the anchors did not see, so a drift of the wrong length costs its reach first. The "
        "difference to what is built is paired by split. One round of folds has half the anchors with twice the fibers "
        "each; its out-of-fold NLL is that of single anchors and not to be compared with the others'. Weighted "
        "trajectories stand as often as the rows that their anchor did not see make them likely; these rows then judge "
        "themselves, so the out-of-fold NLL is too good."
    ),
    cases=[(name, split) for split in range(SPLITS) for name in SETS],
    run=run,
    report=report,
)
