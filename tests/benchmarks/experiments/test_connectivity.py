"""Barriers on tiny problems: none for a convex loss, lower along a trajectory than between anchors for others."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from benchmarks.experiments.connectivity import KINDS, connect, last_of_low_loss, report, rises
from benchmarks.experiments.stages import train, with_network
from tests.benchmarks.experiments.toys import PNG, few, wave_problem
from tests.benchmarks.quality.problems import linear, tiny_problem


@pytest.fixture(scope="module")
def networks() -> list[dict[str, Any]]:
    wave = wave_problem(steps=600)
    return [
        {"depth": depth, "width": width, **connect(with_network(wave, [width] * depth, "tanh"))}
        for depth, width in [(1, 8), (1, 20), (2, 8)]
    ]


def test_a_linear_network_has_no_barrier() -> None:
    found = connect(few(linear(tiny_problem("regression"))))
    assert found["weights"] == 3
    for kind in KINDS:
        assert found["most"][kind] == pytest.approx(0, abs=1e-6)
        assert min(found["profile"][kind][1:-1]) < 0  # the loss bends down between the ends: it is strictly convex


def test_a_trajectory_is_connected_better_than_anchors(networks: list[dict[str, Any]]) -> None:
    for found in networks:
        assert len(found["loss"]) == len(found["scales"]) == 5 and found["stranded"] == 0
        last, low = found["last"], found["loss"][0] + 1
        assert all(v <= low for v in found["loss"][: last + 1])
        assert last == 4 or found["loss"][last + 1] > low
        barrier = {kind: found["barrier"][kind][last - 1 if kind != "anchors" else 0] for kind in KINDS}
        assert all(map(math.isfinite, barrier.values()))
        assert barrier["successive"] < 0.2 * barrier["anchors"]
        assert barrier["trajectories"] < barrier["across"]


def test_the_low_loss_set_ends_where_the_loss_rises_or_a_trajectory_stops() -> None:
    nodes = torch.arange(5.0)[:, None, None, None].expand(5, 1, 2, 3).clone()
    low = torch.tensor([1.0, 0.5, 1.9, 1.0, 1.0])
    assert last_of_low_loss(nodes, low) == 4
    assert last_of_low_loss(nodes, torch.tensor([1.0, 1.5, 2.1, 1.0, 1.0])) == 1
    assert last_of_low_loss(nodes, torch.tensor([1.0, 3.0, 1.0, 1.0, 1.0])) == 1
    nodes[3:, 0, 1] = nodes[2, 0, 1]
    assert last_of_low_loss(nodes, low) == 2


def test_the_ends_of_a_line_lie_on_it() -> None:
    start = train(few(tiny_problem("regression")))
    here, there = start.anchors[None, :2], start.anchors[None, 2:]
    rise = rises(start, here, there)
    assert rise.shape[:2] == (1, 2)
    assert torch.allclose(rise[..., [0, -1]], torch.zeros(1, 2, 2).double(), atol=1e-9)
    assert torch.allclose(rises(start, there, here), rise.flip(-1), atol=1e-4)


def test_the_report_has_a_row_a_network(networks: list[dict[str, Any]]) -> None:
    shown = report([{"set": "wave", "split": 0, "networks": networks}])
    barriers, worst = shown.tables
    assert [r[0] for r in barriers.rows] == [r[0] for r in worst.rows] == ["1 x 8", "1 x 20", "2 x 8"]
    assert all(p.startswith(PNG) for p in shown.pictures.values()) and len(shown.pictures) == 2
    assert len(shown.findings) == 2
