"""Sensitivity to the rank of the decoder's head: NLL of decoded samples, and what a server takes for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from benchmarks.data import read_set
from benchmarks.experiments.decoding import Itself, Sampled, sample
from benchmarks.experiments.experiment import Experiment, Report, Table, apart, by_set, heading
from benchmarks.experiments.pictures import Line, Panel, lines
from benchmarks.experiments.stages import outputs_of, train
from benchmarks.quality.images.data import read_images
from benchmarks.quality.images.problem import image_problem
from benchmarks.quality.problem import Problem, make_problem
from benchmarks.results import Run
from benchmarks.serving.measure import measure
from benchmarks.serving.models import Case
from benchmarks.table import estimate
from builder.autoencoder import train_autoencoder
from builder.config import make_config
from builder.narrowing import narrow_first_layers
from builder.network import MLP
from model_store.manifest import LatentPlan

SETS = ("uci_yacht", "uci_boston")
SPLITS = 2
RANKS = (1, 2, 4, 8, 16, 32)
WIDE = "fashion_mnist"
WIDE_SPLITS = 3
FIRST_RANKS = (1, 2, 4, 6, 8, 10, 12, 16, 20, 23)
ALL = 0
"""In place of the rank of a first layer: that of the other layers."""
SAMPLES, WIDE_SAMPLES = 50, 128
"""Decoded samples an anchor: of twenty anchors, and of the one of the wide network."""
TRAIN_ROWS, TEST_ROWS = 5000, 2000
STAGES: dict[str, dict[str, object]] = {
    "map": {"anchors": 1, "steps": 1250, "batch_rows": 64, "learning_rate": 1e-3, "prior_precision": [5.0, 20.0]},
    "fiber": {"refinement": 10},
}
_SERVED = 32
_SECONDS = 2.0


def run(name: str, split: int, preset: str) -> dict[str, Any]:
    """Figures for each rank."""
    if name == WIDE:
        return vary_first(sample(train(wide_problem(split, preset))), FIRST_RANKS, WIDE_SAMPLES, _SECONDS)
    return vary(sample(train(make_problem(read_set(name), split, preset))), RANKS, SAMPLES)


def wide_problem(split: int, preset: str) -> Problem:
    """Images for a network 784-256-128-10 of linear layers; `split` is the seed.

    Raises:
        DataError: a file is missing.
    """
    images = read_images(WIDE, TRAIN_ROWS, TEST_ROWS)
    data = {"task": "classification", "test_fraction": 0.0}
    config = make_config(
        {"name": f"{WIDE}-{split}", "preset": preset, "seed": split, "device": "cpu", **STAGES, "data": data}
    )
    x, x_test = images.x / 255.0, images.x_test / 255.0
    return image_problem(config, x, images.y, x_test, images.y_test, wide_network)


def wide_network() -> nn.Module:
    """(B, 1, 28, 28) -> (B, 10)."""
    return nn.Sequential(nn.Flatten(), MLP(784, [256, 128], 10))


def vary(sampled: Sampled, ranks: Sequence[int], samples: int) -> dict[str, Any]:
    """The same fibers decoded by heads of each rank, beside the fibers and the anchors."""
    problem = sampled.start.problem
    found = []
    for rank in ranks:
        config = problem.config.autoencoder.model_copy(update={"rank": rank})
        latent = train_autoencoder(sampled.nodes, sampled.scales, config, problem.seed, metric=sampled.metric)
        figures = sampled.decode(latent.decoder, latent.nodes, samples).figures()
        found.append({**figures, "rank": latent.decoder.rank, "reconstruction": latent.reconstruction_error})
    return _beside(sampled, samples) | {"decoded": found}


def vary_first(sampled: Sampled, ranks: Sequence[int], samples: int, seconds: float) -> dict[str, Any]:
    """The same decoder with a first layer of each rank, and the time of one row's and 64 rows' samples with it, in
    deterministic runs of the network."""
    problem = sampled.start.problem
    latent = train_autoencoder(
        sampled.nodes, sampled.scales, problem.config.autoencoder, problem.seed, metric=sampled.metric
    )
    plan = LatentPlan(name="predict", samples=_SERVED, drift_scale=float(sampled.scales[-1]))
    shape, classes = tuple(problem.x.shape[1:]), problem.dataset.outputs
    found = []
    for rank in [*ranks, ALL]:
        decoder = narrow_first_layers(
            problem.network, latent.decoder, latent.nodes, problem.x, sampled.start.likelihood, plan, rank
        )
        figures = sampled.decode(decoder, latent.nodes, samples).figures()
        case = Case(problem.factory, shape, classes, rank or latent.decoder.rank)
        times = {t["rows"]: t["network"] / t["det"] for t in measure(case, [1, 64], seconds)}
        found.append({**figures, "rank": rank, "row": times[1], "rows": times[64]})
    return _beside(sampled, samples) | {"decoded": found, "rank": latent.decoder.rank}


def _beside(sampled: Sampled, samples: int) -> dict[str, Any]:
    anchors, trajectories = sampled.nodes.shape[1:3]
    return {
        "anchors": anchors,
        "trajectories": trajectories,
        "weights": sampled.start.problem.network.weights,
        "fiber": sampled.decode(Itself(), sampled.paths, samples).figures(),
        "alone": outputs_of(sampled.start, sampled.start.anchors[:, None]).figures(),
    }


def report(runs: Sequence[Run]) -> Report:
    """A table for each set, and NLL and times by rank."""
    tables, nll, times, findings = [], [], [], []
    for name, those in by_set(runs).items():
        fiber = [r["fiber"]["nll"] for r in those]
        wide = "row" in those[0]["decoded"][0]
        rows, ranks, differences = [], [], []
        for i, decoded in enumerate(those[0]["decoded"]):
            each = [r["decoded"][i] for r in those]
            values = [d["nll"] for d in each]
            cells = [str(decoded["rank"]) if decoded["rank"] != ALL else f"that of the others, {those[0]['rank']}"]
            cells += [estimate(values).text(), apart(values, fiber)]
            if wide:
                cells += [estimate([d["ece"] for d in each]).text()]
                cells += [estimate([d[key] for d in each]).text(1) for key in ("row", "rows")]
            rows.append(cells)
            if decoded["rank"] != ALL:
                ranks.append(decoded["rank"])
                differences.append(estimate([v - f for v, f in zip(values, fiber, strict=True)]))
        lacking = [""] * (3 if wide else 0)
        rows.append(["the fibers themselves", estimate(fiber).text(), "", *lacking])
        alone = [r["alone"]["nll"] for r in those]
        rows.append(["anchors alone", estimate(alone).text(), apart(alone, fiber), *lacking])
        first = those[0]
        title = (
            f"{heading(name, those)}: {first['anchors']} anchor(s) of {first['weights']:,} weights, "
            f"{first['trajectories']} fibers each; rank of the {'first layer' if wide else 'head'}"
        )
        header = ["rank", "test NLL", "above the fibers"]
        header += ["test ECE", "one row, in det", "64 rows, in det"] if wide else []
        tables.append(Table(title, header, rows))
        bars = [d.standard_error or 0.0 for d in differences]
        nll.append(Line(ranks, [d.mean for d in differences], heading(name, those), bars))
        enough = next((r for i, r in enumerate(ranks) if all(d.mean < 0.01 for d in differences[i:])), None)
        what = "with a first layer" if wide else "with a head"
        findings.append(
            f"{name}: {what} of rank {enough} or more, decoded NLL is at most 0.01 above the fibers'."
            if enough is not None
            else f"{name}: {what} of no rank up to {ranks[-1]} decoded NLL is at most 0.01 above the fibers'."
        )
        if wide:
            kept = range(len(ranks))
            for key, label in (("row", "one row"), ("rows", "64 rows")):
                means = [estimate([r["decoded"][i][key] for r in those]).mean for i in kept]
                whole = estimate([r["decoded"][-1][key] for r in those]).mean
                times.append(Line(ranks, means, label, reference=whole))
    panels = [Panel("Decoded NLL above the fibers'", "rank", "nats a row", nll, 0.01, ticks=RANKS)]
    if times:
        panels.append(
            Panel(
                "32 samples (dashed: all weights)",
                "rank of the first layer",
                "times one deterministic run",
                times,
                ticks=RANKS,
            )
        )
    return Report(tables, {"ranks.png": lines(panels, (9.0, 4.0))}, findings)


EXPERIMENT = Experiment(
    title="Sensitivity to the rank of the decoder's head",
    about=(
        "The same fibers decoded by heads of each rank, as many samples an anchor each, drawn evenly over the part of "
        "the trajectories that a build decodes. "
        f"`{WIDE}`: {TRAIN_ROWS:,} training and {TEST_ROWS:,} test images of 784 numbers, one anchor of a "
        "network 784-256-128-10. Here the rank is that of the first layer alone, which has most of the weights: with "
        "few columns a server mixes what it makes of a row instead of reading the weights of every sample "
        "(`autoencoder.first_rank` of a recipe). Times are those of the outputs of 32 samples on one core, in runs of "
        "the same network with one set of constant weights (det), by turns with these."
    ),
    cases=[*((name, split) for split in range(SPLITS) for name in SETS), *((WIDE, i) for i in range(WIDE_SPLITS))],
    run=run,
    report=report,
)
