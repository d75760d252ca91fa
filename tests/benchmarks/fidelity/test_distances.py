"""Distances between predictives, against closed forms of Gaussians."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.fidelity.distances import between, distances, epistemic_std
from benchmarks.quality.predictive import Classes, Gaussians


def gaussian(mean: list[float], std: float) -> Gaussians:
    """One component, a row for each mean."""
    middle = torch.tensor([mean])
    return Gaussians(middle, torch.full_like(middle, std**2))


def test_shifted_gaussians() -> None:
    shift = torch.tensor([0.0, 0.3, 1.0, 8.0])
    tv, w1, w2 = between(gaussian([0.0] * 4, 0.5), gaussian((0.5 * shift).tolist(), 0.5))
    assert tv.tolist() == pytest.approx([math.erf(float(s) / math.sqrt(8)) for s in shift], abs=1e-3)
    assert w1.tolist() == pytest.approx((0.5 * shift).tolist(), abs=1e-3)
    assert w2.tolist() == pytest.approx((0.5 * shift).tolist(), abs=1e-3)


def test_gaussians_of_two_widths() -> None:
    tv, w1, w2 = between(gaussian([2.0], 1.0), gaussian([2.0], 3.0))
    # The densities cross at +-z, and the total variation is what the narrow one has more between them.
    z = math.sqrt(2 * math.log(3) / (1 - 1 / 9))
    assert float(tv) == pytest.approx(math.erf(z / math.sqrt(2)) - math.erf(z / 3 / math.sqrt(2)), abs=1e-3)
    assert float(w1) == pytest.approx(2 * math.sqrt(2 / math.pi), rel=0.01)
    assert float(w2) == pytest.approx(2.0, rel=0.01)


def test_a_mixture_is_not_its_gaussian() -> None:
    apart = Gaussians(torch.tensor([[-10.0], [10.0]]), torch.ones(2, 1))
    tv, w1, _ = between(apart, gaussian([10.0], 1.0))
    assert float(tv) == pytest.approx(0.5, abs=1e-3) and float(w1) == pytest.approx(10.0, rel=0.01)
    same, _, _ = between(apart, gaussian([0.0], math.sqrt(101)))
    assert float(same) > 0.5


def test_a_component_far_out_does_not_spoil_the_grid() -> None:
    mean = torch.zeros(5000, 1)
    mean[0] = 1e6
    found = Gaussians(mean, torch.full_like(mean, 0.01))
    tv, _, _ = between(found, gaussian([0.1], 0.1))
    assert float(tv) == pytest.approx(math.erf(1 / math.sqrt(8)), abs=2e-3)


def test_figures_are_in_units_of_the_noise() -> None:
    mean = torch.tensor([[-0.2], [0.2]])
    ours = Gaussians(mean, torch.full_like(mean, 0.01))
    whole = Gaussians(torch.zeros(1, 1), torch.full((1, 1), 0.01 + 0.08**2))
    assert float(epistemic_std(ours, 0.1)) == pytest.approx(0.2, rel=1e-5)
    found = distances(ours, whole, noise_std=0.1)
    assert found["std_ratio"] == pytest.approx(2.5, rel=1e-3) and found["log_std"] == pytest.approx(
        math.log(2.5), rel=1e-3
    )
    assert found["w2"] >= found["w1"] > 0
    assert distances(ours, ours, 0.1) == pytest.approx({"tv": 0, "w1": 0, "w2": 0, "std_ratio": 1, "log_std": 0})


def test_classes() -> None:
    ours = Classes(torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.5, 0.5]]))
    reference = Classes(torch.tensor([[0.7, 0.3], [0.6, 0.4], [0.5, 0.5]]))
    assert distances(ours, reference, 1.0) == pytest.approx({"tv": 0.4 / 3, "agreement": 2 / 3})
