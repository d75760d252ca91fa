"""How costs grow: the command measures, and its page shows a table and a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.serving import curves, page


def test_the_command_measures_and_its_page_shows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A working tree that others write to must not end the run.
    monkeypatch.setattr("benchmarks.results.revision", lambda _: "a")
    small = "MLP 13-50-1"
    monkeypatch.setattr(curves, "NETWORKS", (small,))
    monkeypatch.setattr(curves, "_WIDE", small)
    for name, values in {
        "WIDTHS": (8, 16),
        "SAMPLES": (1, 4),
        "ROWS": (1, 2),
        "DIMENSIONS": (2,),
        "RANKS": (4,),
    }.items():
        monkeypatch.setattr(curves, name, values)
    output = tmp_path / "curves_serving.json"
    assert curves.main(["--seconds", "0.01", "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert "latent dimension k" in shown and "samples S" in shown
    points = json.loads(output.read_text())["runs"]
    assert {p["curve"] for p in points} == {"weights", "samples", "rows", "dimension", "rank"}
    assert all(min(p["det"], p["network_us"], p["decode"]) > 0 for p in points)
    assert [p["weights"] for p in points if p["curve"] == "samples"] == [13 * 50 + 50 + 50 + 1] * 2

    (tmp_path / "serving.json").write_text(json.dumps({"benchmark": "serving", "environments": {}, "runs": []}))
    rates = [{"set": "x", "clients": n, "together": {"rate": 10.0 * n}} for n in (1, 2)]
    assert page.picture(points, rates).startswith(b"\x89PNG") and page.picture(points, []).startswith(b"\x89PNG")
    target = tmp_path / "performance.md"
    assert page.main([str(tmp_path), str(target)]) == 0
    assert f"]({page.PICTURE})" in target.read_text()
    assert (tmp_path / page.PICTURE).read_bytes().startswith(b"\x89PNG")
