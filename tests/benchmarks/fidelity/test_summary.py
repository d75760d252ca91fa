"""What the fidelity benchmark makes of its runs: means, the goal, the page, and how it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import benchmarks.fidelity.__main__ as fidelity
from benchmarks.fidelity import page
from benchmarks.fidelity.cases import CASES
from benchmarks.fidelity.picture import draw
from benchmarks.fidelity.summary import GOAL_SETS, METHODS, judge, summarize

TV = {"hmc": 0.01, "fiberwalk": 0.1, "fiberwalk_default": 0.3, "laplace_full": 0.2}


def run(seed: int, ours: float = 0.1, converged: bool = True) -> dict[str, Any]:
    """One seed's run; every method that has no figure of its own is far away."""
    methods: dict[str, Any] = {
        m: {"test": {"tv": {**TV, "fiberwalk": ours}.get(m, 0.5)}, "weights": {"norm": 1.0 + seed}} for m in METHODS
    }
    reference = {"rhat": [1.01, 1.0], "ess": [400.0, 800.0], "draws": 1000, "divergences": 0, "converged": converged}
    known = {"task": "regression", "rows": 20, "columns": 1, "weights": 16, "noise_std": 0.2, "precision": 1.0}
    line = [0.0, 1.0]
    curve = {"grid": line, "x": line, "y": line, "bands": {m: [line] * 3 for m in ("hmc", "fiberwalk", "ensemble_10")}}
    return {
        **known,
        "reference": {**reference, "moments": {"norm": 1.5}},
        "methods": methods,
        "split": seed,
        "curve": curve,
    }


def summary(*runs: dict[str, Any]) -> dict[str, Any]:
    found = summarize("snelson1d", runs)
    assert found is not None
    return found


def test_means_over_seeds() -> None:
    found = summary(run(0, 0.1), run(1, 0.2), {"error": "lost", "split": 2})
    assert found["seeds"] == 2
    assert found["methods"]["fiberwalk"]["test"]["tv"] == pytest.approx({"mean": 0.15, "standard_error": 0.05})
    assert summarize("snelson1d", [{"error": "lost"}]) is None


def test_half_of_the_best_peers_distance_is_asked_for() -> None:
    states = [g.state for g in judge([summary(run(0, 0.1))])]
    assert states == ["met", "not measured", "not measured", "not met", "not measured", "not measured"]
    worse = judge([summary(run(0, 0.101), run(1, 0.101))])[0]
    assert worse.state == "not met" and "laplace_full 0.200" in worse.found
    assert "HMC has not converged" in judge([summary(run(0, converged=False))])[0].found
    assert len(judge([])) == 2 * len(GOAL_SETS)


def test_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert page.main([str(tmp_path / "none.json")]) == 2 and "make bench-fidelity" in capsys.readouterr().err
    source, target = tmp_path / "fidelity.json", tmp_path / "fidelity.md"
    source.write_text(json.dumps({"summary": [summary(run(0), run(1))], "environments": {}, "runs": [run(0)]}))
    assert page.main([str(source), str(target)]) == 0
    text = target.read_text()
    assert "| fiberwalk: decoded with moves, at scale 1 | 0.100 ± 0.000 |" in text
    assert "| snelson1d: 20 rows, 1 columns | 16 | 0.200 | 1 | 1000 | 1.010 (1.000) |" in text
    assert "| HMC | 1.500 |" in text and "![" in text
    assert (tmp_path / "fidelity.png").read_bytes() == draw(run(0)["curve"])
    assert (tmp_path / "fidelity.png").read_bytes().startswith(b"\x89PNG")


def test_seeds_that_are_done_are_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[int] = []

    def noted(_comparison: object, seed: int) -> dict[str, Any]:
        done.append(seed)
        return run(seed, converged=False)

    monkeypatch.setattr(fidelity, "check_available", lambda _name: None)
    monkeypatch.setattr(fidelity, "prepare", lambda case, _work: case)
    monkeypatch.setattr(fidelity, "run_seed", noted)
    arguments = ["--sets", "snelson1d", "--output", str(tmp_path / "fidelity.json")]
    # Chains that have not converged are told, by the exit status too.
    assert fidelity.main([*arguments, "--seeds", "1"]) == 1 and fidelity.main([*arguments, "--seeds", "2"]) == 1
    assert done == [0, 1]
    shown = capsys.readouterr()
    assert "have not converged" in shown.err and "NO" in shown.out
    content = json.loads((tmp_path / "fidelity.json").read_text())
    assert [(s["set"], s["seeds"]) for s in content["summary"]] == [("snelson1d", 2)]
    assert set(GOAL_SETS) <= set(CASES)
