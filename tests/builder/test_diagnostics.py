"""Every failure signature is provoked by what causes it, and a sound build shows none."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from builder.autoencoder import LatentModel, train_autoencoder
from builder.calibration import Calibrated, DecodedPosterior, Reach, calibrate, choose_reach
from builder.config import AutoencoderConfig, BuildConfig, FiberConfig
from builder.diagnostics import Finding, examine, movement
from builder.fiber import Fibers, walk_fibers
from builder.likelihood import GaussianLikelihood
from model_store.manifest import LatentPlan, OodDetection
from tests.builder.walked import Walked

LAST = 6
OOD = OodDetection(detectors=["epistemic_to_noise"], false_alarm_rate=0.01, points=120)


@pytest.fixture(scope="module")
def reach(walked: Walked) -> Reach:
    """The part of the fibers that a build would use."""
    return choose_reach(walked.network, walked.fibers, walked.x, walked.y, walked.member)


def walk(walked: Walked, **options: Any) -> Fibers:
    return walk_fibers(
        walked.network,
        walked.anchors.weights,
        walked.x,
        walked.y,
        walked.member,
        GaussianLikelihood(float(walked.anchors.noise_std.mean())),
        torch.ones(walked.network.weights),
        FiberConfig(**{"trajectories": 6, "steps": LAST, "refinement": 10, **options}),
    )


def encode(fibers: Fibers, **options: Any) -> LatentModel:
    return train_autoencoder(fibers.nodes, fibers.scales, AutoencoderConfig(**{"dimension": 16, **options}))


def calibrated(walked: Walked, latent: LatentModel) -> Calibrated:
    plan = LatentPlan(name="predict", samples=32, stop=1 / 3, drift_scale=1.0)
    posterior = DecodedPosterior(walked.network, latent.decoder, latent.nodes.cpu().numpy())
    at = walked.anchors.weights
    return calibrate(posterior, at, plan, walked.x, walked.y, walked.member)


@pytest.fixture(scope="module")
def sound(walked: Walked) -> tuple[Fibers, LatentModel, Calibrated]:
    latent = encode(walked.fibers)
    return walked.fibers, latent, calibrated(walked, latent)


def only(found: list[Finding], code: str) -> Finding:
    """The one finding; its advice names options that exist."""
    assert [f.code for f in found] == [code]
    named = re.findall(r"\b([a-z]+)\.([a-z_]+)", found[0].advice)
    assert named
    for stage, option in named:
        assert option in BuildConfig.model_fields[stage].annotation.model_fields, (stage, option)
    assert str(found[0]) == f"{found[0].message} {found[0].advice}"
    return found[0]


def test_a_sound_build_shows_none(reach: Reach, sound: tuple[Fibers, LatentModel, Calibrated]) -> None:
    fibers, latent, figures = sound
    assert examine(fibers, reach, latent, figures, OOD) == []
    assert 0.1 < float(movement(fibers).median()) < 3


def test_a_starved_autoencoder(reach: Reach, walked: Walked, sound: tuple[Fibers, LatentModel, Calibrated]) -> None:
    latent = encode(walked.fibers, dimension=1, steps=1, rank=1)
    found = only(examine(walked.fibers, reach, latent, sound[2], OOD), "reconstruction")
    assert "rank alone" in found.message
    assert "autoencoder.rank" in found.advice


def test_a_drift_far_too_long(reach: Reach, walked: Walked, sound: tuple[Fibers, LatentModel, Calibrated]) -> None:
    fibers = walk(walked, drift_scale=200.0, refinement=0)
    found = only(examine(fibers, replace(reach, node=LAST), sound[1], sound[2], OOD), "divergence")
    assert "100% of the particles left the fiber" in found.message


def test_stranded_particles(reach: Reach, sound: tuple[Fibers, LatentModel, Calibrated]) -> None:
    fibers, latent, figures = sound
    stranded, nodes = torch.zeros_like(fibers.stranded), fibers.nodes.clone()
    stranded[:, :2] = True
    nodes[reach.node :, :, :2] = nodes[reach.node - 1, :, :2]
    found = only(examine(replace(fibers, stranded=stranded, nodes=nodes), reach, latent, figures, OOD), "divergence")
    assert "20% of the particles" in found.message
    # Beyond the part in use they do not matter.
    assert examine(replace(fibers, stranded=stranded), reach, latent, figures, OOD) == []


def test_particles_that_went_nowhere(reach: Reach, sound: tuple[Fibers, LatentModel, Calibrated]) -> None:
    fibers, latent, figures = sound
    still = replace(fibers, nodes=fibers.nodes[:1].expand_as(fibers.nodes))
    assert "0.0% of their drift" in only(examine(still, reach, latent, figures, OOD), "clustering").message


def test_no_reach(reach: Reach, sound: tuple[Fibers, LatentModel, Calibrated]) -> None:
    fibers, latent, figures = sound
    assert (
        "than the anchors" in only(examine(fibers, replace(reach, node=0), latent, figures, OOD), "clustering").message
    )


def test_a_decoder_that_is_wrong(reach: Reach, walked: Walked, sound: tuple[Fibers, LatentModel, Calibrated]) -> None:
    wrong = encode(walked.fibers, steps=30)
    generator = torch.Generator().manual_seed(0)
    head = wrong.decoder.head
    wrong.decoder.head = head + 0.5 * torch.randn(head.shape, generator=generator)
    figures = calibrated(walked, wrong)
    assert figures.nll > figures.map_nll + 0.02
    only(examine(walked.fibers, reach, sound[1], figures, OOD), "calibration")


def test_a_posterior_without_a_figure_is_no_sound_one(
    reach: Reach, sound: tuple[Fibers, LatentModel, Calibrated]
) -> None:
    fibers, latent, figures = sound
    only(examine(fibers, reach, latent, replace(figures, nll=float("nan")), OOD), "calibration")


def test_too_few_rows_to_flag_others_by(reach: Reach, sound: tuple[Fibers, LatentModel, Calibrated]) -> None:
    few = OOD.model_copy(update={"points": 98})
    found = only(examine(sound[0], reach, sound[1], sound[2], few), "flags")
    assert "98 rows cannot vouch for a false alarm rate of 0.01, only for 0.0101 and more" in found.message
    assert examine(sound[0], reach, sound[1], sound[2], few.model_copy(update={"false_alarm_rate": 0.02})) == []
