"""Means, paired differences and ranks over the runs of the quality benchmark, and the goals judged from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality.goals import NOT_MEASURED, Goal, judge
from benchmarks.quality.page import main as write_page
from benchmarks.quality.page import page
from benchmarks.quality.published import MC_DROPOUT, SUBSPACE
from benchmarks.quality.run import METHODS
from benchmarks.quality.summary import OURS, PEERS, Summary, rank, rank_ours, summarize
from benchmarks.quality.tables import published_table, table
from benchmarks.results import Results
from benchmarks.table import MET, NOT_DECIDED, NOT_MET


def run(split: int, nll: dict[str, float], task: str = "regression", failed: dict[str, str] | None = None) -> Any:
    other = {"rmse": 1.0} if task == "regression" else {"accuracy": 0.9, "ece": 0.1, "ece_by_chance": 0.08}
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
    found = rank(sets, "nll", ["map", "swag", "fiberwalk"])
    assert found.means == {"map": 2.25, "swag": 2.5, "fiberwalk": 1.25} and found.sets == sets[:2]
    # One set of the two lets map share the first place, and a tie is not the best.
    assert (
        found.best_share("fiberwalk")
        == pytest.approx(0.75, abs=0.02)
        == rank(sets, "nll", ["map", "swag", "fiberwalk"]).best_share("fiberwalk")
    )
    assert rank([], "nll", ["map"]).means == {}


def test_a_peer_that_one_set_lacks_stays_a_peer_and_one_that_few_have_is_none() -> None:
    lacking = {m: v for m, v in everyone(2.0, 2.5).items() if m != "swag"}
    sets = [summary(f"uci_{i}", run(0, everyone(2.0, 2.5))) for i in range(2)] + [summary("uci_c", run(0, lacking))]
    found = rank_ours(sets, "nll")
    assert "swag" in found.methods and found.sets == sets[:2]
    first = judge(sets)[0]
    assert first.state == MET and "best in 100% of 10,000 resamples" in first.found and "2 of 9 sets" in first.found
    few = rank_ours([sets[0], sets[2], sets[2]], "nll")
    assert "swag" not in few.methods and len(few.sets) == 3
    # The table ranks as the goal does, and a variant as if it were ours.
    _, rows = table([sets[0], sets[2], sets[2]], "nll")
    ranks = {row[0]: row[-1] for row in rows}
    assert ranks[METHODS["swag"]] == "" and ranks[METHODS["map"]] == f"{few.means['map']:.2f}"
    assert ranks[METHODS[OURS]] == ranks[METHODS["fiberwalk_fiber"]] == "1.00"
    of_peers = rank_ours([summary("uci_a", run(0, dict.fromkeys(PEERS, 1.0)))], "nll")
    assert OURS not in of_peers.means


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


def test_ece_stands_beside_what_chance_alone_shows() -> None:
    glass = summary("cls_glass", run(0, everyone(1.0, 0.9), "classification"))
    found = goal("best mean rank in ECE", glass)
    assert found.state == NOT_MET  # all have the same
    assert f"{OURS} has 0.1000 in the mean, where calibrated probabilities would show 0.0800, " in found.found


def test_one_split_behind_decides_nothing() -> None:
    behind = summary("uci_protein", run(0, everyone(2.6, 2.5)))
    ahead = summary("uci_boston", run(0, everyone(2.0, 2.5)))
    found = goal("on no set worse", behind, ahead)
    assert found.state == NOT_DECIDED and "uci_protein by 0.1000" in found.found and "uci_boston" not in found.found
    assert goal("on no set worse", ahead).state == MET


def goal(part: str, *sets: Summary) -> Goal:
    (found,) = [g for g in judge(sets) if part in g.text]
    return found


def test_one_set_is_not_seven() -> None:
    found = goal("published", summary("uci_boston", run(0, everyone(2.0, 2.5)), run(1, everyone(2.1, 2.5))))
    assert found.state == NOT_MET
    assert found.found == "better by more than two standard errors on 1: boston (1 of 9 sets)"


def test_published_figures_are_beaten_by_more_than_two_standard_errors_or_nothing_is_decided() -> None:
    def two(name: str, apart: float) -> Summary:
        nll = min(t[name] for t in (MC_DROPOUT, SUBSPACE) if name in t) - 0.1
        return summary(name, *(run(i, everyone(nll + d, 9.0)) for i, d in enumerate((-apart, apart))))

    names = list(MC_DROPOUT)
    # The standard error of two is as large as each is from their mean.
    sure, barely = [two(n, 0.04) for n in names[:6]], [two(n, 0.06) for n in names[6:]]
    found = goal("published", *sure, *barely)
    assert found.state == NOT_DECIDED and "on 6: boston" in found.found
    assert found.found.endswith("; not decided: protein, wine_red, yacht")
    assert goal("published", *sure, two(names[6], 0.04)).state == MET
    # A single split has no standard error.
    single = summary("uci_boston", run(0, everyone(0.0, 9.0)))
    assert goal("published", single).found.startswith("better by more than two standard errors on none; not decided")
    assert goal("published", *sure[:5], *sure[:1]).state == NOT_MET


def test_ensembles_are_beaten_by_the_mean_and_told_apart_by_paired_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "ensemble_20", "deep ensemble of 20")

    def two(name: str, second: float, **more: float) -> Summary:
        return summary(name, run(0, everyone(2.0, 2.5) | more), run(1, everyone(2.0, second) | more))

    sets = [two(f"uci_{i}", 2.4) for i in range(6)] + [two("uci_x", 4.0), two("uci_y", 4.0)]
    assert goal("ensemble of ten", *sets[1:]).state == NOT_MET
    ten = goal("ensemble of ten", *sets)
    assert ten.state == MET and ten.found.startswith("better on 8, on 6 by more than two standard errors")
    # Where the set's results have no ensemble of twenty.
    without = [s | {"behind": {m: e for m, e in s["behind"].items() if m != "ensemble_20"}} for s in sets]
    assert goal("as are served", *without).state == NOT_MEASURED
    better = two("uci_z", 2.4, ensemble_20=2.2)
    twenty = goal("as are served", *without, better)
    assert twenty.found == "better on 1, on 1 by more than two standard errors (1 of 9 sets)"
    assert goal("as are served", *without, two("uci_z", 2.4, ensemble_20=1.9)).found.startswith("better on 0, on 0")


@pytest.mark.parametrize(("fiber", "state"), [(1.995, MET), (1.98, NOT_MET)])
def test_decoding_may_cost_a_hundredth(fiber: float, state: str) -> None:
    boston = summary("uci_boston", run(0, everyone(2.0, 2.5, fiber)))
    assert goal("decoded", boston).state == state


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
    assert "\nTest figures of uci_boston, cls_glass were seen while the method was made.\n" in text


def test_the_page_tells_on_which_sets_peers_had_less() -> None:
    few = {m: v for m, v in everyone(2.0, 2.5).items() if m != "ensemble_20"}
    sets = [summary("uci_boston", run(0, few)), summary("uci_power", run(0, everyone(2.0, 2.5)))]
    text = page({"summary": sets, "environments": {}})
    assert "\nNot measured anew since peers were given more: uci_boston. There Laplace" in text
    assert "since peers were given more" not in page({"summary": sets[1:], "environments": {}})


def test_the_page_tells_the_rank_on_sets_that_were_not_seen() -> None:
    sets = [
        summary("uci_boston", run(0, everyone(9.0, 2.5))),
        summary("uci_power", run(0, everyone(2.0, 2.5))),
        *(summary(f"cls_{name}", run(0, everyone(1.0, 0.9), "classification")) for name in ("banana", "australian")),
    ]
    images = {"summary": [], "environments": {}}
    text = page({"summary": sets, "environments": {}}, None, images)
    others = f"1.00 in regression (1) and {len(PEERS) + 1:.2f} in classification (2)"
    assert "of uci_boston were seen while the method was made; over the other sets our mean rank" in text
    assert f"our mean rank in test NLL is {others}." in text


def test_the_page_takes_curves_from_their_runs(tmp_path: Path) -> None:
    def point(nll: float) -> dict[str, Any]:
        return {"figures": {"nll": nll}, "gradient_evaluations": 1_000_000, "seconds": 2.0}

    (tmp_path / "quality.json").write_text(json.dumps({"summary": [], "environments": {}, "runs": []}))
    machine = {"cores": 2, "architecture": "x86_64"}
    where = {"commit": "abcdef0123456789", "preset": "default", "libraries": {"torch": "1"}, "machine": machine}
    results = Results(tmp_path / "curves.json", "curves", where)
    curves = {"ensemble": {"10": point(2.0)}, "fiberwalk_5": {"8": point(1.9)}}
    # Saved without a summary, as one that an older command wrote may lack what is shown now.
    results.add("uci_boston", 0, {"task": "regression", "curves": curves, "failed": {}})
    target = tmp_path / "page.md"
    assert write_page([str(tmp_path / "quality.json"), str(target)]) == 0
    assert "boston -0.100 (1 split)" in target.read_text()
    (tmp_path / "curves.json").write_text(json.dumps({"benchmark": "other", "summary": []}))
    assert write_page([str(tmp_path / "quality.json"), str(target)]) == 2
