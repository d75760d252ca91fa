"""The posterior over one column: doubt is where there are no rows."""

from __future__ import annotations

import numpy as np

from benchmarks.experiments.snelson import look, regions, report
from benchmarks.experiments.stages import with_network
from tests.benchmarks.experiments.toys import PNG, wave_problem


def test_a_gap_is_where_no_row_is_near() -> None:
    rows = np.concatenate([np.linspace(0, 4, 41), np.linspace(6, 10, 41)])
    found = regions(np.array([-1.0, 2.0, 4.5, 5.0, 7.0, 11.0]), rows)
    assert {name: np.flatnonzero(at).tolist() for name, at in found.items()} == {
        "inside": [1, 4],
        "gap": [2, 3],
        "outside": [0, 5],
    }
    assert set(regions(np.array([1.0, 2.0]), rows)) == {"inside"}


def test_doubt_is_larger_in_the_gap_and_outside() -> None:
    found = look(with_network(wave_problem(), [16], "tanh"))
    doubt = {region: v["mean"] for region, v in found["epistemic_std"].items()}
    assert doubt["gap"] > 1.25 * doubt["inside"] and doubt["outside"] > 1.5 * doubt["inside"]
    assert 0 < found["noise_std"] < 1
    shown = report([{"set": "wave", "split": 0, **found}])
    assert shown.pictures["snelson.png"].startswith(PNG)
    assert [r[0] for r in shown.tables[0].rows] == ["between the data", "in the gap", "outside the data"]
