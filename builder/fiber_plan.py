"""What a walk does before its first step is taken: the drift scales, and how the work that it may take is spent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from builder.config import FiberConfig
from builder.network import FunctionalNetwork


def drift_scales(config: FiberConfig) -> Tensor:
    """(T+1,) drift scales `c_t = c_T (g^t - 1) / (g^T - 1)`, evenly spaced where the growth g is 1."""
    t = torch.arange(config.steps + 1, dtype=torch.float64)
    if config.growth == 1:
        return config.drift_scale * t / config.steps
    return config.drift_scale * (config.growth**t - 1) / (config.growth**config.steps - 1)


@dataclass(frozen=True)
class Plan:
    """How the work budget is spent: N trajectories an anchor, M refinement steps, gradients on so many rows."""

    trajectories: int
    refinement: int
    rows: int


def work_of(config: FiberConfig, anchors: int) -> float:
    """Floating point operations that refinement may take."""
    return config.work if config.work is not None else min(1e11 * anchors, 6e11)


def plan_work(network: FunctionalNetwork, x: Tensor, anchors: int, config: FiberConfig) -> Plan:
    """Spends the config's work budget where it helps most, on the walk to node T.

    A walk that ends earlier has the same plan, and leaves work over: what refinement on part of the rows scatters is
    part of what was judged, and with more rows or steps it would not be what is served.

    Refinement is cut first, from 30 steps to 15, then trajectories, from 160 in all (8 to 32 an anchor) to half of it;
    only then are gradients taken on part of the rows, unless that part is most of them: all rows then are worth their
    work, as only on all can a step be judged by its loss. What the config fixes stays as it is.
    """
    most = min(32, max(8, 160 // anchors))
    least = max(1, min(8, 80 // anchors))
    each = 3.0 * network.operations(x[:1]) * config.steps * anchors
    rows, work = len(x), work_of(config, anchors)

    def share(fixed: int | None, high: int, low: int, cost: float) -> int:
        return fixed if fixed is not None else int(min(high, max(low, work / cost)))

    refinement = share(config.refinement, 30, 15, each * rows * (config.trajectories or most))
    gradients = max(1, refinement + config.moves * config.leapfrog)
    trajectories = share(config.trajectories, most, least, each * rows * gradients)
    # Moves need the posterior as it is, with all rows.
    part = rows if config.moves else share(None, rows, min(rows, 256), each * trajectories * gradients)
    return Plan(trajectories, refinement, rows if 2 * part >= rows else part)
