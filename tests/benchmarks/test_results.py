"""Results that can be gone on with, and what makes them out of date."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks.results import EARLIER, Results, environment, measured_with, revision
from model_store.errors import ConfigError

HERE = {"commit": "a", "preset": "fast"}


def test_a_finished_run_is_found_again(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "served.json"
    Results(file, "served", HERE).add("uci_tiny", 1, {"figures": {"nll": 1.0}})
    again = Results(file, "served", HERE)
    assert again.finished("uci_tiny", 1)
    assert not again.finished("uci_tiny", 0)
    assert not again.finished("uci_other", 1)
    assert [r["figures"] for r in again.current("uci_tiny")] == [{"nll": 1.0}]


@pytest.mark.parametrize("change", [{"commit": "b"}, {"preset": "default"}])
def test_another_commit_or_preset_counts_no_old_run_but_keeps_it(tmp_path: Path, change: dict[str, str]) -> None:
    file = tmp_path / "served.json"
    old = Results(file, "served", HERE)
    old.add("uci_tiny", 0, {"figures": {}})
    old.add("uci_tiny", 1, {"figures": {}})
    new = Results(file, "served", HERE | change)
    assert not new.finished("uci_tiny", 0)
    new.add("uci_tiny", 0, {"figures": {}})
    assert [r["split"] for r in new.current("uci_tiny")] == [0]
    back = Results(file, "served", HERE)
    assert not back.finished("uci_tiny", 0)
    assert back.finished("uci_tiny", 1)
    content = json.loads(file.read_text())
    assert {e["commit"] for e in content["environments"].values()} == {"a", change.get("commit", "a")}
    assert {r["environment"] for r in content["runs"]} == set(content["environments"])


def test_a_set_that_is_run_anew_takes_the_place_of_its_older_runs(tmp_path: Path) -> None:
    file, rest = tmp_path / "quality.json", {"libraries": {"x": "1"}, "machine": {"cores": 2, "architecture": "z"}}
    old = Results(file, "quality", HERE | rest)
    for name, split in (("one", 1), ("one", 0), ("two", 0), ("two", 1)):
        old.add(name, split, {"figures": {"nll": 1.0}})
    new = Results(file, "quality", HERE | rest | {"commit": "b"})
    new.add("two", 0, {"figures": {"nll": 2.0}})
    assert new.sets == ["one", "two"]
    assert [r["split"] for r in new.latest("one")] == [0, 1] and new.current("one") == []
    assert [r["figures"]["nll"] for r in new.latest("two")] == [2.0]
    told = "\n".join(measured_with(json.loads(file.read_text())))
    assert "Commit `a` (one)" in told and "Commit `b` (two)" in told
    new.add("one", 0, {"figures": {"nll": 2.0}})
    told = "\n".join(measured_with(json.loads(file.read_text())))
    assert "Commit `a`" not in told and "Commit `b`, preset" in told


def test_parts_of_an_older_run_keep_its_environment(tmp_path: Path) -> None:
    file, rest = tmp_path / "curves.json", {"libraries": {"x": "1"}, "machine": {"cores": 2, "architecture": "z"}}
    old = Results(file, "curves", HERE | rest)
    for name in ("one", "two", "three"):
        old.add(name, 0, {"curves": {}})
    new = Results(file, "curves", HERE | rest | {"commit": "b"})
    for name in ("one", "two"):
        before = new.run(name, 0)
        assert before is not None
        new.add(name, 0, {"curves": {}, EARLIER: {"swag": before["environment"], "laplace": before["environment"]}})
    told = "\n".join(measured_with(json.loads(file.read_text())))
    assert "Commit `a` (three, one, two: swag, laplace)" in told and "Commit `b` (one, two)" in told
    assert new.run("one", 1) is None


def test_a_failed_run_is_tried_again(tmp_path: Path) -> None:
    results = Results(tmp_path / "served.json", "served", HERE)
    results.add("uci_tiny", 0, {"error": "fiberwalk build failed"})
    assert not results.finished("uci_tiny", 0)
    results.add("uci_tiny", 0, {"figures": {}})
    assert results.finished("uci_tiny", 0)
    assert len(results.current("uci_tiny")) == 1


@pytest.mark.parametrize("content", ["{", "[]", '{"benchmark": "other"}'])
def test_a_file_of_something_else_is_not_overwritten(tmp_path: Path, content: str) -> None:
    file = tmp_path / "served.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match="name another file with --output"):
        Results(file, "served", HERE)
    assert file.read_text() == content


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_revision_follows_the_code_and_nothing_else(tmp_path: Path) -> None:
    module = tmp_path / "builder" / "fiber.py"
    module.parent.mkdir()
    module.write_text("a = 1\n")
    bare = revision(tmp_path)
    assert len(bare) == 12
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "builder")
    git(tmp_path, "commit", "--quiet", "-m", "code")
    first = git(tmp_path, "rev-parse", "HEAD")
    assert revision(tmp_path) == first

    (tmp_path / "README.md").write_text("words\n")
    git(tmp_path, "add", "README.md")
    git(tmp_path, "commit", "--quiet", "-m", "words")
    assert revision(tmp_path) == first

    module.write_text("a = 2\n")
    changed = revision(tmp_path)
    assert changed.startswith(first + "+")
    (tmp_path / "builder" / "new.py").write_text("b = 1\n")
    assert revision(tmp_path) not in {first, changed}

    git(tmp_path, "add", "builder")
    git(tmp_path, "commit", "--quiet", "-m", "more")
    assert revision(tmp_path) == git(tmp_path, "rev-parse", "HEAD")


def test_the_environment_says_what_was_measured_with(tmp_path: Path) -> None:
    found = environment(tmp_path, "fast")
    assert found["preset"] == "fast"
    assert found["machine"]["cores"] >= 1
    assert set(found["libraries"]) >= {"fiberwalk", "torch", "onnxruntime"}
    assert json.loads(json.dumps(found)) == found
