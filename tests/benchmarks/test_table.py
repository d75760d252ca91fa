"""Means, standard errors and how they are printed."""

from __future__ import annotations

import io
import math

import pytest

from benchmarks.table import Estimate, estimate, mark, render


def test_mean_and_standard_error() -> None:
    found = estimate([1.0, 2.0, 3.0, 6.0])
    assert found.mean == 3.0
    assert found.standard_error == pytest.approx(math.sqrt(14 / 3) / 2)


def test_one_value_has_no_standard_error() -> None:
    assert estimate([2.5]) == Estimate(2.5, None)
    assert Estimate(2.5, None).text() == "2.500"
    assert Estimate(2.5, 0.125).text(2) == "2.50 ± 0.12"


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
