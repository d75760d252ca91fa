"""Sensitivity to k, the dimension of the latent space: NLL of decoded samples and reconstruction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.data import read_set
from benchmarks.experiments.decoding import Itself, Sampled, sample
from benchmarks.experiments.experiment import Experiment, Report, Table, apart, by_set, heading
from benchmarks.experiments.images import NAME, small_problem
from benchmarks.experiments.pictures import Line, Panel, lines
from benchmarks.experiments.stages import outputs_of, train
from benchmarks.quality.problem import make_problem
from benchmarks.results import Run
from benchmarks.table import estimate
from builder.autoencoder import train_autoencoder

SETS = ("uci_yacht", "uci_boston")
SPLITS = 2
DIMENSIONS = (1, 2, 4, 8, 16, 32)
SAMPLES, IMAGE_SAMPLES = 50, 64
"""Decoded samples an anchor: of ten anchors, and of the one for images."""
TRAIN_IMAGES, TEST_IMAGES = 2000, 500
IMAGE_STAGES: dict[str, dict[str, object]] = {
    "map": {"anchors": 1, "holdout": 0.2, "steps": 1000, "batch_rows": 128, "prior_precision": [3.0]},
    "fiber": {"trajectories": 16, "steps": 6, "refinement": 10, "curvature_rows": 2048, "work": 3e11},
}
"""One anchor and few rows, so that it runs on one core in minutes."""


def run(name: str, split: int, preset: str) -> dict[str, Any]:
    """Figures for each k."""
    if name == NAME:
        problem = small_problem(split, preset, TRAIN_IMAGES, TEST_IMAGES, **IMAGE_STAGES)
        return vary(sample(train(problem)), DIMENSIONS, IMAGE_SAMPLES)
    return vary(sample(train(make_problem(read_set(name), split, preset))), DIMENSIONS, SAMPLES)


def vary(sampled: Sampled, dimensions: Sequence[int], samples: int) -> dict[str, Any]:
    """The same fibers decoded from latent spaces of each dimension, beside the fibers and the anchors."""
    problem = sampled.start.problem
    anchors, trajectories = sampled.nodes.shape[1:3]
    found = []
    for k in dimensions:
        config = problem.config.autoencoder.model_copy(update={"dimension": k})
        latent = train_autoencoder(sampled.nodes, sampled.scales, config, problem.seed, metric=sampled.metric)
        figures = sampled.decode(latent.decoder, latent.nodes, samples).figures()
        found.append({**figures, "k": k, "rank": latent.decoder.rank, "reconstruction": latent.reconstruction_error})
    return {
        "anchors": anchors,
        "trajectories": trajectories,
        "drift_scale": float(sampled.scales[-1]),
        "weights": problem.network.weights,
        "basis_error": latent.basis_error,
        "fiber": sampled.decode(Itself(), sampled.paths, samples).figures(),
        "alone": outputs_of(sampled.start, sampled.start.anchors[:, None]).figures(),
        "decoded": found,
    }


def report(runs: Sequence[Run]) -> Report:
    """A table and a line for each set."""
    tables, nll, error, findings = [], [], [], []
    for name, those in by_set(runs).items():
        fiber = [r["fiber"]["nll"] for r in those]
        rows, means, differences = [], [], []
        for i, decoded in enumerate(those[0]["decoded"]):
            each = [r["decoded"][i] for r in those]
            values = [d["nll"] for d in each]
            reconstruction = estimate([d["reconstruction"] for d in each])
            rows.append([str(decoded["k"]), estimate(values).text(), apart(values, fiber), reconstruction.text(4)])
            means.append(reconstruction.mean)
            differences.append(estimate([v - f for v, f in zip(values, fiber, strict=True)]))
        first = those[0]
        rank = estimate([r["decoded"][0]["rank"] for r in those]).mean
        rows.append(["the fibers themselves", estimate(fiber).text(), "", ""])
        alone = [r["alone"]["nll"] for r in those]
        rows.append(["anchors alone", estimate(alone).text(), apart(alone, fiber), ""])
        title = (
            f"{heading(name, those)}: {first['anchors']} anchor(s) of {first['weights']:,} weights, "
            f"{first['trajectories']} fibers each up to drift scale "
            f"{estimate([r['drift_scale'] for r in those]).mean:.2g}, rank {rank:g} an anchor"
        )
        tables.append(Table(title, ["k", "test NLL", "above the fibers", "reconstruction error"], rows))
        k = [d["k"] for d in first["decoded"]]
        bars = [d.standard_error or 0.0 for d in differences]
        nll.append(Line(k, [d.mean for d in differences], heading(name, those), bars))
        error.append(Line(k, means, heading(name, those)))
        enough = next((k[i] for i in range(len(k)) if all(d.mean < 0.01 for d in differences[i:])), None)
        findings.append(
            f"{name}: decoded NLL is at most 0.01 above the fibers' "
            + (f"from k = {enough} on." if enough is not None else f"for no k up to {k[-1]} with all above.")
        )
    panels = [
        Panel("Decoded NLL above the fibers'", "latent dimension k", "nats a row", nll, 0.01, ticks=DIMENSIONS),
        Panel(
            "Reconstruction error",
            "latent dimension k",
            "divergence (1: the noise)",
            error,
            log_y=True,
            ticks=DIMENSIONS,
        ),
    ]
    return Report(tables, {"latents.png": lines(panels, (9.0, 4.0))}, findings)


EXPERIMENT = Experiment(
    title="Sensitivity to k, the latent dimension",
    about=(
        "The same fibers decoded from latent spaces of 1 to 32 dimensions. Samples are drawn evenly over the part of "
        "the trajectories that a build decodes, and compared with the fibers themselves at the same places, straight "
        "between their nodes; the reconstruction error is twice the KL divergence of the decoded "
        "nodes' predictions from the sampled nodes', in nats a row (1 is as much as the noise of the data). "
        "The decoder's table is solved for on more features of a latent's direction than there are trajectories, so k "
        "only has to tell the trajectories apart. "
        f"`{NAME}`: {TRAIN_IMAGES:,} training and {TEST_IMAGES} test images of CIFAR-10 and one anchor of a small "
        "residual net with group normalisation, so that it runs on one core in minutes; its accuracy is that of so few "
        "images."
    ),
    cases=[*((name, split) for split in range(SPLITS) for name in SETS), (NAME, 0)],
    run=run,
    report=report,
)
