"""Noise that differs from row to row, learned from errors of known size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from builder.noise import fit_noise
from builder.pipeline import run_build
from builder.predictive import conformal_quantile
from model_store.manifest import RegressionCalibration
from tests.builder.builds import config, serve

FOUR = {"anchors": 4, "prior_precision": [10.0]}

pytestmark = pytest.mark.usefixtures("rough_pictures")


def errors(rows: int, slope: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, squared errors of a noise whose logarithm of the variance grows by `slope` with the first, and that."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 3, generator=generator)
    log_variance = slope * x[:, 0]
    return x, (log_variance.exp() * torch.randn(rows, generator=generator).square()), log_variance


@pytest.mark.parametrize("slope", [1.0, -0.7])
def test_known_noise_is_found(slope: float) -> None:
    x, squared, log_variance = errors(800, slope)
    found = fit_noise(x, squared, torch.zeros(800), float(squared.mean()))
    assert found is not None
    middle = log_variance.abs() < 1.5
    told = torch.from_numpy(found.shape.relative_variance(x.numpy())).log() + squared.mean().log()
    assert float((told - log_variance)[middle].abs().mean()) < 0.25
    # Those of networks that had not seen the rows are about as good.
    assert float((found.own.log() + squared.mean().log() - log_variance)[middle].abs().mean()) < 0.3


def test_even_noise_stays_even() -> None:
    each = (errors(300, 0.0, seed) for seed in range(6))
    found = [fit_noise(x, squared, torch.zeros(300), float(squared.mean())) for x, squared, _ in each]
    assert found.count(None) >= 5


def test_doubt_of_the_mean_is_not_taken_for_noise() -> None:
    x, noise, log_variance = errors(1500, 1.5)
    doubt = log_variance.exp()
    even = torch.randn(1500, generator=torch.Generator().manual_seed(1)).square()
    # Errors are as large as the doubt says, and a noise of one size: nothing is left to tell.
    assert fit_noise(x, even * (doubt + 1.0), doubt, 1.0) is None
    assert fit_noise(x, noise, torch.zeros(1500), 1.0) is not None


def test_one_row_far_out_hides_no_noise() -> None:
    x, squared, _ = errors(500, 1.0)
    squared[7] = 1600.0
    assert fit_noise(x, squared, torch.zeros(500), float(squared.mean())) is not None
    # Nor does it make even noise look uneven, whose level it raises.
    x, squared, _ = errors(500, 0.0)
    squared[7] = 1600.0
    assert fit_noise(x, squared, torch.zeros(500), float(squared.mean())) is None


def test_copies_of_rows_do_not_tell_of_each_other() -> None:
    each = [errors(120, 0.0, seed) for seed in range(3)]
    found = [fit_noise(x.repeat(4, 1), squared.repeat(4), torch.zeros(480), 1.0) for x, squared, _ in each]
    assert found.count(None) >= 2


def test_what_cannot_be_told_is_even() -> None:
    x, squared, _ = errors(80, 2.0)
    assert fit_noise(x, squared, torch.zeros(80), 1.0) is None
    x, squared, _ = errors(400, 2.0)
    squared[3] = torch.inf
    assert fit_noise(x, squared, torch.zeros(400), 1.0) is None


def test_rows_beyond_those_learned_from_have_their_noise_too() -> None:
    x, squared, log_variance = errors(3000, 1.0)
    # A column that is the same in all rows says nothing.
    found = fit_noise(torch.cat([x, torch.ones(3000, 1)], dim=1), squared, torch.zeros(3000), 1.0)
    assert found is not None and len(found.own) == 3000 and bool(torch.isfinite(found.own).all())
    assert float(torch.corrcoef(torch.stack([found.own.log(), log_variance]))[0, 1]) > 0.9


def test_intervals_cover_as_often_as_with_even_noise() -> None:
    covered = []
    for seed in range(6):
        (x, squared, _), (new, later, _) = errors(300, 1.0, seed), errors(4000, 1.0, 100 + seed)
        found = fit_noise(x, squared, torch.zeros(300), float(squared.mean()))
        assert found is not None
        reach = conformal_quantile((squared / found.own).sqrt().sort().values, 0.9)
        relative = torch.from_numpy(found.shape.relative_variance(new.numpy()))
        covered.append(float(((later / relative).sqrt() <= reach).double().mean()))
    # By the rows that were drawn alone it scatters by .017.
    assert np.mean(covered) == pytest.approx(0.9, abs=0.02)


def test_a_build_serves_the_noise_that_it_learned(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a = rng.uniform(-2, 2, 700)
    size = 0.1 * np.exp(0.8 * a)
    pd.DataFrame({"a": a, "y": a + size * rng.normal(size=700)}).to_csv(tmp_path / "table.csv", index=False)
    result = run_build(config(tmp_path, map=FOUR, calibration={"noise": "learned"}))
    calibration = result.bundle.manifest.calibration
    assert isinstance(calibration, RegressionCalibration) and calibration.noise_range is not None
    assert not [f for f in result.findings if f.code == "noise"]
    new = rng.uniform(-1.9, 1.9, 600)
    answer = serve(result.bundle, new[:, None].tolist())
    told, true = np.sqrt(answer["aleatoric_variance"]), 0.1 * np.exp(0.8 * new)
    assert np.corrcoef(np.log(told), np.log(true))[0, 1] > 0.9
    low, high = calibration.noise_range
    assert low * 0.99 <= told.min() and told.max() <= high * 1.01 and high > 4 * low
    y = new + true * rng.normal(size=600)
    assert "by the inputs" in (result.bundle.path / "report.html").read_text()

    even = run_build(config(tmp_path, name="even", map=FOUR))
    same = serve(even.bundle, new[:, None].tolist())
    assert len(np.unique(same["aleatoric_variance"])) == 1
    shares = []
    for interval in (answer["interval"], same["interval"]):
        inside = (interval[:, 0] <= y) & (y <= interval[:, 1])
        shares.append([inside[third].mean() for third in np.array_split(new.argsort(), 3)])
    learned, level = (max(s) - min(s) for s in shares)
    assert learned < 0.12 and level > 0.15
    posteriors = [next(m for m in r.metrics if (m.predictor, m.split) == ("posterior", "test")) for r in (result, even)]
    assert posteriors[0].values["nll"] < posteriors[1].values["nll"]
