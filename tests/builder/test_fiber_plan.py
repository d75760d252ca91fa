"""How a walk is planned: the scales of its drift, and what its work budget is spent on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from builder.config import FiberConfig
from builder.fiber_plan import Plan, drift_scales, plan_work, work_of
from builder.network import MLP, FunctionalNetwork


def network_and_rows(rows: int) -> tuple[FunctionalNetwork, torch.Tensor]:
    return FunctionalNetwork(MLP(1, [20], 1, "tanh")), torch.zeros(rows, 1)


def test_drift_scales_grow_geometrically_to_the_last() -> None:
    scales = drift_scales(FiberConfig(steps=5, drift_scale=3.1, growth=2.0))
    assert scales[0] == 0 and float(scales[-1]) == pytest.approx(3.1)
    step = scales.diff()
    assert torch.allclose(step[1:] / step[:-1], torch.full((4,), 2.0, dtype=torch.float64))


def test_drift_scales_without_growth_are_even() -> None:
    assert torch.allclose(
        drift_scales(FiberConfig(steps=4, drift_scale=2.0, growth=1.0)), torch.linspace(0, 2, 5, dtype=torch.float64)
    )


@pytest.mark.parametrize(
    ("gradients", "options", "expected"),
    [
        (10 * 32 * 30, {}, Plan(32, 30, 1000)),
        (32 * 20, {}, Plan(32, 20, 1000)),
        (32 * 15, {}, Plan(32, 15, 1000)),
        (16 * 15, {}, Plan(16, 15, 1000)),
        (8 * 15, {}, Plan(8, 15, 1000)),
        (8 * 15 / 2, {}, Plan(8, 15, 1000)),
        (8 * 15 / 2.5, {}, Plan(8, 15, 400)),
        (1e-6, {}, Plan(8, 15, 256)),
        (64 * 30, {"trajectories": 64}, Plan(64, 30, 1000)),
        (16 * 40, {"refinement": 40}, Plan(16, 40, 1000)),
        (64 * 10 / 4, {"trajectories": 64, "refinement": 10}, Plan(64, 10, 256)),
        (20, {"refinement": 0}, Plan(20, 0, 1000)),
        (16 * 60, {"refinement": 20, "moves": 2, "leapfrog": 20}, Plan(16, 20, 1000)),
        (1e-6, {"moves": 1}, Plan(8, 15, 1000)),
    ],
)
def test_the_budget_takes_refinement_first_then_trajectories_then_rows(
    gradients: float, options: dict[str, Any], expected: Plan
) -> None:
    """A budget of so many gradients on all rows, for each drift step of each anchor."""
    network, x = network_and_rows(1000)
    work = 1.001 * gradients * 3 * network.operations(x[:1]) * 1000 * 2 * FiberConfig().steps
    assert plan_work(network, x, 2, FiberConfig(work=work, **options)) == expected


@pytest.mark.parametrize(("anchors", "trajectories"), [(1, 32), (5, 32), (10, 16), (20, 8), (50, 8)])
def test_many_anchors_share_the_trajectories(anchors: int, trajectories: int) -> None:
    network, x = network_and_rows(100)
    assert plan_work(network, x, anchors, FiberConfig()).trajectories == trajectories


@pytest.mark.parametrize(
    ("given", "anchors", "work"), [(None, 1, 1e11), (None, 4, 4e11), (None, 20, 6e11), (7.0, 20, 7.0)]
)
def test_work_goes_with_the_anchors_up_to_a_point(given: float | None, anchors: int, work: float) -> None:
    assert work_of(FiberConfig(work=given), anchors) == work


def test_few_rows_are_all_taken_whatever_the_budget() -> None:
    network, x = network_and_rows(100)
    assert plan_work(network, x, 2, FiberConfig(work=1.0)).rows == 100
