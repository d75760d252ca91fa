"""The calibration benchmark on tiny sets: what is served, the peers, unfamiliar rows and the monitor."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.calibration import conformal, cost, monitored, regions, run, unfamiliar
from benchmarks.data import DataSet
from benchmarks.quality.problem import Problem, make_problem
from benchmarks.served import LEVELS
from tests.benchmarks.quality.problems import TUNED, tiny_problem

pytestmark = pytest.mark.usefixtures("rough_pictures")

QUICK: dict[str, Any] = {
    "map": {"steps": 60, "anchors": 10, "folds": 5, "prior_precision": [1.0]},
    "fiber": {"trajectories": 2, "steps": 3, "refinement": 4},
    "autoencoder": {"steps": 20, "hidden": 8},
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of two tiny sets, and builds that take seconds."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(180, 3))
    x[:30] += 6
    test = np.arange(180)[None] % 3 == 0
    np.savez(tmp_path / "uci_tiny.npz", x=x, y=100 + 5 * x[:, 0] + rng.normal(size=180), test_mask=test)
    y = np.where(x[:, 0] + rng.normal(size=180) > 0, 7, 2)
    np.savez(tmp_path / "cls_tiny.npz", x=x, y=y, test_mask=test, valid_mask=np.zeros_like(test))
    monkeypatch.setenv("FIBERWALK_DATA", str(tmp_path))
    monkeypatch.setattr(run, "make_problem", quick)


def quick(data: DataSet, split: int, preset: str) -> Problem:
    return make_problem(data, split, preset, **QUICK)


def test_intervals_flags_and_unfamiliar_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "OOD_SETS", ("uci_tiny",))
    monkeypatch.setattr(conformal, "GRID", {"max_iter": [20]})
    monkeypatch.setattr(cost, "ROUNDS", 20)
    found = run.run_split("uci_tiny", 0, "fast")
    assert found["failed"] == {}
    methods = found["methods"]
    detectors = {"isolation_forest", "nearest_neighbours"}
    peers = {"conformal_ensemble", "conformal_laplace", "conformal_quantiles"}
    assert set(methods) == {"fiberwalk", *peers, *detectors}
    for method in ("fiberwalk", *peers):
        f = methods[method]["figures"]
        assert f["size_0.8"] < f["size_0.95"] and f["coverage_0.8"] <= f["coverage_0.95"]
        assert f["coverage_0.95"] > 0.7
        # The targets' standard deviation is 1 here, and most of it is known from the first column.
        assert 0.1 < f["size_0.9"] < 3
        assert methods[method]["seconds"] > 0
    for method in ("fiberwalk", *detectors):
        assert 0 <= methods[method]["figures"]["auroc_shifted"] <= 1
    assert methods["nearest_neighbours"]["figures"]["auroc_cluster"] > 0.95
    flagged = methods["fiberwalk"]["figures"]
    assert flagged["flagged_0.01"] <= flagged["flagged_0.05"] <= flagged["flagged_0.1"]
    # Both are the same prediction; what the machine does besides decides by how much they differ.
    assert all(0.5 < flagged[f"{ratio}_{rows}"] < 5 for ratio in ("ood_cost", "ood_alone") for rows in (1, 64))


def test_prediction_sets_and_their_peers() -> None:
    found = run.run_split("cls_tiny", 0, "fast")
    assert found["failed"] == {}
    methods = found["methods"]
    assert set(methods) == {"fiberwalk", "fiberwalk_empty", "map_tuned", "lac_map", "lac_ensemble"}
    usual, empty = (methods[m]["figures"] for m in ("fiberwalk", "fiberwalk_empty"))
    assert all(empty[f"{n}_0.8"] <= usual[f"{n}_0.8"] for n in ("size", "coverage")) and usual["size_0.8"] >= 1
    for method, result in methods.items():
        if method != "map_tuned":
            assert result["figures"]["size_0.95"] <= 2 and result["figures"]["coverage_0.95"] > 0.7
    assert all(0 <= methods[m]["figures"]["ece"] < 0.5 for m in ("fiberwalk", "map_tuned"))


def test_the_monitor_is_told_a_shift(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitored, "RUNS", 1)
    monkeypatch.setattr(monitored, "SOUND_ROWS", 1500)
    found = run.run_split(monitored.MONITORED, 0, "fast")
    assert found["task"] == "monitor"
    assert found["shifted_coverage"] == pytest.approx(found["coverage"] / 2, abs=0.01)
    (one,) = found["runs"]
    assert one["false_alarm"] is None
    # Misses tell nothing before they are there: at the least stake so much evidence takes two dozen of them.
    assert 10 < one["rows_until_alarm"] < 500


def test_peers_never_train_on_what_they_conformalise() -> None:
    problem = tiny_problem("regression")
    parted = conformal.part(problem)
    assert (len(parted.proper.x), parted.kept) == (48, 12)
    kept, trained = ({tuple(r) for r in x.tolist()} for x in (parted.proper.x_test[:12], parted.proper.x))
    assert not kept & trained and kept | trained == {tuple(r) for r in problem.x.tolist()}
    assert parted.proper.x_test[12:].equal(problem.x_test)


def test_conformal_peers_cover(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformal, "GRID", {"max_iter": [20], "min_samples_leaf": [5, 20]})
    problem = tiny_problem("regression", rows=300)
    for answer in conformal.regression(problem, TUNED).values():
        figures = regions.figures(answer.regions, problem.y_test.numpy())
        assert set(answer.regions) == set(LEVELS)
        assert figures["coverage_0.95"] >= 0.8 and math.isfinite(figures["size_0.95"])


def test_more_than_two_classes_have_a_second_score() -> None:
    problem = tiny_problem("classification", rows=300)
    found = conformal.classification(problem, TUNED)
    assert set(found) == {"lac_map", "aps_map", "lac_ensemble", "aps_ensemble"}
    for answer in found.values():
        figures = regions.figures(answer.regions, problem.y_test.numpy())
        assert figures["coverage_0.95"] >= 0.8 and figures["size_0.8"] <= figures["size_0.95"] <= 3


def test_a_region_covers_its_ends_and_a_set_its_members() -> None:
    intervals = {0.9: np.array([[0.0, 1.0], [0.0, 3.0]])}
    assert regions.figures(intervals, np.array([1.0, 3.5])) == {"coverage_0.9": 0.5, "size_0.9": 2.0}
    sets = {0.8: np.array([[True, False, True], [True, False, False]])}
    assert regions.figures(sets, np.array([2, 1])) == {"coverage_0.8": 0.5, "size_0.8": 1.5}


def test_the_shift_halves_the_coverage() -> None:
    apart = np.array([[-1.0, 1.0], [-1.0, 2.0], [-1.0, 3.0], [0.5, 4.0]])
    amount = monitored.halving_shift(apart)
    assert monitored.covered(apart, 0.0) == 0.75 and monitored.covered(apart, amount) <= 0.375
    assert amount == pytest.approx(3.0, abs=0.01)


def data_of(x: Any) -> DataSet:
    test = np.arange(len(x))[None] % 2 == 0
    return DataSet("uci_x", "regression", x, np.zeros(len(x)), ~test, test)


def test_a_cluster_is_small_but_no_handful() -> None:
    rng = np.random.default_rng(0)
    sizes = {0: 60, 10: 50, 20: 40, 30: 12, 40: 3}  # 3 of 165 rows are less than a twentieth
    x = np.concatenate([rng.normal(where, 0.1, size=(n, 2)) for where, n in sizes.items()])
    held = unfamiliar.cluster(data_of(x))
    assert held.sum() == 12 and (abs(x[held] - 30) < 1).all()


def test_a_quarter_of_the_columns_is_moved_by_two_deviations() -> None:
    data = data_of(np.random.default_rng(1).normal(size=(40, 8)) * np.arange(1, 9))
    moved = (unfamiliar.shifted(data, 0) - data.x[data.test[0]]) / data.x[data.train[0]].std(0)
    assert ((abs(moved) > 1e-9).sum(1) == 2).all()
    assert set(np.round(moved[abs(moved) > 1e-9], 9)) == {-2.0, 2.0}
    assert (abs(moved) > 1e-9).any(0).all()
