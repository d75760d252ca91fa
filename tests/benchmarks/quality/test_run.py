"""The quality benchmark on tiny sets: problems, all methods on one split, and how it goes on and sums up."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import benchmarks.quality.__main__ as quality
import benchmarks.quality.run as run
from benchmarks.data import DataSet, read_set
from benchmarks.quality.problem import Problem, make_problem
from model_store.errors import DataError

QUICK: dict[str, Any] = {
    "map": {"steps": 60, "prior_precision": [1.0]},
    "fiber": {"trajectories": 2, "steps": 3, "refinement": 4},
    "autoencoder": {"steps": 20, "hidden": 8},
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of two tiny sets with two splits each."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    test = np.zeros((2, 60), dtype=bool)
    test[0, :20] = test[1, 40:] = True
    np.savez(tmp_path / "uci_tiny.npz", x=x, y=100 + 5 * x[:, 0] + rng.normal(size=60), test_mask=test)
    y = np.where(x[:, 0] > 0, 7, 2)
    np.savez(tmp_path / "cls_tiny.npz", x=x, y=y, test_mask=test, valid_mask=np.zeros_like(test))
    monkeypatch.setenv("FIBERWALK_DATA", str(tmp_path))
    return tmp_path


def quick(data: DataSet, split: int, preset: str) -> Problem:
    return make_problem(data, split, preset, **QUICK)


def test_a_problem_is_scaled_by_its_training_rows() -> None:
    data = read_set("uci_tiny")
    problem = make_problem(data, 1)
    assert problem.x.shape == (40, 3) and problem.x_test.shape == (20, 3) and problem.regression
    assert torch.allclose(problem.x.mean(0), torch.zeros(3), atol=1e-5)
    known = data.y[data.train[1]]
    assert problem.scale == pytest.approx(known.std())
    expected = (data.y[data.test[1]] - known.mean()) / known.std()
    assert problem.y_test.numpy() == pytest.approx(expected, abs=1e-4)
    assert problem.seed == 1 and problem.network.weights == 3 * 50 + 50 + 50 + 1


def test_classes_are_numbered_alike_in_both_parts() -> None:
    data = read_set("cls_tiny")
    problem = make_problem(data, 0)
    assert not problem.regression and problem.scale == 1.0
    assert problem.y_test.tolist() == [int(y == 7) for y in data.y[data.test[0]]]


@pytest.mark.parametrize("name", ["uci_tiny", "cls_tiny"])
def test_every_method_answers(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(run, "make_problem", quick)
    found = run.run_split(name, 0, "fast")
    assert found["failed"] == {} and set(found["methods"]) == set(run.METHODS)
    for method in found["methods"].values():
        assert all(math.isfinite(v) for v in method["figures"].values())
        assert method["gradient_evaluations"] > 0 and method["seconds"] > 0
    # Ten members cost ten times one, and our own cost is the build's.
    cost = {m: r["gradient_evaluations"] for m, r in found["methods"].items()}
    assert cost["ensemble_10"] - cost["map_tuned"] == 9 * cost["map"]
    assert cost["fiberwalk"] == cost["fiberwalk_fiber"] > 10 * cost["map"]


def test_a_method_that_fails_is_named_and_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("singular")

    monkeypatch.setattr(run, "make_problem", quick)
    monkeypatch.setattr(run.swag, "run", fail)
    monkeypatch.setattr(run, "FAMILIES", (run.ensemble, run.swag))
    found = run.run_split("uci_tiny", 0, "fast")
    assert found["failed"] == {"swag": "RuntimeError: singular"} and "ensemble_10" in found["methods"]


def answer(name: str, split: int, preset: str) -> dict[str, Any]:
    if (name, split) == ("cls_tiny", 1):
        raise DataError("no such rows", field="x")
    figures = {"nll": 1.0 + split, "rmse": 1.0, "accuracy": 0.5, "ece": 0.1, "ece_by_chance": 0.1}
    methods = {m: {"figures": figures, "gradient_evaluations": 10, "seconds": 1.0} for m in run.METHODS}
    task = "regression" if name.startswith("uci") else "classification"
    return {"task": task, "rows": 40, "columns": 3, "test_rows": 20, "methods": methods, "failed": {}}


def test_what_is_done_is_not_done_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[tuple[str, int]] = []

    def noted(name: str, split: int, preset: str) -> dict[str, Any]:
        done.append((name, split))
        return answer(name, split, preset)

    monkeypatch.setattr(quality, "run_split", noted)
    file = str(folder / "quality.json")
    arguments = ["--sets", "uci_tiny", "cls_tiny", "--workers", "1", "--output", file]
    assert quality.main([*arguments, "--splits", "1"]) == 0
    assert done == [("uci_tiny", 0), ("cls_tiny", 0)]
    assert quality.main([*arguments, "--splits", "2"]) == 1  # a split that fails is told by the exit status
    assert done[2:] == [("uci_tiny", 1), ("cls_tiny", 1)]
    content = json.loads((folder / "quality.json").read_text())
    assert [(s["set"], s["splits"]) for s in content["summary"]] == [("uci_tiny", 2), ("cls_tiny", 1)]
    assert content["summary"][0]["methods"]["map"]["nll"] == {"mean": 1.5, "standard_error": 0.5}
    shown = capsys.readouterr().out
    assert "Goals" in shown and "1 of 9 sets" in shown
    # Of equal methods each has the middle rank, which is not better.
    assert "not met" in shown


def test_a_set_may_have_a_number_of_splits_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "run_split", answer)
    file = folder / "quality.json"
    assert (
        quality.main(["--sets", "cls_tiny", "uci_tiny:2", "--splits", "1", "--workers", "1", "--output", str(file)])
        == 0
    )
    summary = json.loads(file.read_text())["summary"]
    assert [(s["set"], s["splits"]) for s in summary] == [("cls_tiny", 1), ("uci_tiny", 2)]


@pytest.mark.parametrize("asked", ["uci_tiny:", "uci_tiny:0", "uci_tiny:x", "uci_tiny:-1"])
def test_a_wrong_number_of_splits_is_told(asked: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quality.main(["--sets", asked, "--output", str(folder / "quality.json")]) == 2
    assert "NAME:N" in capsys.readouterr().err


def test_a_set_that_is_missing_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quality.main(["--sets", "uci_nothing", "--output", str(folder / "quality.json")]) == 2
    assert "uci_nothing" in capsys.readouterr().err
