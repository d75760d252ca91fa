"""Hamiltonian moves: they keep a Gaussian's draws, bring others to it, and refuse what leaves all bounds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from builder.config import FiberConfig
from builder.hamiltonian import adapted, move
from tests.builder.linear import assert_draws_from, linear_gaussian

PRECISION = torch.tensor([1.0, 4.0, 25.0])


def gaussian(position: Tensor) -> tuple[Tensor, Tensor]:
    return 0.5 * (PRECISION * position.square()).sum(1), PRECISION * position


def moved(start: Tensor, moves: int, temperature: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    position, step = start, torch.full((len(start), 1), 0.15)
    for _ in range(moves):
        position, probability = move(gaussian, position, torch.ones(3), step, 5, temperature, generator)
        assert float(probability.mean()) > 0.7
    return position


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_draws_stay_draws_and_others_become_draws(temperature: float) -> None:
    expected = (temperature / PRECISION).sqrt()
    draws = torch.randn(4000, 3, generator=torch.Generator().manual_seed(1)) * expected
    for start, moves in ((draws, 1), (torch.ones(4000, 3), 40)):
        found = moved(start, moves, temperature)
        assert torch.allclose(found.std(0), expected, rtol=0.06) and float(found.mean(0).abs().max()) < 0.06
    # One move is too few.
    assert not torch.allclose(moved(torch.ones(4000, 3), 1, temperature).std(0), expected, rtol=0.06)


def test_a_particle_that_leaves_all_bounds_stays() -> None:
    def cliff(position: Tensor) -> tuple[Tensor, Tensor]:
        loss, gradient = gaussian(position)
        return torch.where(position[:, 0] > 5, torch.nan, loss), gradient

    start = torch.zeros(50, 3)
    start[:25, 0] = 4.99
    step = torch.full((50, 1), 0.3)
    step[:25] = 1e6
    found, probability = move(cliff, start, torch.ones(3), step, 3, 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(found[:25], start[:25]) and float(probability[:25].max()) == 0
    assert bool((found[25:] != 0).any())


def test_steps_follow_what_was_accepted() -> None:
    step = adapted(torch.ones(4, 1), torch.tensor([1.0, 1.0, 0.0, 0.2]), group=2)[:, 0]
    assert step[0] == step[1] > 1 > step[2] == step[3]
    assert torch.allclose(adapted(torch.ones(2, 1), torch.tensor([0.7, 0.9]), group=2), torch.ones(2, 1))


def test_fibers_of_a_linear_model_stay_posterior_draws() -> None:
    model = linear_gaussian()
    member = torch.ones(1, 60, dtype=torch.bool)
    anchor = model.solution(torch.arange(60))[None]
    plain, moved = (
        model.walk(
            anchor,
            member,
            FiberConfig(
                steps=2, growth=1.0, drift_scale=1.0, refinement=2, trajectories=2000, work=1e18, moves=m, leapfrog=10
            ),
        )
        for m in (0, 2)
    )
    hessian = model.hessian(anchor[0])
    assert_draws_from(moved.nodes[-1, 0], anchor[0], hessian)
    assert_draws_from(moved.nodes[1, 0], anchor[0], hessian * 4)
    apart = (moved.nodes[-1] - plain.nodes[-1]).std() / plain.nodes[-1].std()
    assert float(apart) > 0.01 and moved.gradient_evaluations > plain.gradient_evaluations
