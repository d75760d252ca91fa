"""OOD detectors as a build fits them: on rows that whatever judges them had not seen, and scored as a server does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from builder.autoencoder import train_autoencoder
from builder.calibration import DecodedPosterior
from builder.config import AutoencoderConfig, CalibrationConfig, FiberConfig
from builder.detection import Detection, fit_detectors
from builder.predictive import sample_outputs
from model_store.detectors import Detectors, Unfamiliarity
from model_store.errors import ConfigError
from model_store.manifest import (
    ClassificationCalibration,
    LatentPlan,
    NumericColumn,
    RegressionCalibration,
    RegressionTarget,
    TableInput,
    TensorInput,
)
from service.predictive import AnchorSamples, epistemic_to_noise, mutual_information
from tests.builder.linear import linear_classifier
from tests.builder.walked import NOISE, Walked, wave

RATE = 0.1
PLAN = LatentPlan(name="predict", samples=32, stop=0.6, drift_scale=1.0)
TABLE = TableInput(columns=[NumericColumn(name="x")])
CONFIG = CalibrationConfig(false_alarm_rate=RATE)


@pytest.fixture(scope="module")
def posterior(walked: Walked) -> DecodedPosterior:
    latent = train_autoencoder(walked.fibers.nodes, walked.fibers.scales, AutoencoderConfig(steps=300, hidden=32))
    return DecodedPosterior(walked.network, latent.decoder, latent.nodes.numpy())


@pytest.fixture(scope="module")
def detection(walked: Walked, posterior: DecodedPosterior) -> Detection:
    return fit_detectors(posterior, PLAN, NOISE, walked.x, walked.y, walked.member, TABLE, CONFIG)


def judged(detection: Detection, posterior: DecodedPosterior, x: Tensor) -> Unfamiliarity:
    """What a server says of rows."""
    weights, anchor = posterior.draw(PLAN, PLAN.samples)
    outputs = sample_outputs(posterior.network, weights, x).numpy()
    # In the target's own units, as a server computes it.
    target = RegressionTarget(name="y", mean=3.0, scale=7.0)
    noise = RegressionCalibration(noise_std=7.0 * NOISE, points=240)
    score = epistemic_to_noise(outputs, AnchorSamples.of(anchor.numpy()), target, noise)
    return Detectors(detection.described, TABLE, detection.arrays).judge(x.numpy(), score)


def test_what_is_kept_is_of_rows_that_were_not_seen(detection: Detection) -> None:
    described = detection.described
    assert described.detectors == ["epistemic_to_noise", "nearest_rows", "mahalanobis"]
    assert (described.points, described.false_alarm_rate) == (240, RATE)
    assert detection.arrays["ood_scores"].shape == (3, 240) and detection.arrays["ood_combined"].shape == (240,)


def test_false_alarms_come_at_the_rate_asked_for(detection: Detection, posterior: DecodedPosterior) -> None:
    found = judged(detection, posterior, wave(3000, seed=9)[0])
    # The 24th of 240 scores is known to a fifth.
    for name in ("nearest_rows", "mahalanobis"):
        assert 0.05 < float((found.detectors[name][1] <= RATE).mean()) < 0.2
    # A familiar row is judged by one anchor here, whose score scatters more than the mean of two: too few flags.
    assert float((found.detectors["epistemic_to_noise"][1] <= RATE).mean()) < RATE
    assert 0.02 < float((found.p_value <= RATE).mean()) < 0.2


def test_rows_far_outside_are_flagged(detection: Detection, posterior: DecodedPosterior) -> None:
    far = torch.cat([torch.linspace(4, 8, 20), torch.linspace(-8, -4, 20)])[:, None]
    found = judged(detection, posterior, far)
    assert (found.p_value == 1 / 241).all()
    assert found.columns is not None and found.deviations is not None
    assert np.array_equal(np.sign(found.deviations[:, 0]), np.sign(far[:, 0].numpy()))
    # Farther is less familiar, beyond all that was known.
    assert (np.diff(found.score[:20]) > 0).all()


def test_the_gap_is_unfamiliar_to_what_knows_the_rows(detection: Detection, posterior: DecodedPosterior) -> None:
    found = judged(detection, posterior, torch.zeros(1, 1))
    (nearest,), (middle,) = found.detectors["nearest_rows"][1], found.detectors["mahalanobis"][1]
    assert nearest == 1 / 241 and middle == 1.0


def test_images_have_the_networks_detector_alone(walked: Walked, posterior: DecodedPosterior) -> None:
    inputs = TensorInput(shape=[1], mean=0.0, scale=1.0)
    found = fit_detectors(posterior, PLAN, NOISE, walked.x, walked.y, walked.member, inputs, CONFIG)
    assert found.described.detectors == ["epistemic_to_noise"]
    assert set(found.arrays) == {"ood_scores", "ood_combined"}


def test_no_row_is_kept_where_none_may_be(walked: Walked, posterior: DecodedPosterior) -> None:
    config = CalibrationConfig(reference_rows=0)
    found = fit_detectors(posterior, PLAN, NOISE, walked.x, walked.y, walked.member, TABLE, config)
    assert found.described.detectors == ["epistemic_to_noise", "mahalanobis"] and "ood_rows" not in found.arrays


def test_one_sample_an_anchor_says_nothing_of_how_it_differs(walked: Walked, posterior: DecodedPosterior) -> None:
    few = PLAN.model_copy(update={"samples": 2})
    found = fit_detectors(posterior, few, NOISE, walked.x, walked.y, walked.member, TABLE, CONFIG)
    assert found.described.detectors == ["nearest_rows", "mahalanobis"]
    inputs = TensorInput(shape=[1], mean=0.0, scale=1.0)
    with pytest.raises(ConfigError, match=r"raise calibration\.samples"):
        fit_detectors(posterior, few, NOISE, walked.x, walked.y, walked.member, inputs, CONFIG)


def test_a_row_is_scored_by_the_anchor_that_did_not_see_it(walked: Walked, posterior: DecodedPosterior) -> None:
    """An anchor whose samples hardly differ has an opinion of the rows alone that it did not see."""
    nodes = posterior.nodes.copy()
    nodes[1] = nodes[1, :, :1]
    still = fit_detectors(
        replace(posterior, nodes=nodes), PLAN, NOISE, walked.x, walked.y, walked.member, TABLE, CONFIG
    )
    (scores, *_), (before, *_) = still.arrays["ood_scores"], scores_of(walked, posterior)
    assert (scores[:120] < before.min() - 1).all() and (scores[120:] >= before.min()).all()


def scores_of(walked: Walked, posterior: DecodedPosterior) -> NDArray[np.float64]:
    found = fit_detectors(posterior, PLAN, NOISE, walked.x, walked.y, walked.member, TABLE, CONFIG)
    scores: NDArray[np.float64] = found.arrays["ood_scores"]
    return scores


def test_a_classifier_is_scored_as_a_server_does() -> None:
    model = linear_classifier(rows=200)
    network = model.network
    member = torch.arange(200)[None] % 2 != torch.arange(2)[:, None]
    anchors = torch.stack([0.9 * torch.ones(network.weights), torch.zeros(network.weights)])
    fibers = model.walk(anchors, member, FiberConfig(trajectories=8, steps=4, refinement=30))
    latent = train_autoencoder(fibers.nodes, fibers.scales, AutoencoderConfig(steps=100, hidden=16))
    posterior = DecodedPosterior(network, latent.decoder, latent.nodes.numpy())
    inputs = TensorInput(shape=list(model.x.shape[1:]), mean=0.0, scale=1.0)
    found = fit_detectors(posterior, PLAN, 1.3, model.x, model.y, member, inputs, CONFIG)
    assert found.described.detectors == ["mutual_information"] and found.described.points == 200
    # An anchor has 31 samples of its own for its unseen rows: 30 degrees of freedom, as 16 of each of two have.
    weights, anchor = posterior.draw(PLAN, 62, seed=1)
    expected = []
    for a, seen in enumerate(member):
        outputs = sample_outputs(network, weights[anchor == a], model.x[~seen]).numpy()
        one = AnchorSamples.of(np.full(len(outputs), a))
        expected.append(mutual_information(outputs, one, ClassificationCalibration(temperature=1.3, points=1)))
    assert found.arrays["ood_scores"][0] == pytest.approx(np.sort(np.concatenate(expected)), abs=1e-3)
