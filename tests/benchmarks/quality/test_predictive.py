"""Figures of a predictive distribution against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.quality.predictive import Classes, Cost, Gaussians, figures


def test_one_gaussian_has_the_closed_form() -> None:
    y = torch.tensor([0.0, 1.0])
    found = figures(Gaussians(torch.zeros(1, 2), torch.full((1, 2), 4.0)), y, scale=10.0)
    # Standard deviation 2 in standardised units is 20 in the target's own, where the errors are 0 and 10.
    expected = 0.5 * math.log(2 * math.pi * 400) + 0.5 * (100 / 400) / 2
    assert found["nll"] == pytest.approx(expected) and found["gaussian_nll"] == pytest.approx(expected)
    assert found["rmse"] == pytest.approx(math.sqrt(50)) and found["coverage"] == 1.0
    assert found["width"] == pytest.approx(2 * 1.6449 * 20, rel=1e-4)


def test_a_mixture_is_averaged_before_it_is_scored() -> None:
    mean = torch.tensor([[-1.0], [3.0]])
    found = figures(Gaussians(mean, torch.ones(2, 1)), torch.tensor([-1.0]))
    density = 0.5 * (1 + math.exp(-8)) / math.sqrt(2 * math.pi)
    assert found["nll"] == pytest.approx(-math.log(density), rel=1e-6)
    assert found["gaussian_nll"] == pytest.approx(0.5 * math.log(2 * math.pi * 5) + 0.5 * 4 / 5, rel=1e-6)


def test_classes() -> None:
    p = torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.75, 0.25], [0.75, 0.25]])
    found = figures(Classes(p), torch.tensor([0, 0, 0, 1]))
    assert found["accuracy"] == 0.75 and found["ece"] == pytest.approx(0.0, abs=1e-7)
    assert found["nll"] == pytest.approx(-(3 * math.log(0.75) + math.log(0.25)) / 4)


def test_costs_add_up() -> None:
    assert Cost(2, 0.5) + Cost(3, 1.0) == Cost(5, 1.5)
