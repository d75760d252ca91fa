"""What HTTP, workers and replicas take: figures become goals, and the command measures real servers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.serving import page, wire
from benchmarks.serving.models import Case
from benchmarks.serving.wire import main
from benchmarks.serving.wire_tables import COLD, PARTS, WAITS, WORKERS, cold_table, judge, table, workers_table
from builder.network import MLP


def runs(added: float = 1.0, two: float = 200.0, auto: float = 10.0) -> list[dict[str, Any]]:
    parts = {"alone": 20.0, "p50": 20.0 + added, "http": 0.05, "idle": 0.04, "reading": 0.03, "writing": 0.02}
    found: list[dict[str, Any]] = [
        {"set": "wait", "network": name, "rows": rows, "binary": binary, **parts} for name, rows, binary in WAITS
    ]
    one = {"one": {"rate": 100.0}, "two": {"rate": two}, "client_cores": 0.1, "rows": 16, "clients": 8}
    found += [{"set": "workers", "network": name, **one} for name in WORKERS]
    return found + [{"set": "cold", "network": name, "always": 10.0, "never": 15.0, "auto": auto} for name in COLD]


def test_goals() -> None:
    assert [g.state for g in judge(runs(added=0.2))] == ["met"] * 6
    assert [g.state for g in judge(runs(added=1.9))] == ["met", "met", "not met", "met", "met", "met"]
    assert [g.state for g in judge(runs(added=21.0, two=179.0, auto=12.1))] == ["not met"] * 6
    assert [g.state for g in judge([])] == ["not measured"] * 6
    assert [row[6:] for row in table(runs(added=0.2))[1]] == [["200", "50", "40", "30", "20", "60"]] * 6
    for header, rows in (table(runs()), workers_table(runs()), cold_table(runs())):
        assert rows and all(len(row) == len(header) for row in rows)


def test_the_command_measures_and_its_page_shows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A working tree that others write to must not end the run.
    monkeypatch.setattr("benchmarks.results.revision", lambda _: "a")
    small = Case(lambda: MLP(13, [50], 1, "tanh"), (13,), 0)
    monkeypatch.setattr(wire, "WAITS", (("MLP 13-50-1", 1, False), ("MLP 13-50-1", 3, True)))
    monkeypatch.setattr(wire, "WORKERS", ("MLP 13-50-1",))
    # One is enough, as both would be of the same small network here.
    monkeypatch.setattr(wire, "COLD", COLD[:1])
    monkeypatch.setattr(wire, "REPLICAS", {COLD[0]: small})
    arguments = ["--seconds", "0.2", "--turns", "1", "--seeds", "2", "--output", str(tmp_path / "wire.json")]
    assert main(arguments) == 0
    assert "MLP 13-50-1" in capsys.readouterr().out
    measured = json.loads((tmp_path / "wire.json").read_text())["runs"]
    first, *_ = measured
    assert 0 < first["alone"] < first["p50"]
    # By chance the network may take no longer after a pause.
    assert all(0 < first[part] < first["p50"] for part in PARTS if part != "idle")
    (two,) = (m for m in measured if m["set"] == "workers")
    assert min(two["one"]["rate"], two["two"]["rate"], two["client_cores"]) > 0
    (replica,) = (m for m in measured if m["set"] == "cold")
    assert all(replica[way] > 0 for way in wire.WAYS)
    (tmp_path / "serving.json").write_text(json.dumps({"benchmark": "serving", "environments": {}, "runs": []}))
    target = tmp_path / "performance.md"
    assert page.main([str(tmp_path), str(target)]) == 0
    assert "| MLP 13-50-1 | 3 | msgpack |" in target.read_text()
