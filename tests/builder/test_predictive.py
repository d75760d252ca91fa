"""Mixtures over weight samples against direct formulas, and against what the server computes."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from builder import predictive
from builder.network import MLP, FunctionalNetwork
from builder.predictive import (
    categorical_nll,
    conformal_quantile,
    contracted,
    expected_calibration_error,
    gaussian_mixture_nll,
    mixture_probabilities,
    rows_at_once,
    sample_outputs,
)
from model_store.manifest import ClassificationCalibration, RegressionCalibration, RegressionTarget
from service.predictive import classification, interval_factor, regression
from tests.networks import NETWORKS


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- mixtures


@pytest.mark.parametrize("weighted", [False, True])
def test_gaussian_mixture_nll_is_the_log_of_the_mean_density(weighted: bool) -> None:
    mean, y = normal(5, 7).double(), normal(7, seed=1).double()
    weight = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25] if weighted else [0.2] * 5, dtype=torch.float64)
    found = gaussian_mixture_nll(mean, y, 0.09, weight.log() if weighted else None)
    for b in range(7):
        density = sum(
            float(w) * NormalDist(float(m), 0.3).pdf(float(y[b])) for w, m in zip(weight, mean[:, b], strict=True)
        )
        assert float(found[b]) == pytest.approx(-math.log(density), rel=1e-6)


def test_gaussian_mixture_nll_far_from_every_sample_is_finite() -> None:
    found = gaussian_mixture_nll(torch.zeros(3, 1), torch.tensor([100.0]), 1e-2)
    assert float(found) == pytest.approx(0.5 * 1e6 + 0.5 * math.log(2 * math.pi * 1e-2), rel=1e-5)


def test_averaging_predictions_scores_better_than_averaging_scores() -> None:
    mean, y = normal(50, 20), normal(20, seed=1)
    single = torch.stack([gaussian_mixture_nll(m[None], y, 1.0) for m in mean]).mean(0)
    assert bool((gaussian_mixture_nll(mean, y, 1.0) < single).all())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_class_probabilities_are_averaged_and_tempered(temperature: float) -> None:
    logits = normal(4, 6, 3)
    found = mixture_probabilities(logits, temperature)
    expected = torch.stack([torch.softmax(sample / temperature, -1) for sample in logits]).mean(0)
    assert torch.allclose(found, expected, atol=1e-6)
    weight = torch.tensor([0.7, 0.1, 0.1, 0.1])
    first = mixture_probabilities(logits, temperature, weight.log())
    expected = sum(w * torch.softmax(sample / temperature, -1) for w, sample in zip(weight, logits, strict=True))  # type: ignore[assignment]
    assert torch.allclose(first, expected, atol=1e-6)


def test_categorical_nll_picks_the_class_and_bounds_certainty_in_the_wrong() -> None:
    p = torch.tensor([[0.2, 0.8], [1.0, 0.0]])
    assert categorical_nll(p, torch.tensor([1, 1])).tolist() == pytest.approx(
        [-math.log(0.8), -math.log(1e-12)], rel=1e-5
    )


# ---- calibration error


def top(confidence: list[float]) -> Tensor:
    c = torch.tensor(confidence, dtype=torch.float64)
    return torch.stack([c, 1 - c], 1)


@pytest.mark.parametrize(
    ("confidence", "labels", "expected"),
    [
        ([1.0] * 4, [0, 0, 0, 0], 0.0),
        ([1.0] * 4, [1, 1, 1, 1], 1.0),
        ([0.75] * 4, [0, 0, 0, 1], 0.0),
        ([0.75] * 4, [0, 0, 1, 1], 0.25),
        # Two bins: 0.9 - 0.5 over half the rows, 0.6 - 1.0 over the other half.
        ([0.9, 0.9, 0.6, 0.6], [0, 1, 0, 0], 0.4),
        # Errors of one bin may cancel.
        ([0.61, 0.61], [0, 1], 0.11),
    ],
)
def test_calibration_error_of_constructed_cases(confidence: list[float], labels: list[int], expected: float) -> None:
    assert expected_calibration_error(top(confidence), torch.tensor(labels)) == pytest.approx(expected, abs=1e-9)


def test_calibration_error_of_a_calibrated_classifier_is_small() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.softmax(2 * torch.randn(20000, 3, generator=generator), -1)
    y = torch.multinomial(p, 1, generator=generator)[:, 0]
    assert expected_calibration_error(p, y) < 0.015
    overconfident = torch.softmax(3 * p.log(), -1)
    assert expected_calibration_error(overconfident, y) > 0.1


# ---- the same on both sides


@given(
    scores=st.lists(st.floats(0, 10), max_size=60),
    level=st.one_of(st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99]), st.floats(0.001, 0.999)),
)
@settings(max_examples=300, deadline=None)
def test_the_conformal_quantile_is_the_servers(scores: list[float], level: float) -> None:
    ordered = np.sort(np.array(scores, dtype=np.float64))
    assert conformal_quantile(torch.from_numpy(ordered), level) == pytest.approx(
        interval_factor(level, ordered), rel=1e-9
    )


def test_the_conformal_quantile_covers() -> None:
    generator = torch.Generator().manual_seed(0)
    covered = []
    for _ in range(400):
        scores = torch.rand(50, generator=generator, dtype=torch.float64)
        covered.append(conformal_quantile(scores[:49].sort().values, 0.9) >= float(scores[49]))
    # 45 of 50 ranks are covered; a share of 400 has a standard error of 1.5 %.
    assert sum(covered) / 400 == pytest.approx(0.9, abs=0.05)


def test_regression_moments_and_nll_match_the_servers_units() -> None:
    f, y = normal(16, 9), normal(9, seed=1)
    target = RegressionTarget(name="y", mean=3.0, scale=5.0)
    served = regression(
        f.unsqueeze(-1).numpy(), target, RegressionCalibration(noise_std=2.0, points=1), 0.9, np.zeros(0)
    )
    noise = (2.0 / 5.0) ** 2
    assert np.allclose(served["mean"], 3 + 5 * f.mean(0).numpy(), atol=1e-5)
    assert np.allclose(served["variance"], 25 * (f.var(0, unbiased=False) + noise).numpy(), rtol=1e-5)
    # The NLL in the target's units is that in standard units plus log(scale).
    own = gaussian_mixture_nll(3 + 5 * f.double(), 3 + 5 * y.double(), 4.0)
    assert torch.allclose(own, gaussian_mixture_nll(f.double(), y.double(), noise) + math.log(5), atol=1e-6)


@pytest.mark.parametrize("dispersion", [1.0, 0.25])
def test_class_probabilities_are_the_servers(dispersion: float) -> None:
    logits = normal(16, 9, 4)
    calibration = ClassificationCalibration(temperature=1.7, dispersion=dispersion, points=1)
    served = classification(logits.numpy(), calibration, 0.9, np.zeros(1))
    own = mixture_probabilities(contracted(logits, dispersion), 1.7)
    assert np.allclose(served["mean"], own.numpy(), atol=1e-6)


def test_logits_are_brought_towards_their_mean() -> None:
    logits = normal(5, 4, 3)
    weight = torch.tensor([0.4, 0.3, 0.1, 0.1, 0.1])
    assert contracted(logits, 1.0) is logits
    for log_weight, mean in ((None, logits.mean(0)), (weight.log(), (weight[:, None, None] * logits).sum(0))):
        assert torch.allclose(contracted(logits, 0.25, log_weight), mean + 0.25 * (logits - mean), atol=1e-6)


# ---- outputs


def test_outputs_in_pieces_are_the_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    network = FunctionalNetwork(MLP(3, [8], 2))
    weights, x = normal(5, network.weights), normal(23, 3, seed=1)
    whole = sample_outputs(network, weights, x)
    assert whole.shape == (5, 23, 2) and not whole.requires_grad
    sizes: list[int] = []
    batched = FunctionalNetwork.batched

    def seen(self: FunctionalNetwork, thetas: Tensor, rows: Tensor) -> Tensor:
        sizes.append(len(rows))
        return batched(self, thetas, rows)

    monkeypatch.setattr(FunctionalNetwork, "batched", seen)
    monkeypatch.setattr(predictive, "values_at_once", lambda: 1)
    assert torch.allclose(sample_outputs(network, weights, x), whole, atol=1e-6)
    assert sizes == [1] * 23


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_samples_that_run_side_by_side_are_not_mixed_up(threads: int) -> None:
    factory, shape = NETWORKS["cnn"]
    network, before = FunctionalNetwork(factory()), torch.get_num_threads()
    weights, x = network.current() * torch.linspace(0, 2, 7)[:, None], normal(50, *shape)
    torch.set_num_threads(threads)
    try:
        found = sample_outputs(network, weights, x)
    finally:
        torch.set_num_threads(before)
    assert not found.requires_grad
    for theta, outputs in zip(weights, found, strict=True):
        torch.testing.assert_close(outputs, network(theta, x).detach(), rtol=1e-4, atol=1e-5)


def test_samples_that_run_in_turn_take_as_many_rows_however_many_they_are() -> None:
    factory, shape = NETWORKS["cnn"]
    in_turn, x = FunctionalNetwork(factory()), normal(4, *shape)
    assert rows_at_once(in_turn, 1, x) == rows_at_once(in_turn, 1000, x) > 1
    together, x = FunctionalNetwork(MLP(3, [8], 2)), normal(4, 3)
    assert rows_at_once(together, 1, x) == pytest.approx(1000 * rows_at_once(together, 1000, x), rel=0.01)
