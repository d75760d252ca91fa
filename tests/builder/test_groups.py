"""Promises that hold over all rows and not over parts of them are told, and chance is not."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from builder.groups import uneven
from builder.out_of_fold import UnseenRows
from builder.pipeline import run_build
from model_store.manifest import ClassificationTarget, RegressionTarget
from tests.builder.builds import config

TARGET = RegressionTarget(name="y", mean=0.0, scale=1.0)
OF_LOGARITHM = RegressionTarget(name="y", log=True, mean=0.0, scale=1.0)
CLASSES = ClassificationTarget(name="kind", classes=["common", "rare"])
SEEDS = range(20)


def normal(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mean, noise = torch.randn(2, rows, generator=generator)
    return mean, noise


def answered(mean: Tensor, noise: Tensor) -> UnseenRows:
    return UnseenRows(mean + noise, mean, torch.ones_like(mean))


def heavy_tailed(noise: Tensor, seed: int) -> Tensor:
    squares = torch.randn(3, len(noise), generator=torch.Generator().manual_seed(seed + 100)).square()
    return noise / squares.mean(0).sqrt()


def exponential(noise: Tensor) -> Tensor:
    return -torch.special.ndtr(-noise).log() - 1


def covered(held: int, of: int) -> UnseenRows:
    """Sets that hold the common class in 95 % of a thousand rows, and the rare one in so many of its own."""
    y = torch.tensor([0] * 1000 + [1] * of)
    return UnseenRows(y, covered=torch.cat([torch.arange(1000) % 20 > 0, torch.arange(of) < held]))


# ---- numbers


@pytest.mark.parametrize("rows", [60, 100, 300, 3000])
def test_even_noise_is_not_told_of(rows: int) -> None:
    for seed in SEEDS:
        mean, noise = normal(rows, seed)
        assert uneven(answered(mean, noise), TARGET) == []
        assert uneven(answered(mean, heavy_tailed(noise, seed)), TARGET) == []


@pytest.mark.parametrize(("rows", "growth"), [(300, 0.6), (1500, 0.3)])
def test_noise_that_grows_with_the_prediction_is(rows: int, growth: float) -> None:
    for seed in SEEDS:
        mean, noise = normal(rows, seed)
        (finding,) = uneven(answered(mean, noise * torch.exp(growth * mean)), TARGET)
        assert finding.code == "noise" and "too narrow for some rows and too wide for others" in finding.message
        assert "One noise level holds for all rows" in finding.message and "one side" not in finding.message


def test_noise_that_grows_too_little_to_matter_is_not() -> None:
    """However many rows show it."""
    mean, noise = normal(100_000, 0)
    assert uneven(answered(mean, noise * torch.exp(0.08 * mean)), TARGET) == []


def test_the_thirds_are_those_of_the_prediction() -> None:
    mean, noise = normal(3000, 0)
    noise[mean > mean.quantile(2 / 3)] *= 2
    rows = answered(mean, noise)
    reach = float(noise.abs().sort().values[math.ceil(3001 * 0.9) - 1])
    top = mean > mean.quantile(2 / 3)
    share = f"{float((noise[top].abs() <= reach).float().mean()):.0%} of the targets where"
    (finding,) = uneven(rows, TARGET)
    assert share in finding.message


@pytest.mark.parametrize(("sign", "side"), [(1, "above"), (-1, "below")])
def test_skewed_noise_is_told_with_its_side(sign: int, side: str) -> None:
    for seed in SEEDS:
        mean, noise = normal(400, seed)
        (finding,) = uneven(answered(mean, sign * exponential(noise)), TARGET)
        assert f"lie {side} them" in finding.message and "too short on one side" in finding.message
        assert "narrow for some rows" not in finding.message


def of_prices(spread: float = 0.4, base: float = 0.0, rows: int = 1500) -> UnseenRows:
    """Targets whose noise is a share of them, above a base, with one noise level for all."""
    level, noise = normal(rows, 0)
    predicted = torch.exp(spread * level) + base
    y = predicted + (predicted - base) * (torch.exp(0.25 * noise) - 1)
    return UnseenRows(y, predicted, torch.full_like(y, float((y - predicted).std())))


@pytest.mark.parametrize(
    ("rows", "advised"),
    [
        (of_prices(), True),
        # As far from zero, a logarithm is nearly a straight line.
        (of_prices(base=50.0), False),
        # Below zero there is none.
        (UnseenRows(of_prices().y - 2, of_prices().mean - 2, of_prices().std), False),
    ],
)
def test_the_logarithm_is_advised_where_noise_is_even_then(rows: UnseenRows, advised: bool) -> None:
    (finding,) = uneven(rows, TARGET)
    assert ("--log-target" in finding.advice) == advised
    assert ("such as a root" in finding.advice) != advised


def test_who_gives_weights_has_to_train_others_for_the_logarithm() -> None:
    (finding,) = uneven(of_prices(), TARGET, given=True)
    assert "a network that predicts the target's logarithm" in finding.advice


def test_who_learns_the_logarithm_is_not_sent_back_to_it() -> None:
    (finding,) = uneven(of_prices(), OF_LOGARITHM)
    assert "the target's logarithm is not like" in finding.message
    assert "without --log-target" in finding.advice and "calibration.noise=learned" in finding.advice
    (images,) = uneven(of_prices(), OF_LOGARITHM, learned=None)
    assert "calibration.noise" not in images.advice and "One noise level" in images.message
    (learned,) = uneven(of_prices(), OF_LOGARITHM, learned=True)
    assert "calibration.noise" not in learned.advice and "Noise goes by the inputs" in learned.message


def test_intervals_below_zero_are_told_of_targets_above_it() -> None:
    rows = of_prices(1.0)
    (finding,) = uneven(rows, TARGET)
    assert "of intervals reach below zero" in finding.message and "--log-target" in finding.advice


def test_rows_sorted_by_the_target_do_not_look_uneven_where_all_predictions_are_one() -> None:
    _, noise = normal(1500, 0)
    assert uneven(answered(torch.zeros(1500), noise.sort().values), TARGET) == []


def test_nothing_is_said_of_predictions_that_are_not_finite_or_not_there() -> None:
    mean, noise = normal(300, 0)
    assert uneven(answered(mean.clone().fill_(math.nan), noise), TARGET) == []
    assert uneven(None, TARGET) == []


# ---- classes


@pytest.mark.parametrize(("held", "of", "told"), [(0, 87, True), (60, 87, True), (4, 10, True), (75, 87, False)])
def test_a_class_that_sets_leave_out_is_told(held: int, of: int, told: bool) -> None:
    found = uneven(covered(held, of), CLASSES)
    assert bool(found) == told
    if told:
        assert found[0].code == "classes" and f"'rare' {held / of:.0%} (of {of} rows)" in found[0].message
        assert "not class by class" in found[0].message and "'common'" not in found[0].message


@pytest.mark.parametrize(("held", "of"), [(0, 9), (6, 10), (0, 0)])
def test_too_few_rows_say_nothing(held: int, of: int) -> None:
    assert uneven(covered(held, of), CLASSES) == []


def test_chance_is_not_told_of_classes() -> None:
    target = ClassificationTarget(name="kind", classes=list(range(50)))
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        y = torch.randint(50, (1500,), generator=generator)
        assert uneven(UnseenRows(y, covered=torch.rand(1500, generator=generator) < 0.9), target) == []


# ---- builds


@pytest.mark.usefixtures("rough_pictures")
def test_a_build_says_so_in_its_bundle(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a = rng.uniform(-2, 2, 600)
    pd.DataFrame({"a": a, "y": np.exp(a + 0.5 * rng.normal(size=600))}).to_csv(tmp_path / "table.csv", index=False)
    result = run_build(config(tmp_path))
    (finding,) = (f for f in result.findings if f.code == "noise")
    assert "--log-target" in finding.advice and str(finding) in result.bundle.manifest.build.warnings
    assert "One noise level holds for all rows" in (result.bundle.path / "report.html").read_text()


@pytest.mark.usefixtures("rough_pictures")
def test_a_build_says_of_a_rare_class_that_sets_leave_it_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kind = np.where(rng.random(500) < 0.08, "rare", "common")
    pd.DataFrame({"a": rng.normal(size=500), "kind": kind}).to_csv(tmp_path / "table.csv", index=False)
    result = run_build(config(tmp_path, data={"target": "kind", "task": "classification"}))
    (finding,) = (f for f in result.findings if f.code == "classes")
    assert "'rare' 0%" in finding.message and str(finding) in result.bundle.manifest.build.warnings
