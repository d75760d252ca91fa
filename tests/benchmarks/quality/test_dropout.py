"""Monte Carlo dropout: its masks, and the choice of the rate."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from benchmarks.data import Task
from benchmarks.quality.methods import dropout
from benchmarks.quality.predictive import Classes, Gaussians, figures
from benchmarks.quality.problem import Problem
from builder.map import initial_weights
from tests.benchmarks.quality.problems import TUNED, linear, tiny_problem


@pytest.fixture(scope="module")
def problem() -> Problem:
    return tiny_problem("regression")


def test_a_tiny_rate_is_the_network_itself(problem: Problem) -> None:
    thetas = initial_weights(problem.factory, problem.network, [1, 2, 3])
    network = dropout.DropoutNetwork(problem.network.module, torch.full((3,), 1e-9), 0)
    torch.testing.assert_close(network.batched(thetas, problem.x), problem.network.batched(thetas, problem.x))


def test_variance_grows_with_the_rate(problem: Problem) -> None:
    theta = problem.network.current()
    variances = [
        float(dropout.passes(problem, theta, rate, problem.x_test, 400).var(0).mean()) for rate in dropout.RATES
    ]
    assert variances == sorted(variances)
    assert variances[0] > 0


def test_each_weight_vector_has_its_own_rate_and_each_row_its_own_mask(problem: Problem) -> None:
    theta, row = problem.network.current(), problem.x[:1].expand(500, -1)
    network = dropout.DropoutNetwork(problem.network.module, torch.tensor([1e-9, 0.1, 0.1]), 0)
    none, first, second = network.batched(theta.expand(3, -1), row)[..., 0]
    assert float(none.std()) < 1e-6
    assert float(first.std()) > 0
    assert not torch.equal(first, second)


def test_inputs_are_dropped_and_the_rest_scaled_up() -> None:
    problem = linear(tiny_problem("regression"))
    weight = torch.tensor([2.0, -1.0, 0.5])  # two inputs and the bias
    rate, x = 0.2, torch.tensor([[1.0, 3.0]])
    outputs = dropout.passes(problem, weight, rate, x, 20_000)[:, 0, 0]
    # Each product x_j w_j is there with probability 1 - rate, divided by it; the bias always is.
    values = torch.tensor([0.0, 2.5, -3.75, -1.25]) + 0.5
    assert (outputs[:, None] - values).abs().min(1).values.max() < 1e-5
    assert float(outputs.mean()) == pytest.approx(-0.5, abs=0.06)
    assert float(outputs.var()) == pytest.approx(rate / (1 - rate) * (4 + 9), rel=0.05)


def test_passes_are_split_by_rows(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropout, "_ACTIVATION_ENTRIES", 3 * dropout.PASSES * 110)
    outputs = dropout.passes(problem, problem.network.current(), 0.1, problem.x_test)
    assert outputs.shape == (dropout.PASSES, 20, 1)
    assert (outputs.var(0) > 0).all()


def test_what_goes_into_a_convolution_is_dropped_too() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
    network = dropout.DropoutNetwork(module, torch.tensor([1e-9, 0.5]), 0)
    theta, x = network.current(), torch.ones(40, 1, 3, 3)
    none, half = network.batched(theta.expand(2, -1), x)
    assert float(none.std(0).max()) < 1e-6
    assert float(half.std(0).min()) > 0
    # The network that was given stays as it was.
    torch.testing.assert_close(module(x), none)


def test_every_rate_is_trained_on_every_fold(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    train = dropout.train
    monkeypatch.setattr(
        dropout,
        "train",
        lambda p, t, rates, member: (seen.append((len(rates), *member.shape)), train(p, t, rates, member))[1],
    )
    choice, taken = dropout.choose(problem, TUNED)
    assert seen == [(4, 5, 60)]
    assert taken == 4 * 5 * 200 * 60
    assert choice.rate in dropout.RATES
    assert 0 < choice.noise_variance < 1


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_it_answers(task: Task) -> None:
    problem = tiny_problem(task)
    found = dropout.run(problem, TUNED)["mc_dropout"]
    if isinstance(found.predictive, Classes):
        assert found.predictive.probabilities.shape == (20, 3)
    else:
        assert isinstance(found.predictive, Gaussians)
        assert found.predictive.mean.shape == (dropout.PASSES, 20)
    scores = figures(found.predictive, problem.y_test)
    assert all(math.isfinite(score) for score in scores.values())
    assert scores["rmse"] < 0.8 if problem.regression else scores["accuracy"] > 0.5
    assert found.cost.gradient_evaluations == (4 * 5 + 1) * 200 * 60 + 1000
    again = dropout.run(problem, TUNED)["mc_dropout"].predictive
    assert figures(again, problem.y_test) == scores


def test_parts_that_run_side_by_side_have_their_own_rates_and_masks() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
    network = dropout.DropoutNetwork(module, torch.tensor([1e-9, 0.5, 0.5, 0.5]), 0)
    theta, x = network.current(), torch.ones(40, 1, 3, 3)
    outputs = [own.batched(theta.expand(2, -1), x) for _, own in network.divided(4, 2)]
    none, half, *others = torch.cat(outputs)
    torch.testing.assert_close(none, module(x))
    assert all(float(o.std(0).min()) > 0 for o in [half, *others])
    assert not any(torch.equal(half, o) for o in others)
