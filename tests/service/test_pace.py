from __future__ import annotations

import pytest

from service.pace import Pace


@pytest.mark.parametrize(("fixed", "each", "least"), [(8.0, 1.0, 8), (0.5, 1.0, 1), (30.0, 1.0, 30)])
def test_rows_are_worth_a_run_that_take_longer_than_its_start(fixed: float, each: float, least: int) -> None:
    pace = Pace()
    for rows in [1, 2, 5, 1, 16, 3] * 5:
        pace.add(rows, fixed + each * rows)
    assert pace.worthwhile(least + 1)
    assert not pace.worthwhile(least - 1)
    # What was learned stays, while all runs have as many rows, and follows when runs change.
    for _ in range(20_000):
        pace.add(1, fixed + each)
    assert pace.worthwhile(least + 1)
    for rows in [1, 2, 5, 1, 16, 3] * 50:
        pace.add(rows, 100.0 + rows)
    assert not pace.worthwhile(90)


def test_nothing_is_known_before_runs_differ() -> None:
    pace = Pace()
    assert not pace.worthwhile(10**6)
    for _ in range(3):
        pace.add(2, 1.0)
        assert not pace.worthwhile(10**6)
