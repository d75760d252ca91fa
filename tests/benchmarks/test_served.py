"""The benchmark of the whole main job: end to end on tiny sets, and how it goes on and sums up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import benchmarks.served as served
from benchmarks.data import DataSet, read_set
from model_store.errors import FiberwalkError

QUICK = """
[map]
steps = 300
anchors = 5
[fiber]
trajectories = 4
steps = 4
refinement = 5
[autoencoder]
steps = 50
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of two tiny sets with two splits each."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(48, 2))
    test = np.zeros((2, 48), dtype=bool)
    test[0, :16] = test[1, 32:] = True
    np.savez(tmp_path / "uci_tiny.npz", x=x, y=100 + 5 * x[:, 0] + rng.normal(size=48), test_mask=test)
    y = np.where(x[:, 0] > 0, 5, 2)
    np.savez(tmp_path / "cls_tiny.npz", x=x, y=y, test_mask=test, valid_mask=np.zeros_like(test))
    monkeypatch.setenv("FIBERWALK_DATA", str(tmp_path))
    return tmp_path


def run(folder: Path, *arguments: str) -> int:
    return served.main([*arguments, "--output", str(folder / "served.json")])


@pytest.mark.parametrize("name", ["uci_tiny", "cls_tiny"])
def test_from_a_csv_to_scored_answers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setattr(served, "RECIPE", served.RECIPE + QUICK)
    assert run(folder, "--sets", name, "--splits", "1", "--preset", "fast") == 0
    content = json.loads((folder / "served.json").read_text())
    (found,) = content["runs"]
    assert (found["rows"], found["columns"], found["test_rows"]) == (32, 2, 16)
    figures = found["figures"]
    assert figures["build_seconds"] > sum(found["stage_seconds"].values()) > 0
    assert 0 <= figures["flagged_0.01"] <= figures["flagged_0.05"] <= figures["flagged_0.1"] <= 1
    assert figures["coverage_0.8"] <= figures["coverage_0.9"] <= figures["coverage_0.95"]
    assert figures["coverage_0.95"] > 0.5
    if name == "uci_tiny":
        # Noise of 1 around a straight line of slope 5: far better than the mean of y, in y's own units.
        assert 0.5 < figures["rmse"] < 3
        assert figures["nll"] < 3.2
    else:
        assert 1 <= figures["set_size_0.8"] <= figures["set_size_0.95"] <= 2
        assert figures["accuracy"] > 0.7
        assert figures["nll"] < 0.69
    assert content["summary"][0]["build"] == "met"
    assert content["summary"][0]["promised"] is False
    assert f"{name} *" in capsys.readouterr().out


class Runs:
    """Stands in for the hours of building: notes what is run, and fails where told to."""

    def __init__(self) -> None:
        self.done: list[tuple[str, int, str]] = []
        self.failing = False

    def __call__(self, data: DataSet, split: int, preset: str) -> dict[str, Any]:
        self.done.append((data.name, split, preset))
        if self.failing:
            raise FiberwalkError("fiberwalk build failed; see what it said.", got="no memory")
        return result(0.9, seconds=1.0)


def result(covered: float, seconds: float) -> dict[str, Any]:
    levels = {f"coverage_{level:g}": level + covered - 0.9 for level in served.LEVELS}
    return {"test_rows": 16, "figures": {"build_seconds": seconds, "nll": 1.0, "rmse": 1.0, **levels}}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    found = Runs()
    monkeypatch.setattr(served, "run_split", found)
    monkeypatch.setattr(served, "environment", lambda _, preset: {"commit": "a", "preset": preset})
    return found


def test_what_is_finished_is_not_run_again(folder: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(folder, "--sets", "uci_tiny", "--splits", "1") == 0
    assert run(folder, "--sets", "uci_tiny", "--splits", "9") == 0
    assert runs.done == [("uci_tiny", 0, "default"), ("uci_tiny", 1, "default")]
    summary = json.loads((folder / "served.json").read_text())["summary"]
    assert summary[0]["splits"] == 2
    monkeypatch.setattr(served, "environment", lambda _, preset: {"commit": "b", "preset": preset})
    assert run(folder, "--sets", "uci_tiny") == 0
    assert runs.done[2:] == runs.done[:2]


def test_a_failed_run_is_told_and_tried_again(folder: Path, runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    runs.failing = True
    assert run(folder, "--sets", "uci_tiny", "--splits", "1") == 1
    out, err = capsys.readouterr()
    assert "1 (1 failed)" in out
    assert out.count("not met") == 2
    assert "no memory" in err
    runs.failing = False
    assert run(folder, "--sets", "uci_tiny", "--splits", "1") == 0
    assert len(runs.done) == 2


def test_code_that_changes_during_a_run_stops_it(
    folder: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(served, "environment", lambda *_: {"commit": str(len(runs.done))})
    assert run(folder, "--sets", "uci_tiny") == 2
    assert "run it in a copy of its own" in capsys.readouterr().err
    assert not (folder / "served.json").exists()


def test_a_missing_set_is_told_before_anything_is_run(
    folder: Path, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, "--sets", "uci_tiny", "uci_yacht") == 2
    assert "UCI Yacht Hydrodynamics" in capsys.readouterr().err
    assert runs.done == []


@pytest.mark.parametrize(
    ("covered", "seconds", "build", "coverage"),
    [
        ((0.9, 0.9), (10.0, 20.0), "met", "met"),
        ((0.8, 1.0), (10.0, 299.0), "met", "met"),  # the mean over the splits counts
        ((0.85, 0.85), (10.0, 20.0), "met", "met"),
        ((0.84, 0.84), (10.0, 20.0), "met", "not met"),
        ((0.96, 0.96), (10.0, 20.0), "met", "not met"),
        ((0.9, 0.9), (10.0, 300.0), "not met", "met"),  # the slowest split counts
    ],
)
def test_promises(covered: tuple[float, ...], seconds: tuple[float, ...], build: str, coverage: str) -> None:
    found = [result(c, s) for c, s in zip(covered, seconds, strict=True)]
    summary = served.summarize(read_set("small_regression"), found)
    assert (summary["build"], summary["coverage"]) == (build, coverage)
    assert summary["slowest_seconds"] == seconds[1]
    assert summary["promised"] is True
    assert summary["figures"]["build_seconds"]["mean"] == sum(seconds) / 2


def test_a_build_that_fails_is_told_with_what_it_said(folder: Path) -> None:
    # A build needs at least 20 rows; here are 10.
    mask = np.arange(48)[None] >= 10
    data = DataSet("uci_few", "regression", np.zeros((48, 1)), np.arange(48.0), ~mask, mask)
    with pytest.raises(FiberwalkError, match="fiberwalk build failed") as e:
        served.run_split(data, 0, "fast")
    assert "too few rows" in str(e.value.got)
