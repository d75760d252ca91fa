"""The ablation of drift scale and refinement on tiny problems."""

from __future__ import annotations

import math

import pytest

from benchmarks.experiments.ablation import ablate, report
from tests.benchmarks.experiments.toys import PNG, few, toy_problem
from tests.benchmarks.quality.problems import linear, tiny_problem


def test_one_row_an_m_and_one_entry_a_drift_scale() -> None:
    found = ablate(toy_problem(), (0, 10))
    assert found["refinement"] == [0, 10] and len(found["scales"]) == 5
    drift, refined = found["nll"]
    assert len(drift) == len(refined) == 5 and all(map(math.isfinite, drift + refined))
    # At drift scale 0 are the anchors, which no refinement has touched.
    assert drift[0] == refined[0] and drift[1:] != refined[1:]

    runs = [{"set": "toy", "split": s, **found} for s in range(2)]
    shown = report(runs)
    assert shown.pictures["ablation.png"].startswith(PNG)
    (table,) = shown.tables
    assert table.rows[0][1:] == [f"{drift[0]:.3f} ± 0.000"] * 2 and len(table.rows) == 5
    assert f"{min(drift + refined):.3f}" in shown.findings[0]


def test_refinement_does_not_matter_to_a_linear_network() -> None:
    found = ablate(few(linear(tiny_problem("regression")), steps=1500), (0, 30))
    drift, refined = found["nll"]
    # Training stops short of the exact minimum, so refinement still has a little to do.
    assert refined == pytest.approx(drift, abs=0.02)
    assert max(drift) - min(drift) > 1e-4


def test_a_cell_that_diverged_is_shown_as_such() -> None:
    found = {"refinement": [0, 2], "scales": [0.0, 1.0], "nll": [[1.0, 0.5], [1.0, None]]}
    shown = report([{"set": "toy", "split": 0, **found}])
    assert shown.tables[0].rows == [["0", "1.000", "1.000"], ["1", "0.500", "diverged"]]
    assert "best 0.500 at M = 0" in shown.findings[0]
