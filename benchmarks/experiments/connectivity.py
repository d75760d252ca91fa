"""Connectivity: the loss along trajectories and between them, as depth and width of the network vary.

The barrier of a line from theta to theta' is the most by which the mean loss on all training rows lies above the
straight line between the losses at its ends (Entezari et al. 2022, "The role of permutation invariance in linear mode
connectivity"), in nats a row. A convex loss has none.

Lengths: A anchors, N trajectories, T steps, K groups of m lines, L places on a line, P weights, n rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.data import read_set
from benchmarks.experiments.experiment import Experiment, Report, Table
from benchmarks.experiments.pictures import Line, Panel, lines
from benchmarks.experiments.stages import Start, train, walk, with_network
from benchmarks.quality.problem import Problem, make_problem
from benchmarks.results import Run
from builder.canvas import anchor_colors
from builder.predictive import sample_outputs

DEPTHS, WIDTHS = (1, 2, 3), (10, 50, 200)
STAGES: dict[str, dict[str, object]] = {
    "map": {"anchors": 3, "folds": 3, "steps": 1500, "batch_rows": 128, "prior_precision": [3.0]},
    "fiber": {"trajectories": 4, "steps": 8, "refinement": 30, "growth": 1.8},
}
"""Fewer anchors and trajectories than a build has, so that the largest network takes about a minute."""
KINDS = {
    "successive": "successive nodes of a trajectory",
    "trajectories": "trajectories of one anchor, equal time",
    "across": "trajectories of two anchors, equal time",
    "anchors": "two anchors",
}
_PLACES = 9
_LOW = 1.0
"""Nats a row above the anchors' loss that still count as the low-loss set. Where a trajectory has left it, a line says
nothing of a fiber: the loss then only rises, however straight."""
_LEAST = 1e-3
"""Nats a row: a barrier below is of no account, and the axis is linear there."""
_VECTORS = 128


def run(name: str, split: int, preset: str) -> dict[str, Any]:
    """Barriers for each depth and width."""
    problem = make_problem(read_set(name), split, preset, **STAGES)
    sizes = itertools.product(DEPTHS, WIDTHS)
    networks = [connect(with_network(problem, [width] * depth)) for depth, width in sizes]
    return {
        "networks": [
            {"depth": depth, "width": width, **found}
            for (depth, width), found in zip(itertools.product(DEPTHS, WIDTHS), networks, strict=True)
        ]
    }


def connect(problem: Problem) -> dict[str, Any]:
    """Losses and barriers of one network, in nats a training row.

    `loss`: mean at each node. `barrier`: by kind of line, the mean over the lines, one entry for each node from the
    first on (for anchors one alone). `last`: as of `last_of_low_loss`. `most`: the highest
    barrier of any line up to it; `profile`: mean loss above the straight line at evenly spaced places, there.
    """
    start = train(problem)
    fibers = walk(start, problem.config.fiber)
    nodes = fibers.nodes
    loss = losses(start, nodes.flatten(0, 2)).reshape(len(nodes), -1).mean(1)
    last = last_of_low_loss(nodes, loss)
    ends = {
        "successive": (nodes[:-1], nodes[1:]),
        "trajectories": (nodes[1:], nodes[1:].roll(-1, 2)),
        "across": (nodes[1:], nodes[1:].roll(-1, 1)),
        "anchors": (start.anchors[None, :, None], start.anchors[None, :, None].roll(-1, 1)),
    }
    rise = {kind: rises(start, here.flatten(1, 2), there.flatten(1, 2)) for kind, (here, there) in ends.items()}
    barrier = {kind: r.amax(2) for kind, r in rise.items()}
    return {
        "weights": problem.network.weights,
        "scales": fibers.scales.tolist(),
        "last": last,
        "trajectories": fibers.stranded.numel(),
        "stranded": int(fibers.stranded.sum()),
        "loss": loss.tolist(),
        "barrier": {kind: b.mean(1).tolist() for kind, b in barrier.items()},
        "most": {kind: float(b[:last].max()) for kind, b in barrier.items()},
        "profile": {kind: r[min(last, len(r)) - 1].mean(0).tolist() for kind, r in rise.items()},
    }


def last_of_low_loss(nodes: Tensor, loss: Tensor) -> int:
    """The last node, at least the first after the anchors, up to which all of nodes (T+1, A, N, P) are of low loss.

    The mean loss (T+1,) is within a nat of the anchors', and every trajectory moves on: one that diverged stays where
    it was, at a low loss.
    """
    sound = (nodes[1:] != nodes[:-1]).any(-1).flatten(1).all(1) & (loss[1:] <= loss[0] + _LOW)
    return max(1, int(sound.long().cumprod(0).sum()))


def rises(start: Start, here: Tensor, there: Tensor) -> Tensor:
    """Loss above the straight line between the losses at the ends of lines, (K, m, L), from ends (K, m, P)."""
    share = torch.linspace(0, 1, _PLACES)
    at = here[:, :, None] + share[:, None] * (there - here)[:, :, None]
    loss = losses(start, at.flatten(0, 2)).reshape(at.shape[:3])
    return loss - (loss[..., :1] + share * (loss[..., -1:] - loss[..., :1]))


def losses(start: Start, weights: Tensor) -> Tensor:
    """Mean -log p(y | f) over all training rows, (m,) float64, of weights (m, P)."""
    problem = start.problem
    return torch.cat(
        [
            start.likelihood.nll(sample_outputs(problem.network, part, problem.x), problem.y).double().mean(1)
            for part in torch.split(weights, _VECTORS)
        ]
    )


def report(runs: Sequence[Run]) -> Report:
    """Barriers at the end of the low-loss set as a table and by width, and the loss along the lines."""
    networks = runs[0]["networks"]
    rows = [
        [
            f"{n['depth']} x {n['width']}",
            f"{n['weights']:,}",
            f"{n['loss'][0]:.3f}",
            f"{n['scales'][n['last']]:.2g}",
            f"{n['loss'][n['last']]:.3f}",
            f"{n['stranded']} of {n['trajectories']}",
            *(f"{_barrier(n, kind):.3f}" for kind in KINDS),
        ]
        for n in networks
    ]
    header = [
        "hidden layers",
        "weights",
        "loss, anchors",
        "low loss up to drift scale",
        "loss there",
        "diverged later",
        *KINDS.values(),
    ]
    worst = [[f"{n['depth']} x {n['width']}", *(f"{n['most'][kind]:.3f}" for kind in KINDS)] for n in networks]
    return Report(
        [
            Table(f"{runs[0]['set']}: barrier in nats a row, mean over the lines there", header, rows),
            Table("The highest barrier of any line up to there", ["hidden layers", *KINDS.values()], worst),
        ],
        {"connectivity.png": _by_width(networks), "lines.png": _profiles(networks)},
        _findings(networks),
    )


def _barrier(network: dict[str, Any], kind: str) -> float:
    found = network["barrier"][kind]
    return float(found[min(network["last"], len(found)) - 1])


def _by_width(networks: Sequence[dict[str, Any]]) -> bytes:
    depths = sorted({n["depth"] for n in networks})
    widths = sorted({n["width"] for n in networks})
    panels = []
    for kind, text in KINDS.items():
        drawn = []
        for color, depth in zip(anchor_colors(len(depths)), depths, strict=True):
            those = [n for n in networks if n["depth"] == depth]
            y = [_barrier(n, kind) for n in those]
            drawn.append(Line([n["width"] for n in those], y, f"{depth} hidden", color=color))
        top = max(_barrier(n, k) for n in networks for k in KINDS)
        title = text.replace(" of ", "\nof ", 1)
        panels.append(Panel(title, "width", "nats a row", drawn, _LEAST, ticks=widths, bottom=-_LEAST / 2, top=top))
    return lines(panels, (12.0, 3.8))


def _profiles(networks: Sequence[dict[str, Any]]) -> bytes:
    """The loss along the lines of the narrowest and the widest network of each depth."""
    widths = {n["width"] for n in networks}
    panels: list[Panel] = []
    for n in [n for n in networks if n["width"] in (min(widths), max(widths))]:
        places = [i / (len(n["profile"]["anchors"]) - 1) for i in range(len(n["profile"]["anchors"]))]
        drawn = [
            Line(places, n["profile"][kind], text, color=color)
            for color, (kind, text) in zip(anchor_colors(len(KINDS)), KINDS.items(), strict=True)
        ]
        panels.append(
            Panel(
                f"{n['depth']} x {n['width']}", "along the line", "loss above the ends", drawn, _LEAST, bottom=-_LEAST
            )
        )
    return lines(panels, (2.2 * len(panels), 3.4))


def _findings(networks: Sequence[dict[str, Any]]) -> list[str]:
    shares = [_barrier(n, "successive") / max(_barrier(n, "anchors"), 1e-12) for n in networks]
    lower = sum(_barrier(n, "trajectories") < _barrier(n, "anchors") for n in networks)
    return [
        f"The barrier between successive nodes is {min(shares):.2g} to {max(shares):.2g} of that between anchors.",
        f"Between trajectories of one anchor it is lower than between anchors in {lower} of {len(networks)} networks.",
    ]


EXPERIMENT = Experiment(
    title="Connectivity: loss along and between trajectories",
    about=(
        "Straight lines in weight space, and by how much the mean training loss rises on them above the straight line "
        "between its ends: their barrier. It is taken at the last node up to which the mean loss is within a nat a row "
        "of the anchors' and no trajectory has diverged, since beyond it they have left the low-loss set. ReLU nets of "
        "one to three hidden layers, given as depth x width; three anchors with four trajectories of eight steps each, "
        "every network with the same training. Lines between trajectories join neighbours at equal time. All training "
        "rows count, also those that an anchor did not see."
    ),
    cases=[("uci_boston", 0)],
    run=run,
    report=report,
)
