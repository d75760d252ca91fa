"""How far along the trajectories a posterior goes, chosen on rows that its anchors have not seen."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from builder.calibration import choose_reach
from builder.fiber import Fibers
from builder.likelihood import CategoricalLikelihood
from builder.network import FunctionalNetwork
from builder.predictive import gaussian_mixture_nll
from tests.builder.linear import line_data, linear_classifier


def line_fibers(anchor: float, end: float, spread: float, particles: int = 8, steps: int = 6) -> Fibers:
    """Slopes that start at the anchor and move evenly to about the end; intercepts stay at zero."""
    way = end - anchor + spread * torch.randn(particles, generator=torch.Generator().manual_seed(1))
    slopes = anchor + torch.linspace(0, 1, steps + 1)[:, None] * way
    nodes = torch.stack([slopes, torch.zeros_like(slopes)], -1)[:, None].expand(-1, 2, -1, -1).contiguous()
    shape = nodes.shape[:3]
    return Fibers(
        nodes=nodes,
        scales=torch.linspace(0, 1, steps + 1),
        loss=torch.zeros(shape),
        unseen=torch.full((2,), math.inf),
        drift_length=torch.ones(shape[1:]),
        stranded=torch.zeros(shape[1:], dtype=torch.bool),
        gradient_evaluations=0,
    )


def test_drift_that_hurts_is_not_used() -> None:
    network, x, y, member = line_data()
    reach = choose_reach(network, line_fibers(anchor=2.0, end=5.0, spread=1.0), x, y, member)
    assert reach.node == 0 and reach.used == 1 and reach.shown >= 1
    assert reach.out_of_fold[0] == min(reach.out_of_fold) and len(reach.out_of_fold) == 7


def test_drift_that_helps_is_used() -> None:
    network, x, y, member = line_data()
    reach = choose_reach(network, line_fibers(anchor=1.0, end=3.0, spread=0.1), x, y, member)
    assert reach.node >= 4 and reach.used == reach.shown == reach.node
    assert reach.out_of_fold[reach.node] < reach.out_of_fold[0] - 0.1


def test_beyond_the_best_half_of_the_particles_are_near_the_low_loss_set() -> None:
    """Slopes that differ by nothing predict alike, however far along: then it goes as far as losses say."""
    network, x, y, member = line_data()
    fibers = line_fibers(anchor=2.0, end=2.0, spread=0.0)
    assert choose_reach(network, fibers, x, y, member).node == 6
    loss = torch.zeros_like(fibers.loss)
    loss[4:, :, :4], loss[5:, 0, 4] = 2.0, 2.0  # from node 5 on of more than half, nine of sixteen
    left = replace(fibers, loss=loss, unseen=torch.tensor([1.0, 1.0]))
    assert choose_reach(network, left, x, y, member).node == 4
    # The best node counts, whatever its particles do one by one.
    better = line_fibers(anchor=1.0, end=2.0, spread=0.0)
    assert choose_reach(network, replace(better, loss=loss, unseen=left.unseen), x, y, member).node == 6


def test_drift_beyond_what_helps_is_not_used() -> None:
    network, x, y, member = line_data()
    reach = choose_reach(network, line_fibers(anchor=1.9, end=8.0, spread=3.0), x, y, member)
    assert reach.node <= 2 and reach.out_of_fold[-1] > reach.out_of_fold[reach.node] + 0.05


def test_the_out_of_fold_loss_of_the_anchors_is_theirs() -> None:
    network, x, y, member = line_data()
    reach = choose_reach(network, line_fibers(anchor=2.0, end=5.0, spread=1.0), x, y, member)
    noise = (y - 2 * x[:, 0]).square().mean()
    expected = gaussian_mixture_nll(2 * x[None, :, 0], y, noise).mean()
    assert reach.out_of_fold[0] == pytest.approx(float(expected), abs=0.005)


def test_nodes_that_are_no_numbers_are_out_of_reach() -> None:
    network, x, y, member = line_data()
    fibers = line_fibers(anchor=1.0, end=3.0, spread=0.1)
    nodes = fibers.nodes.clone()
    nodes[3:, 0, 2] = math.inf
    assert choose_reach(network, replace(fibers, nodes=nodes), x, y, member).node < 3


def test_reach_is_chosen_on_rows_that_were_not_seen() -> None:
    network, x, y, member = line_data()
    member = torch.ones_like(member)
    member[:, :100] = False
    fibers = line_fibers(anchor=1.0, end=3.0, spread=0.1)
    first = choose_reach(network, fibers, x, y, member)
    changed = y.clone()
    changed[100:] += 50
    assert choose_reach(network, fibers, x, changed, member) == first
    changed[:100] += 50
    assert choose_reach(network, fibers, x, changed, member) != first


def test_the_reach_of_a_classifier_prefers_what_helps() -> None:
    model = linear_classifier(rows=400, classes=2)
    member = torch.arange(400)[None] % 2 != torch.arange(2)[:, None]
    best = fit_classifier(model.network, model.x, model.y)
    ends = {"worse": -best, "better": best}
    starts = {"worse": best, "better": torch.zeros_like(best)}
    node = {}
    for name in ends:
        position = torch.linspace(0, 1, 7)[:, None, None, None]
        nodes = (starts[name] + position * (ends[name] - starts[name])).expand(7, 2, 3, -1).contiguous()
        fibers = replace(line_fibers(0.0, 1.0, 0.0), nodes=nodes)
        node[name] = choose_reach(model.network, fibers, model.x, model.y, member).node
    assert node["worse"] <= 2 and node["better"] >= 4


def fit_classifier(network: FunctionalNetwork, x: Tensor, y: Tensor) -> Tensor:
    theta = torch.zeros(network.weights, requires_grad=True)
    optimiser = torch.optim.LBFGS([theta], max_iter=50)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = CategoricalLikelihood(2).nll(network(theta, x), y).mean()
        torch.autograd.backward(loss)
        return loss

    optimiser.step(closure)  # type: ignore[arg-type]
    return theta.detach()
