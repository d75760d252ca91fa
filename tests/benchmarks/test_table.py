"""Means, standard errors and how they are printed."""

from __future__ import annotations

import io
import math

import pytest

from benchmarks.table import MET, NOT_DECIDED, NOT_MET, Estimate, estimate, mark, render, verdict


def test_mean_and_standard_error() -> None:
    found = estimate([1.0, 2.0, 3.0, 6.0])
    assert found.mean == 3.0
    assert found.standard_error == pytest.approx(math.sqrt(14 / 3) / 2)


def test_one_value_has_no_standard_error() -> None:
    assert estimate([2.5]) == Estimate(2.5, None)
    assert Estimate(2.5, None).text() == "2.500"
    assert Estimate(2.5, 0.125).text(2) == "2.50 ± 0.12"


def test_what_is_surely_below_is_so_by_more_than_two_standard_errors() -> None:
    assert Estimate(-0.21, 0.1).surely_below(0) and not Estimate(-0.2, 0.1).surely_below(0)
    assert Estimate(1.0, 0.0).surely_below(1.1) and not Estimate(-9.0, None).surely_below(0)


def test_what_only_means_say_is_not_decided() -> None:
    assert [verdict(True, True), verdict(False, True), verdict(False, False)] == [MET, NOT_DECIDED, NOT_MET]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_marks_are_coloured_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    render("title", ["goal", "state"], [["a", MET], ["b", NOT_DECIDED], ["c", NOT_MET]], out)
    assert all(
        f"\x1b[3{colour}m{state}" in out.getvalue() for colour, state in ((2, MET), (3, NOT_DECIDED), (1, NOT_MET))
    )


def test_a_table_in_a_file_is_plain_and_whole() -> None:
    out = io.StringIO()
    columns = ["set", *(f"a long heading {i}" for i in range(8)), "build"]
    render("title", columns, [["uci_tiny", *("0.123 ± 0.456",) * 8, mark(True)], ["b", *[""] * 8, mark(False)]], out)
    text = out.getvalue()
    assert "\x1b" not in text
    assert "…" not in text
    assert text.count("0.123 ± 0.456") == 8
    assert "│   met │" in text or "│     met │" in text
    assert "│ not met │" in text
