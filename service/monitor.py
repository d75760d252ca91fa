"""Whether a model keeps its promises on rows whose targets came to be known: rolling figures and a sequential test.

The test watches how often targets miss their interval or prediction set of level 0.9. Each row is a bet against "misses
are at most 15 %": its stake multiplies by `1 + lambda (miss - 0.15)`, which is no gain on average while that is true.
Evidence is the gain since whenever it has been largest, averaged over several lambda: an e-detector (Shin, Ramdas and
Rinaldo 2023), whose mean time to a false alarm is at least the evidence that it asks for, however often one looks.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

LEVELS: Final = (0.8, 0.9, 0.95)
WINDOWS: Final = (100, 1000, 10_000)
"""The latest rows that figures are told over."""
_BEFORE: Final = (0, *WINDOWS[:-1])
"""A window that holds no more rows than the one before it says nothing new."""

_WATCHED: Final = LEVELS.index(0.9)
_TOLERATED: Final = 0.05
"""By how much misses may be more than promised before that is worth an alarm."""
_STAKES: Final = np.array([0.5, 1.5, 3.0])
_ALARM: Final = 1e4
_BINS: Final = 15
FIELDS: Final = len(LEVELS) + 3
"""Numbers kept of a row."""


@dataclass(frozen=True)
class Labelled:
    """Predictions beside what came true, B rows.

    Attributes:
        missed: (B, levels) bool, whether the target lies outside the interval or set of each level.
        nll: (B,) in nats, in the target's own units.
        confidence, correct: (B,) probability of the likeliest class, and whether it is the true one; NaN for numbers.
    """

    missed: NDArray[np.bool_]
    nll: Float64
    confidence: Float64
    correct: Float64

    @property
    def fields(self) -> NDArray[np.float32]:
        """(B, FIELDS), what is kept of the rows."""
        columns = [self.missed, self.nll, self.confidence, self.correct]
        return np.column_stack(columns).astype(np.float32)


@dataclass(frozen=True)
class SequentialTest:
    """The sequential test after `count` rows.

    Attributes:
        alarm: which row raised the alarm; None where none did.
        wealth: (stakes,) logarithms, each since the best moment to start.
    """

    count: int
    alarm: int | None
    wealth: Float64

    def after(self, labelled: Labelled) -> SequentialTest:
        """The test moved on by what became known of B rows."""
        missed = labelled.missed[:, _WATCHED]
        outcome = missed.astype(np.float64)[:, None] - (1 - LEVELS[_WATCHED] + _TOLERATED)
        gains = np.log1p(_STAKES * outcome).cumsum(0)
        # Wealth never counts from below one: from each row on, it is the gain since the best moment to start.
        start = -np.maximum(self.wealth, 0.0)[None]
        wealth = gains - np.minimum.accumulate(np.concatenate([start, gains[:-1]]), axis=0)
        enough = _log_mean(wealth) >= math.log(_ALARM)
        alarm = self.alarm
        if alarm is None and enough.any():
            alarm = self.count + int(enough.argmax()) + 1
        return SequentialTest(self.count + len(missed), alarm, wealth[-1])

    @property
    def evidence(self) -> float:
        """Evidence that targets are missed too often."""
        return math.exp(min(float(_log_mean(self.wealth[None])[0]), 700.0))


NO_ROWS: Final = SequentialTest(0, None, np.zeros(len(_STAKES)))


class Monitor:
    """What became known of one version of a model, in memory that does not grow. Safe to use from many threads."""

    def __init__(self, false_alarm_rate: float) -> None:
        self._rate = false_alarm_rate
        self._lock = threading.Lock()
        self._rows = np.full((WINDOWS[-1], FIELDS), np.nan, dtype=np.float32)
        self._flags = np.zeros(WINDOWS[-1], dtype=np.bool_)
        self._scored = 0
        self._test = NO_ROWS

    def add(self, labelled: Labelled) -> None:
        """Takes up rows in the order in which they became known."""
        with self._lock:
            _write(self._rows, self._test.count, labelled.fields)
            self._test = self._test.after(labelled)

    def add_scores(self, p_values: Float64) -> None:
        """Takes up how unfamiliar rows were that were asked for."""
        with self._lock:
            _write(self._flags, self._scored, p_values <= self._rate)
            self._scored += len(p_values)

    def health(self) -> dict[str, Any]:
        """The state, the figures over each window, and the share of unfamiliar rows."""
        with self._lock:
            rows, flags, test, scored = self._rows.copy(), self._flags.copy(), self._test, self._scored
        return health_of(test, rows, flags, scored, self._rate)


def health_of(
    test: SequentialTest, rows: NDArray[np.float32], flags: NDArray[np.bool_], scored: int, rate: float
) -> dict[str, Any]:
    """The state, the figures over each window, and the share of unfamiliar rows.

    Args:
        test: after all rows.
        rows: (at most WINDOWS[-1], FIELDS), the latest of them: row i lies at place i modulo WINDOWS[-1].
        flags: (at most WINDOWS[-1],) in the same way, which scored rows were unfamiliar.
        scored: rows that were scored.
        rate: the share of familiar rows that is flagged.
    """
    count = test.count
    latest, flagged = _latest(rows, count), _latest(flags, scored)
    return {
        "state": "broken" if test.alarm is not None else "kept" if count else "unknown",
        "rows": count,
        "alarm_at_row": test.alarm,
        "evidence": test.evidence,
        "evidence_for_alarm": _ALARM,
        "windows": [_figures(latest[-size:]) for size, less in zip(WINDOWS, _BEFORE, strict=True) if count > less],
        "ood": {
            "rows": scored,
            "flagged": float(flagged.mean()) if scored else None,
            "false_alarm_rate": rate,
        },
    }


def _log_mean(wealth: Float64) -> Float64:
    """log of the mean over stakes (B,) of wealth (B, stakes), itself in logarithms."""
    most = wealth.max(1)
    found: Float64 = most + np.log(np.exp(wealth - most[:, None]).mean(1))
    return found


def _write(ring: NDArray[Any], count: int, values: NDArray[Any]) -> None:
    """Writes values behind the `count` written before, over the oldest."""
    places = (count + np.arange(len(values))) % len(ring)
    ring[places[-len(ring) :]] = values[-len(ring) :]


def _latest(ring: NDArray[Any], count: int) -> NDArray[Any]:
    """What the ring holds, the oldest first."""
    return ring[:count] if count <= len(ring) else np.roll(ring, -(count % len(ring)), axis=0)


def _figures(rows: NDArray[np.float32]) -> dict[str, Any]:
    values = rows.astype(np.float64)
    missed, (nll, confidence, correct) = values[:, : len(LEVELS)], values[:, len(LEVELS) :].T
    ece = None
    if np.isfinite(confidence).all():
        place = np.minimum((confidence * _BINS).astype(np.int64), _BINS - 1)
        ece = float(np.abs(np.bincount(place, weights=correct - confidence, minlength=_BINS)).sum() / len(values))
    return {
        "rows": len(values),
        "coverage": {f"{level:g}": 1 - float(m) for level, m in zip(LEVELS, missed.mean(0), strict=True)},
        "nll": float(nll.mean()),
        "ece": ece,
    }
