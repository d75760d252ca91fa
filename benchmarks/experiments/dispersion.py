"""How far apart the samples of a classifier should lie whose probabilities are averaged: NLL and ECE by dispersion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.data import read_set
from benchmarks.experiments.experiment import Experiment, Report, Table, apart, by_set, heading
from benchmarks.experiments.pictures import Line, Panel, lines
from benchmarks.experiments.stages import outputs_of_nodes, train, walk
from benchmarks.quality.images.data import read_images
from benchmarks.quality.images.problem import USUAL_EPOCHS
from benchmarks.quality.images.problem import make_problem as image_problem
from benchmarks.quality.problem import Problem, make_problem
from benchmarks.results import Run
from benchmarks.table import estimate
from builder.calibration import choose_reach

SETS = ("cls_ionosphere", "cls_vehicle", "cls_glass")
SPLITS = 3
IMAGES, TRAIN_IMAGES, TEST_IMAGES = "fashion_mnist", 5000, 2000
IMAGE_STAGES: dict[str, dict[str, Any]] = {
    "map": {"anchors": 5, "folds": 1, "prior_precision": [10.0]},
    "fiber": {"trajectories": 4},
}
DISPERSIONS = (1.0, 0.7, 0.5, 0.35, 0.25, 0.1, 0.0)


def run(name: str, split: int, preset: str) -> dict[str, Any]:
    """Figures for each dispersion."""
    if name == IMAGES:
        images = read_images(name, TRAIN_IMAGES, TEST_IMAGES)
        problem = image_problem(name, images, USUAL_EPOCHS, split, "cpu", **IMAGE_STAGES)
        # Behind the test images are those of other sets.
        return vary(replace(problem, x_test=problem.x_test[: len(problem.y_test)]), DISPERSIONS)
    return vary(make_problem(read_set(name), split, preset), DISPERSIONS)


def vary(problem: Problem, dispersions: Sequence[float]) -> dict[str, Any]:
    """Test figures of the anchors alone and of their fibers up to the reach, for each dispersion, and for the one that
    unseen rows choose."""
    start = train(problem)
    fibers = walk(start, problem.config.fiber)
    reach = choose_reach(problem.network, fibers, problem.x, problem.y, start.member)
    nodes = {"anchors": fibers.nodes[:1, :, :1], "fibers": fibers.nodes[: reach.used + 1]}
    outputs = {who: outputs_of_nodes(start, own) for who, own in nodes.items()}
    return {
        "anchors": nodes["anchors"].shape[1],
        "reach": reach.node,
        "dispersions": list(dispersions),
        "by_dispersion": {who: [own.figures(d) for d in dispersions] for who, own in outputs.items()},
        "chosen": {who: own.figures() for who, own in outputs.items()},
    }


def report(runs: Sequence[Run]) -> Report:
    """A table and a line for each set."""
    tables, nll, findings = [], [], []
    for name, those in by_set(runs).items():
        dispersions, rows = those[0]["dispersions"], []
        whole = [r["by_dispersion"]["fibers"][dispersions.index(1.0)]["nll"] for r in those]
        for i, dispersion in enumerate(dispersions):
            each = {who: [r["by_dispersion"][who][i] for r in those] for who in ("anchors", "fibers")}
            rows.append([f"{dispersion:g}", *_cells(each, whole)])
        chosen = {who: [r["chosen"][who] for r in those] for who in ("anchors", "fibers")}
        rows.append(["chosen on unseen rows", *_cells(chosen, whole)])
        reaches = ", ".join(str(r["reach"]) for r in those)
        title = f"{heading(name, those)}: {those[0]['anchors']} anchors, fibers up to node {reaches}"
        header = ["dispersion", "unseen NLL", "test NLL", "from 1", "temperature", "ECE", "anchors: NLL", "ECE"]
        tables.append(Table(title, header, rows))
        differences = [
            estimate([r["by_dispersion"]["fibers"][i]["nll"] - w for r, w in zip(those, whole, strict=True)])
            for i in range(len(dispersions))
        ]
        bars = [d.standard_error or 0.0 for d in differences]
        nll.append(Line(dispersions, [d.mean for d in differences], heading(name, those), bars))
        picked = ", ".join(f"{f['dispersion']:g}" for f in chosen["fibers"])
        gained = apart([f["nll"] for f in chosen["fibers"]], whole)
        findings.append(f"{name}: unseen rows choose {picked}; test NLL {gained} from that of samples as drawn.")
    panel = Panel("Fibers, test NLL from that of dispersion 1", "dispersion", "nats a row", nll)
    return Report(tables, {"dispersion.png": lines([panel], (7.0, 4.2))}, findings)


def _cells(each: dict[str, list[dict[str, float]]], whole: Sequence[float]) -> list[str]:
    def mean(who: str, figure: str) -> str:
        return estimate([f[figure] for f in each[who]]).text()

    loss = [mean("fibers", "out_of_fold"), mean("fibers", "nll"), apart([f["nll"] for f in each["fibers"]], whole)]
    return [*loss, mean("fibers", "spread"), mean("fibers", "ece"), mean("anchors", "nll"), mean("anchors", "ece")]


EXPERIMENT = Experiment(
    title="Dispersion of a classifier's samples",
    about=(
        "Probabilities are averaged over samples whose logits lie at a share, the dispersion, of their distance from "
        "their mean over all samples: 1 is samples as drawn, 0 the softmax of the mean logits (the logarithmic pool). "
        "Each with the temperature that rows want which the anchors did not see. The dispersion that these rows choose "
        "is the largest of 1, 0.5 and 0.25 that predicts them as well as the best does, to within two standard errors; "
        "where fewer than half of the anchors lack a row, as two of twenty do for tables, it is 1. "
        f"`{IMAGES}`: {TRAIN_IMAGES:,} training and {TEST_IMAGES:,} test images, LeNet-5, and five anchors that leave "
        "out the same tenth."
    ),
    cases=[*((name, split) for split in range(SPLITS) for name in SETS), (IMAGES, 0)],
    run=run,
    report=report,
)
