"""MAP training against closed forms, and its cross-fitting."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from builder.config import MapConfig
from builder.likelihood import CategoricalLikelihood
from builder.map import (
    Anchors,
    given_anchor,
    initial_weights,
    learning_rate,
    own_fold_outputs,
    refit_anchors,
    train_anchors,
    train_members,
    training_steps,
)
from builder.network import MLP, FunctionalNetwork, NetworkFactory


def folds(rows: int, anchors: int) -> Tensor:
    return torch.arange(rows)[None] % anchors != torch.arange(anchors)[:, None]


def line(rows: int = 120, noise: float = 0.3, inputs: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=generator)
    y = x @ torch.tensor([1.0, -0.5, 0.0][:inputs]) + 0.2 + noise * torch.randn(rows, generator=generator)
    return x, y


def train(
    x: Tensor,
    y: Tensor,
    member: Tensor,
    outputs: int = 1,
    seed: int = 0,
    factory: NetworkFactory | None = None,
    **o: Any,
) -> Anchors:
    make = factory or (lambda: nn.Linear(x.shape[1], outputs))
    config = MapConfig(**{"steps": 600, "learning_rate": 0.05, "prior_precision": [2.0], **o})
    return train_anchors(FunctionalNetwork(make()), make, x, y, member, config, seed)


def ridge(x: Tensor, y: Tensor, precision: float, noise: float) -> Tensor:
    design = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    gram = design.T @ design / noise**2 + precision * torch.eye(design.shape[1], dtype=torch.float64)
    return torch.linalg.solve(gram, design.T @ y.double() / noise**2).float()


def test_refitted_anchors_of_a_linear_model_are_the_ridge_solution_of_all_rows() -> None:
    x, y = line()
    anchors = train(x, y, folds(120, 3))
    make = lambda: nn.Linear(3, 1)  # noqa: E731
    config = MapConfig(steps=600, learning_rate=0.05, prior_precision=[2.0])
    refit = refit_anchors(FunctionalNetwork(make()), make, anchors, x, y, config)
    apart = float((anchors.weights[0] - anchors.weights[1]).norm())
    for theta, noise in zip(refit.weights, refit.noise_std, strict=True):
        whole = ridge(x, y, 2.0, float(noise))
        assert torch.allclose(theta, whole, atol=2e-3) and float((theta - whole).norm()) < 0.1 * apart
    assert refit.gradient_evaluations == 600 * 120 * 3
    assert refit.prior_precision == anchors.prior_precision


def test_where_no_row_was_left_out_a_refitted_anchor_is_the_same() -> None:
    x, y = line()
    member = torch.ones(2, 120, dtype=torch.bool)
    member[1, :10] = False
    options = {"steps": 50, "learning_rate": 0.05, "prior_precision": [2.0], "batch_rows": 32}
    make = lambda: MLP(3, [4], 1, "tanh")  # noqa: E731
    anchors = train(x, y, member, factory=make, **options)
    refit = refit_anchors(FunctionalNetwork(make()), make, anchors, x, y, MapConfig(**options))
    same = [bool(torch.equal(*pair)) for pair in zip(refit.weights, anchors.weights, strict=True)]
    assert same == [True, False] and refit.noise_std[0] == anchors.noise_std[0]


@pytest.mark.parametrize("precision", [0.1, 30.0])
def test_anchors_of_a_linear_model_are_ridge_solutions(precision: float) -> None:
    x, y = line()
    member = folds(120, 3)
    anchors = train(x, y, member, prior_precision=[precision])
    assert anchors.prior_precision == precision and anchors.weights.shape == (3, 4)
    for theta, noise, seen in zip(anchors.weights, anchors.noise_std, member, strict=True):
        assert torch.allclose(theta, ridge(x[seen], y[seen], precision, float(noise)), atol=2e-3)
        # The noise is at its own optimum: the root mean square of what is left.
        residual = y[seen] - x[seen] @ theta[:3] - theta[3]
        assert float(noise) == pytest.approx(float(residual.square().mean().sqrt()), rel=0.01)


@pytest.mark.parametrize("noise", [0.1, 1.0])
def test_the_noise_is_learned(noise: float) -> None:
    x, y = line(400, noise)
    anchors = train(x, y, folds(400, 2), prior_precision=[0.1], steps=800)
    # A standard deviation from 200 rows has a standard error of 5 %.
    assert torch.allclose(anchors.noise_std, torch.full((2,), noise), rtol=0.15)


def test_minibatches_reach_the_ridge_solution_too() -> None:
    x, y = line(600)
    member = folds(600, 2)
    anchors = train(x, y, member, batch_rows=100, steps=1000)
    for theta, noise, seen in zip(anchors.weights, anchors.noise_std, member, strict=True):
        assert torch.allclose(theta, ridge(x[seen], y[seen], 2.0, float(noise)), atol=0.03)
    assert anchors.gradient_evaluations == 1000 * 100 * 2


def test_gradient_descent_with_momentum_reaches_the_ridge_solution_too() -> None:
    x, y = line(noise=0.3)
    anchors = train(x, y, folds(120, 2), optimiser="sgd", steps=1000, learning_rate=0.02)
    for weights, noise, seen in zip(anchors.weights, anchors.noise_std, folds(120, 2), strict=True):
        torch.testing.assert_close(weights, ridge(x[seen], y[seen], 2.0, float(noise)), rtol=0.02, atol=0.01)


def test_images_are_augmented_in_training() -> None:
    """A network of one pixel learns a class that only ever shows on the other side, where images are mirrored."""
    y = torch.arange(40) % 2
    x = torch.zeros(40, 1, 2, 2)
    x[:, 0, :, 0] = (2.0 * y - 1)[:, None]
    make = lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 2))  # noqa: E731
    found = {}
    for augment in ([], ["flip"]):
        anchors = train(x, y, folds(40, 5), outputs=2, factory=make, augment=augment)
        found[len(augment)] = FunctionalNetwork(make())(anchors.weights[0], x.flip(-1))
    right = [(outputs.argmax(1) == y).float().mean() for outputs in (found[0], found[1])]
    margin = [float((f.gather(1, y[:, None]) - f.gather(1, 1 - y[:, None])).mean()) for f in (found[0], found[1])]
    assert float(right[1]) == 1.0 and margin[1] > 1.0 > abs(margin[0])


def test_logistic_regression_reaches_its_stationary_point() -> None:
    x, score = line(150, 1.0)
    y = (score > 0).long() + (score > 1).long()
    member = folds(150, 2)
    anchors = train(x, y, member, outputs=3)
    assert torch.equal(anchors.noise_std, torch.ones(2))
    network = FunctionalNetwork(nn.Linear(3, 3))
    for theta, seen in zip(anchors.weights, member, strict=True):
        weights = theta.clone().requires_grad_()
        nll = CategoricalLikelihood(3).nll(network(weights, x[seen]), y[seen]).sum()
        (gradient,) = torch.autograd.grad(nll + weights.square().sum(), weights)
        assert float(gradient.abs().max()) < 0.05


def test_an_anchor_does_not_see_its_held_out_rows() -> None:
    x, y = line(60)
    member = folds(60, 3)
    first = train(x, y, member, steps=60)
    changed_y, changed_x = y.clone(), x.clone()
    changed_y[~member[1]] += 7
    changed_x[~member[1]] -= 3
    second = train(changed_x, changed_y, member, steps=60)
    assert torch.equal(first.weights[1], second.weights[1])
    assert not torch.equal(first.weights[0], second.weights[0])


def test_a_strong_prior_is_chosen_where_there_is_nothing_to_learn_and_a_weak_one_where_there_is() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(60, 25, generator=generator)
    noise = torch.randn(60, generator=generator)
    signal = x @ torch.randn(25, generator=generator) + 0.1 * noise
    precisions = [0.01, 1.0, 100.0]
    chosen = {
        name: train(x, y, folds(60, 5), prior_precision=precisions)
        for name, y in (("noise", noise), ("signal", signal))
    }
    assert chosen["noise"].prior_precision == 100.0
    assert chosen["signal"].prior_precision < 100.0
    for anchors in chosen.values():
        assert list(anchors.out_of_fold) == [str(p) for p in precisions]
        assert min(anchors.out_of_fold, key=lambda p: anchors.out_of_fold[p]) == str(anchors.prior_precision)
        assert anchors.weights.shape == (5, 26)


def test_anchors_of_the_chosen_precision_are_returned() -> None:
    x, y = line(60, 0.05)
    both = train(x, y, folds(60, 2), prior_precision=[1e4, 0.1])
    alone = train(x, y, folds(60, 2), prior_precision=[0.1])
    assert both.prior_precision == 0.1
    assert torch.allclose(both.weights, alone.weights, atol=1e-4)
    assert both.loss == pytest.approx(alone.loss, abs=1e-3)


def test_five_anchors_choose_where_all_leave_out_the_same_rows() -> None:
    x, y = line(60, 0.05)
    member = folds(60, 3)[:1].repeat(7, 1)
    found = train(x, y, member, prior_precision=[1e4, 0.1], steps=200)
    assert found.prior_precision == 0.1 and found.weights.shape == (7, 4)
    assert found.gradient_evaluations == 200 * 60 * (2 * 5 + 2)


def test_anchors_start_from_networks_of_their_own() -> None:
    x, y = line(60)
    everyone = torch.ones(2, 60, dtype=torch.bool)
    everyone[:, 0] = False
    anchors = train(x, y, everyone, steps=30, factory=lambda: MLP(3, [8], 1, "tanh"))
    assert not torch.allclose(anchors.weights[0], anchors.weights[1], atol=0.1)


def test_training_follows_its_seed_bit_for_bit() -> None:
    x, y = line(80)
    first, again, other = (train(x, y, folds(80, 2), seed=s, steps=20, batch_rows=32) for s in (1, 1, 2))
    assert torch.equal(first.weights, again.weights) and first.loss == again.loss
    assert not torch.equal(first.weights, other.weights)


def test_images_are_trained_side_by_side_as_in_turn() -> None:
    """Threads change nothing but the last digits, each member's own rows, start and prior among what they keep."""

    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 2))

    network = FunctionalNetwork(make())
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 1, 6, 6, generator=generator), torch.arange(40) % 2
    start = initial_weights(make, network, range(5))
    member = torch.rand(5, 40, generator=generator) < 0.8
    precision = torch.tensor([0.1, 1.0, 1.0, 10.0, 100.0])
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            members = train_members(network, start, x, y, member, precision, MapConfig(steps=60, batch_rows=16))
            found.append(members)
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        torch.testing.assert_close(other.weights, found[0].weights, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(other.loss, found[0].loss, rtol=1e-3, atol=1e-4)
        assert other.gradient_evaluations == found[0].gradient_evaluations


def test_first_weights_come_from_the_factory_and_leave_the_generator_alone() -> None:
    def make() -> nn.Module:
        return nn.Linear(2, 1)

    network = FunctionalNetwork(make())
    before = torch.random.get_rng_state()
    found = initial_weights(make, network, [5, 6, 5])
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(5)
    assert torch.equal(found[0], network.flatten(dict(make().named_parameters())))
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])


def test_out_of_fold_outputs_come_from_the_anchor_that_did_not_see_the_row() -> None:
    x, _ = line(30)
    network = FunctionalNetwork(nn.Linear(3, 1))
    weights = torch.randn(3, 4)
    member = folds(30, 3)
    outputs, rows = own_fold_outputs(network, weights, x, member)
    assert sorted(rows.tolist()) == list(range(30))
    for output, row in zip(outputs, rows.tolist(), strict=True):
        assert torch.allclose(output, network(weights[row % 3], x[[row]])[0], atol=1e-6)


def test_given_weights_are_the_one_anchor() -> None:
    x, y = line(200, 0.3)
    module = nn.Linear(3, 1)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, -0.5, 0.0]]))
        module.bias.fill_(0.2)
    member = folds(200, 5)[:1]
    anchors = given_anchor(FunctionalNetwork(module), x, y, member, MapConfig(prior_precision=[9.0, 1.0, 3.0]))
    assert anchors.weights.tolist() == [pytest.approx([1.0, -0.5, 0.0, 0.2])]
    assert float(anchors.noise_std) == pytest.approx(0.3, rel=0.2)
    # At the noise of its own residuals, a Gaussian's mean NLL is its entropy.
    assert anchors.loss == pytest.approx(
        math.log(float(anchors.noise_std)) + 0.5 * math.log(2 * math.pi * math.e), abs=1e-4
    )
    assert anchors.prior_precision == 3.0 and anchors.gradient_evaluations == 0


def test_a_given_classifier_has_no_noise() -> None:
    x, score = line(50)
    network = FunctionalNetwork(nn.Linear(3, 2))
    member = folds(50, 5)[:1]
    anchors = given_anchor(network, x, (score > 0).long(), member, MapConfig())
    with torch.no_grad():
        loss = (
            CategoricalLikelihood(2).nll(network(network.current(), x[member[0]]), (score > 0).long()[member[0]]).mean()
        )
    assert torch.equal(anchors.noise_std, torch.ones(1)) and anchors.loss == pytest.approx(float(loss))


@pytest.mark.parametrize(
    ("rows", "columns", "hidden", "given", "steps"),
    [
        (200, 4, [50], {}, 4_000),
        (5_120, 4, [50], {}, 4_000),
        (10_240, 4, [50], {}, 8_000),
        (10_240, 4, [50], {"batch_rows": 1024}, 4_000),
        (100_000, 4, [50], {}, 16_000),
        (100_000, 60, [50], {}, 6_298),
        (100_000, 150, [50], {}, 4_000),
        (100_000, 4, [200, 200], {}, 4_000),
        (100_000, 4, [50], {"steps": 7}, 7),
    ],
)
def test_many_rows_take_more_steps_as_far_as_their_work_allows(
    rows: int, columns: int, hidden: list[int], given: dict[str, int], steps: int
) -> None:
    network = FunctionalNetwork(MLP(columns, hidden, 1))
    assert training_steps(MapConfig(**given), network, rows) == steps  # type: ignore[arg-type]


def test_progress_ends_at_the_last_step() -> None:
    x, y = line(30)
    seen: list[tuple[int, int]] = []
    config = MapConfig(steps=45, prior_precision=[1.0])
    network = FunctionalNetwork(nn.Linear(3, 1))
    train_anchors(
        network, lambda: nn.Linear(3, 1), x, y, folds(30, 2), config, report=lambda d, s, _: seen.append((d, s))
    )
    assert seen[-1] == (45, 45) and seen == sorted(seen)


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_any_number_of_steps_is_a_schedule(steps: int) -> None:
    x, y = line(30)
    assert torch.isfinite(train(x, y, folds(30, 2), steps=steps).weights).all()


@pytest.mark.parametrize(("given", "width", "rate"), [(None, 9999, 0.02), (None, 10_000, 0.01), (0.5, 10_000, 0.5)])
def test_large_networks_are_trained_with_smaller_steps(given: float | None, width: int, rate: float) -> None:
    assert learning_rate(MapConfig(learning_rate=given), FunctionalNetwork(nn.Linear(width, 1))) == rate
