"""Autoencoders beside each other: what decoding costs, and what order is."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from benchmarks.experiments import autoencoders
from benchmarks.experiments.autoencoders import CONTRASTIVE, LINEAR, TEXTBOOK, WEIGHTS, compare, order, report
from benchmarks.experiments.decoding import Itself, Sampled, sample
from benchmarks.experiments.latents import report as report_latents
from benchmarks.experiments.latents import vary
from benchmarks.experiments.stages import train
from benchmarks.experiments.textbook import train_textbook
from tests.benchmarks.experiments.toys import PNG, rays, toy_problem


@pytest.fixture(scope="module")
def sampled() -> Sampled:
    return sample(train(toy_problem()))


def test_no_autoencoder_at_full_rank_is_the_fibers_themselves(
    sampled: Sampled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autoencoders, "train_textbook", partial(train_textbook, steps=100))
    found = compare(sampled, 20)
    variants = found["variants"]
    assert set(variants) == {*WEIGHTS, *TEXTBOOK, LINEAR}
    assert found["rank"] == sampled.nodes.shape[2] * (len(sampled.nodes) - 1)
    assert variants[LINEAR]["nll"] == pytest.approx(found["fiber"], abs=1e-3)
    assert variants[LINEAR]["reconstruction"] < 1e-4
    assert variants[CONTRASTIVE]["reconstruction"] < 1e-4 < variants["variational, textbook"]["reconstruction"]
    # The built autoencoders have their order by construction.
    assert all(variants[v]["outward"] == 1 for v in WEIGHTS)
    assert all(math.isfinite(v) for figures in variants.values() for v in figures.values())

    shown = report([{"set": "toy", "split": 0, **found}])
    assert shown.pictures["autoencoders.png"].startswith(PNG)
    assert [r[0] for r in shown.tables[0].rows] == list(variants)
    assert len(shown.findings) == len(variants) - 1


def test_samples_of_the_fibers_lie_on_them(sampled: Sampled) -> None:
    assert sampled.reconstruction_error(Itself(), sampled.paths) == 0
    outputs = sampled.decode(Itself(), sampled.paths[:, :, :1].expand(-1, -1, 2, -1), 3)
    alone = sampled.start.problem.network.batched(sampled.start.anchors, sampled.start.problem.x_test)
    assert torch.allclose(outputs.test, alone[:, None].expand(-1, 3, -1, -1), atol=1e-5)


def test_order_is_that_of_the_nodes() -> None:
    latents = rays(2, 3, 4)
    assert order(latents) == {"outward": 1.0, "neighbours": 1.0}
    assert order(latents.flip(2))["outward"] == 1.0  # away from where it starts is outward, wherever that is
    shuffled = latents[:, :, [0, 3, 1, 4, 2]]
    assert order(shuffled) == {"outward": 0.5, "neighbours": 0.0}


def test_textbook_autoencoders_learn_what_fits_into_their_latents() -> None:
    generator = torch.Generator().manual_seed(0)
    line = torch.randn(2, 40, 1, generator=generator) * torch.tensor([1.0, -2.0, 0.5])
    plain, latents = train_textbook(line, 1, 16, variational=False, seed=0, steps=300)
    assert latents.shape == (2, 40, 1)
    assert float((plain(latents) - line).square().mean()) < 0.02 * float(line.square().mean())
    _, other = train_textbook(line, 1, 16, variational=True, seed=0, steps=300)
    # The prior on the latents holds their spread near one.
    assert 0.5 < float(other.std()) < 2


def test_one_latent_dimension_is_too_few(sampled: Sampled) -> None:
    found = vary(sampled, (1, 8), 20)
    narrow, wide = found["decoded"]
    assert (narrow["k"], wide["k"]) == (1, 8) and narrow["rank"] == wide["rank"]
    assert wide["reconstruction"] < 0.1 * narrow["reconstruction"]
    assert abs(wide["nll"] - found["fiber"]["nll"]) < 0.1
    shown = report_latents([{"set": "toy", "split": 0, **found}])
    assert shown.pictures["latents.png"].startswith(PNG)
    assert [r[0] for r in shown.tables[0].rows] == ["1", "8", "the fibers themselves", "anchors alone"]
