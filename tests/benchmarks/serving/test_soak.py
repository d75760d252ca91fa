"""A server's start and memory over many requests: measured, judged and shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.serving import page, soak
from benchmarks.serving.models import Case
from benchmarks.serving.tables import judge_soak
from builder.network import MLP

MB = 10**6


def run(ready: float, first: int, last: int) -> dict[str, Any]:
    memory = [150 * MB, 200 * MB, 200 * MB, 200 * MB, last * MB]
    found = {"set": soak.NAME, "ready": [ready], "first": first * MB, "first_set": 50 * MB}
    return found | {"requests": [1, 2, 3, 4, 5], "memory": memory, "held": 0}


def test_goals() -> None:
    assert [g.state for g in judge_soak([run(1.9, 199, 203)])] == ["met"] * 3
    assert [g.state for g in judge_soak([run(2.1, 201, 205)])] == ["not met"] * 3
    for told, state in ((204, "met"), (208, "not met")):
        goals = judge_soak([run(1.9, 199, 203) | {"ids": 1000, "told": told * MB}])
        assert goals[-1].state == state and "1,000 ids" in goals[-1].found


def test_the_command_measures_and_its_page_shows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A working tree that others write to must not end the run.
    monkeypatch.setattr("benchmarks.results.revision", lambda _: "a")
    monkeypatch.setattr(soak, "CASE", Case(lambda: MLP(3, [8, 8], 4), (3,), 4))
    monkeypatch.setattr(soak, "_TURN_SECONDS", 0.5)
    assert soak.main(["--requests", "50", "--ids", "20", "--starts", "1", "--output", str(tmp_path / "soak.json")]) == 0
    assert "memory MB" in capsys.readouterr().out
    (measured,) = json.loads((tmp_path / "soak.json").read_text())["runs"]
    assert measured["requests"][-1] >= 50 and 0 < measured["first_set"] < measured["first"] < 1e9
    assert 0 < measured["held"] < 1e7
    assert measured["ids"] >= 20 and measured["told"] > measured["first_set"]
    (tmp_path / "serving.json").write_text(json.dumps({"benchmark": "serving", "environments": {}, "runs": []}))
    target = tmp_path / "performance.md"
    assert page.main([str(tmp_path), str(target)]) == 0
    assert "requests answered" in target.read_text()
