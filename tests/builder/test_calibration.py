"""What is chosen on out-of-fold predictions for a reach: noise or temperature, interval scores."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from builder import calibration
from builder.autoencoder import train_autoencoder
from builder.calibration import Calibrated, DecodedPosterior, SampledPosterior, calibrate
from builder.config import AutoencoderConfig, FiberConfig
from builder.decoder import WeightDecoder
from builder.network import FunctionalNetwork
from builder.predictive import categorical_nll, contracted, mixture_probabilities, sample_outputs
from model_store.manifest import LatentPlan, RegressionCalibration, RegressionTarget
from service.predictive import regression
from tests.builder.linear import line_data, linear_classifier
from tests.builder.walked import NOISE, Walked, two_rounds, wave

Array = NDArray[Any]
STANDARD = RegressionTarget(name="y", mean=0.0, scale=1.0)


def plan() -> LatentPlan:
    return LatentPlan(name="predict", samples=32, stop=0.6, drift_scale=1.0)


# ---- where only the anchors are drawn


def at_anchors(network: FunctionalNetwork, anchors: Tensor) -> DecodedPosterior:
    """A posterior that is its anchors alone."""
    decoder = WeightDecoder(len(anchors), 2, 4, 1, network.weights)
    decoder.set_head(anchors, torch.zeros(len(anchors), 1, network.weights))
    return DecodedPosterior(network, decoder, np.zeros((len(anchors), 3, 4, 2), dtype=np.float32))


def probabilities(logits: Tensor, found: Calibrated) -> Tensor:
    return mixture_probabilities(contracted(logits, found.dispersion), found.spread)


@pytest.mark.parametrize("noise", [0.05, 0.4])
def test_the_noise_of_true_anchors_is_the_truth(noise: float) -> None:
    network, x, y, member = line_data(2000, noise)
    anchors = torch.tensor([[2.0, 0.0]]).expand(2, -1).contiguous()
    found = calibrate(at_anchors(network, anchors), anchors, plan(), x, y, member)
    # 2000 rows: a standard error of 1.6 %.
    assert found.spread == pytest.approx(noise, rel=0.07) and found.map_spread == pytest.approx(noise, rel=0.07)
    assert found.nll == pytest.approx(math.log(noise) + 0.5 * math.log(2 * math.pi * math.e), abs=0.06)
    assert found.nll == pytest.approx(found.map_nll, abs=1e-4)
    assert found.points == 2000
    rows = found.unseen
    assert rows is not None and rows.mean is not None and rows.std is not None
    assert torch.equal(rows.y, y) and torch.allclose(rows.mean, 2 * x[:, 0], atol=1e-5)
    assert torch.allclose(rows.std, torch.full_like(y, found.spread), rtol=1e-4)


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.5])
def test_the_temperature_undoes_logits_of_the_wrong_size(factor: float) -> None:
    generator = torch.Generator().manual_seed(0)
    network = FunctionalNetwork(nn.Linear(4, 3))
    truth = 1.5 * torch.randn(network.weights, generator=generator)
    x = torch.randn(3000, 4, generator=generator)
    p = network(truth, x).detach().softmax(-1)
    y = torch.multinomial(p, 1, generator=generator)[:, 0]
    member = torch.arange(3000)[None] % 2 != torch.arange(2)[:, None]
    anchors = (factor * truth).expand(2, -1).contiguous()
    found = calibrate(at_anchors(network, anchors), anchors, plan(), x, y, member)
    assert found.spread == pytest.approx(factor, rel=0.15) and found.map_spread == pytest.approx(factor, rel=0.15)
    assert found.nll == pytest.approx(float(categorical_nll(p, y).mean()), abs=0.01)
    assert torch.allclose(found.conformity_scores, (1 - p.gather(1, y[:, None])[:, 0]).double().sort().values, atol=0.1)


def test_the_temperature_of_all_anchors_shows_on_rows_that_all_lack() -> None:
    """And it is less than that of one: their average is less sure of itself."""
    generator = torch.Generator().manual_seed(4)
    network = FunctionalNetwork(nn.Linear(4, 3))
    truth = torch.randn(network.weights, generator=generator)
    anchors = 2 * (truth + 0.7 * torch.randn(6, network.weights, generator=generator))
    x = torch.randn(1500, 4, generator=generator)
    y = torch.multinomial(network(truth, x).detach().softmax(-1), 1, generator=generator)[:, 0]
    member = torch.zeros(6, 1500, dtype=torch.bool)
    found = calibrate(at_anchors(network, anchors), anchors, plan(), x, y, member)
    logits = contracted(torch.stack([network(a, x).detach() for a in anchors]), found.dispersion)
    nll = [float(categorical_nll((logits / (found.spread * c)).softmax(-1).mean(0), y).mean()) for c in (0.8, 1, 1.25)]
    assert nll[1] == pytest.approx(found.nll, abs=1e-5) and nll[1] < min(nll[0], nll[2])
    assert found.spread < 0.9 * found.map_spread


def test_few_samples_want_a_higher_temperature() -> None:
    """What is served of them is surer of itself than an average of many."""
    generator = torch.Generator().manual_seed(5)
    network = FunctionalNetwork(nn.Linear(4, 3))
    truth = torch.randn(network.weights, generator=generator)
    anchors = truth.expand(2, -1).contiguous()
    nodes = anchors[:, None] + torch.randn(2, 64, network.weights, generator=generator)
    nodes = torch.stack([anchors[:, None].expand_as(nodes), nodes], dim=2)
    posterior = SampledPosterior(network, nodes, torch.tensor([0.0, 1.0]))
    x = torch.randn(2000, 4, generator=generator)
    y = torch.multinomial(network(truth, x).detach().softmax(-1), 1, generator=generator)[:, 0]
    member = torch.zeros(2, 2000, dtype=torch.bool)
    many, few = (calibrate(posterior, anchors, plan(), x, y, member, samples=n) for n in (None, 2))
    assert few.spread > 1.05 * many.spread and few.nll > many.nll


def test_every_row_has_its_score_however_few_decide_the_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "FITTED_ROWS", 150)
    generator = torch.Generator().manual_seed(3)
    network = FunctionalNetwork(nn.Linear(4, 3))
    truth = 2.0 * torch.randn(network.weights, generator=generator)
    anchors = truth + 1.5 * torch.randn(10, network.weights, generator=generator)
    x = torch.randn(400, 4, generator=generator)
    y = network(truth, x).argmax(1)
    member = two_rounds(400, 10)
    found = calibrate(at_anchors(network, anchors), anchors, plan(), x, y, member, served=4)
    assert found.dispersion < 1
    own = torch.stack([network(a, x).detach() for a in anchors])
    p = probabilities(torch.stack([own[~seen, row] for row, seen in enumerate(member.T)], dim=1), found)
    expected = (1 - p.gather(1, y[:, None])[:, 0]).double().sort().values
    assert found.points == 400 and torch.allclose(found.conformity_scores, expected, atol=1e-5)
    assert found.unseen is not None and found.unseen.covered is not None and torch.equal(found.unseen.y, y)
    held = (p >= 1 - float(expected[math.ceil(401 * 0.9) - 1]) - 1e-6) | (p == p.amax(1, keepdim=True))
    assert float((found.unseen.covered == held.gather(1, y[:, None])[:, 0]).float().mean()) > 0.99


# ---- many anchors, in two rounds of folds: every row is unseen by two


def test_intervals_of_many_anchors_cover_new_rows_no_more_and_no_less() -> None:
    generator = torch.Generator().manual_seed(6)
    network = FunctionalNetwork(nn.Linear(40, 1))
    truth = torch.randn(41, generator=generator) / 6
    anchors = truth + 0.25 * torch.randn(10, 41, generator=generator) / 6
    x = torch.randn(22_000, 40, generator=generator)
    y = network(truth, x)[:, 0].detach() + 0.3 * torch.randn(22_000, generator=generator)
    known, new = slice(2000), slice(2000, 22_000)
    member = two_rounds(2000, 10)
    found = calibrate(at_anchors(network, anchors), anchors, plan(), x[known], y[known], member)
    # Single anchors are wrong by far more than the noise; it is their mean that is served.
    assert found.map_spread > 0.37 and found.spread < 0.3
    outputs = sample_outputs(network, anchors, x[new]).numpy()
    for level in (0.8, 0.9, 0.95):
        scores = found.conformity_scores.numpy()
        interval = regression(outputs, STANDARD, noise_of(found), level, scores)["interval"]
        covered = (interval[:, 0] <= y[new].numpy()) & (y[new].numpy() <= interval[:, 1])
        assert float(covered.mean()) == pytest.approx(level, abs=0.03)


def test_the_temperature_is_that_of_all_anchors_together() -> None:
    generator = torch.Generator().manual_seed(0)
    network = FunctionalNetwork(nn.Linear(4, 3))
    truth = 1.5 * torch.randn(network.weights, generator=generator)
    anchors = truth + 0.8 * torch.randn(10, network.weights, generator=generator)
    x = torch.randn(12_000, 4, generator=generator)
    y = torch.multinomial(network(truth, x).detach().softmax(-1), 1, generator=generator)[:, 0]
    seen, new = slice(4000), slice(4000, 12_000)
    member = two_rounds(4000, 10)
    found = calibrate(at_anchors(network, anchors), anchors, plan(), x[seen], y[seen], member)
    logits = contracted(sample_outputs(network, anchors, x[new]), found.dispersion)
    nll = {
        t: float(categorical_nll(mixture_probabilities(logits, t), y[new]).mean())
        for t in [found.spread, found.map_spread, *np.geomspace(0.4, 4.0, 41).tolist()]
    }
    assert found.spread < 0.85 * found.map_spread
    assert nll[found.spread] < min(nll.values()) + 0.003 < nll[found.map_spread]


# ---- a decoded posterior


@pytest.fixture(scope="module")
def posterior(walked: Walked) -> DecodedPosterior:
    used = slice(0, 5)
    latent = train_autoencoder(
        walked.fibers.nodes[used], walked.fibers.scales[used], AutoencoderConfig(steps=300, hidden=32)
    )
    return DecodedPosterior(walked.network, latent.decoder, latent.nodes.numpy())


@pytest.fixture(scope="module")
def calibrated(walked: Walked, posterior: DecodedPosterior) -> Calibrated:
    return calibrate(posterior, walked.anchors.weights, plan(), walked.x, walked.y, walked.member)


def served(posterior: DecodedPosterior, plan: LatentPlan, x: Tensor) -> tuple[Array, Array]:
    """Outputs (S, B, 1) and anchors (S,) that a server computes by default."""
    weights, anchor = posterior.draw(plan, plan.samples)
    return sample_outputs(posterior.network, weights, x).numpy(), anchor.numpy()


def noise_of(calibrated: Calibrated) -> RegressionCalibration:
    return RegressionCalibration(noise_std=calibrated.spread, points=calibrated.points)


def test_the_noise_is_close_to_the_truth(calibrated: Calibrated) -> None:
    # 240 rows: a standard error of 5 %, and a grid of 12 %.
    assert calibrated.spread == pytest.approx(NOISE, rel=0.2)
    assert calibrated.points == 240


def test_the_posterior_scores_no_worse_than_the_anchors(calibrated: Calibrated) -> None:
    assert calibrated.nll <= calibrated.map_nll + 0.02


def test_intervals_cover_new_rows(posterior: DecodedPosterior, calibrated: Calibrated) -> None:
    x, y = wave(3000, seed=9)
    outputs, _ = served(posterior, plan(), x)
    scores = calibrated.conformity_scores.numpy()
    assert bool((np.diff(scores) >= 0).all()) and scores.dtype == np.float64 and len(scores) == 240
    for level in (0.5, 0.9, 0.95):
        interval = regression(outputs, STANDARD, noise_of(calibrated), level, scores)["interval"]
        covered = float(((interval[:, 0] <= y.numpy()) & (y.numpy() <= interval[:, 1])).mean())
        # The quantile of 240 scores has a standard error of up to 3 %.
        assert covered == pytest.approx(level, abs=0.08)


def draws_of_anchor(posterior: DecodedPosterior, plan: LatentPlan, a: int, x: Tensor) -> tuple[Array, Array]:
    """What calibration sees of the rows that anchor a did not see: 64 samples of that anchor alone."""
    weights, anchor = posterior.draw(plan, 64 * len(posterior.nodes), seed=1)
    own = weights[anchor == a]
    return sample_outputs(posterior.network, own, x).numpy(), np.full(len(own), a)


def test_calibration_draws_the_same_every_time(
    walked: Walked, posterior: DecodedPosterior, calibrated: Calibrated
) -> None:
    again = calibrate(posterior, walked.anchors.weights, plan(), walked.x, walked.y, walked.member)
    assert torch.equal(again.conformity_scores, calibrated.conformity_scores)
    assert replace(again, conformity_scores=calibrated.conformity_scores) == calibrated


def test_calibration_in_parts_is_the_same(
    walked: Walked, posterior: DecodedPosterior, calibrated: Calibrated, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def seen(network: FunctionalNetwork, weights: Tensor, x: Tensor) -> Tensor:
        sizes.append(len(x))
        return sample_outputs(network, weights, x)

    monkeypatch.setattr(calibration, "sample_outputs", seen)
    # 64 samples of each anchor on 50 of the 240 rows at once.
    monkeypatch.setattr(calibration, "values_at_once", lambda: 64 * 50)
    parts = calibrate(posterior, walked.anchors.weights, plan(), walked.x, walked.y, walked.member)
    # Both anchors on all 240 rows, for how they disagree.
    assert sizes.count(50) == 2 * 4 and sizes.count(40) == 2
    assert torch.allclose(parts.conformity_scores, calibrated.conformity_scores, rtol=1e-4)
    assert parts.spread == pytest.approx(calibrated.spread, rel=1e-4)


def test_each_row_is_judged_by_the_anchor_that_did_not_see_it(
    walked: Walked, posterior: DecodedPosterior, calibrated: Calibrated
) -> None:
    # An anchor that puts out one more is right about targets that are one more, where it is asked.
    shifted = walked.anchors.weights.clone()
    shifted[1, -1] += 1.0
    spread = {}
    for a in (0, 1):
        y = walked.y + (~walked.member[a]).float()
        spread[a] = calibrate(posterior, shifted, plan(), walked.x, y, walked.member).map_spread
    assert spread[1] == pytest.approx(calibrated.map_spread, rel=1e-3)
    assert spread[0] == pytest.approx(math.sqrt(calibrated.map_spread**2 + 1.0), rel=0.1)


# ---- classification


def test_a_classifiers_nll_is_that_of_its_averaged_probabilities() -> None:
    model = linear_classifier(rows=200)
    network = model.network
    member = torch.arange(200)[None] % 2 != torch.arange(2)[:, None]
    anchors = torch.stack([0.9 * torch.ones(network.weights), torch.zeros(network.weights)])
    fibers = model.walk(anchors, member, FiberConfig(trajectories=8, steps=4, refinement=30))
    latent = train_autoencoder(fibers.nodes, fibers.scales, AutoencoderConfig(steps=100, hidden=16))
    posterior = DecodedPosterior(network, latent.decoder, latent.nodes.numpy())
    found = calibrate(posterior, anchors, plan(), model.x, model.y, member)
    each = [draws_of_anchor(posterior, plan(), a, model.x[~member[a]])[0] for a in (0, 1)]
    p = torch.cat([probabilities(torch.from_numpy(f), found) for f in each])
    nll = categorical_nll(p, torch.cat([model.y[~seen] for seen in member])).mean()
    assert found.nll == pytest.approx(float(nll), abs=1e-4)
    assert found.nll < found.map_nll
