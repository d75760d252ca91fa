"""The plain choices that a walk can be given instead of its own: isotropic drift, plain objective, plain gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from builder.config import FiberConfig
from tests.builder.linear import LinearModel, assert_draws_from, linear_gaussian

OPTIONS: dict[str, Any] = {"growth": 1.0, "drift_scale": 1.0, "work": 1e18, "steps": 2, "trajectories": 50}


@pytest.fixture(scope="module")
def model() -> LinearModel:
    return linear_gaussian()


def walk(model: LinearModel, start: Tensor, **options: Any) -> Tensor:
    """Nodes (N, P) at the end of the walk of one anchor that has seen all rows."""
    return model.walk(start[None], every_row(model), FiberConfig(**{**OPTIONS, **options})).nodes[-1, 0]


def every_row(model: LinearModel) -> Tensor:
    return torch.ones(1, len(model.x), dtype=torch.bool)


def test_isotropic_drift_is_a_draw_from_the_prior(model: LinearModel) -> None:
    anchor = model.solution()
    # A short way: whole draws from the prior would be off the data, and stranded.
    nodes = walk(model, anchor, refinement=0, trajectories=2000, direction="prior", drift_scale=0.01)
    assert_draws_from(100 * (nodes - anchor), torch.zeros_like(anchor), torch.diag(model.precision.double()))


def test_the_plain_objective_pulls_particles_back_to_the_map(model: LinearModel) -> None:
    anchor = model.solution()
    drift, perturbed, plain = (
        float((walk(model, anchor, refinement=m, objective=objective) - anchor).norm())
        for m, objective in ((0, "plain"), (300, "perturbed"), (300, "plain"))
    )
    assert perturbed == pytest.approx(drift, rel=1e-3) and plain < 0.05 * drift


def test_the_more_of_the_curvature_is_taken_off_the_faster_a_linear_model_is_refined(model: LinearModel) -> None:
    anchor = model.solution()
    exact = walk(model, anchor, refinement=0)
    errors = [float((walk(model, anchor + 0.3, refinement=20, flattening=p) - exact).norm()) for p in (0.0, 0.5, 1.0)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_a_walk_that_ends_early_is_the_first_part_of_the_whole(model: LinearModel) -> None:
    config = FiberConfig(trajectories=4, refinement=5, steps=6)
    start = model.solution()[None]
    whole, part = (model.walk(start, every_row(model), config, last=last) for last in (None, 2))
    assert part.nodes.shape[0] == part.loss.shape[0] == 3
    assert torch.equal(part.nodes, whole.nodes[:3]) and torch.equal(part.scales, whole.scales[:3])
    assert torch.equal(part.loss, whole.loss[:3])
    assert torch.allclose(part.drift_length / part.scales[-1], whole.drift_length / whole.scales[-1])
