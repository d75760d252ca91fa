"""The speed benchmark: a tiny set end to end, and how ratios become goals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import benchmarks.speed as speed

TINY: dict[str, dict[str, Any]] = {
    "map": {"steps": 40, "prior_precision": [1.0]},
    "fiber": {"trajectories": 4, "steps": 3, "refinement": 4},
    "autoencoder": {"dimension": 4, "steps": 10},
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a tiny set."""
    x = np.random.default_rng(0).normal(size=(60, 2))
    mask = np.arange(60)[None] >= 50
    np.savez(tmp_path / "uci_tiny.npz", x=x, y=x[:, 0] + 0.1 * x[:, 1], test_mask=mask)
    monkeypatch.setenv("FIBERWALK_DATA", str(tmp_path))
    return tmp_path


def test_both_ratios_are_measured() -> None:
    found = speed.measure("uci_tiny", "fast", loop_seconds=0.1, **TINY)
    assert (found["rows"], found["columns"], found["weights"], found["particles"]) == (50, 2, 201, 4)
    assert set(found["stage_seconds"]) == set(speed.STAGES)
    assert sum(found["stage_seconds"].values()) == pytest.approx(found["build_seconds"], abs=0.01)
    assert found["build_over_map"] == pytest.approx(found["build_seconds"] / found["map_seconds"], rel=0.1)
    # Rows, particles, drift steps and refinement steps, of two walks.
    assert 0 < found["sampled_gradients"] <= 2 * 50 * 4 * 3 * 4
    assert found["sampled_gradients"] % (50 * 4) == 0
    ratio = found["sampled_per_second"] / found["looped_per_second"]
    assert found["sampling_over_loop"] == pytest.approx(ratio, rel=0.1)


def result(name: str, build: float, sampling: float) -> dict[str, Any]:
    stages = {s: build if s == "fiber" else 0.0 for s in speed.STAGES}
    return {
        "set": name,
        "rows": 1000,
        "weights": 10,
        "particles": 4,
        "build_seconds": build,
        "stage_seconds": stages,
        "map_seconds": 1.0,
        "build_over_map": build,
        "sampled_per_second": 100,
        "looped_per_second": 10,
        "sampling_over_loop": sampling,
    }


@pytest.mark.parametrize(
    ("builds", "samplings", "states"),
    [
        ((3.0, 1.0), (10.0, 30.0), ["met", "met"]),
        ((3.1, 1.0), (10.0, 30.0), ["not met", "met"]),  # every set counts
        ((3.0, 1.0), (30.0, 9.9), ["met", "not met"]),
    ],
)
def test_a_goal_is_met_where_every_set_meets_it(
    builds: tuple[float, ...], samplings: tuple[float, ...], states: list[str]
) -> None:
    found = [result(f"set{i}", b, s) for i, (b, s) in enumerate(zip(builds, samplings, strict=True))]
    assert [state for _, state, _ in speed.judge(found)] == states


def test_what_is_finished_is_not_run_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs: list[str] = []

    def run(name: str, preset: str) -> dict[str, Any]:
        runs.append(name)
        return result(name, 4.0, 12.0)

    monkeypatch.setattr(speed, "measure", run)
    monkeypatch.setattr(speed, "environment", lambda *_: {"commit": "a"})
    output = folder / "speed.json"
    for _ in range(2):
        assert speed.main(["--sets", "uci_tiny", "--output", str(output)]) == 0
    assert runs == ["uci_tiny"]
    content = json.loads(output.read_text())
    assert [s["state"] for s in content["summary"]] == ["not met", "met"]
    assert "100% of it the stage fiber" in " ".join(capsys.readouterr().out.split())
    assert speed.main(["--sets", "uci_yacht", "--output", str(output)]) == 2
