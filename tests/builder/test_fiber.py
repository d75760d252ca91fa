"""Fibers: exact posterior draws of linear models, low loss and soundness of others, the same on every machine."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from builder import fiber
from builder.config import FiberConfig, MapConfig
from builder.fiber import Fibers, walk_fibers
from builder.fiber_plan import Plan
from builder.likelihood import CategoricalLikelihood, GaussianLikelihood
from builder.map import train_anchors
from builder.network import MLP, FunctionalNetwork
from tests.builder.linear import LinearModel, assert_draws_from, linear_classifier, linear_gaussian

EVEN: dict[str, Any] = {"growth": 1.0, "drift_scale": 1.0, "work": 1e18}


def walk(model: LinearModel, anchors: Tensor, member: Tensor, seed: int = 0, **options: Any) -> Fibers:
    return model.walk(anchors, member, FiberConfig(**options), seed=seed)


def two_folds(rows: int) -> Tensor:
    """Members of two anchors, each leaving out rows of its own."""
    row = torch.arange(rows)
    return torch.stack([row % 3 != 0, row % 5 != 1])


def solutions(model: LinearModel, member: Tensor) -> Tensor:
    return torch.stack([model.solution(seen.nonzero().squeeze(1)) for seen in member])


# ---- linear models


@pytest.mark.parametrize(
    ("rows", "inputs", "steps", "refinement"),
    [(60, 3, 2, 0), (60, 3, 2, 40), (60, 3, 7, 5), (20, 30, 3, 0), (20, 30, 3, 20)],
)
def test_particles_of_a_linear_model_are_posterior_draws(rows: int, inputs: int, steps: int, refinement: int) -> None:
    model = linear_gaussian(rows, inputs)
    member = two_folds(rows)
    anchors = solutions(model, member)

    fibers = walk(model, anchors, member, steps=steps, refinement=refinement, trajectories=2000, **EVEN)

    assert fibers.nodes.shape == (steps + 1, 2, 2000, inputs + 1)
    for a, seen in enumerate(member):
        hessian = model.hessian(anchors[a], seen.nonzero().squeeze(1))
        assert torch.equal(fibers.nodes[0, a], anchors[a].expand(2000, -1))
        assert_draws_from(fibers.nodes[-1, a], anchors[a], hessian)
        # Half-way the spread is half: the nodes are the posterior at its drift scale.
        assert_draws_from(fibers.nodes[1, a], anchors[a], hessian * steps**2)
        with pytest.raises(AssertionError):
            assert_draws_from(fibers.nodes[-1, a], anchors[a], model.hessian(anchors[1 - a], ~seen))
    assert not fibers.stranded.any()


def test_refinement_leaves_a_linear_model_where_drift_has_put_it() -> None:
    model = linear_gaussian()
    member = two_folds(60)
    anchors = solutions(model, member)
    drift, refined = (walk(model, anchors, member, steps=3, refinement=m, trajectories=50, **EVEN) for m in (0, 200))
    spread = drift.nodes[-1].std()
    assert float((drift.nodes - refined.nodes).abs().max() / spread) < 1e-3


class Banana(nn.Module):
    """The mean is u for rows (1, 0) and v + 2 u^2 for rows (0, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.v = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, 0] * self.u + x[:, 1] * (self.v + 2 * self.u**2))[:, None]


@pytest.mark.parametrize("refinement", [0, 200])
def test_particles_of_a_banana_are_posterior_draws_once_refined(refinement: int) -> None:
    # 25 rows of each kind with targets of 0 and noise of 1: u and v + 2 u^2 are independent, of deviation 0.2.
    fibers = walk_fibers(
        FunctionalNetwork(Banana()),
        torch.zeros(1, 2),
        torch.eye(2).repeat(25, 1),
        torch.zeros(50),
        torch.ones(1, 50, dtype=torch.bool),
        GaussianLikelihood(1.0),
        torch.full((2,), 1e-4),
        FiberConfig(steps=10, refinement=refinement, trajectories=2000, **EVEN),
    )
    u, v = fibers.nodes[-1, 0].T
    across = v + 2 * u**2
    assert abs(float(u.mean())) < 0.02 and float(u.std()) == pytest.approx(0.2, rel=0.06)
    # The mean of v is -2 * 0.2^2 for a posterior that is bent, 0 for a Gaussian.
    bent = float(v.mean()) == pytest.approx(-0.08, abs=0.02) and abs(float(across.mean())) < 0.02
    independent = abs(float(torch.corrcoef(torch.stack([u**2, across]))[0, 1])) < 0.08
    assert (bent, independent) == (refinement > 0, refinement > 0)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.8, 0.95])
def test_refinement_finds_the_fiber_from_beside_it(momentum: float) -> None:
    model = linear_gaussian()
    member = two_folds(60)
    anchors = solutions(model, member)
    aside = anchors + 0.3
    options = {"steps": 2, "trajectories": 20, "momentum": momentum, **EVEN}
    exact = walk(model, anchors, member, refinement=0, **options)
    found = walk(model, aside, member, refinement=300, **options)
    error = (found.nodes[1:] - exact.nodes[1:]).abs().max() / exact.nodes[-1].std()
    assert float(error) < 0.02


def test_refinement_of_logistic_regression_lowers_the_perturbed_loss() -> None:
    model = linear_classifier()
    member = torch.ones(1, 80, dtype=torch.bool)
    start = torch.zeros(1, model.network.weights)
    values = []
    for m in (0, 5, 300):
        seen: list[float] = []
        config = FiberConfig(steps=2, refinement=max(m, 1), trajectories=30, **EVEN)
        model.walk(start, member, config, report=lambda done, steps, loss, seen=seen: seen.append(loss))
        values.append(seen[-1])
    assert values[0] > values[1] > values[2]


def test_part_of_the_rows_for_a_gradient_keeps_the_posterior_near() -> None:
    model = linear_gaussian(1000)
    member = torch.ones(1, 1000, dtype=torch.bool)
    anchors = solutions(model, member)
    fibers = walk(model, anchors, member, trajectories=200, steps=2, refinement=10, **{**EVEN, "work": 1.0})
    assert fibers.gradient_evaluations == 200 * 2 * 10 * 256
    root = torch.linalg.cholesky(model.hessian(anchors[0]))
    white = (fibers.nodes[-1, 0] - anchors[0]).double() @ root
    assert 0.8 < float(white.square().mean()) < 3.0


# ---- a network


def sine(rows: int = 80) -> tuple[FunctionalNetwork, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(rows, 1, generator=generator)
    y = torch.sin(2 * x[:, 0]) + 0.1 * torch.randn(rows, generator=generator)
    torch.manual_seed(0)
    return FunctionalNetwork(MLP(1, [20], 1, "tanh")), x, y


@pytest.fixture(scope="module")
def fitted() -> tuple[FunctionalNetwork, Tensor, Tensor, Tensor]:
    """A network fitted to a noisy sine by plain optimisation, all rows; (network, MAP (1, P), x, y)."""
    network, x, y = sine()
    theta = network.current().clone().requires_grad_()
    optimiser = torch.optim.Adam([theta], lr=0.02)
    for _ in range(600):
        loss = GaussianLikelihood(0.1).nll(network(theta, x), y).sum() + 0.5 * theta.square().sum()
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    return network, theta.detach()[None], x, y


def walk_sine(
    fitted: tuple[FunctionalNetwork, Tensor, Tensor, Tensor], seed: int = 0, last: int | None = None, **options: Any
) -> Fibers:
    network, anchor, x, y = fitted
    member = torch.arange(len(x))[None] % 5 != 0
    config = FiberConfig(
        **{"trajectories": 12, "steps": 5, "refinement": 15, "drift_scale": 1.28, "work": 1e18, **options}
    )
    precision = torch.ones(network.weights)
    return walk_fibers(network, anchor, x, y, member, GaussianLikelihood(0.1), precision, config, seed, last=last)


Fitted = tuple[FunctionalNetwork, Tensor, Tensor, Tensor]


def test_refined_trajectories_stay_on_the_low_loss_set(fitted: Fitted) -> None:
    drift, some, much = (walk_sine(fitted, refinement=m) for m in (0, 15, 100))
    at_map = float(drift.loss[0, 0, 0])
    excess = [(f.loss[1:, 0] - at_map).median(1).values for f in (drift, some, much)]
    assert bool((excess[2] < excess[1]).all() and (excess[1] < excess[0]).all())
    assert float(excess[1][2]) < 0.1 * float(excess[0][2])
    # Beyond the reach of the linear model, drift alone soon fits worse than no network at all.
    assert drift.stranded.all()
    # Posterior samples of P = 61 weights lose about P/2 nats over the 64 rows, at half the radius a quarter of it.
    assert float(much.scales[3]) == pytest.approx(0.461, abs=0.01)
    assert float(excess[2][2]) < 61 / 64
    for found in (some, much):
        assert not found.stranded.any() and torch.isfinite(found.nodes).all()


def test_a_diverged_particle_stays_at_its_last_sound_node(fitted: Fitted) -> None:
    fibers = walk_sine(fitted, refinement=0, drift_scale=50.0)
    assert fibers.stranded.all()
    nothing = float(GaussianLikelihood(0.1).nll(torch.zeros(1, 80, 1), fitted[3]).mean())
    assert float(fibers.loss.max()) < 1.5 * nothing + 5 * 50**2
    still = (fibers.nodes[1:] == fibers.nodes[:-1]).all(-1)
    assert bool((still[1:] >= still[:-1]).all() and still[-1].all())
    assert torch.equal(fibers.loss[1:][still], fibers.loss[:-1][still])


@pytest.mark.parametrize("work", [1e18, 1.0], ids=["all rows", "part of the rows"])
def test_steps_too_long_are_taken_back(work: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # Away from the anchor, and on part of the rows, the curvature can be larger than the one that steps are made for.
    network, x, y = sine(1000)
    anchor = 0.1 * torch.randn(1, network.weights, generator=torch.Generator().manual_seed(0))
    measured = fiber.largest_eigenvalue
    monkeypatch.setattr(fiber, "largest_eigenvalue", lambda *a, **k: measured(*a, **k) / 10)
    member, precision = torch.ones(1, 1000, dtype=torch.bool), torch.ones(network.weights)
    config = FiberConfig(trajectories=4, steps=3, refinement=60, drift_scale=0.5, work=work)
    fibers = walk_fibers(network, anchor, x, y, member, GaussianLikelihood(0.1), precision, config)
    assert not fibers.stranded.any()
    assert float(fibers.nodes.abs().max()) < 100


def test_refined_trajectories_keep_their_distance_from_the_anchor(fitted: Fitted) -> None:
    # Much refinement does not collapse them onto the MAP: they end as far away, whatever M.
    reached = [
        float((f.nodes[-1] - f.nodes[0]).norm(dim=-1).median())
        for f in (walk_sine(fitted, refinement=m, drift_scale=1.0) for m in (10, 150))
    ]
    assert reached[1] > 0.5 * reached[0]


def test_losses_and_drift_lengths_are_those_of_the_nodes(fitted: Fitted) -> None:
    network, _, x, y = fitted
    fibers = walk_sine(fitted, refinement=0, drift_scale=0.1)
    seen = torch.arange(len(x)) % 5 != 0
    with torch.no_grad():
        outputs = network.batched(fibers.nodes[3, 0], x[seen])
    assert torch.allclose(fibers.loss[3, 0], GaussianLikelihood(0.1).nll(outputs, y[seen]).mean(1), rtol=1e-4)
    with torch.no_grad():
        outputs = network(fibers.nodes[0, 0, 0], x[~seen])
    assert float(fibers.unseen[0]) == pytest.approx(float(GaussianLikelihood(0.1).nll(outputs, y[~seen]).mean()))
    length = (fibers.nodes[-1] - fibers.nodes[0]).norm(dim=-1)
    assert torch.allclose(fibers.drift_length, length, rtol=1e-4)
    assert fibers.gradient_evaluations == 0


def test_the_held_out_rows_do_not_matter(fitted: Fitted) -> None:
    network, anchor, x, y = fitted
    changed = y.clone()
    changed[::5] += 10
    first, second = walk_sine(fitted), walk_sine((network, anchor, x, changed))
    assert torch.equal(first.nodes, second.nodes)
    changed[1] += 10
    assert not torch.equal(first.nodes, walk_sine((network, anchor, x, changed)).nodes)


@pytest.mark.parametrize("refinement", [0, 15])
def test_a_walk_in_groups_and_chunks_is_the_same_walk(
    fitted: Fitted, refinement: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, _, x, _ = fitted
    whole = walk_sine(fitted, refinement=refinement, drift_scale=1.0)
    # Five particles and 64 of the 80 rows at once.
    monkeypatch.setattr(fiber, "values_at_once", lambda _: 64 * 5 * network.activations(x[:1]))
    sizes = set()
    batched = FunctionalNetwork.batched

    def seen(self: FunctionalNetwork, thetas: Tensor, rows: Tensor) -> Tensor:
        sizes.add((len(thetas), len(rows)))
        return batched(self, thetas, rows)

    monkeypatch.setattr(FunctionalNetwork, "batched", seen)
    parts = walk_sine(fitted, refinement=refinement, drift_scale=1.0)
    assert sizes == {(5, 64), (5, 16), (2, 64), (2, 16), (1, 16)}  # the last: the anchor on the rows it lacks
    scale = whole.nodes[-1].sub(whole.nodes[0]).abs().mean()
    assert float((whole.nodes - parts.nodes).abs().max() / scale) < 0.01
    assert torch.allclose(whole.loss, parts.loss, rtol=0.02)
    assert whole.gradient_evaluations == parts.gradient_evaluations


def test_losses_are_of_some_rows_where_gradients_are(fitted: Fitted, monkeypatch: pytest.MonkeyPatch) -> None:
    """They cost no more than a third of the gradients then; where these are of all rows, so are they."""
    network, _, x, y = fitted
    monkeypatch.setattr(fiber, "plan_work", lambda *_: Plan(trajectories=4, refinement=2, rows=16))
    part = walk_sine(fitted, steps=3)
    judged, seen = torch.arange(0, 80, 3), torch.arange(80) % 5 != 0
    for node, loss in zip(part.nodes[:, 0], part.loss[:, 0], strict=True):
        rows = judged[seen[judged]]
        outputs = network.batched(node, x[rows])
        assert torch.allclose(loss, GaussianLikelihood(0.1).nll(outputs, y[rows]).mean(1), rtol=1e-4)


@pytest.mark.parametrize("work", [1e18, 1.0])
def test_a_walk_that_ends_earlier_is_the_beginning_of_the_longer_one(fitted: Fitted, work: float) -> None:
    """Whatever the budget: what was judged on the longer one is what is served of the other."""
    whole, part = (walk_sine(fitted, last=last, work=work) for last in (None, 2))
    assert torch.equal(part.nodes, whole.nodes[:3]) and torch.equal(part.scales, whole.scales[:3])
    assert torch.equal(part.loss, whole.loss[:3])


def test_a_walk_follows_its_seed_bit_for_bit(fitted: Fitted) -> None:
    before = torch.random.get_rng_state()
    first, again, other = (walk_sine(fitted, seed=s) for s in (4, 4, 5))
    assert torch.equal(first.nodes, again.nodes) and torch.equal(first.loss, again.loss)
    assert not torch.equal(first.nodes[1], other.nodes[1])
    assert torch.equal(before, torch.random.get_rng_state())


class Exploding(nn.Module):
    """Outputs that leave float32 for weights not far from zero."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(1, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.outer(torch.exp(8 * self.inner(x) ** 2))
        return out


def test_diverging_particles_are_stranded_with_finite_weights() -> None:
    torch.manual_seed(0)
    network, (_, x, y) = FunctionalNetwork(Exploding()), sine(40)
    member = torch.ones(1, 40, dtype=torch.bool)
    config = FiberConfig(trajectories=20, steps=6, refinement=6, drift_scale=60.0, work=1e18)
    anchor = 0.1 * network.current()[None]
    precision = torch.full((network.weights,), 0.1)
    fibers = walk_fibers(network, anchor, x, y, member, GaussianLikelihood(1.0), precision, config)
    assert fibers.stranded.any()
    assert torch.isfinite(fibers.nodes).all()
    left = fibers.nodes[:, fibers.stranded]
    assert torch.equal(left[-1], left[-2])


def test_particles_do_not_run_off_where_classes_can_be_told_apart_without_an_error() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(90) % 3
    x = 0.3 * torch.randn(90, 20, generator=generator)
    x[torch.arange(90), y] += 2
    config = MapConfig(steps=400, prior_precision=[0.3])
    member = torch.arange(90) % 10 != torch.arange(2)[:, None]
    network = FunctionalNetwork(MLP(20, [30], 3))
    anchors = train_anchors(network, lambda: MLP(20, [30], 3), x, y, member, config).weights
    precision, options = torch.full((network.weights,), 0.3), FiberConfig(trajectories=10)
    fibers = walk_fibers(network, anchors, x, y, member, CategoricalLikelihood(3), precision, options)
    assert fibers.stranded.any() and not fibers.stranded.all()
    away = (fibers.nodes - fibers.nodes[:1]).norm(dim=-1)
    assert float((away[-1] / fibers.drift_length).max()) < 4


def test_a_classifier_walks_too() -> None:
    model = linear_classifier()
    network = FunctionalNetwork(MLP(2, [10], 3))
    member = torch.ones(2, 80, dtype=torch.bool)
    anchors = torch.stack([network.current(), 0.5 * network.current()])
    config = FiberConfig(trajectories=6, steps=4, refinement=10)
    precision = torch.ones(network.weights)
    fibers = walk_fibers(network, anchors, model.x, model.y, member, CategoricalLikelihood(3), precision, config)
    assert fibers.nodes.shape == (5, 2, 6, network.weights) and torch.isfinite(fibers.nodes).all()
    assert fibers.loss.shape == (5, 2, 6) and fibers.stranded.shape == fibers.drift_length.shape == (2, 6)
    # An anchor that is no optimum is refined towards one.
    assert float(fibers.loss[1].mean()) < float(fibers.loss[0].mean())


# ---- scales and budget


def test_progress_is_reported_step_by_step(fitted: Fitted) -> None:
    network, anchor, x, y = fitted
    seen: list[tuple[int, int, float]] = []
    config = FiberConfig(trajectories=2, steps=3, refinement=4)
    member = torch.ones(1, len(x), dtype=torch.bool)
    precision = torch.ones(network.weights)
    likelihood = GaussianLikelihood(0.1)

    def report(done: int, steps: int, loss: float) -> None:
        seen.append((done, steps, loss))

    walk_fibers(network, anchor, x, y, member, likelihood, precision, config, report=report)
    assert [s[:2] for s in seen] == [(i, 12) for i in range(1, 13)]
    assert all(math.isfinite(s[2]) for s in seen)


def test_the_number_of_threads_does_not_change_the_fibers(fitted: Fitted) -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(walk_sine(fitted, refinement=5).nodes)
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert torch.allclose(found[0], other, rtol=1e-3, atol=1e-3)
