"""The command and the page: what is done is not done again, and everything shown comes from the files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import benchmarks.experiments.__main__ as command
import benchmarks.experiments.page as rendered
from benchmarks.experiments.experiment import Experiment, Report, Table, apart
from benchmarks.results import Run
from model_store.errors import DataError


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """One experiment of two splits in place of all, and the splits that it ran."""
    found: list[tuple[str, int]] = []

    def run(name: str, split: int, preset: str) -> dict[str, Any]:
        found.append((name, split))
        if preset == "thorough":
            raise DataError("no such set", field="x")
        return {"value": 10.0 * split}

    def report(runs: Sequence[Run]) -> Report:
        rows = [[f"split {r['split']}", f"{r['value']:.1f}"] for r in runs]
        return Report([Table("values", ["split", "value"], rows)], {"toy.png": b"picture"}, [f"{len(runs)} found."])

    toy = Experiment("A toy", "What it is.", [("toy", 0), ("toy", 1)], run, report)
    monkeypatch.setattr(command, "EXPERIMENTS", {"toy": toy})
    monkeypatch.setattr(rendered, "EXPERIMENTS", {"toy": toy})
    return found


def test_an_experiment_goes_on_and_its_page_shows_all(
    done: list[tuple[str, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "docs" / "page"
    places = ["--output", str(tmp_path / "results"), "--pictures", str(pictures)]
    assert command.main(["toy", "--splits", "1", *places]) == 0
    assert command.main(places) == 0
    assert done == [("toy", 0), ("toy", 1)]
    assert "2 found." in capsys.readouterr().out
    assert (pictures / "toy.png").read_bytes() == b"picture"
    content = json.loads((tmp_path / "results" / "toy.json").read_text())
    assert [r["value"] for r in content["runs"]] == [0.0, 10.0] and all("seconds" in r for r in content["runs"])

    (pictures / "toy.png").unlink()
    page = tmp_path / "docs" / "page.md"
    assert rendered.main([str(tmp_path / "results"), str(page)]) == 0
    text = page.read_text()
    assert "## A toy" in text and "| split 1 | 10.0 |" in text and "- 2 found." in text
    assert "](page/toy.png)" in text and (pictures / "toy.png").exists()
    (environment,) = content["environments"].values()
    assert environment["commit"].split("+")[0][:12] in text


def test_what_cannot_be_run_is_told(
    done: list[tuple[str, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--output", str(tmp_path), "--pictures", str(tmp_path)]
    assert command.main(["toy", "--preset", "thorough", *places]) == 2
    assert "no such set" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["nothing", *places])
    assert rendered.main([str(tmp_path / "nowhere"), str(tmp_path / "page.md")]) == 2


def test_paired_differences_have_a_sign() -> None:
    assert apart([1.0, 2.0], [0.5, 1.5]) == "+0.500 ± 0.000"
    assert apart([1.0], [1.25]) == "−0.250"
