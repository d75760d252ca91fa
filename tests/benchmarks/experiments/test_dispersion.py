"""The dispersion of a classifier's samples on a tiny problem."""

from __future__ import annotations

import math

from benchmarks.experiments.dispersion import report, vary
from tests.benchmarks.experiments.toys import PNG, few
from tests.benchmarks.quality.problems import tiny_problem


def test_one_entry_a_dispersion_and_the_chosen_one_among_them() -> None:
    problem = few(tiny_problem("classification", rows=90))
    found = vary(problem, (1.0, 0.5, 0.25, 0.0))
    assert found["anchors"] == 4 and found["reach"] <= 4
    for who, own in found["by_dispersion"].items():
        assert [f["dispersion"] for f in own] == [1.0, 0.5, 0.25, 0.0]
        assert all(math.isfinite(f["nll"]) and math.isfinite(f["out_of_fold"]) and f["spread"] > 0 for f in own)
        assert found["chosen"][who] in own

    runs = [{"set": "toy", "split": s, **found} for s in range(2)]
    shown = report(runs)
    assert shown.pictures["dispersion.png"].startswith(PNG)
    (table,) = shown.tables
    assert len(table.rows) == 5 and all(len(row) == len(table.header) for row in table.rows)
    first, chosen = table.rows[0], found["chosen"]["fibers"]
    assert first[2] == f"{found['by_dispersion']['fibers'][0]['nll']:.3f} ± 0.000" and first[3] == "+0.000 ± 0.000"
    assert f"choose {chosen['dispersion']:g}, {chosen['dispersion']:g};" in shown.findings[0]
