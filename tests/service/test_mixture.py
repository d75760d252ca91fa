from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.mixture import mixture_entropy


def by_dense_sum(means: NDArray[np.float64], std: float) -> float:
    y = np.linspace(means.min() - 10 * std, means.max() + 10 * std, 200_001)
    p = np.exp(-0.5 * ((y[:, None] - means) / std) ** 2).mean(axis=1) / (std * math.sqrt(2 * math.pi))
    return float(np.trapezoid(-p * np.log(np.maximum(p, 1e-300)), y))


def gaussian(std: float) -> float:
    return 0.5 * math.log(2 * math.pi * math.e * std**2)


@pytest.mark.parametrize("std", [1e-6, 0.3, 1.0, 40.0, 1e9])
@pytest.mark.parametrize("at", [0.0, -3.7, 1e6])
def test_means_that_agree_give_the_gaussian(std: float, at: float) -> None:
    assert mixture_entropy(np.full((32, 3), at), std) == pytest.approx([gaussian(std)] * 3, abs=1e-7)


@pytest.mark.parametrize("gap", [0.01, 0.5, 1, 2, 3, 4, 5, 6, 8, 11, 12, 13, 20, 1e3, 1e12])
def test_two_components(gap: float) -> None:
    narrow = np.array([0.0, min(gap, 40.0)])
    found = mixture_entropy(np.array([[0.0], [gap]]) * 0.7, 0.7)
    assert found[0] == pytest.approx(by_dense_sum(narrow * 0.7, 0.7), abs=1e-6)


@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0, 30.0])
def test_many_components(spread: float) -> None:
    means = np.random.default_rng(0).normal(size=(40, 6)) * spread
    expected = [by_dense_sum(column, 1.5) for column in means.T]
    assert mixture_entropy(means, 1.5) == pytest.approx(expected, abs=1e-6)


def test_components_far_apart_add_the_entropy_of_the_choice() -> None:
    means = np.arange(8.0)[:, None] * 1e5
    assert mixture_entropy(means, 2.0)[0] == pytest.approx(gaussian(2.0) + math.log(8), abs=1e-6)


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=20), st.floats(0.01, 100))
def test_bounds_hold(values: list[float], std: float) -> None:
    means = np.array(values)
    found = mixture_entropy(means[:, None], std)[0]
    # Between one component and the Gaussian of the same variance, which has the most entropy of all.
    assert gaussian(std) - 1e-6 <= found <= gaussian(math.hypot(std, float(means.std()))) + 1e-6


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=10), st.floats(1e-9, 1e-6))
def test_it_is_continuous(values: list[float], shift: float) -> None:
    means = np.array(values)[:, None]
    moved = means.copy()
    moved[0] += shift
    assert mixture_entropy(moved, 1.0) == pytest.approx(mixture_entropy(means, 1.0), abs=1e-5)
