"""The contrastive autoencoder against a plain one, a variational one and none, at equal rank.

Lengths: A anchors, N trajectories, T steps in use, r columns of the span, k latent dimensions, P weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.data import read_set
from benchmarks.experiments.decoding import Itself, Sampled, sample
from benchmarks.experiments.experiment import Experiment, Report, Table, apart, by_set, heading
from benchmarks.experiments.pictures import trajectories
from benchmarks.experiments.stages import train
from benchmarks.experiments.textbook import SpanDecoder, train_textbook
from benchmarks.quality.problem import make_problem
from benchmarks.results import Run
from benchmarks.table import estimate
from builder.autoencoder import train_autoencoder
from builder.pictures import main_axes

SETS = ("uci_yacht", "uci_boston")
SPLITS = 2
SAMPLES = 50
"""Decoded samples an anchor."""
CONTRASTIVE = "contrastive, as built"
WEIGHTS = {
    CONTRASTIVE: {},
    "no repulsion": {"repulsion": 0.0},
    "no attraction": {"attraction": 0.0},
    "plain: both weights 0": {"attraction": 0.0, "repulsion": 0.0},
}
"""Options of the built autoencoder."""
TEXTBOOK = {"plain, textbook": False, "variational, textbook": True}
LINEAR = "none: linear basis"
_DRAWN = 8
_DIGITS = 3

Decoded = tuple[nn.Module, Tensor]
"""A decoder with the latents (A, N, T+1, k) of the nodes."""


def run(name: str, split: int, preset: str) -> dict[str, Any]:
    """Figures of each autoencoder on the same fibers; `paths` of the first split alone, which is the one drawn."""
    found = compare(sample(train(make_problem(read_set(name), split, preset))), SAMPLES)
    return found if split == 0 else {k: v for k, v in found.items() if k != "paths"}


def compare(sampled: Sampled, samples: int) -> dict[str, Any]:
    """Figures of each autoencoder, all with the rank that the built one chooses."""
    every = decoders(sampled)
    found = {}
    for variant, (decoder, latents) in every.items():
        between = 0.5 * (latents + latents.roll(-1, 1))
        found[variant] = {
            "nll": sampled.decode(decoder, latents, samples).figures()["nll"],
            "between": sampled.decode(decoder, between, samples).figures()["nll"],
            "reconstruction": sampled.reconstruction_error(decoder, latents),
            **order(latents),
        }
    head = next(iter(every.values()))[0].head
    assert isinstance(head, Tensor)
    return {
        "rank": len(head) // len(sampled.start.anchors) - 1,
        "dimension": sampled.start.problem.config.autoencoder.dimension,
        "drift_scale": float(sampled.scales[-1]),
        "fiber": sampled.decode(Itself(), sampled.paths, samples).figures()["nll"],
        "variants": found,
        "paths": {variant: np.round(_paths(latents), _DIGITS).tolist() for variant, (_, latents) in every.items()},
    }


def decoders(sampled: Sampled) -> dict[str, Decoded]:
    """Every autoencoder, trained on the nodes."""
    problem = sampled.start.problem
    config = problem.config.autoencoder
    found: dict[str, Decoded] = {}
    for variant, weights in WEIGHTS.items():
        rank = found[CONTRASTIVE][0].rank if found else config.rank
        chosen = config.model_copy(update={"rank": rank, **weights})
        latent = train_autoencoder(sampled.nodes, sampled.scales, chosen, problem.seed, metric=sampled.metric)
        found[variant] = latent.decoder, latent.nodes
    head = latent.decoder.head.reshape(len(sampled.start.anchors), 1 + latent.decoder.rank, -1)
    q = coordinates(sampled, head)
    unit = float(q.square().mean().sqrt().clamp(min=1e-12))
    flat = q.flatten(1, 2) / unit
    for variant, variational in TEXTBOOK.items():
        layers, latents = train_textbook(flat, config.dimension, config.hidden, variational, problem.seed)
        found[variant] = SpanDecoder(head, layers, unit), latents.reshape(*q.shape[:3], -1)
    found[LINEAR] = SpanDecoder(head), q
    return found


def coordinates(sampled: Sampled, head: Tensor) -> Tensor:
    """Coordinates (A, N, T+1, r) of the nodes in the basis of a head (A, 1 + r, P): projections in the metric."""
    found = []
    for a, (mean, basis) in enumerate(zip(head[:, 0], head[:, 1:], strict=True)):
        away = (sampled.nodes[:, a] - mean).transpose(0, 1).flatten(0, 1)
        inner = sampled.metric.metric.inner(a, torch.cat([basis, away])).double()
        rank = len(basis)
        found.append(torch.linalg.solve(inner[:rank, :rank], inner[:rank, rank:]).T.to(head.dtype))
    steps, _, particles, _ = sampled.nodes.shape
    return torch.stack(found).reshape(len(head), particles, steps, -1)


def order(latents: Tensor) -> dict[str, float]:
    """Whether latents (A, N, T+1, k) keep the order of the nodes.

    `outward`: share of steps that lead away from the anchor. `neighbours`: share of nodes whose nearest other node of
    the anchor, the anchor itself left out, comes just before or after them on their own trajectory.
    """
    away = (latents - latents[:, :, :1]).norm(dim=-1)
    nodes = latents[:, :, 1:]
    particles, steps = nodes.shape[1:3]
    flat = nodes.flatten(1, 2)
    apart = torch.cdist(flat, flat)
    apart.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    nearest, own = apart.argmin(2), torch.arange(particles * steps)
    next_to = (nearest // steps == own // steps) & ((nearest - own).abs() == 1)
    return {
        "outward": float((away.diff(dim=2) > 0).double().mean()),
        "neighbours": float(next_to.double().mean()),
    }


def _paths(latents: Tensor) -> np.ndarray[Any, Any]:
    """Some trajectories of the first anchor on their two main axes, (at most 8, T+1, 2), the longest of length 1."""
    some = latents[0, :_DRAWN].numpy()
    plane, _ = main_axes(some.reshape(-1, some.shape[-1]))
    paths = plane.reshape(*some.shape[:2], 2)
    paths = paths - paths[:1, :1]
    return paths / max(float(np.linalg.norm(paths, axis=-1).max()), 1e-12)


def report(runs: Sequence[Run]) -> Report:
    """A table a set, the latent spaces of the last set's first split, and what the contrastive loss is worth."""
    tables, findings = [], []
    for name, those in by_set(runs).items():
        fiber = [r["fiber"] for r in those]
        rows = []
        for variant in those[0]["variants"]:
            each = [r["variants"][variant] for r in those]
            rows.append(
                [
                    variant,
                    estimate([v["nll"] for v in each]).text(),
                    apart([v["nll"] for v in each], fiber),
                    estimate([v["between"] for v in each]).text(),
                    estimate([v["reconstruction"] for v in each]).text(4),
                    f"{estimate([v['outward'] for v in each]).mean:.0%}",
                    f"{estimate([v['neighbours'] for v in each]).mean:.0%}",
                ]
            )
        rank, scale = (estimate([r[k] for r in those]).mean for k in ("rank", "drift_scale"))
        title = f"{heading(name, those)}: rank {rank:g}, k = {those[0]['dimension']}, up to drift scale {scale:.2g}"
        header = ["autoencoder", "test NLL", "above the fibers", "NLL between trajectories"]
        tables.append(Table(title, [*header, "reconstruction error", "outward", "next to each other"], rows))
        contrastive = [r["variants"][CONTRASTIVE]["nll"] for r in those]
        for variant in those[0]["variants"]:
            if variant != CONTRASTIVE:
                nll = [r["variants"][variant]["nll"] for r in those]
                findings.append(f"{name}, {variant}: NLL {apart(nll, contrastive)} beside the contrastive one.")
    shown = [r["paths"] for r in runs if "paths" in r][-1:]
    drawn = [("autoencoders.png", trajectories({k: np.array(v) for k, v in paths.items()})) for paths in shown]
    return Report(tables, dict(drawn), findings)


EXPERIMENT = Experiment(
    title="The contrastive autoencoder against others",
    about=(
        "The same fibers in the same span of as many columns, decoded through different autoencoders. The built one "
        "with and without its contrastive terms: a latent's length is its position on the trajectory by construction, "
        "and its decoder's table is solved for by least squares after training, so the loss has little left to decide. "
        "Textbook ones: an encoder and a decoder of the same widths, trained five times as long, plain and "
        "variational. And none: interpolation in the coordinates of the span. Each is compared with the fibers "
        "themselves, at the same places on the same trajectories, straight between their nodes. *NLL between "
        "trajectories* is of samples half-way between two trajectories of an anchor at equal time. *Outward*: share of "
        "steps that lead away from the anchor in the latent space. *Next to each other*: share of nodes whose nearest "
        "other node comes just before or after on the same trajectory. The picture shows eight trajectories of one "
        "anchor on the two main axes."
    ),
    cases=[(name, split) for split in range(SPLITS) for name in SETS],
    run=run,
    report=report,
)
