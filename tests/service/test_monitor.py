"""Rolling figures, and a test that finds broken calibration and leaves sound calibration alone."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.monitor import LEVELS, Labelled, Monitor

NOTHING = np.full(1, np.nan)


def of_misses(missed: NDArray[np.bool_]) -> Labelled:
    """Rows that miss all levels or none."""
    nothing = np.full(len(missed), np.nan)
    return Labelled(np.repeat(missed[:, None], len(LEVELS), 1), np.zeros(len(missed)), nothing, nothing)


def misses(rate: float, rows: int, seed: int) -> Labelled:
    return of_misses(np.random.default_rng(seed).uniform(size=rows) < rate)


def test_nothing_is_known_at_first() -> None:
    health = Monitor(0.01).health()
    assert (health["state"], health["rows"], health["windows"]) == ("unknown", 0, [])
    assert health["ood"] == {"rows": 0, "flagged": None, "false_alarm_rate": 0.01}


def test_figures_of_the_latest_rows() -> None:
    monitor = Monitor(0.01)
    missed = np.array([[True, True, False], [True, False, False], [False, False, False], [False, False, False]])
    confidence, correct = np.array([0.95, 0.95, 0.65, 0.65]), np.array([1.0, 1.0, 1.0, 0.0])
    monitor.add(Labelled(missed, np.array([1.0, 2.0, 3.0, 6.0]), confidence, correct))
    (window,) = monitor.health()["windows"]
    assert window["coverage"] == {"0.8": 0.5, "0.9": 0.75, "0.95": 1.0}
    assert window["nll"] == 3.0
    # Two bins: a gap of 0.05 in one and of 0.15 in the other, half of the rows each.
    assert window["ece"] == pytest.approx(0.1)
    assert monitor.health()["state"] == "kept"


def test_windows_hold_the_latest_rows_alone() -> None:
    monitor = Monitor(0.01)
    for rows, rate in ((12_000, 1), (900, 0), (100, 1)):
        monitor.add(of_misses(np.full(rows, bool(rate))))
    health = monitor.health()
    assert health["rows"] == 13_000
    assert [w["rows"] for w in health["windows"]] == [100, 1000, 10_000]
    assert [w["coverage"]["0.9"] for w in health["windows"]] == pytest.approx([0.0, 0.9, 0.09])
    assert health["windows"][0]["ece"] is None


def test_more_rows_than_are_kept_at_once() -> None:
    monitor = Monitor(0.01)
    monitor.add(of_misses(np.arange(25_000) < 20_000))
    assert monitor.health()["windows"][2]["coverage"]["0.9"] == pytest.approx(0.5)


def test_unfamiliar_rows_are_counted() -> None:
    monitor = Monitor(0.05)
    monitor.add_scores(np.array([0.5, 0.05, 0.01, 0.9]))
    assert monitor.health()["ood"] == {"rows": 4, "flagged": 0.5, "false_alarm_rate": 0.05}


@pytest.mark.parametrize("rate", [0.1, 0.13])
def test_sound_calibration_raises_no_alarm(rate: float) -> None:
    """In 20 runs of 10,000 rows, also where intervals are a little too short."""
    for seed in range(20):
        monitor = Monitor(0.01)
        monitor.add(misses(rate, 10_000, seed))
        assert monitor.health()["state"] == "kept"


@pytest.mark.parametrize("before", [0, 9_000])
@pytest.mark.parametrize(("rate", "within"), [(0.55, 100), (0.3, 500)])
def test_a_shift_that_halves_coverage_is_found_at_once(before: int, rate: float, within: int) -> None:
    for seed in range(10):
        monitor = Monitor(0.01)
        if before:
            monitor.add(misses(0.1, before, seed))
        monitor.add(misses(rate, 500, 100 + seed))
        health = monitor.health()
        assert health["state"] == "broken" and before < health["alarm_at_row"] <= before + within
        # It stays, whatever comes.
        monitor.add(misses(0.0, 5_000, seed))
        assert monitor.health()["alarm_at_row"] == health["alarm_at_row"]


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=30), min_size=1, max_size=6))
def test_evidence_is_the_best_gain_of_any_start(batches: list[list[bool]]) -> None:
    monitor = Monitor(0.01)
    for batch in batches:
        monitor.add(of_misses(np.array(batch)))
    wealth = [1.0] * 3
    found = []
    for missed in itertools.chain(*batches):
        for i, stake in enumerate((0.5, 1.5, 3.0)):
            wealth[i] = max(wealth[i], 1.0) * (1 + stake * (missed - 0.15))
        found.append(sum(wealth) / 3)
    health = monitor.health()
    assert health["evidence"] == pytest.approx(found[-1])
    above = [row for row, evidence in enumerate(found, 1) if math.log(evidence) >= math.log(1e4)]
    assert health["alarm_at_row"] == (above[0] if above else None)
