"""The OOD detectors of a build: scored as a server scores, on rows that they had not seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from builder.autoencoder import train_autoencoder
from builder.calibration import DecodedPosterior
from builder.config import AutoencoderConfig, CalibrationConfig, FiberConfig
from builder.detection import Detection, added_by_novelty, fit_detectors, transported
from builder.network import FunctionalNetwork
from builder.predictive import sample_outputs
from model_store.detection import Detectors, Mahalanobis, NearestRows, Scaler, combined, familiar_surprise
from model_store.errors import ConfigError
from model_store.manifest import (
    CategoricalColumn,
    ClassificationCalibration,
    InputSpec,
    LatentPlan,
    NumericColumn,
    RegressionCalibration,
    RegressionTarget,
    TableInput,
    TensorInput,
)
from service.predictive import AnchorSamples, epistemic_to_noise, mutual_information
from tests.builder.decoders import Identity
from tests.builder.linear import linear_classifier
from tests.builder.walked import NOISE, Walked, decoded, two_rounds, wave

Array = NDArray[Any]
RATE = 0.1
PLAN = LatentPlan(name="predict", samples=32, drift_scale=1.0)
COLUMN = TableInput(columns=[NumericColumn(name="x")])
CONFIG = CalibrationConfig(false_alarm_rate=RATE)


@pytest.fixture(scope="module")
def posterior(walked: Walked) -> DecodedPosterior:
    return decoded(walked)


@pytest.fixture(scope="module")
def detection(walked: Walked, posterior: DecodedPosterior) -> Detection:
    return fit_detectors(posterior, PLAN, NOISE, walked.x, walked.y, walked.member, COLUMN, CONFIG)


def p_values(posterior: DecodedPosterior, detection: Detection, x: Tensor) -> Array:
    """(B,) as a server answers by default."""
    weights, anchor = posterior.draw(PLAN, PLAN.samples)
    outputs = sample_outputs(posterior.network, weights, x).numpy()
    # In the target's own units, as a server computes it.
    target = RegressionTarget(name="y", mean=3.0, scale=7.0)
    noise = RegressionCalibration(noise_std=7.0 * NOISE, points=240)
    epistemic = epistemic_to_noise(outputs, AnchorSamples.of(anchor.numpy()), target, noise)
    return Detectors(COLUMN, detection.described, detection.arrays).judge(x.numpy(), epistemic).p_value


def test_false_alarms_come_at_the_rate_asked_for(posterior: DecodedPosterior, detection: Detection) -> None:
    alarms = (p_values(posterior, detection, wave(3000, seed=9)[0]) <= RATE).mean()
    # 240 rows: a standard error of 2 %. Fewer, as a server also asks the anchor that has seen rows like these.
    assert 0.01 < alarms < 0.15
    described = detection.described
    assert (described.false_alarm_rate, described.points) == (RATE, 240)
    assert described.detectors == ["epistemic_to_noise", "nearest_rows", "mahalanobis"]


def test_rows_far_outside_are_flagged(posterior: DecodedPosterior, detection: Detection) -> None:
    far = torch.cat([torch.linspace(4, 8, 20), torch.linspace(-8, -4, 20)])[:, None]
    assert (p_values(posterior, detection, far) <= RATE).mean() > 0.9


def test_rows_in_a_gap_are_flagged(posterior: DecodedPosterior, detection: Detection) -> None:
    """In the middle of the data, where the distance from their mean says nothing."""
    gap = torch.linspace(-0.2, 0.2, 20)[:, None]
    familiar = p_values(posterior, detection, wave(300, seed=9)[0])
    assert np.median(p_values(posterior, detection, gap)) < np.median(familiar)


def scores_of_new_rows(
    posterior: DecodedPosterior, x: Tensor, member: Tensor, score: Callable[[Array, AnchorSamples], Array]
) -> Array:
    """What a build makes of an epistemic score (n,) of one anchor's samples, where all rows are unseen by some."""

    def each(samples: int, seed: int) -> Tensor:
        weights, anchor = posterior.draw(PLAN, samples, seed)
        found = []
        for a in range(len(member)):
            own = weights[anchor == a]
            outputs = sample_outputs(posterior.network, own, x).numpy()
            found.append(torch.from_numpy(np.exp(score(outputs, AnchorSamples.of(np.zeros(len(own), dtype=np.int64))))))
        return torch.stack(found)

    # As many of an anchor's samples as a server draws of it, and those that a server draws.
    added = added_by_novelty(each(PLAN.samples // len(member) * len(member), 1).log(), ~member)
    drawn = each(PLAN.samples, 0)
    return torch.where(member, drawn * added.exp(), drawn).mean(0).log().numpy()


def test_each_detector_scores_rows_that_it_had_not_seen(
    walked: Walked, posterior: DecodedPosterior, detection: Detection
) -> None:
    target = RegressionTarget(name="y", mean=0.0, scale=1.0)
    noise = RegressionCalibration(noise_std=NOISE, points=240)
    x = walked.x.numpy()
    u = (x - x.mean()) / x.std()
    mahalanobis = np.zeros(240)
    for seen in walked.member.numpy():
        own = u[seen]
        mahalanobis[~seen] = np.log(np.square(u[~seen] - own.mean())[:, 0] / (own.var() + 0.01))
    apart = np.square(u - u.T)
    np.fill_diagonal(apart, np.inf)
    nearest = np.log(np.maximum(np.sort(apart, axis=1)[:, :5].mean(axis=1), 1e-6))
    found = detection.arrays["ood_scores"]
    epistemic = scores_of_new_rows(
        posterior, walked.x, walked.member, lambda outputs, own: epistemic_to_noise(outputs, own, target, noise)
    )
    assert found[0] == pytest.approx(np.sort(epistemic), abs=1e-3)
    # float32 squares that nearly cancel
    assert np.quantile(np.abs(found[1] - np.sort(nearest)), 0.9) < 0.05
    assert found[2] == pytest.approx(np.sort(np.maximum(mahalanobis, np.log(1e-6))), abs=1e-3)


def test_the_same_every_time(walked: Walked, posterior: DecodedPosterior, detection: Detection) -> None:
    again = fit_detectors(posterior, PLAN, NOISE, walked.x, walked.y, walked.member, COLUMN, CONFIG)
    assert again.described == detection.described and set(again.arrays) == set(detection.arrays)
    assert all(np.array_equal(again.arrays[name], values) for name, values in detection.arrays.items())


def test_a_classifier_goes_by_mutual_information() -> None:
    model = linear_classifier(rows=200)
    member = torch.arange(200)[None] % 2 != torch.arange(2)[:, None]
    anchors = torch.stack([0.9 * torch.ones(model.network.weights), torch.zeros(model.network.weights)])
    fibers = model.walk(anchors, member, FiberConfig(trajectories=8, steps=4, refinement=30))
    latent = train_autoencoder(fibers.nodes, fibers.scales, AutoencoderConfig(steps=100, hidden=16))
    posterior = DecodedPosterior(model.network, latent.decoder, latent.nodes.numpy())
    inputs = TensorInput(shape=list(model.x.shape[1:]))
    found = fit_detectors(posterior, PLAN, 1.5, model.x, model.y, member, inputs, CONFIG)
    assert found.described.detectors == ["mutual_information"]  # images and sequences have no columns
    warm = ClassificationCalibration(temperature=1.5, points=1)
    scores = scores_of_new_rows(posterior, model.x, member, lambda outputs, own: mutual_information(outputs, own, warm))
    assert found.arrays["ood_scores"][0] == pytest.approx(np.sort(scores), abs=1e-3)
    assert found.arrays["ood_combined"] == pytest.approx(np.sort(combined([familiar_surprise(scores)])), abs=1e-2)


# ---- which detectors there are


def fitted(x: Array, inputs: InputSpec, samples: int = 32, anchors: int = 10, **options: Any) -> Detection:
    """For linear networks at their anchors, on rows x (n, d)."""
    network = nn.Linear(x.shape[1], 1)
    weights = sum(p.numel() for p in network.parameters())
    rng = np.random.default_rng(0)
    nodes = rng.normal(size=(anchors, 4, 1, weights)).astype(np.float32).repeat(2, axis=2)

    posterior = DecodedPosterior(FunctionalNetwork(network), Identity(), nodes)
    plan = LatentPlan(name="predict", samples=samples, drift_scale=1.0)
    member = two_rounds(len(x), anchors)
    rows = torch.from_numpy(x)
    return fit_detectors(posterior, plan, 1.0, rows, rows[:, 0], member, inputs, CalibrationConfig(**options))


def columns(count: int) -> TableInput:
    return TableInput(columns=[NumericColumn(name=f"c{j}") for j in range(count)])


def table(rows: int, width: int) -> Array:
    return np.random.default_rng(1).normal(size=(rows, width)).astype(np.float32)


def test_no_rows_are_kept_where_none_shall_be() -> None:
    found = fitted(table(80, 3), columns(3), reference_rows=0)
    assert found.described.detectors == ["epistemic_to_noise", "mahalanobis"]
    assert "ood_rows" not in found.arrays and found.arrays["ood_precision"].shape == (3, 3)


def test_no_more_rows_are_kept_than_asked() -> None:
    x = table(200, 3)
    found = fitted(x, columns(3), reference_rows=50)
    kept = found.arrays["ood_rows"]
    assert kept.shape == (50, 3) and kept.dtype == np.float32
    # All are scored, those that are kept without themselves.
    scaled = Scaler.fit(x, np.ones(3, dtype=bool))(x)
    least = np.sort(NearestRows(kept).scores(scaled))
    assert found.arrays["ood_scores"].shape == (3, 200)
    assert (found.arrays["ood_scores"][1] >= least - 1e-6).all() and found.arrays["ood_scores"][1].sum() > least.sum()


def test_very_many_columns_have_no_covariance() -> None:
    found = fitted(table(40, 513), columns(513))
    assert found.described.detectors == ["epistemic_to_noise", "nearest_rows"]
    assert "ood_precision" not in found.arrays


def test_the_level_is_that_of_the_samples_that_are_served() -> None:
    """Samples that scatter half as far have a quarter of the variance, on familiar rows too."""
    network, x = FunctionalNetwork(nn.Linear(3, 1)), torch.from_numpy(table(80, 3))
    nodes = np.random.default_rng(0).normal(size=(10, 4, 1, 4)).astype(np.float32).repeat(2, axis=2)
    judged, alike, served = (DecodedPosterior(network, Identity(), scale * nodes) for scale in (1.0, 1.0, 0.5))
    plan, member = LatentPlan(name="predict", samples=32, drift_scale=1.0), two_rounds(80, 10)
    plain, levelled = (
        fit_detectors(judged, plan, 1.0, x, x[:, 0], member, columns(3), CalibrationConfig(), served=s)
        for s in (alike, served)
    )
    shift = levelled.arrays["ood_scores"] - plain.arrays["ood_scores"]
    assert shift[0] == pytest.approx(np.log(0.25), abs=1e-3)
    assert (shift[1:] == 0).all()


def alarms(samples: int, member: Tensor, scale: float, rates: tuple[float, ...]) -> list[tuple[float, float, float]]:
    """Shares of 8,000 new rows that the network's detector flags at each rate, and all together; and the rates.

    Anchors are random, each with a scatter of its own, and those that answer have `scale` times that of the judged.
    """
    x, new = (np.random.default_rng(seed).normal(size=(8000, 3)).astype(np.float32) for seed in (1, 2))
    network = FunctionalNetwork(nn.Linear(3, 1))
    nodes = np.random.default_rng(0).normal(size=(len(member), 4, 1, 4)).astype(np.float32).repeat(2, axis=2)
    plan = LatentPlan(name="predict", samples=samples, drift_scale=1.0)
    judged = DecodedPosterior(network, Identity(), nodes)
    served = judged if scale == 1 else DecodedPosterior(network, Identity(), scale * nodes)
    rows = torch.from_numpy(x)
    found = fit_detectors(judged, plan, 1.0, rows, rows[:, 0], member, columns(3), CalibrationConfig(), served=served)
    weights, anchor = served.draw(plan, samples)
    outputs = sample_outputs(network, weights, torch.from_numpy(new)).numpy()
    noise, target = RegressionCalibration(noise_std=1.0, points=1), RegressionTarget(name="y", mean=0.0, scale=1.0)
    score = epistemic_to_noise(outputs, AnchorSamples.of(anchor.numpy()), target, noise)
    told = Detectors(columns(3), found.described, found.arrays).judge(new, score)
    own = told.detectors["epistemic_to_noise"][1]
    return [(float((own <= rate).mean()), float((told.p_value <= rate).mean()), rate) for rate in rates]


@pytest.mark.parametrize("samples", [32, 48])
def test_few_samples_of_many_anchors_raise_no_more_alarms(samples: int) -> None:
    """Of 20 anchors some have one sample more than others, or one alone, which says nothing. And what is odd to the
    network is odd to the other detectors, among familiar rows as often as among new ones."""
    for own, together, rate in alarms(samples, two_rounds(8000, 20), 1.0, (0.01, 0.05, 0.1)):
        error = (2 * rate * (1 - rate) / 8000) ** 0.5  # as many familiar rows as new ones
        assert own == pytest.approx(rate, abs=4 * error)
        assert together == pytest.approx(rate, abs=4 * error)


@pytest.mark.parametrize(("anchors", "samples", "scale"), [(20, 48, 0.5), (3, 16, 1.0), (5, 32, 1.0)])
def test_alarms_where_all_anchors_lack_the_same_rows(anchors: int, samples: int, scale: float) -> None:
    """And those that answer, trained on all rows, scatter half as far; or are the same, of whose few samples no others
    have the level."""
    member = (torch.arange(8000) % 8 != 0).expand(anchors, -1)
    for own, together, rate in alarms(samples, member, scale, (0.05, 0.1)):
        error = (rate * (1 - rate) / 1000) ** 0.5  # of 1,000 familiar rows
        assert own == pytest.approx(rate, abs=4 * error)
        assert together == pytest.approx(rate, abs=4 * error)


def test_scores_go_to_their_ranks_in_another_posterior() -> None:
    was = np.array([3.0, 1.0, 2.0])
    assert transported(np.array([1.0, 2.5, 3.0]), was, 10 * was) == pytest.approx([10, 25, 30])
    # Beyond all of them as far beyond.
    assert transported(np.array([0.5, 4.0]), was, 10 * was) == pytest.approx([9.5, 31])


def test_categories_are_not_scaled() -> None:
    inputs = TableInput(columns=[CategoricalColumn(name="c", categories=["u", "v"]), NumericColumn(name="a")])
    x = np.column_stack([np.tile([[1, 0], [0, 1]], (40, 1)), 5 * table(80, 1)]).astype(np.float32)
    found = fitted(x, inputs)
    assert found.arrays["ood_scale"] == pytest.approx([1, 1, x[:, 2].std()], rel=1e-5)
    groups = [slice(0, 2), slice(2, 3)]
    assert np.isfinite(Mahalanobis(found.arrays["ood_precision"], groups)(np.zeros((1, 3)))[0]).all()


def test_with_too_few_samples_the_network_is_not_asked() -> None:
    found = fitted(table(80, 3), columns(3), samples=10)
    assert found.described.detectors == ["nearest_rows", "mahalanobis"]
    assert not Detectors(columns(3), found.described, found.arrays).ask_the_network


def test_no_detector_at_all_is_told() -> None:
    with pytest.raises(ConfigError, match=r"raise calibration\.samples") as raised:
        fitted(table(80, 3), TensorInput(shape=[3]), samples=10)
    assert (raised.value.field, raised.value.expected, raised.value.got) == (
        "calibration.samples",
        "more than 10",
        "10",
    )


# ---- what it adds that a row is new


def told(anchors: int, rows: int, apart: float) -> tuple[Tensor, Tensor]:
    """What anchors say (A, n) of rows that they have seen, `apart` from each other row by row beside a level of their
    own, and which rows they have not seen."""
    noise = torch.randn(anchors, rows, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unseen = ~two_rounds(rows, anchors)
    return torch.arange(anchors)[:, None] + torch.linspace(-3, 3, rows) + apart * noise, unseen


def test_what_is_new_adds_as_much_as_the_anchors_that_lack_a_row_say() -> None:
    adds = torch.rand(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values, unseen = told(10, 400, 0.01)
    assert torch.allclose(added_by_novelty(values + adds * unseen, unseen), adds, atol=0.15)


def test_anchors_that_differ_among_themselves_show_no_more_than_a_common_part() -> None:
    values, unseen = told(10, 400, 1.0)
    added = added_by_novelty(values + 0.7 * unseen, unseen)
    assert added.mean() == pytest.approx(0.7, abs=0.15)
    assert added.std() < 0.15  # the anchors that lack a row stand .8 apart from the others


def test_two_anchors_show_no_more_than_a_common_part() -> None:
    unseen = torch.arange(100)[None] % 2 == torch.arange(2)[:, None]
    values = torch.randn(2, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    added = added_by_novelty(values + 0.7 * unseen, unseen)
    assert added.std() == 0 and added.mean() == pytest.approx(0.7, abs=0.5)


def test_where_all_rows_add_the_same_none_has_more_than_the_others() -> None:
    """However much the anchors that have seen them differ."""
    unseen = torch.eye(3, dtype=torch.bool).repeat(1, 2)
    values = torch.tensor([[0.0, 1, 1, 0, -1, -1], [1, 0, -1, -1, 0, 1], [-1, -1, 0, 1, 1, 0]]).double()
    assert (added_by_novelty(values + 0.5 * unseen, unseen) == 0.5).all()


def test_where_no_anchor_has_seen_a_row_nothing_is_added() -> None:
    assert (added_by_novelty(torch.rand(1, 5, dtype=torch.float64), torch.ones(1, 5, dtype=torch.bool)) == 0).all()
