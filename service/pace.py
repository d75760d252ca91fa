"""What a run of a network costs, learned from the runs themselves: something each time, and something a row."""

from __future__ import annotations

from typing import Final

_SHARE: Final = 0.05
"""Of the latest run in what is remembered."""
_LEAST_VARIANCE: Final = 1e-9


class Pace:
    """A line through the times of runs by their rows, the latest runs weighing most. Not thread-safe."""

    def __init__(self) -> None:
        self._runs = 0
        self._rows = self._seconds = self._variance = self._covariance = 0.0
        self._slope: float | None = None

    def add(self, rows: int, seconds: float) -> None:
        """Takes up a run of so many rows."""
        self._runs += 1
        share = max(_SHARE, 1 / self._runs)
        more, longer = rows - self._rows, seconds - self._seconds
        self._rows += share * more
        self._seconds += share * longer
        self._variance = (1 - share) * (self._variance + share * more * more)
        self._covariance = (1 - share) * (self._covariance + share * more * longer)
        # While all runs have as many rows, both fade alike, and what is known of rows stays known.
        if self._variance > _LEAST_VARIANCE:
            self._slope = self._covariance / self._variance

    def worthwhile(self, rows: int) -> bool:
        """Whether so many rows take longer than a run does before its first row; not before that is known."""
        if self._slope is None or self._slope <= 0:
            return False
        return rows * self._slope >= self._seconds - self._rows * self._slope
