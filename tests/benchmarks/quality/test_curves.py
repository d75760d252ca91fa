"""NLL against cost: the points of a split, what each is charged with, and the goal that is judged from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import benchmarks.quality.curves.__main__ as command
from benchmarks.data import DataSet
from benchmarks.quality.building import Learned
from benchmarks.quality.curves import points
from benchmarks.quality.curves.picture import picture
from benchmarks.quality.curves.summary import judge, summarize, table, within
from benchmarks.quality.goals import NOT_MEASURED
from benchmarks.quality.page import page
from benchmarks.quality.predictive import Cost
from benchmarks.quality.problem import Problem, make_problem
from benchmarks.results import EARLIER
from benchmarks.table import MET, NOT_DECIDED, NOT_MET
from tests.benchmarks.quality.problems import TUNED, tiny_problem

STEPS = 40
QUICK: dict[str, Any] = {
    "map": {"steps": STEPS, "prior_precision": [1.0]},
    "fiber": {"steps": 3, "refinement": 4},
    "autoencoder": {"steps": 20, "hidden": 8},
}


def quick(data: DataSet, split: int, preset: str) -> Problem:
    return make_problem(data, split, preset, **QUICK)


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The points of a set of 40 training rows, few to a curve."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    np.savez(tmp_path / "uci_tiny.npz", x=x, y=x[:, 0] + rng.normal(size=60), test_mask=np.arange(60)[None] < 20)
    monkeypatch.setenv("FIBERWALK_DATA", str(tmp_path))
    monkeypatch.setattr(points, "make_problem", quick)
    monkeypatch.setattr(points, "SIZES", (1, 2))
    monkeypatch.setattr(points, "SHARES", (0.5, 1.0))
    monkeypatch.setattr(points, "BUDGETS", (0.5, 1.0))
    monkeypatch.setattr(points, "FIBERS", {1: (2,), 5: (4, 8)})
    return points.run_points("uci_tiny", 0, "default")


def test_every_point_is_charged_with_all_that_it_takes(found: dict[str, Any]) -> None:
    assert found["failed"] == {}
    cost = {c: {label: p["gradient_evaluations"] for label, p in each.items()} for c, each in found["curves"].items()}
    assert {c: list(each) for c, each in cost.items()} == {
        "ensemble": ["1", "2"],
        "laplace_full": [""],
        "laplace_kron": [""],
        "laplace_last": [""],
        "swag": ["0.5", "1"],
        "mc_dropout": ["0.5", "1"],
        "fiberwalk_1": ["2"],
        "fiberwalk_5": ["4", "8"],
    }
    training = STEPS * 40
    tuning = 20 * training
    assert cost["ensemble"] == {"1": tuning + training, "2": tuning + 2 * training}
    assert cost["mc_dropout"]["1"] - tuning == 2 * (cost["mc_dropout"]["0.5"] - tuning)
    assert cost["swag"]["1"] > cost["swag"]["0.5"] > tuning + 2 * training
    # The second build goes on from the first one's anchors, and is charged with them all the same. Five train twice.
    fibers = {label: gradients - tuning - 5 * training for label, gradients in cost["fiberwalk_5"].items()}
    assert fibers["8"] > fibers["4"] > 0
    seconds = [p["seconds"] for p in found["curves"]["fiberwalk_5"].values()]
    assert seconds[1] > 0.5 * seconds[0]


def test_the_shortest_walk_of_five_takes_the_work_of_four_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int | None, float | None]] = []

    def watch(problem: Problem, *_: object) -> Any:
        fiber = problem.config.fiber
        asked.append((fiber.trajectories, fiber.work))
        return Learned(None, Cost(), {"map": 1.0})  # type: ignore[arg-type]

    monkeypatch.setattr(points, "build", watch)
    monkeypatch.setattr(points.fiberwalk, "answers", lambda *_: {"fiberwalk": None})
    problem = tiny_problem("regression", steps=STEPS)
    points.ours(problem, TUNED, 5)
    gradients = STEPS * len(problem.x)
    operations = 3.0 * problem.network.operations(problem.x[:1])
    assert asked == [(3, 4 * gradients * operations), (8, None), (32, None)]


def run(split: int, ensemble: float, **ours: tuple[float, ...]) -> Any:
    """Of a set with an ensemble of ten at 100 gradients and 2 seconds, and our points' NLL, gradients and, where they
    are not 2, seconds by label."""

    def point(nll: float, gradients: float, seconds: float = 2.0) -> Any:
        return {"figures": {"nll": nll}, "gradient_evaluations": gradients * 1_000_000, "seconds": seconds}

    curves = {
        "ensemble": {"1": point(9.0, 50), "10": point(ensemble, 100)},
        "fiberwalk_5": {label.removeprefix("n"): point(*values) for label, values in ours.items()},
    }
    return {"split": split, "task": "regression", "curves": curves, "failed": {}}


def summary(name: str, *runs: Any) -> dict[str, Any]:
    found = summarize(name, runs)
    assert found is not None
    return found


def test_a_point_is_the_mean_over_splits() -> None:
    one = summary("uci_a", run(0, 2.0, n4=(1.0, 50)), run(1, 4.0, n4=(3.0, 70)), {"split": 2, "error": "no"})
    assert one["splits"] == 2
    (ours,) = one["curves"]["fiberwalk_5"]
    assert ours["nll"] == {"mean": 2.0, "standard_error": pytest.approx(1.0)}
    assert ours["gradient_evaluations"] == 60_000_000
    assert summarize("uci_a", [{"split": 0, "error": "no"}]) is None


def test_a_curve_of_fewer_splits_says_so_and_is_judged_on_those() -> None:
    both, one = run(0, 2.0, n4=(1.0, 50)), run(1, 4.0)
    del one["curves"]["fiberwalk_5"]
    found = summary("uci_a", both, one)
    assert found["curves"]["ensemble"][1]["nll"]["mean"] == 3.0
    assert found["curves"]["fiberwalk_5"][0]["nll"]["mean"] == 1.0
    # The ensemble of ten has 2 on the split of ours, and 3 on both.
    assert found["curves"]["fiberwalk_5"][0]["ahead"] == 1.0 and found["curves"]["ensemble"][0]["ahead"] == 0.0
    _, rows = table([found])
    assert ["fiberwalk, 5 anchors (fibers an anchor): 4", "1.000 (50 M, 2 s, 1 of 2 splits)"] in rows
    assert ["deep ensemble (members): 10", "3.000 ± 1.000 (100 M, 2 s)"] in rows
    # Beside the ensemble's 2 on the same split, not beside its mean of 3.
    assert "a -1.000 (1 of 2 splits)" in judge([found])[0].found
    assert picture([found]) != picture([summary("uci_a", both)])


def test_ours_is_chosen_by_its_cost_and_not_by_its_nll() -> None:
    points = summary("uci_a", run(0, 2.0, n2=(1.0, 40, 1.5), n8=(3.0, 90, 2.5), n32=(0.5, 101, 4.0)))["behind"]
    chosen = within(points, 1.0, "gradient_evaluations")
    assert chosen is not None and chosen["label"] == "8" and chosen["nll"]["mean"] == 1.0
    quick = within(points, 1.0, "seconds")
    assert quick is not None and quick["label"] == "2" and quick["seconds"] == 0.75
    assert within(points, 0.3, "gradient_evaluations") is None


def two(name: str, *ours: float, gradients: float = 100, seconds: float = 2.0) -> dict[str, Any]:
    """A set of two splits on which the ensemble of ten is far apart."""
    return summary(name, *(run(i, 2.0 + 5 * i, n8=(v + 5 * i, gradients, seconds)) for i, v in enumerate(ours)))


def test_the_goal_wants_six_sets_at_the_ensembles_cost_beyond_two_standard_errors() -> None:
    # Paired, -0.1 ± 0.02 and -0.1 ± 0.06: what splits differ by is no error of the difference.
    sure, barely = [[two(f"uci_{n}{i}", 1.9 - d, 1.9 + d) for i in range(6)] for n, d in (("s", 0.02), ("b", 0.06))]
    dear = two("uci_dear", 1.0, 1.0, gradients=101)
    single = summary("uci_single", run(0, 2.0, n8=(1.0, 100)))
    assert [g.state for g in judge([])] == [NOT_MEASURED] * 2
    goal, _ = judge([*sure[:5], dear])
    assert (
        goal.state == NOT_MET and "better on 5, on 5 by more than two standard errors: s0 -0.100 ± 0.020" in goal.found
    )
    assert goal.found.endswith("; no point that cheap on dear (6 of 9 sets)")
    assert judge([*sure, dear])[0].state == MET
    goal, _ = judge([*sure[:5], barely[0], two("uci_worse", 2.1, 2.1)])
    assert goal.state == NOT_DECIDED and "better on 6, on 5" in goal.found and "worse +0.100 ± 0.000" in goal.found
    goal, _ = judge([*sure[:5], single])
    assert goal.state == NOT_DECIDED and "single -1.000 (1 split)" in goal.found


def test_the_same_is_asked_at_the_ensembles_time() -> None:
    slow = [two(f"uci_{i}", 1.0, 1.0, seconds=2.1) for i in range(6)]
    gradients, seconds = judge(slow)
    assert "cost in gradients" in gradients.text and gradients.state == MET
    assert "cost in seconds" in seconds.text and seconds.state == NOT_MET and "better on 0" in seconds.found
    assert judge([two(f"uci_{i}", 1.0, 1.0, seconds=1.9) for i in range(6)])[1].state == MET


def test_table_page_and_picture_show_the_points() -> None:
    sets = [summary("uci_a", run(0, 2.0, n8=(1.9, 90))), summary("uci_b", run(0, 2.5, n8=(2.4, 90)))]
    header, rows = table(sets)
    assert header == ["method", "uci_a (1)", "uci_b (1)"]
    assert ["deep ensemble (members): 10", "2.000 (100 M, 2 s)", "2.500 (100 M, 2 s)"] in rows
    machine = {"cores": 2, "architecture": "x86_64"}
    where = {"x": {"commit": "abcdef0123456789", "preset": "default", "libraries": {"torch": "1"}, "machine": machine}}
    text = page({"summary": [], "environments": {}}, {"summary": sets, "environments": where})
    assert "| deep ensemble (members): 10 | 2.000 (100 M, 2 s) |" in text and "abcdef012345" in text
    assert all(goal.text in text for goal in judge(sets))
    drawn = picture(sets)
    assert drawn.startswith(b"\x89PNG") and drawn == picture(sets) != picture(sets[:1])


def test_single_methods_are_measured_anew_beside_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commits = iter(["a", "a", "b", "b", "b", "b"])
    monkeypatch.setattr("benchmarks.results.revision", lambda _: next(commits))
    np.savez(tmp_path / "uci_tiny.npz", x=np.zeros((60, 2)), y=np.zeros(60), test_mask=np.zeros((1, 60), dtype=bool))
    monkeypatch.setenv("FIBERWALK_DATA", str(tmp_path))
    asked: list[list[str]] = []

    def measure(*_: object, wanted: list[str] | None = None) -> Any:
        asked.append(wanted or [])
        found = run(0, 2.0, n8=(1.9 if wanted else 2.5, 90))
        return found | {"curves": {c: p for c, p in found["curves"].items() if c in (wanted or found["curves"])}}

    monkeypatch.setattr(command, "run_points", measure)
    arguments = ["--sets", "uci_tiny", "--workers", "1", "--output", str(tmp_path / "curves.json")]
    assert command.main(arguments) == 0
    assert "tiny +0.500 (1 split)" in capsys.readouterr().out
    # Of another commit, five anchors alone; then it is there, and only the others are not.
    for _ in range(2):
        assert command.main([*arguments, "--methods", "fiberwalk_5"]) == 0
        assert "tiny -0.100 (1 split)" in capsys.readouterr().out
    assert asked == [[], ["fiberwalk_5"]]
    (one,) = json.loads((tmp_path / "curves.json").read_text())["runs"]
    assert list(one["curves"]) == ["ensemble", "fiberwalk_5"] and list(one[EARLIER]) == ["ensemble"]
    assert not points.has_all(one, ["ensemble"]) and points.has_all(one, ["fiberwalk_5"])
    assert not points.has_all(one, [])


def test_the_command_tells_the_goal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = np.zeros((1, 60), dtype=bool)
    np.savez(tmp_path / "uci_tiny.npz", x=np.zeros((60, 2)), y=np.zeros(60), test_mask=mask)
    monkeypatch.setenv("FIBERWALK_DATA", str(tmp_path))
    monkeypatch.setattr(command, "run_points", lambda *_: run(0, 2.0, n8=(1.9, 90)))
    monkeypatch.setattr(command, "has_all", lambda *_: True)  # of a few points
    arguments = ["--sets", "uci_tiny", "--workers", "1", "--output", str(tmp_path / "curves.json")]
    assert command.main(arguments) == 0
    assert "tiny -0.100 (1 split)" in capsys.readouterr().out
    monkeypatch.setattr(command, "run_points", lambda *_: pytest.fail("it is done already"))
    assert command.main(arguments) == 0
    assert command.main(["--sets", "uci_none", "--output", str(tmp_path / "curves.json")]) == 2
