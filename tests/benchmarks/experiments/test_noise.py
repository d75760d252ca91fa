"""Figures of answers in the target's own units, whatever was learned."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import lognorm, norm

from benchmarks.experiments.noise import EVEN, LEARNED, LOGARITHM, judge, report


def test_figures_are_of_the_target_itself() -> None:
    rng = np.random.default_rng(0)
    mean, std = rng.uniform(0, 2, 90), 0.4
    y = np.exp(mean + std * rng.normal(size=90))
    ends = np.column_stack([mean - 0.5, mean + 0.5])
    answer = {"mean": np.exp(mean + std**2 / 2), "variance": None, "interval": np.exp(ends)}
    found = judge({**answer, "log_mean": mean, "log_variance": np.full(90, std**2)}, y)
    assert found["nll"] == pytest.approx(-lognorm(std, scale=np.exp(mean)).logpdf(y).mean())
    assert found["coverage"] == pytest.approx(np.mean(found["thirds"]))
    assert found["widths"] == sorted(found["widths"]) and found["below_zero"] == 0

    linear = judge({"mean": mean, "variance": np.full(90, std**2), "interval": ends}, mean)
    assert linear["nll"] == pytest.approx(-norm(mean, std).logpdf(mean).mean())
    assert linear["rmse"] == 0 and linear["coverage"] == 1
    assert linear["below_zero"] == pytest.approx((mean < 0.5).mean())


def test_the_report_has_all_kinds_of_each_set() -> None:
    one = {
        "unseen": 1.0,
        "nll": 1.5,
        "rmse": 2.0,
        "coverage": 0.9,
        "thirds": [0.8, 0.9, 1.0],
        "widths": [1.0, 2.0, 3.0],
    }
    own, of_log = {**one, "below_zero": 0.25}, {**one, "nll": 1.0, "below_zero": 0.0}
    found = report([{"set": "toy", "split": s, EVEN: own, LEARNED: own, LOGARITHM: of_log} for s in range(2)])
    (table,) = found.tables
    assert [row[-1] for row in table.rows] == ["25%", "25%", "0%"] and len(table.header) == len(table.rows[0])
    assert "80% / 90% / 100%" in table.rows[0]
    assert "of the logarithm, by −0.500 ± 0.000" in found.findings[0]
    assert "changes test NLL by +0.000 ± 0.000" in found.findings[0]
