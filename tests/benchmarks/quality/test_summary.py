"""Means, paired differences and ranks over the runs of the quality benchmark, and the goals judged from them."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.quality.goals import NOT_MEASURED, judge
from benchmarks.quality.page import page
from benchmarks.quality.run import METHODS
from benchmarks.quality.summary import PEERS, Summary, mean_ranks, summarize
from benchmarks.quality.tables import published_table
from benchmarks.table import MET, NOT_MET


def run(split: int, nll: dict[str, float], task: str = "regression", failed: dict[str, str] | None = None) -> Any:
    other = {"rmse": 1.0} if task == "regression" else {"accuracy": 0.9, "ece": 0.1}
    methods = {
        m: {"figures": {"nll": v, **other}, "gradient_evaluations": 2_000_000, "seconds": 3.0} for m, v in nll.items()
    }
    shape = {"rows": 90, "columns": 4, "test_rows": 10}
    return {"split": split, "task": task, **shape, "methods": methods, "failed": failed or {}}


def everyone(ours: float, peers: float, fiber: float | None = None) -> dict[str, float]:
    """NLL of all methods."""
    return {m: fiber if m == "fiberwalk_fiber" and fiber is not None else ours for m in METHODS} | dict.fromkeys(
        PEERS, peers
    )


def summary(name: str, *runs: Any) -> Summary:
    found = summarize(name, runs)
    assert found is not None
    return found


def test_means_errors_and_paired_differences() -> None:
    runs = [run(0, {"map": 1.0, "fiberwalk": 0.5}), run(1, {"map": 3.0, "fiberwalk": 2.7})]
    found = summary("uci_tiny", *runs)
    assert found["splits"] == 2
    assert found["methods"]["map"]["nll"] == {"mean": 2.0, "standard_error": pytest.approx(1.0)}
    # Splits differ by 2 and the methods by .4 on average: paired, the error is small.
    assert found["behind"]["map"] == {"mean": pytest.approx(-0.4), "standard_error": pytest.approx(0.1)}
    assert found["methods"]["map"]["gradient_evaluations"] == 2_000_000


def test_a_method_is_judged_by_its_better_reading_over_all_splits() -> None:
    runs = [run(0, {"map": 1.0, "swag": 1.0, "fiberwalk": 0.0}), run(1, {"map": 3.0, "swag": 3.0, "fiberwalk": 0.0})]
    for r, swag in zip(runs, (1.5, 2.0), strict=True):
        figures = {m: r["methods"][m]["figures"] for m in r["methods"]}
        figures["map"]["gaussian_nll"], figures["swag"]["gaussian_nll"] = 2.1, swag
    found = summary("uci_tiny", *runs)
    assert found["methods"]["map"]["nll"]["mean"] == 2.0 and found["methods"]["swag"]["nll"]["mean"] == 1.75
    assert found["behind"]["swag"]["mean"] == -1.75


def test_a_method_that_failed_on_a_split_is_left_out_and_named() -> None:
    runs = [run(0, {"map": 1.0, "swag": 1.0}), run(1, {"map": 3.0}, failed={"swag": "RuntimeError: singular"})]
    found = summary("uci_tiny", *runs)
    assert list(found["methods"]) == ["map"] and found["failed"] == {"swag": "RuntimeError: singular"}


def test_splits_in_error_do_not_count() -> None:
    assert summarize("uci_tiny", [{"split": 0, "error": "no"}]) is None
    assert summary("uci_tiny", run(0, {"map": 1.0}), {"split": 1, "error": "no"})["splits"] == 1


def test_ranks_are_shared_by_ties_and_averaged_over_sets() -> None:
    sets = [
        summary("uci_a", run(0, {"map": 1.0, "swag": 2.0, "fiberwalk": 1.0})),
        summary("uci_b", run(0, {"map": 3.0, "swag": 2.0, "fiberwalk": 1.0})),
        summary("uci_c", run(0, {"map": 0.0})),
    ]
    assert mean_ranks(sets, "nll", ["map", "swag", "fiberwalk"]) == {"map": 2.25, "swag": 2.5, "fiberwalk": 1.25}
    assert mean_ranks([], "nll", ["map"]) == {}


def states(*sets: Summary) -> dict[str, str]:
    return {g.text.split(":")[-1].strip(): g.state for g in judge(sets)}


def test_goals_are_met_where_ours_is_best() -> None:
    boston = summary("uci_boston", run(0, everyone(2.0, 2.5)), run(1, everyone(2.1, 2.6)))
    found = states(boston)
    assert found["best mean rank in test NLL"] == NOT_MEASURED  # the classification's, of the same words
    assert found["on no set worse than the best peer by two standard errors"] == MET
    assert found["best mean rank in ECE"] == NOT_MEASURED
    first = judge([boston])[0]
    assert first.state == MET and "1 of 9 sets" in first.found


def test_goals_are_not_met_where_ours_is_worse() -> None:
    boston = summary("uci_boston", run(0, everyone(2.6, 2.5)), run(1, everyone(2.72, 2.6)))
    goals = judge([boston])
    assert goals[0].state == NOT_MET and goals[1].state == NOT_MET and "uci_boston by 0.110" in goals[1].found


def test_one_set_is_not_seven() -> None:
    boston = summary("uci_boston", run(0, everyone(2.0, 2.5)))
    (goal,) = [g for g in judge([boston]) if "published" in g.text]
    assert goal.state == NOT_MET and goal.found.startswith("better on 1: boston")


@pytest.mark.parametrize(("fiber", "state"), [(1.995, MET), (1.98, NOT_MET)])
def test_decoding_may_cost_a_hundredth(fiber: float, state: str) -> None:
    boston = summary("uci_boston", run(0, everyone(2.0, 2.5, fiber)))
    (goal,) = [g for g in judge([boston]) if "decoded" in g.text]
    assert goal.state == state


def test_peers_reach_their_published_figure_within_two_standard_errors() -> None:
    # Published on boston: MC dropout 2.40, the ensemble of ten 6.11.
    runs = [run(i, {"mc_dropout": v, "ensemble_10": 7.0, "fiberwalk": 2.0}) for i, v in enumerate((2.3, 2.6))]
    _, (row,) = published_table([summary("uci_boston", *runs)])
    assert row[1] == "2.40" and row[3] == MET and row[6] == NOT_MET
    _, (other,) = published_table([summary("uci_boston", run(0, {"mc_dropout": 2.45, "fiberwalk": 2.0}))])
    assert other[3] == NOT_MET and other[4:7] == ["–"] * 3 and other[-1].startswith("2.0")


def test_the_page_shows_every_method_goal_and_set() -> None:
    sets = [
        summary("uci_boston", run(0, everyone(2.0, 2.5))),
        summary("cls_glass", run(0, everyone(1.0, 0.9), "classification")),
    ]
    machine = {"cores": 2, "architecture": "x86_64"}
    environment = {"commit": "abcdef0123456789", "preset": "default", "libraries": {"torch": "1"}, "machine": machine}
    text = page({"summary": sets, "environments": {"x": environment}})
    assert all(f"| {name} |" in text for name in METHODS.values())
    assert all(goal.text in text for goal in judge(sets))
    assert "uci_boston (1)" in text and "cls_glass (1)" in text and "abcdef012345" in text and "not met" in text
